"""Administration: which models there are and how they are, load, unload, plan, clean up."""

import asyncio
import time
from typing import Annotated, Any
from urllib.parse import unquote

import msgspec
from sanic import HTTPResponse
from sanic.exceptions import NotFound

from plimsoll.actors.messages import (
    CleanUpModels,
    LoadModel,
    ModelStatus,
    PinModel,
    PlanLoad,
    State,
    Status,
    UnloadModel,
)
from plimsoll.errors import BadRequest, LoadFailed, Unavailable
from plimsoll.http.errors import respond
from plimsoll.http.front import AnyRequest, App, Front
from plimsoll.http.openai.request import decode
from plimsoll.http.operations.health import need_status
from plimsoll.http.stream import ask
from plimsoll.memory.needs import longest_context
from plimsoll.memory.plan import Decision
from plimsoll.memory.report import GIB

_STATUS_TIMEOUT_S = 5.0


class UnloadBody(msgspec.Struct):
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] | None = None


class PinBody(msgspec.Struct):
    pinned: bool


class CleanupBody(msgspec.Struct):
    aggressive: bool = False


_cleanup_bodies = msgspec.json.Decoder(CleanupBody)
_unload_bodies = msgspec.json.Decoder(UnloadBody)
_pin_bodies = msgspec.json.Decoder(PinBody)


def add_routes(app: App, front: Front) -> None:
    """Register this module's endpoints."""
    api = _Admin(front)
    app.add_route(api.models, "/admin/models", methods=["GET", "HEAD"], name="admin_models")
    app.add_route(api.cleanup, "/admin/cleanup", methods=["POST"], name="admin_cleanup")
    app.add_route(api.plan, "/admin/plan", methods=["GET"], name="admin_plan")
    # The name may hold slashes, so the verb at the end is split off by hand.
    app.add_route(api.act, "/admin/models/<rest:path>", methods=["POST"], name="admin_act")


class _Admin:
    def __init__(self, front: Front) -> None:
        self._front = front

    async def models(self, _request: AnyRequest) -> HTTPResponse:
        return respond(200, models_body(await need_status(self._front), self._front.catalog.names()))

    async def act(self, request: AnyRequest, rest: str) -> HTTPResponse:
        name, _, verb = unquote(rest).rpartition("/")
        if not name or verb not in ("load", "unload", "pin"):
            raise NotFound
        self._front.catalog.find(name)
        # No time limit: loads take what they take. The client's going ends neither.
        if verb == "load":
            status = await ask(self._front.supervisor, lambda reply: LoadModel(name, reply))
        elif verb == "unload":
            grace_s = self._grace_s(request)
            status = await ask(self._front.supervisor, lambda reply: UnloadModel(name, reply, grace_s))
        else:
            pinned: bool = decode(request.body, _pin_bodies, {"pinned": "true or false"}).pinned
            status = await ask(self._front.supervisor, lambda reply: PinModel(name, pinned, reply))
        return respond(200, model_body(status, await need_status(self._front), time.monotonic()))

    async def cleanup(self, request: AnyRequest) -> HTTPResponse:
        body: CleanupBody = decode(request.body, _cleanup_bodies) if request.body else CleanupBody()
        # It answers when the memory is back; the time is bounded by the models' grace and their verification.
        report = await ask(self._front.supervisor, lambda reply: CleanUpModels(reply, body.aggressive))
        return respond(200, msgspec.to_builtins(report))

    async def plan(self, request: AnyRequest) -> HTTPResponse:
        name = request.args.get("model")
        if not name:
            raise BadRequest("say which model: GET /admin/plan?model=NAME", param="model")
        model = self._front.catalog.find(name)
        try:
            needs = await asyncio.to_thread(self._front.system.ways_to_load, model)
        except (OSError, ValueError) as error:
            raise LoadFailed(f"{name} can't be loaded: {error}") from None
        if not needs:
            raise Unavailable(f"the files of {name} are not here yet, so what it needs is not known", param="model")
        decision = await ask(self._front.supervisor, lambda reply: PlanLoad(name, needs, reply), _STATUS_TIMEOUT_S)
        return respond(200, plan_body(name, decision))

    def _grace_s(self, request: AnyRequest) -> float:
        body: UnloadBody = decode(request.body, _unload_bodies) if request.body else UnloadBody()
        return self._front.config.memory.critical_grace if body.grace_s is None else body.grace_s


def plan_body(name: str, decision: Decision) -> dict[str, Any]:
    """What loading would do; GB are 2**30 bytes, ``longest_context`` is in tokens for one conversation alone."""
    need, plan = decision.need, decision.plan
    room = plan.available_bytes + (plan.evictable_bytes if plan.victims else 0)
    return {
        "model": name,
        "verdict": plan.verdict,
        "evict": list(plan.victims),
        "blockers": list(plan.blockers),
        "required_gb": round(plan.required_bytes / GIB, 2),
        "available_gb": round(plan.available_bytes / GIB, 2),
        "evictable_gb": round(plan.evictable_bytes / GIB, 2),
        "percent_after": plan.percent_after,
        "longest_context": longest_context(need, room),
        "dequantize": need.dequantize,
    }


def models_body(server: Status, names: list[str]) -> dict[str, Any]:
    """Every model that lives, and the cold ones among ``names``."""
    known = {one.name: one for one in server.models}
    cold = [ModelStatus(name, State.COLD, pinned=name in server.pinned) for name in names if name not in known]
    now = time.monotonic()
    bodies = [model_body(one, server, now) for one in [*known.values(), *cold]]
    return {"models": sorted(bodies, key=lambda body: str(body["name"]))}


def model_body(status: ModelStatus, server: Status, now: float) -> dict[str, Any]:
    """One model; the actor's monotonic times are turned into ages and a countdown, in seconds.

    Ages are given to the millisecond: who reads them to tell which model was used last must come to the server's order.
    """
    idle_s = now - status.last_used if status.last_used else None
    resting = status.state is State.READY and not status.pinned
    unload_in_s = None
    if resting and idle_s is not None and status.idle_ttl_s is not None:
        unload_in_s = round(max(0.0, status.idle_ttl_s - idle_s), 1)
    return {
        "name": status.name,
        "state": status.state,
        "active": status.active,
        "queued": status.queued,
        "pinned": status.pinned,
        "pid": status.pid,
        "idle_s": None if idle_s is None else round(idle_s, 3),
        "idle_ttl_s": None if status.idle_ttl_s is None else float(status.idle_ttl_s),
        "unload_in_s": unload_in_s,
        "stage": status.stage or None,
        "done_bytes": status.done_bytes,
        "total_bytes": status.total_bytes,
        "footprint_bytes": server.footprints.get(status.name, 0),
        "tokens_per_s": round(server.tokens_per_s.get(status.name, 0.0), 1),
        "info": msgspec.to_builtins(status.info) if status.info else None,
        "error": status.error or None,
        "hosts": msgspec.to_builtins(status.hosts),
    }
