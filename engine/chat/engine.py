"""The MLX engine: mlx-lm's BatchGenerator behind the worker's interface. Runs in a worker process only."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mlx.core as mx
import msgspec
from mlx_lm.generate import GenerationBatch

from plimsoll.catalog.model_card import told_sampling
from plimsoll.catalog.source import Progress
from plimsoll.engine.chat import prompts
from plimsoll.engine.chat.generator import Generator
from plimsoll.engine.chat.grammar import Uncompiled
from plimsoll.engine.chat.kv_budget import Wish
from plimsoll.engine.chat.open_model import OpenModel, open_model
from plimsoll.engine.chat.prefix_store.pieces import Row
from plimsoll.engine.chat.prefix_store.reuse import WORTH_TOKENS, Reused, running_row, text_around
from plimsoll.engine.chat.running import (
    Answer,
    AnswerParts,
    Running,
    StepDraft,
    advance,
    processors,
    read_to_the_last,
    room_for_draft,
    steering,
    unread_prompts,
)
from plimsoll.engine.chat.sampling import Seeded, sampler_for
from plimsoll.engine.chat.waiting_line import WaitingLine
from plimsoll.engine.dialect.parts import Parts
from plimsoll.engine.engine import need_chat
from plimsoll.engine.group.group_ops import GiveBack
from plimsoll.engine.load.allocator_pool import AllocatorPool
from plimsoll.engine.load.loading import TokenizerReader
from plimsoll.engine.load.weights import give_back
from plimsoll.engine.protocol import (
    EngineOptions,
    Event,
    Lease,
    ModelInfo,
    PrefillProgress,
    Request,
    RequestError,
    TokenLogprob,
    Usage,
)
from plimsoll.engine.row_guard import row_failed
from plimsoll.errors import InternalError

if TYPE_CHECKING:
    from plimsoll.engine.group.rank import Rank

# Requests that join in one step copy at most so many tokens' KV caches, and the one that passes that number: streams
# wait for the copies.
_COPIED_TOKENS = 4096
# A worker that ends writes its conversations for at most so long; the ModelActor gives it a little more.
FLUSH_S = 1.0
# How often a request that waits for memory alone looks whether there is some.
_POLL_S = 0.005

Refusal = Literal["insufficient_memory", "context_length_exceeded"]


class MlxEngine:
    """One model and its running batch; see ``plimsoll.engine.engine.Engine``.

    ``completion_tokens`` counts every token of the answer but not the end-of-text token, which is never shown.

    KV caches of running requests and stored ones together stay within the room, which begins with
    ``EngineOptions.kv_bytes`` and grows by leases. A request begins when its prompt and one step of its answer fit, and
    grows by steps. Where room ends, stored caches leave first; then the youngest answer pauses: it goes back to the
    line. An answer that is alone, and for which no memory can come free, ends with ``length``.
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
        self._model: OpenModel | None = None
        # The generator lets a batch grow above its bound while prompts are read, so requests wait here.
        self._waiting = WaitingLine()
        self._arrivals = 0
        self._live: dict[int, Running] = {}
        self._ended: list[tuple[str, str, Usage]] = []
        self._refused: list[RequestError] = []
        self._finished: list[tuple[list[int], list[Any], int]] = []
        # The last of the tokens that one pass gave a row by a draft, where the row ends with it.
        self._finishing: GenerationBatch.Response | None = None
        self._unsaved: list[Answer] = []
        self._unsettled = False
        self._untidy = False

    def load(self, path: Path, progress: Progress) -> ModelInfo:
        model = open_model(path, self._options, progress, self._clock, tokenizers=self._tokenizers, rank=self._rank)
        self._model = model
        give_back()
        self._pool = AllocatorPool()
        sampling = told_sampling({}, path)
        return msgspec.structs.replace(model.loaded.info, sampling=sampling, longest=model.room.budget.longest)

    def prepare(self, request: Request, so_far: Sequence[int] = ()) -> prompts.Prompt | Uncompiled:
        return self._need_model().prompts.prepare(need_chat(request), so_far)

    def submit(self, request_id: str, prepared: prompts.Prompt) -> None:
        self._untidy = True
        model = self._need_model()
        with model.generator.guard(request_id):
            if prepared.count_only:
                self._ended.append((request_id, "stop", Usage(len(prepared.tokens))))
            else:
                answer = self._answer(model, request_id, prepared)
                if refusal := model.room.budget.never(model.room.wish(answer, alone=True)):
                    self._refuse(request_id, "context_length_exceeded", refusal)
                elif answer.generated >= prepared.max_tokens and not answer.scores:
                    self._ended.append((request_id, "length", answer.usage()))
                else:
                    self._waiting.add(answer)
        self._end_if_failed(request_id)

    def cancel(self, request_id: str) -> None:
        if waiting := self._waiting.remove(request_id):
            self._ended.append((request_id, "cancelled", waiting.usage()))
            return
        for uid, live in self._live.items():
            if live.id == request_id:
                self._leave(uid)
                self._ended.append((request_id, "cancelled", live.answer.usage()))
                return

    def busy(self) -> bool:
        return bool(self._waiting or self._live or self._ended or self._refused or self._unsettled)

    def step(self) -> list[Event]:
        model = self._need_model()
        generator = model.generator
        self._pool.busy()
        draft, self._ended = StepDraft(endings=self._ended), []
        events: list[Event] = []
        self._tidy(generator)
        self._save_paused(model)
        with mx.stream(generator.stream):
            model.room.needed_bytes = 0
            self._admit(model, events)
            if not self._live:
                self._wait_a_moment(model)
            if self._live:
                began_s = self._clock()
                read, begun = self._read(model, events)
                decodes = generator.answering
                if decodes:
                    advance(generator, self._live)
                decoded = generator.decode(room_for_draft(self._live))
                passes = (read > 0) + (begun and generator.begins_apart) + decodes
                if not generator.drafted:
                    model.pace.note(self._clock() - began_s, read=read, passes=passes)
                self._unsettled = begun or any(one.finish_reason for one in decoded)
                self._finishing = decoded[-1] if generator.drafted and decoded[-1].finish_reason else None
                while decoded:  # taken out, for the cache of one that has finished holds the whole old batch
                    self._take_guarded(decoded.pop(0), draft)
                self._finishing = None
                self._end_failed()
                self._park(model)
            events += model.room.ask()
        refused, self._refused = self._refused, []
        return [*events, *refused, draft.step()]

    def _wait_a_moment(self, model: OpenModel) -> None:
        """Nothing runs: wait for the disk or for memory, which come by themselves."""
        if model.reuse.disk:
            model.reuse.disk.moment()
        if model.room.needed_bytes:
            time.sleep(_POLL_S)

    def lease(self, lease: Lease) -> None:
        self._need_model().room.leased(lease)

    def give_way(self) -> list[Event]:
        self.trim()
        return self._need_model().room.give_way()

    def _tidy(self, generator: Generator) -> None:
        """What may wait until the tokens were handed out: keep what has ended, and let go of the batch it was in."""
        with mx.stream(generator.stream):
            store = self._need_model().reuse.store
            while self._finished:
                tokens, layers, uid = self._finished.pop(0)
                with generator.guard.aside("a conversation could not be kept for its next turn"):
                    store.put(tokens, Row(layers), uid, later=True)
                del layers
                generator.let_go(uid)
            if self._unsettled:
                self._unsettled = False
                generator.settle(store.cut_out())

    def _read(self, model: OpenModel, events: list[Event]) -> tuple[int, bool]:
        """Read a chunk of the prompts, if any: how many tokens, with padding, and whether answers begin."""
        read, begun = 0, False
        streaming = sum(live.generated > 0 for live in self._live.values())
        if chunk := model.pace.next_chunk(unread_prompts(model.generator, self._live), streaming=streaming):
            before = {uid: self._live[uid].unread for uid in chunk.rows}
            scored = any(self._live[uid].answer.scores for uid in chunk.rows)
            model.generator.prefill_step_size = min(chunk.tokens, model.portion) if scored else chunk.tokens
            mx.reset_peak_memory()
            begun = self._note_read(model.generator.read(chunk.rows), events)
            if self._options.kv_lease and not begun:  # rows that begin are copied: both copies would count
                held = max(len(live.tokens) - live.unread for live in map(self._live.__getitem__, chunk.rows))
                scoring_bytes = scored * model.room.budget.scoring_bytes  # has a claim of its own
                model.room.budget.working.note(held, mx.get_peak_memory() - mx.get_active_memory() - scoring_bytes)
            read = len(before) * max(unread - self._live[uid].unread for uid, unread in before.items())
        for rows in read_to_the_last(model.generator, self._live):
            # Their last tokens are read with the decode: now, and not after the next prompt.
            model.generator.prefill_step_size = 0
            begun |= self._note_read(model.generator.read(rows), events)
        return read, begun

    def _note_read(self, progress: list[Any], events: list[Event]) -> bool:
        for read in progress:
            live = self._live[read.uid]
            done, total = live.known + read.progress[0], len(live.tokens)
            if live.unread != total - done:
                live.unread = total - done
                events.append(PrefillProgress(live.id, done, total))
            if read.end_of_segment and done in live.marks:
                self._keep_beginning(read.uid, live.tokens[:done])
            if read.end_of_prompt:
                self._need_model().room.budget.has_read(read.uid)
        return any(read.end_of_prompt for read in progress)

    def _keep_beginning(self, uid: int, tokens: list[int]) -> None:
        """What was read so far serves other prompts too."""
        model = self._need_model()
        if running := running_row(model.generator, uid):
            with mx.stream(model.generator.stream), model.generator.guard.aside("a prompt could not be kept"):
                model.reuse.store.put(tokens, running.row, uid)

    def idle(self) -> bool:
        self._pool.rest()
        if self._untidy:
            # What the allocators keep for the next step may be gigabytes after a long prompt, and others may want it.
            self._untidy = False
            self._give_back()
            return True
        reuse = self._need_model().reuse
        return bool(reuse.disk and reuse.disk.put_away(reuse.store))

    def trim(self) -> tuple[int, int]:
        if self._model:
            self._tidy(self._model.generator)
            self._model.reuse.store.clear()
        return self._give_back()

    def close(self) -> None:
        if self._model is not None:
            mx.synchronize(self._model.generator.stream)
            self._put_all_away(self._model)
            self._pool.close()
        self._waiting.clear()
        self._live.clear()
        self._ended.clear()
        self._refused.clear()
        self._finished.clear()
        self._unsaved.clear()
        self._model = None
        self.trim()

    def _put_all_away(self, model: OpenModel) -> None:
        """The next process of this model begins with what this one has read."""
        disk, store = model.reuse.disk, model.reuse.store
        if disk:
            self._tidy(model.generator)
            disk.flush(store, FLUSH_S)
            disk.close()

    def _give_back(self) -> tuple[int, int]:
        if self._rank:
            self._rank.tell(GiveBack())
        return give_back()

    def _admit(self, model: OpenModel, events: list[Event]) -> None:
        """Let those who wait join, in their order, while the batch and the memory have room.

        A prompt whose beginning is being read for another one, or from the disk, lets those behind it join before it.
        """
        copied = 0
        for waiting in self._waiting:
            if len(self._live) >= model.max_batch or copied >= _COPIED_TOKENS:
                break
            wish = model.room.wish(waiting, alone=not self._live)
            if not model.room.fits(wish):
                if self._live or model.room.may_grow:
                    events += model.room.held(self._waiting)
                    return
                self._waiting.remove(waiting.id)
                self._end_without_room(waiting, model.room.budget.denied(wish))
                continue
            with model.generator.guard(waiting.id):
                copied += self._join_unless_coming(model, waiting, wish)
            if self._end_if_failed(waiting.id):
                self._waiting.remove(waiting.id)

    def _end_without_room(self, answer: Answer, sentence: str) -> None:
        """Nothing else runs and it still does not fit: an answer that has begun ends here, a request is refused."""
        if answer.chosen:
            self._ended.append((answer.id, "length", answer.usage()))
        else:
            self._refuse(answer.id, "insufficient_memory", sentence)

    def _join_unless_coming(self, model: OpenModel, answer: Answer, wish: Wish) -> int:
        """Let the request join, unless more of its prompt is known soon; how many tokens' KV cache it begins with."""
        reused = Reused()
        if not answer.scores:  # else every token of the prompt is read
            cached = model.reuse.known(answer.tokens, model.generator)
            if model.reuse.is_coming(answer.tokens, cached, self._live.values()):
                return 0
            reused = model.reuse.take(answer.tokens, model.generator)
        self._join(model, answer, wish, reused)
        self._waiting.remove(answer.id)
        return reused.length

    def _answer(self, model: OpenModel, request_id: str, prompt: prompts.Prompt) -> Answer:
        """A new request. If an earlier worker has sent tokens of it, this goes on behind them as if it had."""
        detokenizer = model.loaded.tokenizer.detokenizer
        if prompt.continues:
            # It drops a space at the beginning of a text: here the text has begun with the prompt.
            detokenizer.add_token(prompt.tokens[-1])
            _ = detokenizer.last_segment
        parts = AnswerParts(detokenizer, prompt.stop, prompt.plan)
        self._arrivals += 1
        answer = Answer(request_id, prompt, parts, sampler_for(prompt.sampling), processors(prompt), self._arrivals)
        answer.scores = model.scores(prompt)
        answer.replay(prompt.so_far)
        return answer

    def _join(self, model: OpenModel, answer: Answer, wish: Wish, reused: Reused) -> None:
        tokens = answer.tokens
        if not answer.begun:
            answer.left_text = text_around(model.loaded.tokenizer, tokens, reused.left_at)
        marks = self._marks(model, answer, reused)
        if isinstance(answer.sampler, Seeded):
            answer.sampler.position = answer.said_before
        own: dict[str, Any] = {"sampler": answer.sampler, "processors": answer.processors, "scorer": answer.scores}
        (uid,) = model.generator.join(tokens, marks, reused, max_tokens=max(1, wish.answer), **own)
        granted = answer.said_before + model.room.join(uid, wish)
        self._live[uid] = Running(answer, reused, granted, marks)

    def _marks(self, model: OpenModel, answer: Answer, reused: Reused) -> tuple[int, ...]:
        """Where to stop reading for a snapshot; also where the prompt leaves what is known, for others may as well."""
        if not model.reuse.store.needs_states:
            return ()
        last = len(answer.tokens) - 1
        branch = {reused.left_at} if reused.length + WORTH_TOKENS <= reused.left_at <= last else set()
        return tuple(sorted(mark for mark in {*answer.prompt.marks, *branch} if mark > reused.length))

    def _take_guarded(self, response: GenerationBatch.Response, draft: StepDraft) -> None:
        guard, uid = self._need_model().generator.guard, response.uid
        if uid not in self._live and uid not in guard:
            return  # a stop string stood before the last token that a draft gave
        if uid not in guard:
            with guard(uid):
                self._take(response, draft)
        if uid in guard and response.finish_reason is not None:
            self._need_model().generator.let_go(uid)

    def _take(self, response: GenerationBatch.Response, draft: StepDraft) -> None:
        """One token of one request: what it says, and its ending where this was the last.

        All that may raise comes before anything is changed.
        """
        live = self._live[response.uid]
        before = live.generated
        parts, logprobs, reason = self._read_token(live, response)
        draft.add_prompt(live.answer)
        draft.tokens += [(live.id, token) for token in live.answer.chosen[before:]]
        last = response if response.finish_reason is not None or reason is None else self._finishing
        if last is not None and last.finish_reason is not None:
            self._forget(response.uid)
            if last.prompt_cache is not None:
                self._finished.append((last.all_tokens, last.prompt_cache, response.uid))
            else:
                self._need_model().generator.let_go(response.uid)
        elif reason is not None:
            self._leave(response.uid)
        if logprobs:
            draft.logprobs.append((live.id, logprobs))
        draft.add(live.id, parts, live.generated)
        if reason == "stop" and (failure := live.answer.failure):
            self._refused.append(failure)
        elif reason is not None:
            called = reason == "stop" and live.answer.parts.called
            if live.answer.parts.stop_found is not None:
                draft.stops.append((live.id, live.answer.parts.stop_found))
            draft.endings.append((live.id, "tool_calls" if called else reason, live.answer.usage()))

    def _read_token(
        self, live: Running, response: GenerationBatch.Response
    ) -> tuple[Parts, list[TokenLogprob], str | None]:
        """What a token says, its log-probability where it was asked for, and why the answer ends here if it does."""
        answer, uid, room = live.answer, response.uid, self._need_model().room
        if not answer.prompt.max_tokens:
            return Parts(), [], "length"  # the prompt alone was asked for
        parts, logprobs, reason = Parts(), [], response.finish_reason
        if reason != "stop":  # the generator stops at end-of-text tokens only, and those are never shown
            parts = answer.parts.add(response.token)
            if (top := answer.prompt.logprobs) is not None:
                logprobs = [self._need_model().logprobs.of(response.token, response.logprobs, top)]
            answer.chosen.append(response.token)
        if (
            reason is None
            and not answer.parts.ended
            and live.generated == live.granted
            and not room.grow(uid, self._live)
        ):
            reason = "length"
        if reason is not None:
            parts += answer.parts.finish()
        parts.check()
        return parts, logprobs, "stop" if answer.parts.ended else reason

    def _end_failed(self) -> None:
        """End the rows whose own code has raised; the others never notice."""
        generator = self._need_model().generator
        for uid in [uid for uid in self._live if uid in generator.guard]:
            live = self._forget(uid)
            with mx.stream(generator.stream):
                generator.remove([uid])
            self._unsettled = True
            if error := generator.guard.take(uid):
                self._refused.append(row_failed(live.id, error, live.generated))

    def _end_if_failed(self, request_id: str) -> bool:
        """Whether a request without a row has failed, which ends it."""
        if (error := self._need_model().generator.guard.take(request_id)) is None:
            return False
        self._refused.append(row_failed(request_id, error, 0))
        return True

    def _leave(self, uid: int) -> None:
        """Take a request out of the batch; what was decoded may serve the next turn."""
        generator = self._need_model().generator
        live, kept = self._forget(uid), {}
        begun = len(live.tokens) - live.unread > live.known or live.generated > live.answer.said_before
        with mx.stream(generator.stream):
            with generator.guard.aside("the KV cache of an answer could not be kept"):
                kept = generator.remove([uid], return_prompt_caches=begun)
            if not kept and begun:
                generator.remove([uid])
                generator.let_go(uid)
        if uid in kept:
            layers, tokens = kept[uid]
            self._finished.append((tokens, layers, uid))
        self._unsettled = True

    def _forget(self, uid: int) -> Running:
        """Give its claim back."""
        self._need_model().room.leave(uid)
        return self._live.pop(uid)

    def _park(self, model: OpenModel) -> None:
        """Pause answers for which there is no room; what they have read and said goes to the prefix store."""
        while model.room.parking:
            uid = model.room.parking.pop()
            answer = self._live[uid].answer
            self._keep_paused(model, uid)
            if answer.generated > answer.said_before and not model.generator.begins_apart:
                with model.generator.guard(answer.id):  # the next step would have told them
                    for one in steering(answer.prompt):
                        one.advance(answer.chosen[-1])
            answer.pause()
            if not self._end_if_failed(answer.id):
                self._waiting.add(answer)
                self._unsaved += [answer] if model.reuse.disk else []

    def _save_paused(self, model: OpenModel) -> None:
        """What paused answers have read goes to the disk: others may soon want all the memory that it takes."""
        while model.reuse.disk and self._unsaved:
            answer = self._unsaved[0]
            if answer in self._waiting and model.reuse.disk.save(model.reuse.store, answer.tokens):
                return
            self._unsaved.pop(0)

    def _keep_paused(self, model: OpenModel, uid: int) -> None:
        """Take a row out that has to pause; the prefix store keeps as much of it as there is room for."""
        self._forget(uid)
        self._unsettled = True
        with mx.stream(model.generator.stream):
            with model.generator.guard.aside("a paused answer could not be kept"):
                for batch in model.generator.batches:
                    if uid in batch.uids:
                        index = batch.uids.index(uid)
                        model.reuse.store.put(
                            list(batch.tokens[index]), Row(batch.prompt_cache, index), uid, later=True
                        )
            model.generator.remove([uid])

    def _refuse(self, request_id: str, code: Refusal, sentence: str) -> None:
        self._refused.append(RequestError(request_id, code, sentence, "messages"))

    def _need_model(self) -> OpenModel:
        if self._model is None:
            raise InternalError("no model is loaded in this worker.")
        return self._model
