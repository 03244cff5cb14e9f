"""Health: the memory figures and the state of the server, for people, probes and load balancers."""

import time
from typing import Any

import msgspec
import psutil
from sanic import HTTPResponse

from plimsoll import __version__
from plimsoll.actors.messages import GetStatus
from plimsoll.actors.status import ModelStatus, NodeStatus, State, Status
from plimsoll.errors import BadRequest, PlimsollError, Unavailable
from plimsoll.http.app_state import App, AppState
from plimsoll.http.errors import respond
from plimsoll.http.limits.body_budget import HttpRequest
from plimsoll.inbox import ask
from plimsoll.memory import sources
from plimsoll.memory.sample import Level, Sample

_TIMEOUT_S = 1.0
_NEEDED_TIMEOUT_S = 5.0
_GB = 2**30
# What a request without a key gets to see on a server that needs keys.
_SUMMARY = ("status", "memory", "level")
_NAMES = {Level.NORMAL: "healthy", Level.WARNING: "warning", Level.CRITICAL: "critical", Level.EMERGENCY: "critical"}


class Condition(msgspec.Struct, frozen=True):
    """The state of the server. ``word`` is healthy, warning, degraded or critical.

    ``known`` is the Supervisor's status; without it ``sample`` was read here and now.
    """

    word: str
    known: Status | None
    sample: Sample | None
    problems: list[str]


def add_routes(app: App, state: AppState) -> None:
    """Register this module's endpoints."""
    api = _Health(state)
    for handler, path in ((api.health, "/health"), (api.live, "/health/live"), (api.ready, "/health/ready")):
        app.add_route(handler, path, methods=["GET", "HEAD"], name=f"health_{handler.__name__}")


class _Health:
    def __init__(self, state: AppState) -> None:
        self._state = state

    async def health(self, request: HttpRequest) -> HTTPResponse:
        # At critical memory this request also starts a clean-up; the Supervisor limits how often.
        clean_up = request.args.get("cleanup", "yes")
        if clean_up not in ("yes", "no"):
            raise BadRequest(f"cleanup: {clean_up!r} is not allowed, expected yes or no", param="cleanup")
        body = health_body(self._state, await read_status(self._state, clean_up=clean_up == "yes"))
        if request.ctx.caller is None:
            body = {key: body[key] for key in _SUMMARY}
        return respond(503 if body["status"] == "critical" else 200, body)

    async def live(self, _request: HttpRequest) -> HTTPResponse:
        return respond(200, {"status": "alive"})

    async def ready(self, _request: HttpRequest) -> HTTPResponse:
        status = await read_status(self._state)
        reasons = [status] if isinstance(status, str) else []
        if isinstance(status, Status) and status.admission == "closed":
            reasons.append("admission is closed until memory is back")
        if self._state.stopping or (isinstance(status, Status) and status.stopping):
            reasons.append("the server is shutting down")
        return respond(503 if reasons else 200, {"status": "not ready" if reasons else "ready", "reasons": reasons})


async def need_status(state: AppState) -> Status:
    """The Supervisor's status. Raises ``Unavailable`` if it does not answer within 5 s."""
    try:
        status: Status = await ask(state.supervisor, GetStatus, _NEEDED_TIMEOUT_S)
    except TimeoutError:
        text = f"the supervisor did not answer within {_NEEDED_TIMEOUT_S:g} s"
        raise Unavailable(text, retry_after_s=5) from None
    return status


async def read_status(state: AppState, *, clean_up: bool = False) -> Status | str:
    """The Supervisor's status, or a sentence that says why there is none."""
    try:
        status = await ask(state.supervisor, lambda reply: GetStatus(reply, clean_up), _TIMEOUT_S)
    except TimeoutError:
        return f"the supervisor did not answer within {_TIMEOUT_S:g} s"
    except PlimsollError as error:
        return error.message
    return status if isinstance(status, Status) else f"the supervisor answered with {type(status).__name__}"


def health_body(state: AppState, status: Status | str) -> dict[str, Any]:
    """The body of ``GET /health``. Without a ``Status`` memory is read here, and the server counts as degraded."""
    now = condition(status)
    known, sample = now.known, now.sample
    return {
        "status": now.word,
        "memory": _memory(state, sample),
        "binding_source": sample.binding.source if sample else None,
        "sources": {one.source: round(one.percent, 1) for one in sample.readings} if sample else {},
        "level": known.level.name.lower() if known else None,
        "admission": known.admission if known else None,
        "sampler_lag_ms": round(1000 * known.sampler_lag_s, 1) if known else None,
        "stopping": state.stopping or bool(known and known.stopping),
        "front": _front_end(state),
        "models": _models(known) if known else [],
        "problems": now.problems,
        **({"nodes": [_node(one) for one in known.nodes]} if known and known.nodes is not None else {}),
        "version": __version__,
        "uptime_s": round(time.monotonic() - state.started_s, 1),
    }


def condition(status: Status | str) -> Condition:
    """The condition of the server by its status, or by the sentence that says why there is none."""
    known = status if isinstance(status, Status) else None
    problems = [str(status)] if known is None else list(known.problems)
    sample, more = _sample(known)
    problems += more
    word = "healthy" if known is None else _NAMES[known.level]
    if problems and word != "critical":
        word = "degraded"
    return Condition(word, known, sample, problems)


def _sample(status: Status | None) -> tuple[Sample | None, list[str]]:
    if status is not None and status.sample is not None:
        return status.sample, []
    try:
        return sources.sample(), []
    except (OSError, psutil.Error) as error:
        return None, [f"memory can't be read: {error}"]


def _memory(state: AppState, sample: Sample | None) -> dict[str, float | None]:
    # A GB here is 2**30 bytes, as memory is sold.
    binding = sample.binding if sample else None
    return {
        "used_percent": round(binding.percent, 1) if binding else None,
        "available_gb": round(binding.available / _GB, 2) if binding else None,
        "total_gb": round(binding.total / _GB, 2) if binding else None,
        "warning_threshold": state.config.memory.warning_percent,
        "critical_threshold": state.config.memory.critical_percent,
    }


def _front_end(state: AppState) -> dict[str, int]:
    bodies, places = state.bodies, state.slots
    return {
        "connections": places.taken,
        "connections_limit": places.most,
        "body_bytes": bodies.held,
        "body_bytes_limit": bodies.room,
        "bodies_waiting": bodies.waiting,
    }


def _models(known: Status) -> list[dict[str, Any]]:
    return [_model(one, known.footprints) for one in known.models if one.state is not State.COLD]


def _node(status: NodeStatus) -> dict[str, Any]:
    return {
        "name": status.name,
        "level": status.level.name.lower(),
        "used_percent": None if status.used_percent is None else round(status.used_percent, 1),
        "models": list(status.models),
    }


def _model(status: ModelStatus, footprints: dict[str, int]) -> dict[str, Any]:
    info = status.info
    return {
        "name": status.name,
        "state": status.state,
        "active": status.active,
        "queued": status.queued,
        "footprint_gb": round(footprints.get(status.name, 0) / _GB, 2),
        "device": info.device if info else None,
        "blas": info.blas or None if info else None,
    }
