"""How long a model stays loaded: ``keep_alive`` within what the configuration allows."""

import math

from plimsoll.actors.messages import KeepAlive, LoadModel, UnloadModel
from plimsoll.actors.status import ModelStatus, State
from plimsoll.catalog.entries import CatalogModel
from plimsoll.errors import BadRequest, Forbidden, UnknownModel
from plimsoll.http.access.permissions import Caller, Role
from plimsoll.http.app_state import AppState
from plimsoll.http.operations.health import need_status
from plimsoll.inbox import ask, tell


async def find(state: AppState, name: str) -> CatalogModel:
    """The model of that name. Raises as ``AppState.find`` does, in the words that Ollama's clients look for."""
    # Removed once only: a name could repeat it a million times.
    asked = name.removesuffix(":latest")
    try:
        return await state.find(name)
    except UnknownModel as error:
        why = error.message.removeprefix(f"There is no model {asked[:200]!r}. ")
    raise UnknownModel(f"model '{name[:200]}' not found. {why}", param="model")


def heeded(caller: Caller, asked_s: float | None) -> float | None:
    """``asked_s`` if an administrator asks, else None: a ``keep_alive`` applies to everybody who uses the model."""
    return asked_s if caller.role is Role.ADMIN else None


def refuse_unload(caller: Caller, model: CatalogModel) -> None:
    """Raise ``Forbidden`` unless the caller is an administrator."""
    if caller.role is not Role.ADMIN:
        role = caller.role.name.lower()
        text = f"the key {caller.name!r} has the role {role}; unloading {model.source.name} (keep_alive 0) needs admin"
        raise Forbidden(text, param="keep_alive")


def keep_alive_message(model: CatalogModel, asked_s: float | None) -> KeepAlive | None:
    """The message to the Supervisor: never longer than the model's ``idle_ttl``; None for a pinned model."""
    if asked_s is None or model.pin:
        return None
    seconds = min(asked_s, math.inf if model.idle_ttl_s is None else model.idle_ttl_s)
    return KeepAlive(model.source.name, None if math.isinf(seconds) else seconds)


async def load(state: AppState, model: CatalogModel, keep_alive_s: float | None) -> None:
    """Load the model, and say how long to keep it. Raises what loading may raise."""
    name = model.source.name
    await ask(state.supervisor, lambda reply: LoadModel(name, reply))
    if message := keep_alive_message(model, keep_alive_s):
        tell(state.supervisor, message)


async def unload(state: AppState, model: CatalogModel) -> None:
    """Unload the model and wait until it is gone. A busy model is unloaded after its answers, without waiting for that.

    Raises:
        BadRequest: the model is pinned.

    """
    name = model.source.name
    status = await need_status(state)
    if name in status.pinned:
        raise BadRequest(
            f"keep_alive: {name} is pinned, so it stays loaded; POST /admin/models/{name}/pin unpins it",
            param="keep_alive",
        )
    known = {one.name: one for one in status.models}
    if busy(known.get(name)):
        tell(state.supervisor, KeepAlive(name, 0.0))
    else:
        grace_s = state.config.memory.critical_grace
        await ask(state.supervisor, lambda reply: UnloadModel(name, reply, grace_s))


def busy(model: ModelStatus | None) -> bool:
    """Whether requests run or wait for the model."""
    return model is not None and (model.state is State.BUSY or model.active > 0 or model.queued > 0)
