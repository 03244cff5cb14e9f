"""The interface between the worker and an engine: chat, embeddings, group follower, and the tests' fake engine."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from plimsoll.catalog.source import Progress
from plimsoll.engine.protocol import ChatRequest, Event, Lease, ModelInfo, Request, RerankRequest
from plimsoll.errors import BadRequest


class Unfinished(ABC):
    """A request whose preparation may take seconds more; a pool's thread spends them, not the reader thread."""

    looks_costly = False
    """Whether a short turn is unlikely to be enough. A wrong guess costs time only."""

    @abstractmethod
    def work(self, *, last: bool) -> bool:
        """One turn, a short one unless it is the ``last``; whether ``prepared`` may be asked, as after the last."""

    @abstractmethod
    def stop(self) -> None:
        """End the turn under way in another thread and refuse later ones: the request was cancelled or timed out."""

    @abstractmethod
    def prepared(self) -> Any:
        """What ``Engine.submit`` takes. Raises ``BadRequest``."""


class Engine(Protocol):
    """One loaded model. All but ``prepare`` run on the worker's step thread, which owns every MLX object."""

    def load(self, path: Path, progress: Progress) -> ModelInfo:
        """Read the model's files at ``path``. Raises whatever is wrong; ``MemoryError`` where it does not fit."""

    def prepare(self, request: Request, so_far: Sequence[int] = ()) -> Any:
        """Tokenise and check a request; runs on any thread. What it gives may be ``Unfinished``.

        The answer goes on behind the tokens ``so_far``, which the client has had from an earlier worker.

        Raises ``plimsoll.errors.BadRequest``, also for a kind of request that this engine does not serve.
        """

    def submit(self, request_id: str, prepared: Any) -> None:
        """Let the request join the running batch, now or when there is room; a refusal comes out of ``step``."""

    def cancel(self, request_id: str) -> None:
        """Remove the request, in prefill or decode; the next step ends it as ``cancelled``. Ignores unknown ids."""

    def busy(self) -> bool:
        """Whether there is anything to step."""

    def step(self) -> list[Event]:
        """One decode step for the whole batch, and at most one chunk of prefill.

        A ``count_only`` request ends in the next step without one.

        Besides texts and endings there may be ``LeaseWanted``, ``Held`` for requests that wait for memory, and a
        ``RequestError``: ``context_length_exceeded`` if the prompt can never fit, ``insufficient_memory`` if it does
        not fit though nothing else runs.
        """

    def lease(self, lease: Lease) -> None:
        """The answer to a ``LeaseWanted`` that came out of ``step``."""

    def give_way(self) -> list[Event]:
        """Another model needs memory: drop caches, and hand back room that no request uses by a ``LeaseWanted``."""

    def idle(self) -> bool:
        """Do one short piece of idle work, such as starting a write to disk; returns whether there is more to do."""

    def trim(self) -> tuple[int, int]:
        """Drop stored prompts and the allocators' caches; returns MLX's active and cached bytes afterwards."""

    def close(self) -> None:
        """Synchronise and drop the model."""


def need_chat(request: Request) -> ChatRequest:
    """The request, where it is one for a chat model. Raises ``BadRequest`` with what a chat model can't do."""
    if isinstance(request, ChatRequest):
        return request
    if isinstance(request, RerankRequest):
        what = "can't rerank. Send the query and the documents to a cross encoder."
    else:
        what = "gives no embeddings. Send the texts to an embedding model."
    raise BadRequest(f"This model is a chat model; it {what}", param="model")
