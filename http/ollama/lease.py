"""How long a model stays loaded: ``keep_alive`` within what the configuration allows."""

import math
from collections.abc import AsyncIterator, Callable
from typing import Any

from plimsoll.actors.messages import KeepAlive, LoadModel, ModelStatus, State, UnloadModel, Waiting
from plimsoll.catalog import CatalogModel
from plimsoll.engine.protocol import Request
from plimsoll.errors import BadRequest, Forbidden, UnknownModel
from plimsoll.http.access.keys import Caller, Role
from plimsoll.http.front import Front
from plimsoll.http.ollama.frames import Timing
from plimsoll.http.operations.health import need_status
from plimsoll.http.stream import Answer, ask, tell


def find(front: Front, name: str) -> CatalogModel:
    """The model of that name, also with Ollama's ``:latest`` behind it. Raises ``UnknownModel``."""
    # Tried once: a name that says it a million times is not to be followed.
    for asked in dict.fromkeys((name, name.removesuffix(":latest"))):
        try:
            model: CatalogModel = front.catalog.find(asked)
        except UnknownModel as error:
            why = error.message.removeprefix(f"There is no model {asked[:200]!r}. ")
        else:
            return model
    raise UnknownModel(f"model '{name[:200]}' not found. {why}", param="model")


def heeded(caller: Caller, asked_s: float | None) -> float | None:
    """The ``keep_alive`` that counts: it holds for all who use the model, so only an administrator's does."""
    return asked_s if caller.role is Role.ADMIN else None


def refuse_unload(caller: Caller, model: CatalogModel) -> None:
    """Raises ``Forbidden`` unless an administrator asks."""
    if caller.role is not Role.ADMIN:
        role = caller.role.name.lower()
        text = f"the key {caller.name!r} has the role {role}; unloading {model.source.name} (keep_alive 0) needs admin"
        raise Forbidden(text, param="keep_alive")


def lease(model: CatalogModel, asked_s: float | None) -> KeepAlive | None:
    """What to tell the Supervisor: never longer than the model's idle_ttl, and nothing for a pinned model."""
    if asked_s is None or model.pin:
        return None
    seconds = min(asked_s, math.inf if model.idle_ttl_s is None else model.idle_ttl_s)
    return KeepAlive(model.source.name, None if math.isinf(seconds) else seconds)


class LeasedAnswer(Answer):
    """An ``Answer`` that says how long its model is kept, and notes when its stages were over."""

    def __init__(self, front: Front, model: CatalogModel, request: Request, keep_alive_s: float | None) -> None:
        name = model.source.name
        super().__init__(front.supervisor, name, request, front.recorder.begin("ollama", name))
        self.timing = Timing()
        self._lease = lease(model, keep_alive_s)

    async def batches(self, silence_s: Callable[[], float] | None = None) -> AsyncIterator[list[Any]]:
        async for batch in super().batches(silence_s):
            self.timing.note(batch)
            if self._lease and not all(isinstance(item, Waiting) for item in batch):
                # Only now is it sure to meet the life of the model that answers; 0 waits for the answer's end.
                tell(self._supervisor, self._lease)
                self._lease = None
            yield batch


async def load(front: Front, model: CatalogModel, keep_alive_s: float | None) -> None:
    """Load the model and begin its lease. Raises what loading may raise."""
    name = model.source.name
    await ask(front.supervisor, lambda reply: LoadModel(name, reply))
    if leased := lease(model, keep_alive_s):
        tell(front.supervisor, leased)


async def unload(front: Front, model: CatalogModel) -> None:
    """Unload the model and wait until it is gone; a busy one goes after its answers, which is not waited for.

    Raises:
        BadRequest: the model is pinned.

    """
    name = model.source.name
    status = await need_status(front)
    if name in status.pinned:
        raise BadRequest(
            f"keep_alive: {name} is pinned, so it stays loaded; POST /admin/models/{name}/pin unpins it",
            param="keep_alive",
        )
    known = {one.name: one for one in status.models}
    if busy(known.get(name)):
        tell(front.supervisor, KeepAlive(name, 0.0))
    else:
        grace_s = front.config.memory.critical_grace
        await ask(front.supervisor, lambda reply: UnloadModel(name, reply, grace_s))


def busy(model: ModelStatus | None) -> bool:
    """Whether somebody has an answer to get from it."""
    return model is not None and (model.state is State.BUSY or model.active > 0 or model.queued > 0)
