"""The spare worker: who makes it, who gets it, and that it never is in memory's way."""

from typing import Any

import pytest
import test_model_states as states

from plimsoll.actors import messages as m
from plimsoll.actors.status import ModelStatus, State
from plimsoll.engine import protocol as p
from plimsoll.memory.sample import Level

GIB = states.GIB


class Boss(states.Boss):
    """Whose spare workers serve the model ``a``."""

    spare_serves = "a"

    def step(self, *, finish: bool = False) -> None:
        self.stage.advance(0.1)
        super().step(finish=finish)
        self.sample()

    @property
    def worker(self) -> Any:
        """The newest one that was told to load."""
        return next(worker for worker in reversed(self.host.workers) if worker.commands)

    @property
    def spare(self) -> Any:
        pid = self.stage.actor(self.ref)._spare.pid
        return next((worker for worker in self.host.alive if worker.pid == pid), None)

    def reload(self) -> None:
        """Unload ``a`` and ask for it again, up to the grant."""
        model = self.worker_of("a")
        self.tell(m.UnloadModel("a", self.fakes.Answer(self.stage, "unload", (ModelStatus,)), 0.0))
        model.die(0)
        self.stage.drain()
        self.sample()
        self.chat("a")

    def worker_of(self, name: str) -> Any:
        return next(one for one in self.host.alive if one.commands and one.name == name)


@pytest.fixture
def boss(fakes: Any, stage: Any) -> Boss:
    return Boss(fakes, stage)


def test_a_load_orders_a_spare_worker_that_the_next_load_uses(boss: Boss) -> None:
    assert boss.spare is None
    boss.idle()
    spare = boss.spare
    assert spare is not None
    assert not spare.commands
    boss.reload()
    assert boss.spare is None
    assert [type(one) for one in spare.commands] == [p.ReadAhead, p.LoadModel]
    assert boss.worker_of("a") is spare
    spare.get_ready()
    boss.stage.drain()
    assert boss.state == State.BUSY
    assert boss.spare is None, "its imports would take a core from the answer"
    boss.step(finish=True)
    assert boss.spare is not None
    assert boss.spare is not spare


def test_a_model_that_has_no_use_of_it_gets_a_worker_of_its_own(boss: Boss) -> None:
    boss.idle()
    spare = boss.spare
    boss.chat("b")
    assert boss.worker_of("b") is not spare
    assert boss.spare is spare


@pytest.mark.parametrize(
    ("event", "level"),
    [(m.MemoryWarning, Level.WARNING), (m.MemoryCritical, Level.CRITICAL), (m.MemoryEmergency, Level.EMERGENCY)],
)
def test_it_leaves_when_memory_is_wanted(boss: Boss, event: type, level: Level) -> None:
    boss.idle()
    spare = boss.spare
    boss.tell(event(boss.host.sample()))
    assert spare.told == "kill"
    assert boss.spare is None
    spare.die(-9)
    boss.stage.drain()


def test_none_is_ordered_above_normal(boss: Boss) -> None:
    boss.chat()
    boss.tell(m.MemoryWarning(boss.host.sample()))
    boss.worker.get_ready(10 * GIB)
    boss.stage.drain()
    assert boss.spare is None


def test_one_that_dies_is_forgotten_and_ordered_again_after_the_next_load(boss: Boss) -> None:
    boss.idle()
    boss.spare.die(-11)
    boss.stage.drain()
    assert boss.spare is None
    boss.reload()
    boss.worker_of("a").get_ready()
    boss.stage.drain()
    boss.step(finish=True)
    assert boss.spare is not None


def test_one_that_dies_at_the_hand_over_costs_a_retry_and_no_request(boss: Boss) -> None:
    boss.idle()
    spare = boss.spare
    spare.dead = True  # its exit is not told yet
    boss.reload()
    assert boss.state == State.BACKOFF
    boss.stage.advance(5.0)
    boss.sample()
    boss.worker.get_ready()
    boss.stage.drain()
    assert boss.state == State.BUSY


def test_it_reads_ahead_while_another_model_leaves_for_the_load(boss: Boss) -> None:
    boss.spare_serves = "ab"
    boss.idle()
    spare, model = boss.spare, boss.worker_of("a")
    boss.host.others_bytes = 75 * GIB  # with the 10 GiB of "a" and 11 for "b" beyond the critical line
    boss.sample()
    boss.chat("b")
    assert [(type(one), one.source.name) for one in spare.commands] == [(p.ReadAhead, "b")]
    model.die(0)
    boss.stage.drain()
    boss.sample()
    assert [type(one) for one in spare.commands] == [p.ReadAhead, p.LoadModel]


def test_its_memory_is_watched_and_counts_for_the_load_that_uses_it(boss: Boss) -> None:
    boss.idle()
    watchdog = [actor for actor in boss.stage.actors if isinstance(actor, boss.fakes.Mailbox)]
    assert watchdog
    boss.sample()
    supervisor = boss.stage.actor(boss.ref)
    assert supervisor._spare.footprint_bytes == boss.host.process_bytes
    assert boss.spare.pid in {one.pid for one in supervisor._footprints.tracked.workers}
    plans = [boss.fakes.Answer(boss.stage, name, (object,)) for name in "ab"]
    for name, answer in zip("ab", plans, strict=True):
        boss.tell(m.PlanLoad(name, (states.NEED,), answer))
    available = [answer.items[0].plan.available_bytes for answer in plans]
    # "a" would be loaded a second time beside nothing else, "b" beside the loaded "a".
    assert available[0] - available[1] >= boss.host.process_bytes


def test_a_plan_counts_it_also_for_a_model_that_does_not_live(boss: Boss) -> None:
    boss.idle()
    boss.sample()
    model = boss.worker_of("a")
    boss.tell(m.UnloadModel("a", boss.fakes.Answer(boss.stage, "unload", (ModelStatus,)), 0.0))
    model.die(0)
    boss.stage.drain()
    boss.sample()
    assert boss.record("a") is None
    plans = [boss.fakes.Answer(boss.stage, name, (object,)) for name in "ab"]
    for name, answer in zip("ab", plans, strict=True):
        boss.tell(m.PlanLoad(name, (states.NEED,), answer))
    with_spare, without = [answer.items[0].plan.available_bytes for answer in plans]
    assert with_spare - without == boss.host.process_bytes


def test_the_server_stops_when_it_is_gone_too(boss: Boss) -> None:
    boss.idle()
    spare, model = boss.spare, boss.worker_of("a")
    stopped = boss.fakes.Answer(boss.stage, "stop", (type(None),))
    boss.tell(m.StopAll(0.0, stopped))
    model.die(0)
    boss.stage.drain()
    assert not stopped.items
    assert spare.told == "kill"
    spare.die(-9)
    boss.stage.drain()
    assert stopped.items == [None]


def test_a_spare_that_can_not_start_is_no_failure(boss: Boss, caplog: pytest.LogCaptureFixture) -> None:
    boss.chat()
    boss.host.can_not_spawn = True
    boss.worker.get_ready(10 * GIB)
    boss.stage.drain()
    boss.step(finish=True)
    assert boss.state == State.READY
    assert "no spare worker: no worker process can be started" in caplog.text
