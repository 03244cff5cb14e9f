"""Worker groups as the front sees them, on the fake engine: one worker made of several processes."""

import contextlib
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from plimsoll.catalog.source import Group, GroupHost, ModelSource
from plimsoll.engine import protocol as p
from plimsoll.engine.handle.process import Started
from plimsoll.engine.handle.worker_group import GroupSettings, WorkerGroup

Start = Callable[..., "Heard"]
HERE = GroupHost("127.0.0.1", "127.0.0.1", here=True)
FAR = GroupHost("mac2", "127.0.0.1")
SLOW = "tokens_per_s=50,answer=la,length=100000,context=1000000"
# A rank on the device that is given, inside a call of MLX that waits for the first one: Python does not hear SIGTERM.
DEAF = """
import signal, sys, time
from plimsoll.engine import protocol as p
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stdout.buffer.write(p.encode(p.HostMemory([("host", 100, 1)], sys.argv[1])))
sys.stdout.flush()
time.sleep(1000)
"""
SHELL = Path(__file__).parents[1] / "far_shell.py"


class Heard:
    """A group and all it says."""

    def __init__(self, shell: tuple[str, ...], hosts: tuple[GroupHost, ...], critical: float, emergency: float) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        group = Group(hosts, "ring", "tensor")
        settings = GroupSettings(group, shell, sys.executable, 5680, critical, emergency)
        self.group = WorkerGroup(settings, self.events.put, lambda *exit_: self.events.put(exit_), {})
        self.hosts: set[str] = set()

    def load(self, switches: str = SLOW, share_bytes: int = 0) -> "Heard":
        options = p.EngineOptions(cache_dir="")
        self.group.send(p.LoadModel(ModelSource("m", "fake", switches), options, share_bytes))
        return self

    def next(self, kind: type | tuple[type, ...]) -> Any:
        while not isinstance(event := self.events.get(timeout=60), kind):
            if isinstance(event, p.HostMemory):
                self.hosts.add(event.host)
        return event

    @property
    def processes(self) -> list[psutil.Process]:
        """Every process of the group, those behind the remote shell too."""
        found = []
        for one in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end, or have ended, while it is looked at
                found += [one] if "plimsoll.engine.worker" in one.cmdline() else []
        return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the remote shell notes the hosts that it was to reach."""
    return tmp_path / "log"


@pytest.fixture
def start(log: Path) -> Iterator[Start]:
    started: list[Heard] = []

    def one(*hosts: GroupHost, critical: float = 95.0, emergency: float = 98.0, shell: tuple[str, ...] = ()) -> Heard:
        shell = shell or (sys.executable, str(SHELL), str(log))
        started.append(Heard(shell, hosts, critical, emergency))
        return started[-1]

    yield one
    for group in started:
        group.group.kill()
        assert not psutil.wait_procs(group.processes, timeout=60)[1]


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=60)[1]


def begin(heard: Heard) -> None:
    heard.next(p.Ready)
    heard.group.send(p.Generate("a", p.ChatRequest([{"role": "user", "content": "hi"}])))
    while not heard.next(p.Step).texts:
        pass


def test_the_first_rank_answers_and_every_host_tells_its_memory(start: Start, log: Path) -> None:
    heard = start(HERE, FAR).load()
    begin(heard)
    assert heard.hosts == {"127.0.0.1", "mac2"}
    assert log.read_text() == "mac2\n"
    assert heard.group.more_pids == ()  # what runs elsewhere is not measured here


def test_ranks_on_this_machine_are_all_named(start: Start) -> None:
    heard = start(HERE, HERE, HERE).load()
    heard.next(p.Ready)
    assert {one.pid for one in heard.processes} == {heard.group.pid, *heard.group.more_pids}
    assert len(heard.processes) == 3


@pytest.mark.parametrize("hosts", [(HERE, HERE), (HERE, FAR)], ids=["here", "far"])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_end_of_any_rank_is_the_end_of_all(start: Start, hosts: tuple[GroupHost, ...], rank: int) -> None:
    heard = start(*hosts).load()
    begin(heard)
    processes = heard.processes
    assert len(processes) == 2
    first = next(one for one in processes if one.pid == heard.group.pid)
    victim = first if rank == 0 else next(one for one in processes if one != first)
    began = time.monotonic()
    victim.kill()
    end = heard.next((p.EngineError, tuple))
    if rank:
        assert "rank 1 of 2" in end.message
        assert hosts[1].name in end.message
        end = heard.next(tuple)
    assert end[0] != 0
    assert time.monotonic() - began < 20
    assert gone(processes)
    assert heard.events.empty(), "the exit is told once"


def test_a_rank_far_away_ends_with_its_link(start: Start) -> None:
    heard = start(HERE, FAR).load()
    begin(heard)
    far = [one for one in heard.processes if one.pid != heard.group.pid]
    assert far
    heard.group.kill()
    heard.next(tuple)
    assert gone(far)


def test_an_orderly_end_is_told_as_one(start: Start) -> None:
    heard = start(HERE, HERE).load()
    begin(heard)
    processes = heard.processes
    heard.group.send(p.Shutdown())
    assert heard.next((p.EngineError, tuple))[0] == 0
    assert gone(processes)


def test_a_host_without_room_refuses_the_load_before_anything_is_read(start: Start) -> None:
    heard = start(HERE, FAR).load(share_bytes=1 << 50)
    refusal = heard.next((p.LoadError, p.Ready))
    assert refusal.kind == "host_never"
    assert "host mac2 needs 1048576.0 GiB" in refusal.message
    assert heard.next((p.LoadProgress, tuple)) == (-signal.SIGKILL, False)


def test_a_host_that_is_full_now_refuses_for_now(start: Start) -> None:
    heard = start(HERE, FAR, critical=0.01).load(share_bytes=1)
    refusal = heard.next((p.LoadError, p.Ready))
    assert refusal.kind == "host_full"
    assert "mac2" in refusal.message


def test_an_emergency_far_away_ends_the_group_on_all_hosts(start: Start) -> None:
    total = psutil.virtual_memory().total
    heard = start(HERE, FAR, emergency=0.01).load(f"hold={total // 35},{SLOW}")
    error = heard.next(p.EngineError)
    assert error.kind == "host"
    assert "host mac2" in error.message
    heard.next(tuple)
    assert not heard.processes


def test_files_are_fetched_by_one_process_alone(start: Start) -> None:
    heard = start(HERE, FAR)
    heard.group.send(p.FetchModel(ModelSource("m", "folder", "/nowhere"), p.EngineOptions(cache_dir="")))
    assert isinstance(heard.next((p.Fetched, p.LoadError)), p.LoadError | p.Fetched)
    assert len(heard.processes) <= 1
    heard.next(tuple)


def test_a_host_that_is_not_reached_fails_the_load_by_its_name(start: Start) -> None:
    heard = start(HERE, FAR, shell=("sh", "-c", "exit 255")).load()
    message = heard.next(p.EngineError).message
    assert "rank 1 of 2 (on mac2) ended with exit code 255 before it said anything: sh -c" in message
    assert f"{sys.executable} there has to have Plimsoll" in message
    assert heard.next(tuple)[0] == 255


def test_a_failed_load_of_the_first_rank_ends_the_others_at_once(start: Start) -> None:
    before = set(psutil.Process().children())
    heard = start(HERE, FAR, shell=(sys.executable, "-c", DEAF, "cpu")).load("fail_load=no such file")
    assert "no such file" in heard.next(p.LoadError).message
    heard.next(tuple)
    assert set(psutil.Process().children()) == before


def test_hosts_that_compute_on_different_devices_are_refused_before_anything_is_read(start: Start) -> None:
    heard = start(HERE, FAR, shell=(sys.executable, "-c", DEAF, "gpu")).load()
    refusal = heard.next((p.LoadError, p.Ready))
    assert "rank 0 of 2 (on 127.0.0.1) on its CPU" in refusal.message
    assert "rank 1 of 2 (on mac2) on its GPU" in refusal.message
    heard.next(tuple)


def test_no_rank_is_started_once_the_first_one_has_ended(start: Start) -> None:
    before = set(psutil.Process().children())
    heard = start(HERE, FAR)
    heard.next(Started)
    psutil.Process(heard.group.pid).kill()
    heard.next(tuple)
    heard.load()
    assert set(psutil.Process().children()) == before
    assert heard.events.empty()


def test_an_exit_before_the_hand_over_is_told_to_both(start: Start) -> None:
    heard = start(HERE, HERE)
    heard.group.kill()
    code = heard.next(tuple)
    second: queue.Queue[Any] = queue.Queue()
    heard.group.hand_over(second.put, lambda *exit_: second.put(exit_))
    assert second.get(timeout=60) == code
