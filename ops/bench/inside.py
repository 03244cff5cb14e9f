"""An actor system in this process, and what is seen of its workers in /proc: for the measurements beside this file."""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from plimsoll import config
from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Waiting
from plimsoll.actors.status import Status
from plimsoll.actors.system import ActorSystem
from plimsoll.catalog.names import Catalog
from plimsoll.engine.protocol import ChatRequest
from plimsoll.journal import events
from plimsoll.memory.sources.processes import of_status

MIB = 1024**2
BOUND_S = 60.0
PROC = Path("/proc")
SHORT: list[str] = []


def line(figure: str, target: str, value: str, *, ok: bool | None) -> None:
    """One line of the table; ``ok`` None is a figure without a target."""
    verdict = "" if ok is None else "ok" if ok else "FALLS SHORT"
    if ok is False:
        SHORT.append(figure)
    print(f"{figure:<66} {target:<12} {value:<58} {verdict}".rstrip(), flush=True)


class Answer:
    """A Reply that counts its endings and remembers when they came."""

    def __init__(self, model: str = "") -> None:
        self.model = model
        self.asked_at = time.monotonic()
        self.begun = threading.Event()
        self.done = threading.Event()
        self.endings: list[Any] = []
        self.ended_at = 0.0

    def send(self, item: Any) -> None:
        if isinstance(item, Waiting):
            return
        if isinstance(item, Delta):
            self.begun.set()
            return
        self.ended_at = time.monotonic()
        self.endings.append(item)
        self.done.set()

    def wait(self, timeout_s: float = BOUND_S) -> Any:
        if not self.done.wait(timeout_s):
            raise TimeoutError(f"no ending in {timeout_s:.0f} s")
        return self.endings[0]


class Server:
    """An actor system in this process, with every event and its time."""

    def __init__(self, entries: dict[str, str], *, sampler: Any = None, **sections: Any) -> None:
        models = {"builtin": True, "entries": {name: {"source": source} for name, source in entries.items()}}
        self.config = config.parse({"models": models, **sections})
        self.system = ActorSystem(self.config, Catalog(self.config.models), sampler)
        self.events: list[tuple[float, events.Event]] = []
        self.system.journal.subscribe(lambda entry: self.events.append((time.monotonic(), entry.event)))
        self._numbers = iter(range(10**9))

    def __enter__(self) -> Self:
        self.system.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.system.stop(0.0)

    def chat(self, model: str, text: str = "one two three", **options: Any) -> Answer:
        answer = Answer(model)
        answer.id = f"chat-{next(self._numbers)}"  # type: ignore[attr-defined] # to cancel it by
        request = ChatRequest([{"role": "user", "content": text}], **options)
        self.tell(m.Chat(answer.id, model, request, answer))  # type: ignore[attr-defined] # as above
        return answer

    def tell(self, message: m.Message) -> None:
        self.system.supervisor.tell(message)

    def ask(self, make: Callable[[Answer], m.Message]) -> Any:
        answer = Answer()
        self.tell(make(answer))
        return answer.wait()

    def status(self) -> Status:
        status: Status = self.ask(m.GetStatus)
        return status

    def load(self, model: str) -> int:
        """Load it; the footprint that the server saw comes back."""
        loaded = self.ask(lambda reply: m.LoadModel(model, reply))
        if isinstance(loaded, Failed):
            raise loaded.error
        self.until(lambda: self.of(events.ModelLoaded, model))
        pid = next(one.pid for one in self.status().models if one.name == model)
        return footprint(pid or 0)

    def of(self, kind: type, model: str = "") -> list[tuple[float, Any]]:
        return [
            (at, event)
            for at, event in list(self.events)
            if isinstance(event, kind) and (not model or event.model == model)  # type: ignore[attr-defined] # of a model
        ]

    def until(self, condition: Callable[[], Any], timeout_s: float = BOUND_S) -> Any:
        until = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > until:
                raise TimeoutError("waited in vain")
            time.sleep(0.002)
        return value


class Background:
    """``look`` is called every ``every_s`` seconds on a thread of its own, inside of ``with``."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """One look."""
        raise NotImplementedError

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._every_s, time.monotonic())
            self.look()


def footprint(pid: int) -> int:
    return of_status(PROC, pid) or 0


def lives(pid: int) -> bool:
    """Whether it still holds memory: an exiting process shows none in /proc while its pages are being given back."""
    try:
        return b"\nState:\tZ" not in (PROC / str(pid) / "status").read_bytes()
    except OSError:
        return False


def children() -> list[int]:
    """Pids of this process's children, without psutil's walk over all processes."""
    pids: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            pids += [int(pid) for pid in (task / "children").read_text().split()]
    return pids
