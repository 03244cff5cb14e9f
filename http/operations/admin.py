"""Administration: the list of models with their states, load, unload, pin, plan a load, clean up."""

import contextlib
import time
from typing import Annotated, Any
from urllib.parse import unquote

import msgspec
from sanic import HTTPResponse
from sanic.exceptions import NotFound

from plimsoll.actors.messages import CleanUpModels, LoadModel, PinModel, PlanLoad, UnloadModel
from plimsoll.actors.status import ModelStatus, State, Status
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.names import Catalog
from plimsoll.errors import BadRequest, LoadFailed, Unavailable, UnknownModel
from plimsoll.http.app_state import App, AppState
from plimsoll.http.body import decode
from plimsoll.http.disk_reads import disk_answer
from plimsoll.http.errors import respond
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.http.operations.health import need_status
from plimsoll.inbox import ask
from plimsoll.memory.ledger import Decision
from plimsoll.memory.load_options import longest_context
from plimsoll.memory.memory_errors import GIB

_STATUS_TIMEOUT_S = 5.0


class NotHere(Unavailable):
    """The files of the model have to be fetched first."""

    code = "not_here"


class UnloadBody(msgspec.Struct):
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] | None = None


class PinBody(msgspec.Struct):
    pinned: bool


class CleanupBody(msgspec.Struct):
    aggressive: bool = False


_cleanup_bodies = msgspec.json.Decoder(CleanupBody)
_unload_bodies = msgspec.json.Decoder(UnloadBody)
_pin_bodies = msgspec.json.Decoder(PinBody)


def add_routes(app: App, state: AppState) -> None:
    """Register this module's endpoints."""
    api = _Admin(state)
    app.add_route(api.models, "/admin/models", methods=["GET", "HEAD"], name="admin_models")
    app.add_route(api.cleanup, "/admin/cleanup", methods=["POST"], name="admin_cleanup")
    app.add_route(api.plan, "/admin/plan", methods=["GET", "HEAD"], name="admin_plan")
    # A model's name may hold slashes, so the verb at the end of the path is split off in the handler.
    app.add_route(api.act, "/admin/models/<rest:path>", methods=["POST"], name="admin_act")


class _Admin:
    def __init__(self, state: AppState) -> None:
        self._state = state

    async def models(self, _request: HttpRequest) -> HTTPResponse:
        return respond(200, models_body(await need_status(self._state), self._state.catalog))

    async def act(self, request: HttpRequest, rest: str) -> HTTPResponse:
        name, _, verb = unquote(rest).rpartition("/")
        if not name or verb not in ("load", "unload", "pin"):
            raise NotFound
        # A short name is only the catalog's; the actors know models by their full names.
        name = (await self._state.find(name)).source.name
        # No time limit, because a load may take long. It goes on when the client disconnects.
        if verb == "load":
            status = await ask(self._state.supervisor, lambda reply: LoadModel(name, reply))
        elif verb == "unload":
            grace_s = self._grace_s(request)
            status = await ask(self._state.supervisor, lambda reply: UnloadModel(name, reply, grace_s))
        else:
            pinned: bool = decode(request.body, _pin_bodies, {"pinned": "true or false"}).pinned
            status = await ask(self._state.supervisor, lambda reply: PinModel(name, pinned, reply))
        return respond(200, model_body(status, await need_status(self._state), self._state.catalog))

    async def cleanup(self, request: HttpRequest) -> HTTPResponse:
        body: CleanupBody = decode(request.body, _cleanup_bodies) if request.body else CleanupBody()
        # Answered when the memory is seen to be back. The grace and the check of each model bound the time.
        report = await ask(self._state.supervisor, lambda reply: CleanUpModels(reply, body.aggressive))
        return respond(200, msgspec.to_builtins(report))

    async def plan(self, request: HttpRequest) -> HTTPResponse:
        name = request.args.get("model")
        if not name:
            raise BadRequest("say which model: GET /admin/plan?model=NAME", param="model")
        model = await self._state.find(name)
        try:
            decision = await decide(self._state, model)
        except (OSError, ValueError) as error:
            raise LoadFailed(f"{name} can't be loaded: {error}") from None
        if decision is None:
            raise NotHere(f"the files of {name} are not here yet, so what it needs is not known", param="model")
        return respond(200, plan_body(name, decision))

    def _grace_s(self, request: HttpRequest) -> float:
        body: UnloadBody = decode(request.body, _unload_bodies) if request.body else UnloadBody()
        return self._state.config.memory.critical_grace if body.grace_s is None else body.grace_s


async def decide(state: AppState, model: CatalogModel) -> Decision | None:
    """What would be decided about a load of ``model`` now; None while its files are not on this machine.

    Raises ``OSError`` or ``ValueError`` for files that can't be read, ``Unavailable`` if their disk or the Supervisor
    does not answer.
    """
    name = model.source.name
    needs = await disk_answer(state.system.weigh(model), name)
    if not needs:
        return None
    try:
        decision: Decision = await ask(state.supervisor, lambda reply: PlanLoad(name, needs, reply), _STATUS_TIMEOUT_S)
    except TimeoutError:
        text = f"the supervisor did not answer within {_STATUS_TIMEOUT_S:g} s"
        raise Unavailable(text, retry_after_s=5) from None
    return decision


def plan_body(name: str, decision: Decision) -> dict[str, Any]:
    """The body of a plan; GB are 2**30 bytes.

    ``longest_context`` is the longest conversation, in tokens, that the worker would have room for if it had no other:
    0 where nothing is loaded. It and ``dequantize`` belong to the way in which the model would be loaded.
    """
    plan, granted = decision.plan, decision.granted
    return {
        "model": name,
        "verdict": plan.verdict,
        "evict": list(plan.victims),
        "blockers": list(plan.blockers),
        "required_gb": round(plan.required_bytes / GIB, 2),
        "available_gb": round(plan.available_bytes / GIB, 2),
        "evictable_gb": round(plan.evictable_bytes / GIB, 2),
        "percent_after": plan.percent_after,
        "longest_context": longest_context(granted) if granted else 0,
        "dequantize": (granted or decision.need).dequantize,
    }


def models_body(server: Status, catalog: Catalog) -> dict[str, Any]:
    """Every model that has an actor, and the models of ``catalog`` that are not loaded."""
    known = {one.name: one for one in server.models}
    cold = [
        ModelStatus(name, State.COLD, pinned=name in server.pinned) for name in catalog.names() if name not in known
    ]
    bodies = [model_body(one, server, catalog) for one in [*known.values(), *cold]]
    return {"models": sorted(bodies, key=lambda body: str(body["name"]))}


def model_body(status: ModelStatus, server: Status, catalog: Catalog) -> dict[str, Any]:
    """The body of one model. The actor's monotonic times become ages and a countdown, in seconds.

    Ages are exact to the millisecond, so that clients can sort models by their last use as the server does.
    """
    idle_s = time.monotonic() - status.last_used if status.last_used else None
    resting = status.state is State.READY and not status.pinned
    unload_in_s = None
    if resting and idle_s is not None and status.idle_ttl_s is not None:
        unload_in_s = round(max(0.0, status.idle_ttl_s - idle_s), 1)
    return {
        "name": status.name,
        "state": status.state,
        "active": status.active,
        "queued": status.queued,
        "paused": status.paused,
        "pinned": status.pinned,
        "pid": status.pid,
        "idle_s": None if idle_s is None else round(idle_s, 3),
        "idle_ttl_s": None if status.idle_ttl_s is None else float(status.idle_ttl_s),
        "unload_in_s": unload_in_s,
        "stage": status.stage or None,
        "done_bytes": status.done_bytes,
        "total_bytes": status.total_bytes,
        "footprint_bytes": server.footprints.get(status.name, 0),
        "granted_bytes": server.granted.get(status.name, 0),
        "kv_bytes": server.kv_bytes.get(status.name, 0),
        "kv_most_bytes": server.kv_most_bytes.get(status.name, 0),
        "longest_context": server.contexts.get(status.name),
        "tokens_per_s": round(server.tokens_per_s.get(status.name, 0.0), 1),
        "info": _info(status, catalog),
        "error": status.error or None,
        "hosts": msgspec.to_builtins(status.hosts),
    }


def _info(status: ModelStatus, catalog: Catalog) -> dict[str, Any] | None:
    """What the worker says of the model, with the sampling that its entry sets."""
    if status.info is None:
        return None
    info: dict[str, Any] = msgspec.to_builtins(status.info)
    with contextlib.suppress(UnknownModel):
        for name, value in catalog.find(status.name).defaults.sampling:
            info["sampling"][name] = {"value": value, "from": "entry"}
    return info
