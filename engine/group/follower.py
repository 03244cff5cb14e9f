"""The engine of every rank of a group but the first: it does to its rows what the first one does, and decides nothing.

Which tokens those rows hold it learns in the forward passes; what it samples itself is thrown away.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import StopSequences
from mlx_lm.models.cache import make_prompt_cache

from plimsoll.catalog.source import Progress
from plimsoll.engine.chat.generator import Generator, open_generator, open_pace
from plimsoll.engine.chat.kv_measure import measure
from plimsoll.engine.chat.prefix_store.pieces import Arrays, Row, State, assemble
from plimsoll.engine.chat.prefix_store.prefix_store import needs_states_of
from plimsoll.engine.chat.prefix_store.reuse import running_row
from plimsoll.engine.group import group_ops
from plimsoll.engine.group.rank import Rank
from plimsoll.engine.load import loading
from plimsoll.engine.load.device_memory import limit_memory
from plimsoll.engine.load.weights import give_back
from plimsoll.engine.protocol import EngineOptions, Event, Lease, ModelInfo, Request
from plimsoll.errors import BadRequest, InternalError

_WITHOUT_END = 1 << 60


class Follower:
    """See ``plimsoll.engine.engine.Engine``; requests never come here."""

    def __init__(self, options: EngineOptions, rank: Rank) -> None:
        self._options = options
        self._rank = rank
        self._generator: Generator | None = None
        self._model: Any = None
        self._aside: dict[int, list[Any]] = {}
        self._blocks: dict[int, Arrays] = {}
        self._snapshots: dict[int, list[State]] = {}

    def load(self, path: Path, progress: Progress) -> ModelInfo:
        loaded = loading.load(path, self._options, progress, rank=self._rank)
        self._generator = open_generator(loaded, self._options.max_batch)
        limit_memory(loaded.info, self._options)
        with mx.stream(self._generator.stream):
            measure(loaded.model, open_pace(loaded.info.device, self._options.prefill_chunk).most)
        mx.clear_cache()
        self._model = loaded.model
        # The first rank asks all of them at the same place.
        self._rank.any_of(needs_states_of(make_prompt_cache(loaded.model)))
        return loaded.info

    def replay(self, what: group_ops.Op) -> None:
        """The same as on the first rank, in the same order."""
        generator = self._generator
        if generator is None:
            raise InternalError("the first rank was ready before this one had loaded")
        with mx.stream(generator.stream):
            match what:
                case group_ops.Decode():
                    generator.decode()
                case group_ops.Read(tokens, uids):
                    generator.prefill_step_size = tokens
                    generator.read(uids)
                case group_ops.Insert():
                    self._insert(generator, what)
                case group_ops.Remove(uids, keep):
                    kept = generator.remove(uids, return_prompt_caches=keep)
                    self._aside |= {uid: caches for uid, (caches, _) in kept.items()}
                case group_ops.Settle():
                    generator.settle()
                case group_ops.Keep() | group_ops.LetGo() | group_ops.Drop():
                    self._keep(generator, what)
                case group_ops.GiveBack():
                    give_back()
        # What a row's sampler says here decides nothing: the first rank ends its rows.
        generator.guard.keep_only(set())

    def _insert(self, generator: Generator, what: group_ops.Insert) -> None:
        # When it ends the first rank says.
        (uid,) = generator.insert_segments(
            [[[0] * length for length in what.segments]],
            [_WITHOUT_END],
            caches=[self._beginning(generator, what)],
            all_tokens=[[0] * what.cached],
            stop_sequences=[StopSequences()],
        )
        if what.scored:
            generator.score(uid, mx.eval)

    def _beginning(self, generator: Generator, what: group_ops.Insert) -> list[Any] | None:
        if not what.cached:
            return None
        if what.row is None:
            blocks = [self._blocks[number] for number in what.blocks]
            states = [] if what.snapshot is None else self._snapshots[what.snapshot]
        else:
            blocks, states = [self._row(generator, what.row).cut(0, what.cached)], []
            mx.eval([array for array in blocks[0] if array is not None])
        return assemble(make_prompt_cache(self._model), blocks, what.cached, states)

    def _row(self, generator: Generator, uid: int) -> Row:
        running = running_row(generator, uid)
        if uid in self._aside or running is None:
            return Row(self._aside[uid])
        return running.row

    def _keep(self, generator: Generator, what: group_ops.Keep | group_ops.LetGo | group_ops.Drop) -> None:
        """What the first rank's prefix store keeps, or does no more."""
        match what:
            case group_ops.Keep():
                self._cut(self._row(generator, what.uid), what)
            case group_ops.LetGo(uid):
                self._aside.pop(uid, None)
            case group_ops.Drop(numbers):
                for number in numbers:
                    self._blocks.pop(number, None)
                    self._snapshots.pop(number, None)

    def _cut(self, row: Row, what: group_ops.Keep) -> None:
        made = {number: row.cut(begin, end) for number, begin, end in what.blocks}
        states = [] if what.snapshot is None else row.states(what.position)
        mx.eval([array for arrays in made.values() for array in arrays if array is not None])
        mx.eval([array for state in states for array in state.arrays()])
        self._blocks |= made
        if what.snapshot is not None:
            self._snapshots[what.snapshot] = states

    def prepare(self, request: Request, so_far: Sequence[int] = ()) -> Any:  # noqa: ARG002 - the first rank's
        raise BadRequest(f"{type(request).__name__} belongs to the first rank of the group")

    def submit(self, request_id: str, prepared: Any) -> None:
        raise InternalError(f"request {request_id} ({prepared}) belongs to the first rank of the group")

    def cancel(self, request_id: str) -> None:
        """No request is here."""

    def busy(self) -> bool:
        return False

    def step(self) -> list[Event]:
        return []

    def idle(self) -> bool:
        return False

    def lease(self, lease: Lease) -> None:
        """Its room stays as it was at the load."""

    def give_way(self) -> list[Event]:
        self.trim()
        return []

    def trim(self) -> tuple[int, int]:
        return give_back()

    def close(self) -> None:
        if self._generator is not None:
            mx.synchronize(self._generator.stream)
        self._aside.clear()
        self._blocks.clear()
        self._snapshots.clear()
        self._model = None
        self._generator = None
        give_back()
