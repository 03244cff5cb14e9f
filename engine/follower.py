"""The engine of every rank of a group but the first: it does to its rows what the first one does, and decides nothing.

Which tokens those rows hold it learns in the forward passes; what it samples itself is thrown away.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import StopSequences

from plimsoll.engine import loading
from plimsoll.engine import row_ops as op
from plimsoll.engine.allocator import give_back
from plimsoll.engine.engine import Progress
from plimsoll.engine.generator import Generator, open_generator, open_pace
from plimsoll.engine.kv_measure import measure
from plimsoll.engine.layers import beginning_of
from plimsoll.engine.protocol import EngineOptions, Event, ModelInfo, Request
from plimsoll.engine.rank import Rank
from plimsoll.engine.recall import row_of
from plimsoll.errors import BadRequest, InternalError

_WITHOUT_END = 1 << 60


class Follower:
    """See ``plimsoll.engine.engine.Engine``; requests never come here."""

    def __init__(self, options: EngineOptions, rank: Rank) -> None:
        self._options = options
        self._rank = rank
        self._generator: Generator | None = None
        self._kept: dict[int, tuple[int, list[Any]]] = {}

    def load(self, path: Path, progress: Progress) -> ModelInfo:
        loaded = loading.load(path, self._options, progress, rank=self._rank)
        self._generator = open_generator(loaded, self._options.max_batch)
        with mx.stream(self._generator.stream):
            measure(loaded.model, open_pace(loaded.info.device, self._options.prefill_chunk).most)
        mx.clear_cache()
        return loaded.info

    def replay(self, what: op.Op) -> None:
        """The same as on the first rank, in the same order."""
        generator = self._generator
        if generator is None:
            raise InternalError("the first rank was ready before this one had loaded")
        with mx.stream(generator.stream):
            match what:
                case op.Decode():
                    generator.decode()
                case op.Read(tokens):
                    generator.prefill_step_size = tokens
                    generator.read()
                case op.Insert():
                    self._insert(generator, what)
                case op.Remove(uids, keep):
                    self._remove(generator, uids, keep=keep)
                case op.Settle():
                    generator.settle()
                case op.Drop(uids):
                    for uid in uids:
                        del self._kept[uid]
                case op.GiveBack():
                    give_back()

    def _insert(self, generator: Generator, what: op.Insert) -> None:
        layers = self._beginning(generator, what.source, what.cached) if what.cached else None
        # When it ends the first rank says.
        generator.insert(
            [[0] * what.unread],
            [_WITHOUT_END],
            caches=[layers],
            all_tokens=[[0] * what.cached],
            stop_sequences=[StopSequences()],
        )

    def _beginning(self, generator: Generator, uid: int, length: int) -> list[Any]:
        if uid in self._kept:
            held, layers = self._kept[uid]
            return beginning_of(layers, held, length)
        return row_of(generator, uid, length).copy()

    def _remove(self, generator: Generator, uids: list[int], *, keep: bool) -> None:
        for uid, (layers, tokens) in generator.remove(uids, return_prompt_caches=keep).items():
            mx.eval([layer.state for layer in layers])
            self._kept[uid] = len(tokens), layers

    def prepare(self, request: Request) -> Any:
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

    def trim(self) -> tuple[int, int]:
        return give_back()

    def close(self) -> None:
        if self._generator is not None:
            mx.synchronize(self._generator.stream)
        self._kept.clear()
        self._generator = None
        give_back()
