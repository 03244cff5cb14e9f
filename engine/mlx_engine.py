"""The MLX engine: mlx-lm's BatchGenerator behind the worker's interface. Runs in a worker process only."""

import ctypes
import gc
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, GenerationBatch

from plimsoll.engine import loading, prompts
from plimsoll.engine.answer_text import AnswerText
from plimsoll.engine.engine import Progress
from plimsoll.engine.prompt_cache import PromptCache
from plimsoll.engine.protocol import ChatRequest, EngineOptions, Event, ModelInfo, PrefillProgress, Step, Usage
from plimsoll.engine.sampling import Samplers, penalties
from plimsoll.errors import InternalError

# Tokens of prompts read per step while others stream, for their next token waits that long: few where reading is slow.
_PREFILL_CHUNK = {"cpu": 64, "gpu": 512}
# While nobody streams several prompts are read side by side: 8 short ones had their first token after 0.9 s, not 3.
_IDLE_CHUNKS = 4
_PREFILL_BATCH = 8


@dataclass(slots=True)
class _Live:
    """A request in the generator.

    ``unread`` tokens of its prompt are left to read; ``generated`` counts what the model chose, without the
    end-of-text token.
    """

    id: str
    prompt: prompts.Prompt
    cached: int
    unread: int
    text: AnswerText
    generated: int = 0

    def usage(self) -> Usage:
        return Usage(len(self.prompt.tokens), self.generated, self.cached)


class MlxEngine:
    """One model and its running batch; see ``plimsoll.engine.engine.Engine``.

    ``completion_tokens`` counts every token of the answer but not the end-of-text token, which is never shown.
    """

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._chunk = 0
        self._loaded: loading.Loaded | None = None
        self._generator: BatchGenerator | None = None
        self._cache = PromptCache(options.prompt_cache_bytes)
        self._samplers = Samplers()
        # The generator lets a batch grow above its bound while prompts are read, so waiting happens here. It also
        # finds more in the prompt cache the later it looks.
        self._waiting: deque[tuple[str, prompts.Prompt]] = deque()
        self._live: dict[int, _Live] = {}
        self._cancelled: list[tuple[str, str, Usage]] = []

    def load(self, path: Path, progress: Progress) -> ModelInfo:
        loaded = loading.load(path, self._options, progress)
        self._chunk = self._options.prefill_chunk or _PREFILL_CHUNK[loaded.info.device]
        self._generator = _generator(loaded, self._options.max_batch, self._chunk)
        self._loaded = loaded
        return loaded.info

    def prepare(self, request: ChatRequest) -> prompts.Prompt:
        loaded = self._need_loaded()
        return prompts.prepare(request, loaded.tokenizer, loaded.info.context)

    def submit(self, request_id: str, prepared: prompts.Prompt) -> None:
        self._waiting.append((request_id, prepared))

    def cancel(self, request_id: str) -> None:
        for entry in self._waiting:
            if entry[0] == request_id:
                self._waiting.remove(entry)
                self._cancelled.append((request_id, "cancelled", Usage(len(entry[1].tokens))))
                return
        for uid, live in self._live.items():
            if live.id == request_id:
                self._leave(uid)
                self._cancelled.append((request_id, "cancelled", live.usage()))
                return

    def busy(self) -> bool:
        return bool(self._waiting or self._live or self._cancelled)

    def step(self) -> list[Event]:
        generator = self._need_generator()
        texts: list[tuple[str, str, int]] = []
        endings, self._cancelled = self._cancelled, []
        events: list[Event] = []
        with mx.stream(generator.stream):
            self._admit(generator)
            if self._live:
                prefill, decoded = generator.next()
                for read in prefill:
                    live = self._live[read.uid]
                    done, total = live.cached + read.progress[0], len(live.prompt.tokens)
                    live.unread = total - done
                    events.append(PrefillProgress(live.id, done, total))
                for response in decoded:
                    self._take(response, texts, endings)
        return [*events, Step(texts, endings)]

    def trim(self) -> tuple[int, int]:
        self._cache.clear()
        gc.collect()
        mx.clear_cache()
        if sys.platform == "linux":
            # glibc keeps what MLX freed on its own free lists: 570 of 540 MB stayed resident without this.
            malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if malloc_trim is not None:
                malloc_trim(0)
        return int(mx.get_active_memory()), int(mx.get_cache_memory())

    def close(self) -> None:
        if self._generator is not None:
            mx.synchronize(self._generator.stream)
        self._waiting.clear()
        self._live.clear()
        self._cancelled.clear()
        self._samplers = Samplers()
        self._generator = None
        self._loaded = None
        self.trim()

    def _admit(self, generator: BatchGenerator) -> None:
        streaming = any(live.unread == 0 for live in self._live.values())
        room = self._chunk * (1 if streaming else _IDLE_CHUNKS)
        reading = sum(min(live.unread, self._chunk) for live in self._live.values())
        while self._waiting and len(self._live) < self._options.max_batch:
            request_id, prompt = self._waiting[0]
            layers, cached = self._cache.take(prompt.tokens)
            unread = len(prompt.tokens) - cached
            if reading and reading + min(unread, self._chunk) > room:
                return
            reading += min(unread, self._chunk)
            self._waiting.popleft()
            (uid,) = generator.insert(
                [prompt.tokens[cached:]],
                [prompt.max_tokens],
                caches=[layers],
                all_tokens=[prompt.tokens[:cached]],
                samplers=[self._samplers.sampler(prompt.sampling)],
                logits_processors=[penalties(prompt.sampling, len(prompt.tokens))],
            )
            text = AnswerText(self._need_loaded().tokenizer.detokenizer, prompt.stop)
            self._live[uid] = _Live(request_id, prompt, cached, unread, text)

    def _take(
        self,
        response: GenerationBatch.Response,
        texts: list[tuple[str, str, int]],
        endings: list[tuple[str, str, Usage]],
    ) -> None:
        """One token of one request: its text, and its ending where this was the last."""
        live = self._live[response.uid]
        text, reason = "", response.finish_reason
        if reason != "stop":  # the generator stops at end-of-text tokens only, and those are never shown
            live.generated += 1
            text = live.text.add(response.token)
        if reason is not None:
            text += live.text.finish()
            del self._live[response.uid]
            self._cache.put(response.all_tokens, response.prompt_cache)
        elif live.text.stopped:
            self._leave(response.uid)
        texts.append((live.id, text, live.generated))
        if live.text.stopped:
            reason = "stop"
        if reason is not None:
            endings.append((live.id, reason, live.usage()))

    def _leave(self, uid: int) -> None:
        """Take a request out of the batch; what was decoded may serve the next turn."""
        generator = self._need_generator()
        live = self._live.pop(uid)
        with mx.stream(generator.stream):
            kept = generator.remove([uid], return_prompt_caches=live.generated > 0)
            if uid in kept:
                layers, tokens = kept[uid]
                self._cache.put(tokens, layers)

    def _need_loaded(self) -> loading.Loaded:
        if self._loaded is None:
            raise InternalError("no model is loaded in this worker.")
        return self._loaded

    def _need_generator(self) -> Any:
        if self._generator is None:
            raise InternalError("no model is loaded in this worker.")
        return self._generator


def _generator(loaded: loading.Loaded, max_batch: int, chunk: int) -> BatchGenerator:
    metal = mx.metal.is_available()
    wired = mx.set_wired_limit(0) if metal else 0
    generator = BatchGenerator(
        loaded.model,
        stop_tokens=[(token,) for token in loaded.tokenizer.eos_token_ids],
        completion_batch_size=max_batch,
        prefill_batch_size=min(_PREFILL_BATCH, max_batch),
        prefill_step_size=chunk,
    )
    if metal:
        # Its constructor wires up to 75 % of the machine's memory, per process; kernel panics have been reported.
        mx.set_wired_limit(wired)
    return generator
