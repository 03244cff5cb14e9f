"""Models that several hosts serve, with real processes on the fake engine; one host is behind a remote shell."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Memory, Server

from plimsoll.actors.replies import Delta, Waiting
from plimsoll.actors.status import State
from plimsoll.errors import InsufficientMemory, NeverFits
from plimsoll.journal import events as e

TESTS = Path(__file__).parents[1]
HOSTS = ["127.0.0.1", {"host": "mac2", "address": "mac2.invalid"}]
SLOW = "fake:tokens_per_s=50,answer=la,length=100000,context=1000000"
Start = Callable[..., Server]


class Far:
    """The other host: how full it is, and how to reach it."""

    def __init__(self, folder: Path) -> None:
        self._percent, python = folder / "percent", folder / "python"
        self.fill(40.0)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{TESTS / "far_worker.py"}" "{self._percent}"\n')
        python.chmod(0o755)
        shell = f"{sys.executable} {TESTS / 'far_shell.py'} {folder / 'log'}"
        self.settings = {"remote_shell": shell, "remote_python": str(python)}

    def fill(self, percent: float) -> None:
        new = self._percent.with_suffix(".new")
        new.write_text(str(percent))
        new.replace(self._percent)

    @property
    def processes(self) -> list[psutil.Process]:
        found = []
        for one in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it may end, or have ended, while it is looked at
                found += [one] if "far_worker.py" in " ".join(one.cmdline()) else []
        return found


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path)


@pytest.fixture
def group(server: Start, far: Far) -> Callable[..., Server]:
    def start(source: str = SLOW, **sections: Any) -> Server:
        return server({"a": {"source": source, "hosts": HOSTS}}, models=far.settings, **sections)

    return start


def journal(system: Server) -> list[Any]:
    seen: list[Any] = []
    system.system.journal.subscribe(lambda entry: seen.append(entry.event))
    return seen


def test_a_model_on_two_hosts_answers_and_shows_their_memory(group: Start) -> None:
    system = group("fake:")
    reply = system.chat("a", "one two three")
    assert reply.ending().reason == "stop"
    assert reply.text == "one two three"
    status = system.model("a")
    assert status is not None
    assert {host.host: host.source for host in status.hosts}["mac2"] == "host"
    (mac2,) = [host for host in status.hosts if host.host == "mac2"]
    assert (mac2.used, mac2.total) == (40 * 1024**3, 100 * 1024**3)


def test_all_ranks_on_this_machine_are_measured(server: Start) -> None:
    system = server({"a": {"source": "fake:", "hosts": ["127.0.0.1"] * 3}})
    assert system.chat("a").ending().reason == "stop"
    status = system.model("a")
    assert status is not None
    assert status.pid is not None
    running = {one.pid for one in psutil.Process().children() if "plimsoll.engine.worker" in one.cmdline()}
    assert {status.pid, *status.more_pids} == running
    assert len(running) == 3


def test_a_full_host_refuses_with_its_figures_and_nothing_is_unloaded_here(group: Start, far: Far) -> None:
    system = group("fake:hold=64MiB")
    seen = journal(system)
    far.fill(94.9)
    failed = system.chat("a").ending()
    assert isinstance(failed.error, InsufficientMemory)
    assert failed.error.retry_after_s
    for word in ("a is not loaded", "host mac2", "0.1 GiB are left there", "94.9% of 100.0 GiB"):
        assert word in failed.error.message
    system.until_state("a", State.COLD)
    assert not [one for one in seen if isinstance(one, e.CleanupStarted | e.OutOfMemory)]
    far.fill(40.0)
    assert system.chat("a").ending().reason == "stop"


def test_an_emergency_on_the_other_host_pauses_the_answers_until_that_has_room(group: Start, far: Far) -> None:
    system = group()
    running = system.chat("a")
    running.next(Delta)
    far.fill(98.5)
    while running.next(Waiting).stage != "resume":
        pass
    far.fill(40.0)
    running.next(Delta)
    assert running.endings() == 0


def test_without_patience_an_emergency_on_the_other_host_ends_the_group_and_it_loads_again_when_that_has_room(
    group: Start, far: Far
) -> None:
    system = group(memory={"patience": 0})
    running = system.chat("a")
    running.next(Delta)
    seen = journal(system)
    there = far.processes
    far.fill(98.5)
    failed = running.ending()
    assert isinstance(failed.error, InsufficientMemory)
    for word in ("a was stopped", "memory of host mac2 is almost exhausted", "98.5% of 100.0 GiB"):
        assert word in failed.error.message
    assert not psutil.wait_procs(there, timeout=60)[1]
    assert "mac2" in system.chat("a").ending().error.message
    assert not [one for one in seen if isinstance(one, e.CleanupStarted | e.OutOfMemory)], "this machine is not full"
    far.fill(40.0)
    again = system.chat("a")
    again.next(Delta)
    assert len(far.processes) == 1


def test_what_never_fits_the_other_host_is_said_so(group: Start, far: Far, memory: Memory) -> None:
    memory.total = 1 << 50
    system = group(f"fake:hold={200 << 30}")
    failed = system.chat("a").ending()
    assert isinstance(failed.error, NeverFits)
    assert "host mac2 needs" in failed.error.message
    assert not far.processes


def test_when_a_host_goes_away_the_answers_go_on_with_the_next_group(group: Start, far: Far) -> None:
    system = group()
    running = system.chat("a")
    running.next(Delta)
    far.processes[0].kill()
    while running.next(Waiting).stage != "resume":
        pass
    running.next(Delta)
