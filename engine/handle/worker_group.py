"""The front's handle on a worker group: one process per rank, which the owner sees as one worker."""

import os
import shlex
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import msgspec

from plimsoll.catalog.source import Group
from plimsoll.engine.handle.process import OnEvent, OnExit, Started, WorkerProcess, worker_command
from plimsoll.engine.protocol import (
    Command,
    EngineError,
    Event,
    HostMemory,
    JoinGroup,
    LoadError,
    LoadModel,
    LoadProgress,
    Ready,
    Replay,
)
from plimsoll.memory.group_memory import HostShare, emergency, refuse
from plimsoll.memory.sample import Reading

_KINDS: dict[str, Literal["host_full", "host_never"]] = {"full": "host_full", "never": "host_never"}

# How MLX's ring says that another rank is gone.
_LOST = "connection to a peer was lost"


class GroupSettings(msgspec.Struct, frozen=True):
    """How the ranks of a group are started and what their hosts may be filled with.

    ``shell`` reaches another machine (the host's name and a command come behind it), where ``python`` has Plimsoll;
    ``port`` is the first of those that hosts use between them.
    """

    group: Group
    shell: tuple[str, ...]
    python: str
    port: int
    critical_percent: float
    emergency_percent: float


class WorkerGroup:
    """A ``Worker`` made of several processes. The first rank answers for the group; when any rank ends, all are ended.

    Only the first rank runs until the model is loaded, for it may have to fetch the files first. Each rank's events
    come on a thread of its own; a lock puts them in one order.
    """

    def __init__(
        self,
        settings: GroupSettings,
        on_event: OnEvent,
        on_exit: OnExit,
        environment: Mapping[str, str],
        oom_killed_one: Callable[[], bool] = lambda: False,
    ) -> None:
        """Have the first rank started."""
        self._settings = settings
        self._hosts = settings.group.hosts
        self._on_event, self._on_exit = on_event, on_exit
        self._environment = {**environment, **_threads(settings)}
        self._oom_killed_one = oom_killed_one
        self._lock = threading.RLock()
        self._ranks: list[WorkerProcess] = []
        self._load: LoadModel | None = None
        self._loading = False
        self._memory: dict[int, tuple[Reading, ...]] = {}
        self._devices: dict[int, str] = {}
        self._progress: dict[int, LoadProgress] = {}
        self._exits: dict[int, tuple[int, bool]] = {}
        self._exit: tuple[int, bool] | None = None
        self._stopping = False
        with self._lock:
            self._start_rank(0)

    @property
    def pid(self) -> int | None:
        """The first rank's, until that is reaped; then another's here. None until it has started."""
        return next(iter(self._pids), None)

    @property
    def more_pids(self) -> tuple[int, ...]:
        return self._pids[1:]

    @property
    def _pids(self) -> tuple[int, ...]:
        here = [(rank, one.pid) for rank, one in enumerate(self._ranks) if self._hosts[rank].here and one.pid]
        first = self._ranks[0].pid
        return tuple(pid for rank, pid in here if rank not in self._exits) or ((first,) if first else ())

    def send(self, command: Command) -> None:
        with self._lock:
            if not isinstance(command, LoadModel):
                self._ranks[0].send(command)
            elif not self._stopping:  # after a stop nothing would end the ranks that this starts
                self._gather(command)

    def terminate(self) -> None:
        self._stop(WorkerProcess.terminate)

    def kill(self) -> None:
        self._stop(WorkerProcess.kill)

    def hand_over(self, on_event: OnEvent, on_exit: OnExit) -> None:
        with self._lock:
            self._on_event, self._on_exit = on_event, on_exit
            if self._exit:
                on_exit(*self._exit)

    # ---- the way in: all ranks start, say what their hosts have left, and load once each of them has room

    def _start_rank(self, rank: int) -> None:
        host = self._hosts[rank]
        command = None if host.here else self._remote_command(host.name)
        self._ranks.append(
            WorkerProcess(
                partial(self._on_rank_event, rank),
                partial(self._on_rank_exit, rank),
                self._environment,
                self._oom_killed_one,
                remote=command,
            )
        )

    def _remote_command(self, host: str) -> list[str]:
        command = " ".join(map(shlex.quote, worker_command(self._settings.python, "stdio")))
        return [*self._settings.shell, host, f"exec {command}"]

    def _gather(self, load: LoadModel) -> None:
        self._load = load
        try:
            for rank in range(1, len(self._hosts)):
                self._start_rank(rank)
            ports = self._ports()
        except OSError as error:
            self._end(LoadError("load", f"not every rank of the group can be started: {error}"))
            return
        for rank, one in enumerate(self._ranks):
            one.send(JoinGroup(self._settings.group, rank, ports))

    def _ports(self) -> list[int]:
        count = len(self._ranks)
        if all(host.here for host in self._hosts):
            return _free_ports(count)
        return [self._settings.port + rank for rank in range(count)]

    def _on_memory(self, rank: int, event: HostMemory) -> None:
        self._memory[rank] = tuple(Reading(*one) for one in event.readings)
        self._devices[rank] = event.device
        host = self._hosts[rank]
        self._on_event(msgspec.structs.replace(event, host=host.name))
        if self._loading:
            # This machine's own memory is the Watchdog's to look after.
            if not host.here and (
                sentence := emergency(host.name, self._memory[rank], self._settings.emergency_percent)
            ):
                self._end(EngineError("host", sentence))
        elif self._load and len(self._memory) == len(self._hosts):
            self._loading = True
            if len(set(self._devices.values())) > 1:
                kinds = ", ".join(f"{self._name(one)} on its {device.upper()}" for one, device in self._devices.items())
                self._end(
                    LoadError(
                        "load", f"hosts that compute differently fall out of step: {kinds}; name hosts of one kind"
                    )
                )
                return
            if refusal := refuse(self._shares(self._load.share_bytes), self._settings.critical_percent):
                self._end(LoadError(_KINDS[refusal.kind], refusal.sentence))
                return
            for one in self._ranks:
                one.send(self._load)

    def _shares(self, share_bytes: int) -> list[HostShare]:
        """What each other host is to take; this one's part was granted before."""
        names = [host.name for host in self._hosts]
        far = {host.name: rank for rank, host in enumerate(self._hosts) if not host.here}
        return [HostShare(name, names.count(name) * share_bytes, self._memory[rank]) for name, rank in far.items()]

    # ---- what the ranks say

    def _on_rank_event(self, rank: int, event: Event | Started) -> None:
        if isinstance(event, Replay):
            # Only the first rank sends these, on one thread and in order.
            for other in self._ranks[1:]:
                other.send(event)
            return
        with self._lock:
            if self._stopping:
                return
            match event:
                case HostMemory():
                    self._on_memory(rank, event)
                case LoadProgress():
                    self._progress[rank] = event
                    done, total = (
                        sum(getattr(one, key) for one in self._progress.values()) for key in ("done", "total")
                    )
                    self._on_event(LoadProgress(event.stage, done, total))
                case EngineError() if _LOST in event.message:
                    # A rank may report the lost connection before the other rank's exit is noticed.
                    names = ", ".join(dict.fromkeys(host.name for host in self._hosts))
                    self._end(EngineError("engine", f"a rank of the group ended or left the network (on {names})"))
                case LoadError() | EngineError():
                    # Of the first rank, too: the others may wait for it inside MLX, deaf to SIGTERM on macOS.
                    of = f"{self._name(rank)}: " if rank else ""
                    self._end(msgspec.structs.replace(event, message=of + event.message))
                case Ready() if rank:
                    pass  # the first one is not ready before all are
                case _:
                    self._on_event(event)

    def _on_rank_exit(self, rank: int, code: int, oom_killed: bool) -> None:
        with self._lock:
            self._exits[rank] = code, oom_killed
            if len(self._exits) == 1:
                if rank and not self._stopping:
                    kind: Literal["memory", "engine"] = "memory" if oom_killed else "engine"
                    self._end(EngineError(kind, f"{self._name(rank)} ended {self._how(rank, code)}"))
                # After an orderly end (code 0) the others may end in order, too.
                self._stop(WorkerProcess.kill if code else WorkerProcess.terminate)
            if len(self._exits) == len(self._ranks):
                self._exit = next(iter(self._exits.values()))  # the first one's, for the others were ended
                self._on_exit(*self._exit)

    def _name(self, rank: int) -> str:
        return f"rank {rank} of {len(self._hosts)} (on {self._hosts[rank].name})"

    def _how(self, rank: int, code: int) -> str:
        host = self._hosts[rank]
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        if host.here or rank in self._memory:
            return how
        reach = shlex.join([*self._settings.shell, host.name])
        return (
            f"{how} before it said anything: {reach} has to reach it without a question, and "
            f"{self._settings.python} there has to have Plimsoll"
        )

    def _end(self, last_words: LoadError | EngineError) -> None:
        self._on_event(last_words)
        self._stop(WorkerProcess.kill)

    def _stop(self, how: Callable[[WorkerProcess], None]) -> None:
        with self._lock:
            self._stopping = True
            for one in self._ranks:
                how(one)


def _threads(settings: GroupSettings) -> dict[str, str]:
    """Ranks that share a machine share its cores: OpenBLAS would start a thread per core in each."""
    here = sum(host.here for host in settings.group.hosts)
    return {"OPENBLAS_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // here))} if here > 1 else {}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
