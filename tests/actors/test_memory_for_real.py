"""Real workers that hold real bytes under ``memory.limit``, measured by the real sampler.

``memory.limit`` counts the front and its workers, and the front is this very process: ``Ballast`` in here is memory
that no unload can bring back, as another program's is.
"""

import gc
import mmap
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Finished
from plimsoll.actors.status import CleanupReport, ModelStatus, State, Status
from plimsoll.errors import InsufficientMemory, NeverFits, WorkerDied
from plimsoll.journal import events as e
from plimsoll.memory.sample import Level, Sample
from plimsoll.memory.sources.processes import of_status
from plimsoll.memory.sources.system import SystemSampler

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads footprints in /proc")

Start = Callable[..., Any]
MIB = 1024**2
PROC = Path("/proc")
SLOW = "tokens_per_s=50,answer=la,length=100000,context=1000000"
# A model that holds N MiB is granted 1.05 N + 300 (its process) + 64 (its KV caches) the first time.
EXTRA_MIB = 364


@pytest.fixture
def memory() -> None:
    """In place of the sampler whose percentage a test sets: none, so that the system's own is used."""


@pytest.fixture(autouse=True)
def _the_limit_alone_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other programs of this machine take and give back meanwhile is no matter of these tests."""
    whole = SystemSampler._sample

    def sample(self: SystemSampler, tracked: Any) -> Sample:
        taken = whole(self, tracked)
        limit = tuple(one for one in taken.readings if one.source == "limit")
        return msgspec.structs.replace(
            taken, readings=limit or taken.readings, pressure=Level.NORMAL, pressure_source=""
        )

    monkeypatch.setattr(SystemSampler, "_sample", sample)


class Ballast:
    """Touched memory of this process."""

    def __init__(self) -> None:
        self._blocks: list[mmap.mmap] = []

    def add(self, size: int) -> None:
        block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block[:: mmap.PAGESIZE] = b"x" * len(range(0, size, mmap.PAGESIZE))
        self._blocks.append(block)

    def drop(self) -> None:
        while self._blocks:
            self._blocks.pop().close()


@pytest.fixture
def ballast() -> Iterator[Ballast]:
    held = Ballast()
    yield held
    held.drop()


def front_bytes() -> int:
    return of_status(PROC, os.getpid()) or 0


def workers_bytes() -> int:
    workers = [child for child in psutil.Process().children() if "plimsoll.engine.worker" in child.cmdline()]
    return sum(of_status(PROC, worker.pid) or 0 for worker in workers)


def limited(server: Start, entries: dict[str, Any], *, room_mib: int, **sections: Any) -> Any:
    """A server with ``room_mib`` for models below critical, and a list of all events from now on."""
    limit = int((front_bytes() + room_mib * MIB) / 0.95)
    settings = {"limit": limit, "clear_after": "200ms", "critical_grace": "500ms", **sections.pop("memory", {})}
    system = server(entries, memory=settings, **sections)
    system.limit = limit
    system.events = []
    system.system.journal.subscribe(lambda entry: system.events.append(entry.event))
    return system


def of(system: Any, kind: type, **fields: Any) -> list[Any]:
    """The events of ``kind`` so far whose fields have these values."""
    return [
        one
        for one in list(system.events)
        if isinstance(one, kind) and all(getattr(one, name) == value for name, value in fields.items())
    ]


def event(system: Any, kind: type, **fields: Any) -> Any:
    """The first event of ``kind`` with these values; waited for."""
    found: list[Any] = system.until(lambda: of(system, kind, **fields), f"{kind.__name__} {fields}")
    return found[0]


def load(system: Any, *names: str) -> None:
    """Have these models answer, in this order, and their footprints seen."""
    for name in names:
        assert system.chat(name).ending().reason == "stop"
        event(system, e.ModelLoaded, model=name)


def order(system: Any, *wanted: Any) -> None:
    """These events came in this order."""
    places = [system.events.index(one) for one in wanted]
    assert places == sorted(places), system.events


# ---- the four scenarios of the brief


def test_scenario_1_high_use_a_load_first_cleans_up_and_only_the_last_used_model_stays(
    server: Start, ballast: Ballast
) -> None:
    system = limited(server, dict.fromkeys("abcd", "fake:hold=5MiB"), room_mib=1850)
    load(system, "a", "b", "c")
    collected: list[str] = []
    gc.callbacks.append(lambda phase, info: collected.append(phase) if info["generation"] == 2 else None)
    try:
        # What is left without a and b is still above the warning line, so nothing calls the clean-up off.
        ballast.add(int(system.limit * 0.853) - front_bytes())
        assert system.chat("d").ending().reason == "stop"
    finally:
        gc.callbacks.pop()
    done = event(system, e.CleanupDone, aggressive=False)
    assert done.unloaded == ("a", "b")
    assert done.freed_bytes >= 0.95 * done.expected_bytes
    order(system, of(system, e.CleanupStarted)[0], done, event(system, e.LoadStarted, model="d"))
    assert not of(system, e.ModelUnloaded, model="c")
    assert collected


def test_scenario_2_critical_a_load_is_refused_when_the_emergency_clean_up_was_not_enough(
    server: Start, ballast: Ballast
) -> None:
    system = limited(server, dict.fromkeys("abc", "fake:hold=1MiB"), room_mib=950)
    load(system, "a", "b")
    ballast.add(int(system.limit * 0.953) - front_bytes())
    failed = system.chat("c").ending()
    assert isinstance(failed.error, InsufficientMemory)
    assert failed.error.status == 503
    assert failed.error.details["used_percent"] >= 95
    assert failed.error.details["binding_source"] == "limit"
    assert failed.error.retry_after_s
    done = event(system, e.CleanupDone, aggressive=True)
    assert set(done.unloaded) == {"a", "b"}
    # The first may have been under way when the level was reached; this one asks at a critical level.
    assert isinstance(system.chat("c").ending().error, InsufficientMemory)
    order(system, done, event(system, e.LoadRefused, model="c"))
    assert system.status().admission == "closed"
    ballast.drop()
    system.until(lambda: system.status().admission == "open", "admission open")
    assert system.chat("c").ending().reason == "stop"


def test_scenario_3_a_memory_error_at_work_cleans_up_answers_503_and_the_server_goes_on(server: Start) -> None:
    system = limited(server, {"a": "fake:grow=60MiB", "b": "fake:hold=50MiB"}, room_mib=1000, memory={"patience": 0})
    assert system.chat("a", "one").ending().reason == "stop"
    load(system, "b")
    pid = system.model("a").pid
    # Room for one token more, not for two: the worker's own allocation fails, nothing is scripted.
    address_space = psutil.Process(pid).memory_info().vms + 90 * MIB
    resource.prlimit(pid, resource.RLIMIT_AS, (address_space, address_space))
    failed = system.chat("a", "one two three").ending()
    assert isinstance(failed.error, InsufficientMemory)
    assert failed.error.status == 503
    assert "MemoryError" in failed.error.message
    assert "MemoryError" in event(system, e.OutOfMemory, model="a").detail
    assert event(system, e.CleanupDone, aggressive=True).unloaded == ("b",)
    assert system.chat("a", "one").ending().reason == "stop"
    assert system.model("a").pid != pid


def test_an_answer_survives_a_memory_error_and_the_clean_up_begins_all_the_same(server: Start) -> None:
    system = limited(server, {"a": "fake:grow=60MiB", "b": "fake:hold=50MiB"}, room_mib=1000)
    load(system, "a", "b")
    pid = system.model("a").pid
    address_space = psutil.Process(pid).memory_info().vms + 90 * MIB
    resource.prlimit(pid, resource.RLIMIT_AS, (address_space, address_space))
    reply = system.chat("a", "one two three")
    assert reply.ending().reason == "stop"
    assert reply.text == "one two three"
    assert "MemoryError" in event(system, e.OutOfMemory, model="a").detail
    assert event(system, e.CleanupDone, aggressive=True).unloaded == ("b",)


def test_scenario_4_asking_for_the_health_at_critical_cleans_up_by_itself_but_not_every_time(
    server: Start, ballast: Ballast
) -> None:
    system = limited(server, {"a": "fake:hold=1MiB"}, room_mib=950)
    load(system, "a")
    ballast.add(int(system.limit * 0.953) - front_bytes())
    system.until(lambda: system.status().level == Level.CRITICAL, "critical")
    system.until_state("a", None)
    event(system, e.CleanupDone, aggressive=True)
    by_hand = "health check at critical memory use"
    answers = [system.tell(lambda reply: m.GetStatus(reply, clean_up=True)).next(Status) for _ in range(2)]
    assert [one.level for one in answers] == [Level.CRITICAL] * 2
    system.until(lambda: len(of(system, e.CleanupDone)) == len(of(system, e.CleanupStarted)), "all clean-ups done")
    assert len(of(system, e.CleanupStarted, reason=by_hand)) == 1


# ---- admission


def test_the_least_recently_used_model_makes_room_for_another(server: Start) -> None:
    system = limited(server, dict.fromkeys("abc", "fake:hold=300MiB"), room_mib=1000)
    load(system, "a", "b", "a")
    load(system, "c")
    gone = event(system, e.ModelUnloaded, model="b")
    assert gone.reason == "to make room for c"
    order(system, gone, event(system, e.LoadStarted, model="c"))
    assert system.model("a").state == State.READY
    assert not of(system, e.CleanupStarted)


def test_a_model_that_can_never_fit_is_refused_with_507_and_nothing_is_evicted_for_it(server: Start) -> None:
    system = limited(server, {"a": "fake:hold=100MiB", "huge": "fake:hold=3000MiB"}, room_mib=1000)
    load(system, "a")
    failed = system.chat("huge").ending()
    assert isinstance(failed.error, NeverFits)
    assert failed.error.status == 507
    assert failed.error.retry_after_s is None
    assert failed.error.details["required_gb"] > failed.error.details["total_gb"]
    assert system.model("a").state == State.READY
    assert not of(system, e.ModelUnloaded)


def test_two_loads_at_once_do_not_take_the_same_bytes(server: Start) -> None:
    entries = dict.fromkeys("ab", "fake:hold=400MiB,load_s=0.3")
    system = limited(server, entries, room_mib=400 + EXTRA_MIB + 200, memory={"patience": 0})
    # Both are weighed side by side, so either may be the first to ask.
    endings = {name: system.chat(name) for name in "ab"}
    endings = {name: reply.ending() for name, reply in endings.items()}
    (refused,) = [one for one in endings.values() if isinstance(one, Failed)]
    (winner,) = [name for name, one in endings.items() if isinstance(one, Finished)]
    assert isinstance(refused.error, InsufficientMemory)
    assert refused.error.details["blockers"] == [f"{winner} is loading"]
    assert front_bytes() + workers_bytes() < 0.95 * system.limit


def test_a_busy_model_blocks_and_is_named_in_the_refusal(server: Start) -> None:
    entries = {"busy": f"fake:hold=300MiB,{SLOW}", "other": "fake:hold=300MiB"}
    system = limited(server, entries, room_mib=900, memory={"patience": "500ms"})
    running = system.chat("busy")
    running.next(Delta)
    failed = system.chat("other").ending()
    assert isinstance(failed.error, InsufficientMemory)
    assert failed.error.details["blockers"] == ["busy is busy"]
    assert "busy is busy" in failed.error.message
    running.next(Delta)


def test_models_that_do_not_fit_together_each_serve_before_they_make_room(server: Start) -> None:
    system = limited(server, dict.fromkeys("ab", "fake:hold=300MiB"), room_mib=900)
    served: list[str] = []

    def ask(name: str) -> None:
        for _ in range(4):
            while isinstance(ending := system.chat(name).ending(), Failed):
                assert isinstance(ending.error, InsufficientMemory)
                time.sleep(0.02)  # the other one is loading or busy: the client comes again
            served.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(served) == ["a"] * 4 + ["b"] * 4
    # An eviction for a life that had not served would be one more load than there were answers.
    assert len(of(system, e.LoadStarted)) <= 8
    assert not of(system, e.WorkerDied)


def test_a_load_waits_until_a_slow_worker_has_given_its_memory_back(server: Start) -> None:
    entries = {"a": "fake:hold=300MiB,slow_close_s=0.6", "b": "fake:hold=300MiB"}
    system = limited(server, entries, room_mib=900)
    load(system, "a", "b")
    gone = event(system, e.ModelUnloaded, model="a")
    assert gone.milliseconds >= 600
    assert gone.freed_bytes >= 0.95 * gone.expected_bytes
    order(system, gone, event(system, e.LoadStarted, model="b"))


def test_a_load_right_after_another_is_not_held_up_by_the_rise_that_the_first_one_made(server: Start) -> None:
    system = limited(server, {"a": "fake:hold=300MiB,load_s=0.4", "b": "fake:hold=5MiB"}, room_mib=1100)
    load(system, "a")
    assert system.status().admission == "open"
    load(system, "b")
    assert not of(system, e.Forecast)


def test_a_refusal_at_critical_is_told_with_what_the_model_needs(server: Start, ballast: Ballast) -> None:
    system = limited(server, {"a": "fake:hold=100MiB"}, room_mib=800)
    ballast.add(int(system.limit * 0.965) - front_bytes())
    system.until(lambda: system.status().level == Level.CRITICAL, "critical")
    assert isinstance(system.chat("a").ending().error, InsufficientMemory)
    assert event(system, e.LoadRefused, model="a").required_bytes > 400 * MIB


# ---- unloading


def test_an_unload_is_told_with_what_was_expected_and_what_came_back(server: Start) -> None:
    system = limited(server, {"a": "fake:hold=300MiB"}, room_mib=900)
    load(system, "a")
    system.tell(lambda reply: m.UnloadModel("a", reply, 0.0)).next(ModelStatus)
    gone = event(system, e.ModelUnloaded, model="a")
    assert 300 * MIB < gone.expected_bytes < 350 * MIB
    assert gone.freed_bytes >= 0.99 * gone.expected_bytes
    assert 0 < gone.milliseconds < 20_000
    assert workers_bytes() == 0


def test_models_that_leave_together_are_each_credited_with_their_own_bytes(server: Start) -> None:
    system = limited(server, {"a": "fake:hold=200MiB", "b": "fake:hold=20MiB"}, room_mib=1200)
    load(system, "a", "b")
    report = system.tell(lambda reply: m.CleanUpModels(reply, aggressive=True)).next(CleanupReport)
    assert set(report.unloaded) == {"a", "b"}
    assert 0.99 * report.expected_bytes <= report.freed_bytes <= 1.1 * report.expected_bytes
    for name in "ab":
        gone = event(system, e.ModelUnloaded, model=name)
        assert gone.freed_bytes <= gone.expected_bytes + 10 * MIB


def test_a_worker_that_ignores_sigterm_is_killed_and_its_memory_comes_back(server: Start) -> None:
    entries = {"a": "fake:hold=200MiB,slow_close_s=60,ignore_sigterm=true"}
    system = limited(server, entries, room_mib=900, engine={"stop_grace": "100ms"})
    load(system, "a")
    system.tell(lambda reply: m.UnloadModel("a", reply, 0.0)).next(ModelStatus)
    gone = event(system, e.ModelUnloaded, model="a")
    order(system, event(system, e.WorkerKilled, model="a"), gone)
    assert gone.freed_bytes >= 0.99 * gone.expected_bytes


def test_a_stopped_worker_is_killed_and_its_memory_comes_back(server: Start) -> None:
    system = limited(server, {"a": f"fake:hold=200MiB,{SLOW}"}, room_mib=900, engine={"stop_grace": "100ms"})
    reply = system.chat("a")
    reply.next(Delta)
    event(system, e.ModelLoaded, model="a")
    os.kill(system.model("a").pid, signal.SIGSTOP)
    system.tell(lambda gone: m.UnloadModel("a", gone, 0.0)).next(ModelStatus)
    gone = event(system, e.ModelUnloaded, model="a")
    assert gone.freed_bytes >= 0.99 * gone.expected_bytes
    assert reply.endings() == 1


def test_a_segmentation_fault_with_memory_to_spare_costs_that_model_alone(server: Start) -> None:
    crash = f"fake:hold=100MiB,crash_at=2,crash_signal={signal.SIGSEGV.value}"
    system = limited(server, {"a": crash, "b": "fake:hold=50MiB"}, room_mib=1200, memory={"patience": 0})
    load(system, "b")
    failed = system.chat("a", "one two three").ending()
    assert isinstance(failed.error, WorkerDied)
    assert "SIGSEGV" in failed.error.message
    assert system.chat("a", "one").ending().reason == "stop"
    assert system.model("b").state == State.READY


# ---- the ladder


def test_a_growing_worker_drives_the_level_up_to_emergency_all_stop_and_admission_opens_again(server: Start) -> None:
    balloon = "fake:grow=8MiB,tokens_per_s=60,answer=la,length=100000,context=1000000"
    entries = {"balloon": balloon, "busy": f"fake:hold=20MiB,{SLOW}", "idle": "fake:hold=20MiB"}
    system = limited(server, entries, room_mib=1150, memory={"patience": 0})
    load(system, "idle")
    busy, growing = system.chat("busy"), system.chat("balloon")
    busy.next(Delta)
    event(system, e.LevelChanged, level=e.LevelName.EMERGENCY)
    for reply in (busy, growing):
        failed = reply.ending(deadline_s=10.0)
        assert isinstance(failed.error, InsufficientMemory)
        assert reply.endings() == 1
    system.until(lambda: not system.status().models, "no model left")
    assert workers_bytes() == 0
    system.until(lambda: system.status().admission == "open", "admission open")
    event(system, e.LevelChanged, level=e.LevelName.NORMAL)
    load(system, "idle")


def test_a_pinned_model_comes_back_when_memory_is_normal_again(server: Start, ballast: Ballast) -> None:
    system = limited(server, {"a": {"source": "fake:hold=50MiB", "pin": True}}, room_mib=1000)
    first = system.until_state("a", State.READY)
    ballast.add(int(system.limit * 0.985) - front_bytes())
    event(system, e.ModelUnloaded, model="a")
    assert system.model("a") is None or system.model("a").pid is None
    ballast.drop()
    assert system.until_state("a", State.READY).pid != first.pid


class BreakingSampler:
    """The system's sampler until ``broken``; from then on one that finds no process in /proc."""

    def __init__(self, proc: Path) -> None:
        (proc / "meminfo").symlink_to("/proc/meminfo")
        self.broken = False
        self._whole = SystemSampler(limit_bytes=2048 * MIB)
        self._torn = SystemSampler(limit_bytes=2048 * MIB, proc=proc)

    def __call__(self, tracked: Any = ()) -> Sample:
        return (self._torn if self.broken else self._whole)(tracked)


class TestWithoutFootprints:
    @pytest.fixture
    def memory(self, tmp_path: Path) -> BreakingSampler:
        return BreakingSampler(tmp_path)

    def test_the_server_is_degraded_and_nothing_is_killed(self, server: Start, memory: BreakingSampler) -> None:
        system = server({"a": "fake:hold=50MiB", "b": f"fake:{SLOW}"})
        assert system.chat("a").ending().reason == "stop"
        running = system.chat("b")
        running.next(Delta)
        memory.broken = True
        problems = system.until(lambda: system.status().problems, "the problem named in the status")
        assert "footprint" in problems[0]
        pids = {system.model(name).pid for name in "ab"}
        seen = system.status().sample.time_s
        system.until(lambda: system.status().sample.time_s > seen + 1.0, "more samples")
        assert {system.model(name).pid for name in "ab"} == pids
        running.next(Delta)
        memory.broken = False
        system.until(lambda: not system.status().problems, "no problem left")
