"""mlx-lm's batch generator with prefill and decode as two separate calls, and rows that fail alone."""

import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, make_prompt_cache

from plimsoll.engine.chat.eager_batch import EagerBatch
from plimsoll.engine.chat.prefill_pacing import Pace
from plimsoll.engine.chat.prefix_store.pieces import is_plain
from plimsoll.engine.chat.prefix_store.reuse import Reused
from plimsoll.engine.chat.prompt_lookup import PromptLookup
from plimsoll.engine.chat.row_batch import RowBatch, RowPrompts, Rows, leaves
from plimsoll.engine.chat.sampling import Narrow, known_tokens, narrow_to
from plimsoll.engine.load.device_memory import CLEAR_EVERY
from plimsoll.engine.load.loading import Loaded
from plimsoll.engine.load.weights import on_the_cpu
from plimsoll.engine.mlx_lm_internals import OpenGenerator, merge_caches
from plimsoll.engine.row_guard import RowGuard, poisons

# Tokens of prompts per step: the first guess while others stream, and what is read at once while nobody does. On a CPU
# passes of 128 to 256 tokens read fastest, and of eight requests that come at once five need not wait for the rest.
_FIRST_CHUNK = {"cpu": 16, "gpu": 128}
_IDLE_CHUNK = {"cpu": 160, "gpu": 1024}


def open_pace(device: str, chunk: int | None) -> Pace:
    """The pace of a device; ``chunk`` is what the configuration wants read at once while others stream."""
    return Pace(first=_FIRST_CHUNK[device], idle=_IDLE_CHUNK[device], fixed=chunk)


@dataclass(slots=True)
class _Group:
    """Rows whose prompts are read side by side, with mlx-lm's record of what is left of each prompt."""

    batch: RowPrompts
    progress: list[Any]


class Generator(OpenGenerator):
    """mlx-lm's generator with prefill (``read``) and decode as two calls, so that tokens are sent before a prefill.

    mlx-lm's own step decodes, lets prompts that have been read begin to decode, reads a chunk of the other prompts, and
    only then returns the decoded tokens. It reads all prompts side by side; here each ``read`` names the rows, and the
    other prompts stay as they are. Between two calls mlx-lm's batch of prompts is empty: they are in groups instead.

    ``guard`` records what the rows' own code raised; the caller of ``read`` and ``decode`` removes those rows.
    """

    prefill_step_size: int

    def __init__(self, *args: Any, narrow: Narrow, lookup: bool = False, **kwargs: Any) -> None:
        """``narrow`` masks the logits of ids that the tokenizer has no token for; ``lookup`` allows drafts."""
        super().__init__(*args, **kwargs)
        self.guard = RowGuard()
        self.narrow = narrow
        self._rows = Rows(self.guard, narrow, EagerBatch if on_the_cpu() else RowBatch)
        caches = list(leaves(make_prompt_cache(self.model)))
        self._reads_evenly = any(isinstance(leaf, ArraysCache) for leaf in caches)
        # What was drafted wrongly has to leave the cache again.
        drafts = lookup and on_the_cpu() and all(is_plain(leaf) for leaf in caches)
        self.lookup = PromptLookup() if drafts else None
        self.drafted = 0
        self.decoding = self._no_answers()
        self.reading = self._no_prompts()
        self._groups: list[_Group] = []
        self._decoded = 0

    @property
    def batches(self) -> list[Any]:
        """The batch that decodes, and the batches whose prompts are partly read; each row is in one of them."""
        return [self.decoding, *(group.batch for group in self._groups)]

    @property
    def side_by_side(self) -> list[list[int]]:
        """The rows of partly read prompts, by groups: the rows of a group have one batch and are read together."""
        return [list(group.batch.uids) for group in self._groups]

    @property
    def prompt_cache_nbytes(self) -> int:
        """Bytes of the KV caches of all rows."""
        new = (cache.nbytes for row in self.new_rows for cache in row[3])
        return int(sum(new) + sum(cache.nbytes for batch in self.batches for cache in batch.prompt_cache))

    @property
    def answering(self) -> bool:
        """Whether any row decodes."""
        return len(self.decoding) > 0

    @property
    def begins_apart(self) -> bool:
        """Whether ``read`` makes an extra forward pass for rows whose answers begin."""
        return bool(self.decoding.begins_apart)

    @property
    def newest(self) -> dict[int, int]:
        """The last token of every answer that has one, by its row; waits for the pass that is under way."""
        return cast("dict[int, int]", self.decoding.newest)

    def join(
        self,
        tokens: list[int],
        marks: Sequence[int],
        reused: Reused,
        *,
        max_tokens: int,
        sampler: Any,
        processors: list[Any],
        scorer: Callable[[mx.array], None] | None = None,
    ) -> list[int]:
        """A new row that begins with what is ``reused``; reading stops at each of ``marks``. Returns its number.

        A row with a ``scorer`` has to be read alone.
        """
        uids: list[int] = self.insert_segments(
            [segments(tokens, reused.length, marks)],
            [max_tokens],
            caches=[reused.caches],
            all_tokens=[tokens[: reused.length]],
            samplers=[sampler],
            logits_processors=[processors],
        )
        if scorer:
            self.score(uids[0], scorer)
        return uids

    def score(self, uid: int, scorer: Callable[[mx.array], None]) -> None:
        """Hand the logits of this row's prompt to ``scorer``, portion by portion."""
        self._rows.scorers[uid] = scorer

    def let_go(self, uid: int) -> None:
        """Nothing more is kept of this row, which has left."""

    def even_out(self) -> None:
        """Have the next ``read`` take as much of each prompt, where a recurrent state would take padding for tokens.

        mlx-lm pads the shorter prompts of a batch behind their end, and some of its models take that for tokens.
        """
        if not self._reads_evenly:
            return
        parts = [sequence[0] for sequence in self.reading_progress]
        parts += [sequence[1] for sequence in self.new_rows]
        lengths = [len(part[0]) for part in parts if len(part) > 1 or len(part[0]) > 1]
        self.prefill_step_size = min([self.prefill_step_size, *lengths])

    def read(self, uids: Collection[int]) -> list[Any]:
        """Read one chunk of the prompts of these rows; rows with one token left begin to decode.

        A group that has one of them is read as a whole. New rows among them are read side by side from now on, and so
        are the groups that are named together.
        """
        chosen = set(uids)
        waiting = deque(row for row in self.new_rows if row[0] not in chosen)
        self.new_rows = deque(row for row in self.new_rows if row[0] in chosen)
        running, self.decoding = self.decoding, self._no_answers()
        with self._reading(chosen):
            self.even_out()
            try:
                progress, _ = self.next()
            finally:
                begun, self.decoding = self.decoding, running
                self.new_rows.extend(waiting)
        if len(begun):
            self._forget_scorers(begun.uids)
            running.extend(begun)
        return list(progress)

    def remove(self, uids: list[int], return_prompt_caches: bool = False) -> dict[int, Any]:
        """Take rows out; with ``return_prompt_caches`` the KV cache and the tokens of each, by its uid."""
        kept: dict[int, Any] = {}
        for part in [set(uids).intersection(group.batch.uids) for group in self._groups]:
            if part:
                with self._reading(part):
                    kept |= super().remove(list(part), return_prompt_caches)
        kept |= super().remove(uids, return_prompt_caches)
        self._forget_scorers(uids)
        return kept

    def _forget_scorers(self, uids: Sequence[int]) -> None:
        for uid in uids:
            self._rows.scorers.pop(uid, None)

    @contextmanager
    def _reading(self, uids: set[int]) -> Iterator[None]:
        """Make one batch of the groups that have any of these rows, where mlx-lm looks for it."""
        for group in [group for group in self._groups if not uids.isdisjoint(group.batch.uids)]:
            self._groups.remove(group)
            self.reading.extend(group.batch)
            self.reading_progress.extend(group.progress)
        try:
            yield
        finally:
            if len(self.reading):
                self._groups.append(_Group(self.reading, self.reading_progress))
            self.reading, self.reading_progress = self._no_prompts(), []

    def decode(self, room: int = 0) -> list[Any]:
        """One token of every answer; several of a row that decodes alone where at most ``room`` were drafted rightly.

        ``drafted`` says how many were. Only the last response of a row says how it ended.
        """
        draft = self._draft(room)
        self.drafted = len(draft)
        alone = len(self.decoding) == 1
        began_s = time.perf_counter()
        with mx.stream(self.stream):
            decoded = list(self.decoding.next_of(draft) if draft else self.decoding.next())
        if self.lookup and alone:
            self.lookup.times.note(1 + len(draft), time.perf_counter() - began_s)
        self._decoded += 1
        if self._decoded % CLEAR_EVERY == 0:
            mx.clear_cache()
        return decoded

    def _draft(self, room: int) -> list[int]:
        if self.lookup is None or room <= 0 or not isinstance(self.decoding, EagerBatch) or len(self.decoding) != 1:
            return []
        (uid,) = self.decoding.uids
        newest = self.decoding.newest.get(uid)  # before its first token the row reads the last one of the prompt
        return [] if newest is None else self.lookup.draft(uid, self.decoding.tokens[0], newest, room)

    def _no_answers(self) -> RowBatch:
        return self._rows.kind.none(self.model, self.sampler, self._rows)

    def _no_prompts(self) -> RowPrompts:
        return RowPrompts(self.model, [], [], rows=self._rows)

    def make_batch(self, rows: int) -> Any:
        """The next ``rows`` new rows as a batch, without those whose KV caches can't be merged; see ``guard``."""
        chosen = [self.new_rows[row] for row in range(rows)]
        others = len(self.reading_progress)
        try:
            return super().make_batch(rows)
        except BaseException as error:
            if poisons(error):
                raise
        del self.reading_progress[others:]
        good: list[Any] = []
        for sequence in chosen:
            with self.guard(sequence[0]):
                merge_caches([sequence[3]])
                merge_caches([*(other[3] for other in good), sequence[3]])
                good.append(sequence)
        self.new_rows.extendleft(reversed(good))
        return super().make_batch(len(good))

    def settle(self, cut_out: Sequence[list[mx.array]] = ()) -> None:
        """Evaluate the KV caches after rows joined or left; until then old and new arrays both take memory.

        Layer by layer, so that the old and new arrays of only one layer are in memory together. ``cut_out`` are parts
        of rows that have left, one list for each cache that can be cut, which hold the old arrays as well.
        """
        parts = iter(cut_out)
        for layer in itertools.zip_longest(*(leaves(batch.prompt_cache) for batch in self.batches)):
            caches = [cache for cache in layer if cache is not None]
            for cache in caches:
                if getattr(cache, "keys", None) is not None:
                    # Padding that is cut off stays allocated under the view that is left.
                    cache.keys, cache.values = mx.contiguous(cache.keys), mx.contiguous(cache.values)
            own = next(parts, []) if is_plain(caches[0]) else []
            mx.eval([cache.state for cache in caches], own)
        for own in parts:
            mx.eval(own)


def segments(tokens: list[int], begin: int, marks: Sequence[int]) -> list[list[int]]:
    """The tokens from ``begin`` on, cut at the marks."""
    cuts = [begin, *marks, len(tokens)]
    return [tokens[start:end] for start, end in itertools.pairwise(cuts)]


def open_generator(
    loaded: Loaded, max_batch: int, kind: Callable[..., Generator] = Generator, *, lookup: bool = False
) -> Generator:
    """Its rows end with the model's end-of-text tokens; ``lookup`` allows drafts."""
    tokenizer = loaded.tokenizer
    metal = mx.metal.is_available()
    wired = mx.set_wired_limit(0) if metal else 0
    generator = kind(
        loaded.model,
        stop_tokens=[(token,) for token in tokenizer.eos_token_ids],
        completion_batch_size=max_batch,
        prefill_batch_size=max_batch,
        narrow=narrow_to(known_tokens(tokenizer, loaded.info.vocab_size), loaded.info.vocab_size),
        lookup=lookup,
    )
    if metal:
        # mlx-lm's constructor wires the whole recommended working set, three quarters of the machine's memory, in each
        # process. ``limit_memory`` wires what the model needs instead.
        mx.set_wired_limit(wired)
    return generator
