"""The MLX engine: mlx-lm's BatchGenerator behind the worker's interface. Runs in a worker process only."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
from mlx_lm.generate import GenerationBatch, generation_stream

from plimsoll.engine import loading, prompts
from plimsoll.engine.allocator import give_back
from plimsoll.engine.answer_parts import AnswerParts, Parts
from plimsoll.engine.disk_cache import FOLDER, DiskCache, fingerprint
from plimsoll.engine.engine import Progress
from plimsoll.engine.generator import Generator, open_generator, open_pace
from plimsoll.engine.kv_budget import KvBudget
from plimsoll.engine.kv_measure import measure
from plimsoll.engine.live import Live, advance, processors
from plimsoll.engine.pace import Pace
from plimsoll.engine.prompt_cache import PromptCache
from plimsoll.engine.protocol import (
    ChatRequest,
    EngineOptions,
    Event,
    ModelInfo,
    PrefillProgress,
    Request,
    RequestError,
    Usage,
)
from plimsoll.engine.recall import Recall
from plimsoll.engine.row_ops import GiveBack
from plimsoll.engine.sampling import Samplers
from plimsoll.engine.step_draft import StepDraft
from plimsoll.engine.token_logprobs import TokenLogprobs
from plimsoll.engine.tokenizers import TokenizerReader
from plimsoll.engine.waiting_line import WaitingLine
from plimsoll.errors import BadRequest, InternalError

if TYPE_CHECKING:
    from plimsoll.engine.rank import Rank


@dataclass(frozen=True, slots=True)
class _Model:
    loaded: loading.Loaded
    generator: Generator
    pace: Pace
    budget: KvBudget
    prompts: prompts.PromptMaker
    logprobs: TokenLogprobs


Refusal = Literal["insufficient_memory", "never_fits"]


class MlxEngine:
    """One model and its running batch; see ``plimsoll.engine.engine.Engine``.

    ``completion_tokens`` counts every token of the answer but not the end-of-text token, which is never shown.

    KV caches of running requests and stored ones together stay within ``EngineOptions.kv_bytes``. Stored ones leave
    first; then requests wait in line, up to ``PATIENCE_S``. A request without max_tokens begins with room for 1024
    tokens of answer and gets more while there is more; where there is not, its answer ends with ``length``.
    """

    def __init__(
        self,
        options: EngineOptions,
        clock: Callable[[], float] = time.monotonic,
        tokenizers: TokenizerReader | None = None,
        rank: "Rank | None" = None,
    ) -> None:
        """``rank`` is set for the first one of a group."""
        self._options = options
        self._tokenizers = tokenizers
        self._rank = rank
        self._clock = clock
        self._model: _Model | None = None
        self._cache = PromptCache(options.prompt_cache_bytes)
        self._recall = Recall(self._cache)
        self._samplers = Samplers()
        # The generator lets a batch grow above its bound while prompts are read, so waiting happens here. It also
        # finds more in the prompt cache the later it looks.
        self._waiting = WaitingLine()
        self._live: dict[int, Live] = {}
        self._ended: list[tuple[str, str, Usage]] = []
        self._refused: list[RequestError] = []
        self._finished: list[tuple[list[int], list[Any]]] = []
        self._unsettled = False
        self._untidy = False

    def load(self, path: Path, progress: Progress) -> ModelInfo:
        loaded = loading.load(path, self._options, progress, self._tokenizers, self._rank)
        pace = open_pace(loaded.info.device, self._options.prefill_chunk)
        with mx.stream(generation_stream):
            cost = measure(loaded.model, pace.most)
        generator = self._open_generator(loaded)
        budget = KvBudget(self._options.kv_bytes, cost, context=loaded.info.context, chunk=pace.most_padding)
        maker = prompts.PromptMaker(loaded.tokenizer, loaded.info.context, loaded.info.vocab_size)
        self._model = _Model(loaded, generator, pace, budget, maker, TokenLogprobs(loaded.tokenizer))
        self._fit_cache(budget)
        if self._options.disk_cache_bytes:
            root = Path(self._options.cache_dir) / FOLDER
            disk = DiskCache(root, fingerprint(path, self._options), self._options.disk_cache_bytes)
            self._recall = Recall(self._cache, disk)
        give_back()
        return loaded.info

    def prepare(self, request: Request) -> prompts.Prompt:
        if not isinstance(request, ChatRequest):
            raise BadRequest(
                "This model is a chat model; it gives no embeddings. Send the texts to an embedding model.",
                param="model",
            )
        return self._need_model().prompts.prepare(request)

    def submit(self, request_id: str, prepared: prompts.Prompt) -> None:
        self._untidy = True
        if prepared.count_only:
            self._ended.append((request_id, "stop", Usage(len(prepared.tokens))))
            return
        if refusal := self._need_model().budget.never(prepared.wish):
            self._refuse(request_id, prepared, "never_fits", refusal)
        else:
            self._waiting.add(request_id, prepared)

    def cancel(self, request_id: str) -> None:
        if waiting := self._waiting.remove(request_id):
            self._ended.append((request_id, "cancelled", Usage(len(waiting.prompt.tokens))))
            return
        for uid, live in self._live.items():
            if live.id == request_id:
                self._leave(uid)
                self._ended.append((request_id, "cancelled", live.usage()))
                return

    def busy(self) -> bool:
        return bool(self._waiting or self._live or self._ended or self._refused or self._unsettled)

    def step(self) -> list[Event]:
        model = self._need_model()
        generator = model.generator
        draft, self._ended = StepDraft(endings=self._ended), []
        events: list[Event] = []
        self._tidy(generator)
        with mx.stream(generator.stream):
            self._admit(model)
            if not self._live:
                self._recall.look()
            else:
                began_s = self._clock()
                read, begun = self._read(model, events)
                decodes = generator.answering
                if decodes:
                    advance(generator, self._live)
                decoded = generator.decode()
                passes = (read > 0) + (begun and generator.begins_apart) + decodes
                model.pace.note(self._clock() - began_s, read=read, passes=passes)
                self._unsettled = begun or any(one.finish_reason for one in decoded)
                while decoded:  # taken out, for the cache of one that has finished holds the whole old batch
                    self._take(decoded.pop(0), draft)
        refused, self._refused = self._refused, []
        return [*events, *refused, draft.step()]

    def _tidy(self, generator: Generator) -> None:
        """What may wait until the tokens were handed out: keep what has ended, and let go of the batch it was in."""
        with mx.stream(generator.stream):
            while self._finished:
                self._cache.put(*self._finished.pop(0))
            if self._unsettled:
                self._unsettled = False
                generator.settle()

    def _read(self, model: _Model, events: list[Event]) -> tuple[int, bool]:
        """One chunk of the prompts: how many tokens were read, and whether answers begin."""
        rows = [live for live in self._live.values() if live.unread]
        if not rows:
            return 0, False
        before = sum(live.unread for live in rows)
        model.generator.prefill_step_size = model.pace.per_row(len(rows), self._room(model))
        begun = self._note_read(model.generator.read(), events)
        if all(live.unread <= 1 for live in rows) and any(live.unread for live in rows):
            # Their last tokens are read with the decode: now, and not after the next prompt.
            begun |= self._note_read(model.generator.read(), events)
        return before - sum(live.unread for live in rows), begun

    def _note_read(self, progress: list[Any], events: list[Event]) -> bool:
        for read in progress:
            live = self._live[read.uid]
            done, total = live.cached + read.progress[0], len(live.prompt.tokens)
            live.unread = total - done
            events.append(PrefillProgress(live.id, done, total))
        return any(read.end_of_prompt for read in progress)

    def idle(self) -> bool:
        if self._untidy:
            # What the allocators keep for the next step may be gigabytes after a long prompt, and others may want it.
            self._untidy = False
            self._give_back()
            return True
        return self._recall.put_away()

    def trim(self) -> tuple[int, int]:
        if self._model:
            self._tidy(self._model.generator)
        self._cache.clear()
        return self._give_back()

    def close(self) -> None:
        if self._model is not None:
            mx.synchronize(self._model.generator.stream)
        self._waiting.clear()
        self._live.clear()
        self._ended.clear()
        self._refused.clear()
        self._finished.clear()
        self._samplers = Samplers()
        self._model = None
        self._recall.close()
        self.trim()

    def _give_back(self) -> tuple[int, int]:
        if self._rank:
            self._rank.tell(GiveBack())
        return give_back()

    def _open_generator(self, loaded: loading.Loaded) -> Generator:
        if self._rank is None:
            return open_generator(loaded, self._options.max_batch)
        from plimsoll.engine.leader import LeadingGenerator  # noqa: PLC0415 - most models have one worker

        leader = open_generator(loaded, self._options.max_batch, functools.partial(LeadingGenerator, self._rank))
        self._cache.on_drop = leader.on_drop
        return leader

    def _admit(self, model: _Model) -> None:
        """Let those who wait join, in their order, while the batch, the memory and this step's reading have room."""
        budget, generator = model.budget, model.generator
        room = self._room(model)
        reading = sum(live.unread for live in self._live.values())
        while self._waiting and len(self._live) < self._options.max_batch:
            prompt = self._waiting.first.prompt
            if not budget.fits(prompt.wish):
                for late in self._waiting.hold(self._clock()):
                    self._refuse(late.id, late.prompt, "insufficient_memory", budget.waited(late.prompt.wish))
                return
            if reading >= room:
                break
            cached = self._recall.known(prompt.tokens, generator)
            if reading and reading + min(len(prompt.tokens) - cached, room) > room:
                break
            if self._recall.is_coming(prompt.tokens, cached, self._live.values()):
                break
            reading += len(prompt.tokens) - cached
            self._join(model, self._waiting.pop().id, prompt)
        self._waiting.flow()

    def _room(self, model: _Model) -> int:
        """How many tokens of prompts this step may read."""
        waiting = len(self._waiting) + sum(live.unread > 0 for live in self._live.values())
        streaming = sum(live.generated > 0 for live in self._live.values())
        return model.pace.room(streaming=streaming, waiting=waiting)

    def _join(self, model: _Model, request_id: str, prompt: prompts.Prompt) -> None:
        layers, cached = self._recall.take(prompt.tokens, model.generator)
        (uid,) = model.generator.insert(
            [prompt.tokens[cached:]],
            [prompt.max_tokens],
            caches=[layers],
            all_tokens=[prompt.tokens[:cached]],
            samplers=[self._samplers.sampler(prompt.sampling)],
            logits_processors=[processors(prompt)],
        )
        detokenizer = model.loaded.tokenizer.detokenizer
        if prompt.continues:
            # It drops a space at the beginning of a text: here the text has begun with the prompt.
            detokenizer.add_token(prompt.tokens[-1])
            _ = detokenizer.last_segment
        answer = AnswerParts(detokenizer, prompt.stop, prompt.layout)
        unread = len(prompt.tokens) - cached
        self._live[uid] = Live(request_id, prompt, cached, unread, model.budget.join(uid, prompt.wish), answer)
        self._fit_cache(model.budget)

    def _take(self, response: GenerationBatch.Response, draft: StepDraft) -> None:
        """One token of one request: what it says, and its ending where this was the last."""
        live = self._live[response.uid]
        parts, reason = Parts(), response.finish_reason
        if reason != "stop":  # the generator stops at end-of-text tokens only, and those are never shown
            live.generated += 1
            parts = live.answer.add(response.token)
            if (top := live.prompt.logprobs) is not None:
                logprob = self._need_model().logprobs.of(response.token, response.logprobs, top)
                draft.logprobs.append((live.id, [logprob]))
        if reason is not None:
            parts += live.answer.finish()
            self._forget(response.uid)
            self._finished.append((response.all_tokens, response.prompt_cache))
        elif live.answer.ended:
            self._leave(response.uid)
        elif live.generated == live.granted and not self._grow(response.uid):
            parts += live.answer.finish()
            reason = "length"
            self._leave(response.uid)
        draft.add(live.id, parts, live.generated)
        if live.answer.ended:
            reason = "stop"
        if reason == "stop" and (failure := live.failure):
            self._refused.append(failure)
        elif reason is not None:
            called = reason == "stop" and live.answer.called
            if live.answer.stop_found is not None:
                draft.stops.append((live.id, live.answer.stop_found))
            draft.endings.append((live.id, "tool_calls" if called else reason, live.usage()))

    def _leave(self, uid: int) -> None:
        """Take a request out of the batch; what was decoded may serve the next turn."""
        generator = self._need_model().generator
        live = self._forget(uid)
        with mx.stream(generator.stream):
            kept = generator.remove([uid], return_prompt_caches=live.generated > 0)
        if uid in kept:
            layers, tokens = kept[uid]
            self._finished.append((tokens, layers))
        self._unsettled = True

    def _forget(self, uid: int) -> Live:
        """Give its claim back; stored caches may take what it took."""
        budget = self._need_model().budget
        budget.leave(uid)
        self._fit_cache(budget)
        return self._live.pop(uid)

    def _grow(self, uid: int) -> bool:
        """More room for the answer of a request, if there is any."""
        budget, live = self._need_model().budget, self._live[uid]
        live.granted = budget.grow(uid)
        self._fit_cache(budget)
        return live.generated < live.granted

    def _fit_cache(self, budget: KvBudget) -> None:
        self._cache.resize(min(self._options.prompt_cache_bytes, budget.spare_bytes))

    def _refuse(self, request_id: str, prompt: prompts.Prompt, code: Refusal, sentence: str) -> None:
        param = "messages" if prompt.open_ended else "max_tokens"
        self._refused.append(RequestError(request_id, code, sentence, param))

    def _need_model(self) -> _Model:
        if self._model is None:
            raise InternalError("no model is loaded in this worker.")
        return self._model
