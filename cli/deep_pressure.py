"""What ``plimsoll doctor --deep`` does about levels of memory: warning, critical and emergency have to act.

The machine's memory is not filled. The limit of the server that was started for the check is lowered until what the
server and its models hold is near it, which is a source of memory as any other.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from plimsoll.cli.client import Refused, Unreachable
from plimsoll.cli.deep_server import IDLE, DeepServer
from plimsoll.cli.machine_checks import OK, PROBLEM, Finding
from plimsoll.journal.lines import size
from plimsoll.memory.sample import Level

# Shares of the limit that are in use: in the middle of warning, in critical, beyond everything.
_WARNING, _CRITICAL, _EMERGENCY = 0.90, 0.97, 1.5
_TRIES = 3
_ACTS_WITHIN_S = 15.0
_LOOK_EVERY_S = 0.1
_TOKENS = 1500
_ROOM = 2**30


class PressureCheck:
    """``ask`` is put to ``model``; what was seen stands in ``figures`` under ``pressure``."""

    def __init__(self, server: DeepServer, model: str, ask: str, figures: dict[str, Any]) -> None:
        self._server = server
        self._model = model
        self._ask = ask
        self._figures: dict[str, Any] = figures.setdefault("pressure", {})

    def findings(self) -> Iterator[Finding]:
        """One for each level. The server has its own limit and the model again afterwards."""
        try:
            for check in (self._warning, self._critical, self._emergency):
                yield check()
        finally:
            self._server.set_limit(self._server.own_limit)
        self._server.load(self._model)

    def _warning(self) -> Finding:
        self._roomy()
        self._server.load(IDLE)
        self._server.chat(self._ask, 1)  # so the other model is the one used least recently
        seen = self._tighten(_WARNING, lambda: not self._has_worker(IDLE))
        stays = self._has_worker(self._model)
        text = "the idle model was unloaded" if seen["acted"] else "the idle model was not unloaded"
        text += ", the one used last stays" if stays else ", and so was the one used last"
        return self._finding(Level.WARNING, seen, text, fine=stays)

    def _critical(self) -> Finding:
        seen = self._tighten(_CRITICAL, lambda: not self._has_worker(self._model))
        refused = ""
        if seen["acted"]:
            try:
                self._server.load(self._model)
            except Refused as error:
                refused = error.message
        seen["refused"] = refused
        text = "the model was unloaded" if seen["acted"] else "the model was not unloaded"
        text += ", a load was refused" if refused else ", and no load was refused"
        return self._finding(Level.CRITICAL, seen, text, fine=bool(refused))

    def _emergency(self) -> Finding:
        self._roomy()
        self._server.load(self._model)
        begun, answer = threading.Event(), dict[str, Any]()

        def stream() -> None:
            try:
                answer.update(self._server.chat(self._ask, _TOKENS, begun))
            except (Refused, Unreachable) as error:
                answer["ended"] = f"cut off: {error.message}"

        thread = threading.Thread(target=stream, daemon=True)
        thread.start()
        begun.wait(self._server.left_s)
        pid = self._server.model()["pid"]
        seen = self._tighten(_EMERGENCY, lambda: self._server.model()["pid"] != pid)
        self._server.set_limit(self._server.own_limit)
        thread.join(self._server.left_s)
        seen["answer"] = ended = str(answer.get("ended", ""))
        text = "the worker was stopped" if seen["acted"] else "the worker was not stopped"
        text += f", its answer ended as {ended!r}"
        return self._finding(Level.EMERGENCY, seen, text, fine=bool(ended) and not ended.startswith("cut off"))

    # ---- the limit

    def _roomy(self) -> None:
        """A limit that is far away, so that what is used can be read."""
        self._server.set_limit(4 * (self._held() + _ROOM))

    def _held(self) -> int:
        models = self._server.get("/admin/models")["models"]
        return sum(int(one.get("footprint_bytes") or 0) for one in models)

    def _tighten(self, share: float, acted: Callable[[], bool]) -> dict[str, Any]:
        """Lower the limit until ``share`` of it is in use, and wait until that has ``acted``."""
        seen: dict[str, Any] = {"acted": False}
        for _ in range(_TRIES):
            used = self._used_of_limit()
            limit = int(used / share)
            began_s = time.monotonic()
            self._server.set_limit(limit)
            levels: set[str] = set()
            while time.monotonic() - began_s < min(_ACTS_WITHIN_S, self._server.left_s):
                levels.add(str(self._health()["level"]))
                if acted():
                    after_s = round(time.monotonic() - began_s, 1)
                    levels.add(str(self._health()["level"]))
                    return {"acted": True, "after_s": after_s, "limit": limit, "used": used, "levels": sorted(levels)}
                time.sleep(_LOOK_EVERY_S)
            seen |= {"limit": limit, "used": used, "levels": sorted(levels)}
            self._server.set_limit(2 * used)
        return seen

    def _used_of_limit(self) -> int:
        """Bytes that the server and its models hold, by the limit's own source."""
        ends_s = time.monotonic() + _ACTS_WITHIN_S
        while time.monotonic() < ends_s:
            # A changed limit is in the figures once a sample was taken with it.
            if (used := self._server.used_of_limit()) is not None:
                return used
            time.sleep(_LOOK_EVERY_S)
        raise RuntimeError(f"the limit shows in no sample within {_ACTS_WITHIN_S:g} s")

    def _health(self) -> Any:
        return self._server.get("/health?cleanup=no")

    def _has_worker(self, name: str) -> bool:
        models = self._server.get("/admin/models")["models"]
        return any(one["name"] == name and one["pid"] for one in models)

    def _finding(self, level: Level, seen: dict[str, Any], text: str, *, fine: bool) -> Finding:
        name = level.name.lower()
        self._figures[name] = seen
        when = f"after {seen['after_s']:g} s " if seen["acted"] else ""
        told = f"{name}, {size(seen['used'])} used of a limit of {size(seen['limit'])}: {when}{text}"
        return Finding(OK if seen["acted"] and fine else PROBLEM, "pressure levels", told)
