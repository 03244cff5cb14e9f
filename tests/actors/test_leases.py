"""Workers ask for room for their KV caches while they run: the real Supervisor and ModelActors, moved by hand."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import test_model_states as states
import tiny_llama

from plimsoll.actors import messages as m
from plimsoll.actors.load_needs import needs_of
from plimsoll.actors.memory_view import FORECAST_S
from plimsoll.actors.replies import Waiting
from plimsoll.actors.status import State
from plimsoll.catalog.entries import CatalogModel
from plimsoll.catalog.source import ModelSource
from plimsoll.catalog.weigh import weigh
from plimsoll.config import parse
from plimsoll.engine import protocol as p
from plimsoll.errors import InsufficientMemory
from plimsoll.memory.ledger import Need
from plimsoll.memory.load_options import longest_context
from plimsoll.memory.sample import Level, Tracked

GIB = states.GIB
# 10 GiB and 1 GiB of KV cache at first, as much more as there is.
LEASED = Need(
    weights_bytes=10 * GIB,
    measured_bytes=10 * GIB,
    kv_bytes=GIB,
    kv_token_bytes=GIB // 1024,
    context=10**9,
    leased=True,
)


class Boss(states.Boss):
    """Whose models have leases."""

    def __init__(self, fakes: Any, stage: Any) -> None:
        super().__init__(fakes, stage)
        self.models.needs = dict.fromkeys(("a", "b"), (LEASED,))

    def worker_of(self, name: str) -> Any:
        return next(one for one in self.host.alive if one.commands and one.name == name)

    def load(self, name: str, *, busy: bool = False) -> Any:
        self.chat(name)
        worker = self.worker_of(name)
        worker.get_ready(10 * GIB)
        self.stage.drain()
        worker.step(() if busy else list(worker.open))
        self.stage.drain()
        self.sample()
        return worker

    def wants(self, name: str, wanted_gib: float, needed_gib: float = 0) -> None:
        self.worker_of(name).say(p.LeaseWanted(int(wanted_gib * GIB), int(needed_gib * GIB)))
        self.stage.drain()

    def leases(self, name: str) -> list[p.Lease]:
        return [one for one in self.worker_of(name).commands if isinstance(one, p.Lease)]

    def free(self, gib: float) -> None:
        """So much is free below the line of leases, beside what was granted."""
        granted = sum(record.seat().claim_bytes for record in self.stage.actor(self.ref)._records)
        used = self.host.used_bytes() - self.host.others_bytes
        self.host.others_bytes = int(90 * GIB - used - granted - gib * GIB)
        self.pass_time(0.1)

    def pass_time(self, seconds: float) -> None:
        self.stage.advance(seconds)
        self.sample()


@pytest.fixture
def boss(fakes: Any, stage: Any) -> Boss:
    return Boss(fakes, stage)


def test_a_load_begins_with_little_room_and_says_how_much_there_can_ever_be(boss: Boss) -> None:
    worker = boss.load("a")
    (load,) = [one for one in worker.commands if isinstance(one, p.LoadModel)]
    assert load.options.kv_lease
    assert load.options.kv_bytes == GIB
    assert load.options.kv_most_bytes == 80 * GIB
    assert boss.record("a").seat().reserved_bytes == 11 * GIB


def test_more_room_is_granted_out_of_what_is_free_and_booked(boss: Boss) -> None:
    boss.load("a", busy=True)
    boss.wants("a", 5, 3)
    assert boss.leases("a") == [p.Lease(5 * GIB, 80 * GIB)]
    assert boss.record("a").seat().reserved_bytes == 15 * GIB
    boss.free(2)
    boss.wants("a", 20)
    assert boss.leases("a")[-1].kv_bytes == 7 * GIB


def test_what_the_loaded_model_really_holds_is_booked_in_place_of_the_estimate(boss: Boss) -> None:
    boss.models.needs = {"a": (msgspec.structs.replace(LEASED, measured_bytes=20 * GIB),)}
    boss.load("a", busy=True)
    assert boss.record("a").seat().reserved_bytes == 11 * GIB
    boss.free(2)
    boss.wants("a", 9)
    assert boss.leases("a")[-1].kv_bytes == 3 * GIB


def test_room_that_is_handed_back_is_free_again_without_an_answer(boss: Boss) -> None:
    boss.load("a", busy=True)
    boss.wants("a", 5, 3)
    boss.wants("a", 2)
    assert len(boss.leases("a")) == 1
    assert boss.record("a").seat().reserved_bytes == 12 * GIB


def test_another_model_hands_back_what_it_does_not_use_before_any_is_evicted(boss: Boss) -> None:
    b = boss.load("b", busy=True)
    boss.wants("b", 5)
    boss.load("a", busy=True)
    boss.free(1)
    boss.wants("a", 5, 4)
    assert isinstance(b.commands[-1], p.GiveWay)
    assert boss.leases("a") == []
    boss.wants("b", 1)
    boss.pass_time(1.0)
    assert boss.leases("a")[-1].kv_bytes == 5 * GIB
    assert not b.told


def test_an_idle_model_is_evicted_for_answers_that_wait(boss: Boss) -> None:
    b = boss.load("b")
    boss.load("a", busy=True)
    boss.free(1)
    boss.wants("a", 5)
    assert not b.told, "no request waits for that"
    boss.wants("a", 5, 4)
    assert b.told == "shutdown"
    assert len(boss.leases("a")) == 1
    b.die(0)
    boss.stage.drain()
    boss.pass_time(0.1)
    assert boss.leases("a")[-1].kv_bytes == 5 * GIB


@pytest.mark.parametrize("busy", [True, False])
def test_a_denied_request_is_told_whether_anything_else_runs(boss: Boss, busy: bool) -> None:
    if busy:
        boss.load("b", busy=True)
    boss.load("a", busy=True)
    boss.free(0)
    boss.wants("a", 5, 4)
    assert boss.leases("a") == [p.Lease(GIB, 80 * GIB, more=busy)]


def test_the_answer_to_a_former_worker_does_not_reach_the_next_one(boss: Boss) -> None:
    boss.load("a", busy=True)
    boss.record("a").ref.tell(m.Lease(worker=0, kv_bytes=1, most_bytes=1))
    boss.stage.drain()
    assert boss.leases("a") == []


def test_a_busy_worker_hands_back_what_it_does_not_use_before_a_load_is_refused(boss: Boss) -> None:
    b = boss.load("b", busy=True)
    boss.wants("b", 5)
    boss.free(3)  # and 5 more up to critical, by which loads go
    answer = boss.chat("a")
    assert isinstance(b.commands[-1], p.GiveWay)
    boss.wants("b", 1)
    boss.pass_time(0.6)
    assert not answer.ended
    assert boss.worker_of("a").commands


def test_a_load_is_refused_when_giving_way_was_not_enough(boss: Boss) -> None:
    boss.load("b", busy=True)
    boss.wants("b", 5)
    boss.free(1)
    answer = boss.chat("a")
    assert not answer.ended
    boss.pass_time(0.6)
    assert isinstance(answer.ending.error, InsufficientMemory)


def test_the_pool_of_a_busy_worker_is_given_back_before_a_load_is_refused(boss: Boss) -> None:
    b = boss.load("b", busy=True)
    boss.host.others_bytes = 70 * GIB
    b.bytes = 18 * GIB  # of 11 that were granted
    boss.pass_time(0.1)
    answer = boss.chat("a")
    assert isinstance(b.commands[-1], p.GiveWay)
    b.bytes = 10 * GIB
    boss.pass_time(0.6)
    assert not answer.ended
    assert boss.worker_of("a").commands


def test_pools_are_given_back_before_a_load_is_refused_by_a_forecast(boss: Boss) -> None:
    b = boss.load("b", busy=True)
    boss.host.others_bytes = 70 * GIB
    b.bytes = 18 * GIB

    def fills() -> None:
        boss.stage.advance(1.0)
        boss.tell(m.Sampled(boss.host.sample([Tracked(b.pid)]), Level.NORMAL, seconds_to_critical=5.0))

    for _ in range(4):  # the load of b is long enough ago
        fills()
    answer = boss.chat("a")
    for _ in range(int(FORECAST_S)):
        assert not isinstance(b.commands[-1], p.GiveWay)
        fills()
    assert isinstance(b.commands[-1], p.GiveWay)
    assert not answer.ended
    fills()
    assert isinstance(answer.ending.error, InsufficientMemory)


def test_a_busy_worker_that_drains_because_memory_is_critical_gives_its_pool_back(boss: Boss) -> None:
    b = boss.load("b", busy=True)
    boss.record("b").ref.tell(m.MemoryCritical(boss.host.sample()))
    boss.stage.drain()
    assert boss.record("b").status.state == State.DRAINING
    assert isinstance(b.commands[-1], p.TrimCaches)


def test_a_lease_is_not_denied_by_a_sample_from_before_the_worker_gave_its_pool_back(boss: Boss) -> None:
    a = boss.load("a", busy=True)
    boss.host.others_bytes = 70 * GIB
    a.bytes = 18 * GIB
    boss.pass_time(0.1)
    a.bytes = 10 * GIB
    boss.stage.advance(0.05)
    boss.wants("a", 5, 4)
    assert boss.leases("a") == []
    boss.pass_time(0.05)
    assert boss.leases("a")[-1].kv_bytes == 5 * GIB


def test_a_request_that_waits_for_memory_is_told_so(boss: Boss) -> None:
    boss.load("a")
    answer = boss.chat("a")
    boss.worker_of("a").say(p.Held(answer.what, GIB, 2 * GIB))
    boss.stage.drain()
    assert answer.items[-1] == Waiting("memory", GIB, 2 * GIB)


def test_a_plan_names_the_longest_conversation_that_the_machine_has_room_for(boss: Boss) -> None:
    reply = boss.fakes.Answer(boss.stage, "plan", (object,))
    boss.tell(m.PlanLoad("a", (LEASED,), reply))
    assert reply.ending.granted.kv_most_bytes == 80 * GIB
    boss.load("a")
    assert boss.state == State.READY
    assert boss.record("a").need == msgspec.structs.replace(LEASED, kv_most_bytes=80 * GIB)


def test_plan_and_status_tell_the_same_longest_conversation_from_before_the_load_to_the_newest_measurement(
    boss: Boss,
) -> None:
    def told(message: Any, *args: Any) -> Any:
        reply = boss.fakes.Answer(boss.stage, "told", (object,))
        boss.tell(message(*args, reply))
        return reply.ending

    planned = longest_context(told(m.PlanLoad, "a", (LEASED,)).granted)
    assert planned == 80 * 1024 - 256
    boss.load("a")
    boss.free(30)
    for measured in (0, 12_345):
        boss.worker_of("a").say(p.LeaseWanted(2 * GIB, 0, measured))
        boss.stage.drain()
        status, plan, need = told(m.GetStatus), told(m.PlanLoad, "a", (LEASED,)), boss.record("a").need
        assert status.contexts["a"] == longest_context(plan.granted) == (measured or planned)
        assert status.granted["a"] == need.total_bytes == boss.record("a").seat().reserved_bytes
        (*_, lease) = boss.leases("a")
        assert (status.kv_bytes["a"], status.kv_most_bytes["a"]) == (lease.kv_bytes, lease.most_bytes)


@pytest.mark.parametrize(("file", "leased"), [("config.json", True), ("modules.json", False)])
def test_a_model_whose_files_alone_say_that_it_makes_embeddings_has_its_room_at_once(
    tmp_path: Path, file: str, leased: bool
) -> None:
    folder = tiny_llama.build(tmp_path / "model", max_position_embeddings=131_072)
    (folder / file).touch()
    model = CatalogModel(ModelSource("a", "folder", str(folder)))
    ways = needs_of(model, weigh(folder), parse({}), {})
    assert {need.leased for need in ways} == {leased}
