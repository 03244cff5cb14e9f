"""Facts of the offered models for lists: their files, their abilities, the longest conversation that each accepts."""

import asyncio
import contextlib

import msgspec

from plimsoll.actors.status import ModelStatus, Status
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.facts import Facts, answered, ask_facts, facts, without_files
from plimsoll.catalog.installed import default_cache_dir, place
from plimsoll.errors import BadRequest, PlimsollError, UnknownModel
from plimsoll.http.app_state import AppState
from plimsoll.http.disk_reads import read_disk
from plimsoll.http.operations.admin import decide
from plimsoll.memory.load_options import longest_context

# How long a list waits for disks.
_ANSWER_S = 3.0
_MOST_NAMES = 10


async def all_facts(state: AppState, names: list[str], limit_s: float = _ANSWER_S) -> list[Facts]:
    """The facts of these models; without what is in their files where a disk does not answer within ``limit_s``."""
    cache_dir = default_cache_dir(state.config)
    models = []
    for name in names:
        # The model's folder may have been removed since the names were listed.
        with contextlib.suppress(UnknownModel):
            models.append(state.catalog.find(name))
    asked = ask_facts(models, cache_dir)
    answers = asyncio.gather(*map(asyncio.wrap_future, asked.values()), return_exceptions=True)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(answers, limit_s)
    return [answered(asked[one.source.name]) or without_files(one) for one in models]


async def offered_facts(state: AppState, limit_s: float = _ANSWER_S) -> list[tuple[str, Facts]]:
    """The facts of every model, each with the name of its worker; aliases and profiles are models of their own here."""
    known = await all_facts(state, state.catalog.names(), limit_s)
    by_name = {one.name: one for one in known}
    others = {other: by_name[name] for other, name in state.catalog.other_names().items() if name in by_name}
    return [(one.name, one) for one in known] + [(one.name, one.called(other)) for other, one in others.items()]


async def with_embedding_models(state: AppState, error: BadRequest) -> BadRequest:
    """The error of a request for vectors, with the names of the models that give some if its model does not."""
    return await _with_names(state, error, "embedding", "embedding models")


async def with_cross_encoders(state: AppState, error: BadRequest) -> BadRequest:
    """The error of a request to rerank, with the names of the models that can if its model can't."""
    return await _with_names(state, error, "rerank", "models that rerank")


async def _with_names(state: AppState, error: BadRequest, ability: str, what: str) -> BadRequest:
    if error.param != "model":
        return error
    names = [one.name for one in await all_facts(state, state.catalog.names()) if ability in one.capabilities]
    known = f"The {what} here are: {', '.join(names[:_MOST_NAMES])}." if names else "None is here."
    return BadRequest(f"{error.message} {known}", param="model")


async def facts_now(state: AppState, model: CatalogModel) -> Facts:
    """The facts of one model, with the context that it accepts now. Raises ``Unavailable`` if its disk is silent."""
    cache_dir = default_cache_dir(state.config)
    known = await read_disk(place(model.source, cache_dir), lambda: facts(model, cache_dir))
    return msgspec.structs.replace(known, context=await _context_now(state, model) or known.context)


def context_of(model: ModelStatus, now: Status) -> int:
    """The longest conversation that a loaded model accepts; 0 where it is not known."""
    info = model.info
    return min(info.context, now.contexts.get(model.name, info.context)) if info else 0


async def _context_now(state: AppState, model: CatalogModel) -> int:
    """The longest conversation, in tokens, that the model takes as it is loaded or would be now; 0 if not known."""
    with contextlib.suppress(PlimsollError, OSError, ValueError):
        decision = await decide(state, model)
        if decision and decision.granted:
            return longest_context(decision.granted)
    return 0
