"""What the worker asks of an engine: the MLX one, and the fake one of the tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from plimsoll.engine.protocol import Event, ModelInfo, Request

Progress = Callable[[str, int, int], None]
"""Called with (stage, bytes done, bytes in all); 0 in all means not known."""


class Engine(Protocol):
    """One loaded model. All but ``prepare`` run on the worker's step thread, which owns every MLX object."""

    def load(self, path: Path, progress: Progress) -> ModelInfo:
        """Read the model's files at ``path``. Raises whatever is wrong; ``MemoryError`` where it does not fit."""

    def prepare(self, request: Request) -> Any:
        """Tokenise and check a request; runs on the reader thread.

        Raises ``plimsoll.errors.BadRequest``, also for a kind of request that this engine does not serve.
        """

    def submit(self, request_id: str, prepared: Any) -> None:
        """Let the request join the running batch, now or when there is room; a refusal comes out of ``step``."""

    def cancel(self, request_id: str) -> None:
        """Let it leave, in prefill or decode; it ends with ``cancelled`` in the next step. Unknown ids are ignored."""

    def busy(self) -> bool:
        """Whether there is anything to step."""

    def step(self) -> list[Event]:
        """One decode step for the whole batch, and at most one chunk of prefill.

        A ``count_only`` request ends in the next step without one.

        Besides texts and endings there may be a ``RequestError`` with code ``insufficient_memory``: that request would
        need more KV memory than ``EngineOptions.kv_bytes`` allows, ever or for too long a wait.
        """

    def idle(self) -> bool:
        """Nothing has been asked for a while: put something away, without delay; whether to be called again."""

    def trim(self) -> tuple[int, int]:
        """Drop caches; bytes active and cached afterwards."""

    def close(self) -> None:
        """Synchronise and drop the model."""
