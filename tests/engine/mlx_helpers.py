"""What the MLX engine's tests share."""

import functools
import time
from pathlib import Path

import mlx.core as mx
from mlx_lm import stream_generate
from mlx_lm.utils import load_model, load_tokenizer

from plimsoll.engine.chat.engine import MlxEngine
from plimsoll.engine.engine import Unfinished
from plimsoll.engine.protocol import (
    ChatRequest,
    EngineOptions,
    Held,
    LeaseWanted,
    PrefillProgress,
    RequestError,
    Sampling,
    Step,
)

GREEDY = Sampling(temperature=0)


def open_engine(folder, clock=time.monotonic, **options):
    """A loaded engine, and in ``engine.info`` what it says of itself."""
    engine = MlxEngine(EngineOptions(cache_dir="", **options), clock)
    engine.info = engine.load(Path(folder), lambda *_: None)
    return engine


def store_of(engine):
    """The prefix store of a loaded engine."""
    return engine._model.reuse.store


def request(text, sampling=GREEDY, **rest):
    return ChatRequest([{"role": "user", "content": text}], sampling, **rest)


def prepare(engine, chat):
    """What may be submitted, with its grammar."""
    made = engine.prepare(chat)
    if isinstance(made, Unfinished):
        made.work(last=False) or made.work(last=True)
        return made.prepared()
    return made


class Run:
    """Drives an engine and keeps what came out: text, tokens, ending and usage by request id."""

    def __init__(self, engine):
        self.engine = engine
        self.texts, self.counts, self.reasons, self.usage, self.prefill, self.tokens = {}, {}, {}, {}, {}, {}
        self.held, self.leases, self.parked = {}, [], set()
        self.refused, self.reasoning, self.logprobs, self.calls, self.pieces = {}, {}, {}, {}, {}
        self.prompts = {}

    def submit(self, name, chat):
        self.engine.submit(name, prepare(self.engine, chat))
        return self

    def step(self):
        for event in self._recorded_step():
            if isinstance(event, PrefillProgress):
                self.prefill.setdefault(event.id, []).append((event.done, event.total))
            if isinstance(event, RequestError):
                self.refused[event.id] = event
            if isinstance(event, Step):
                self._note(event)
            if isinstance(event, Held):
                self.held.setdefault(event.id, []).append(event)
            if isinstance(event, LeaseWanted):
                self.leases.append(event)
        self.parked |= {one.id for one in self.engine._waiting if one.begun}

    def finish(self):
        while self.engine.busy():
            self.step()
        return self

    def _note(self, event):
        for name, text, count in event.texts:
            assert name not in self.reasons, "text after the ending"
            self.texts[name] = self.texts.get(name, "") + text
            self.counts[name] = count
        for name, text, count in event.reasoning:
            self.reasoning[name] = self.reasoning.get(name, "") + text
            self.counts[name] = count
        for name, logprobs in event.logprobs:
            self.logprobs.setdefault(name, []).extend(logprobs)
        for name, tokens in event.prompts:
            assert name not in self.prompts, "two scores of one prompt"
            self.prompts[name] = tokens
        for part in event.calls:
            self._note_call(part)
        for name, reason, usage in event.endings:
            assert name not in self.reasons, "two endings"
            self.reasons[name] = reason
            self.usage[name] = usage

    def _note_call(self, part):
        """``calls`` holds whole calls, ``pieces`` the pieces of arguments as they came."""
        calls = self.calls.setdefault(part.request_id, [])
        if part.name:
            assert part.index == len(calls), "calls are numbered in their order"
            calls.append((part.name, ""))
        name, arguments = calls[part.index]
        calls[part.index] = (name, arguments + part.arguments)
        self.pieces.setdefault(part.request_id, []).append(part.arguments)

    def _recorded_step(self):
        """One step; token ids are seen where the engine turns them into text."""
        engine = self.engine
        take = engine._take

        def recording(response, draft):
            live = engine._live[response.uid]  # a row that has left is never handed to ``_take``
            if response.finish_reason != "stop":
                self.tokens.setdefault(live.id, []).append(response.token)
            take(response, draft)

        engine._take = recording
        try:
            return engine.step()
        finally:
            del engine._take


def answer(engine, chat):
    """Text of one request that runs alone."""
    return Run(engine).submit("only", chat).finish().texts["only"]


@functools.cache
def reference_model(folder):
    """The model as mlx-lm alone loads it, with float32 parameters."""
    model, config = load_model(Path(folder), lazy=True)
    model.set_dtype(mx.float32)
    return model, load_tokenizer(Path(folder), eos_token_ids=config.get("eos_token_id"))


def reference(folder, text, max_tokens):
    """Greedy tokens and text of mlx_lm.stream_generate."""
    model, tokenizer = reference_model(str(folder))
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    tokens, shown = [], ""
    for response in stream_generate(model, tokenizer, prompt, max_tokens=max_tokens):
        shown += response.text
        if response.finish_reason != "stop":
            tokens.append(response.token)
    return tokens, shown
