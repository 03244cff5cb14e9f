"""One name, many lives: what comes late, what comes twice, and what nobody waits for any more."""

from typing import Any

import pytest
import test_model_states as states

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Failed, Finished
from plimsoll.actors.status import ModelStatus, State
from plimsoll.engine import protocol as p
from plimsoll.errors import InternalError

Boss = states.Boss


@pytest.fixture
def boss(fakes: Any, stage: Any) -> Boss:
    return Boss(fakes, stage)


def generated(boss: Boss) -> list[str]:
    """The requests that the newest worker was told to answer."""
    return [command.id for command in boss.worker.commands if isinstance(command, p.Generate)]


# ---- cancelled requests


def test_a_cancelled_request_is_not_tried_again_when_its_worker_dies(boss: Boss) -> None:
    gone, kept = boss.chat(), boss.chat()
    boss.worker.get_ready()
    boss.stage.drain()
    boss.tell(m.Cancel(gone.what, "a"))
    boss.die()
    assert gone.ending.reason == "cancelled"
    assert boss.state == State.BACKOFF
    boss.stage.advance(1.0)
    boss.worker.get_ready()
    boss.stage.drain()
    assert generated(boss) == [kept.what]


def test_a_model_whose_last_request_was_cancelled_is_not_loaded_again_for_it(boss: Boss) -> None:
    gone = boss.chat()
    boss.worker.get_ready()
    boss.stage.drain()
    boss.tell(m.Cancel(gone.what, "a"))
    boss.die()
    assert gone.ending.reason == "cancelled"
    assert boss.state == State.COLD
    boss.stage.advance(10.0)
    assert len(boss.host.workers) == 1


@pytest.mark.parametrize("order", range(8))
def test_a_cancel_that_overtakes_its_chat_on_the_way_back_still_finds_it(boss: Boss, order: int) -> None:
    boss.idle()
    first, actor = boss.worker, boss.stage.actor(boss.record().ref)
    actor.actor_ref.tell(m.Unload("asked for"))
    # Both are forwarded to an actor that leaves, before the Supervisor knows that it does.
    gone, kept = boss.chat(drain=False), boss.chat(drain=False)
    boss.ref.tell(m.Cancel(gone.what, "a"))
    boss.stage.drain(order)
    first.die(0)
    boss.stage.drain(order)
    boss.sample()
    assert boss.worker is not first
    boss.worker.get_ready()
    boss.stage.drain(order)
    assert gone.ending.reason == "cancelled"
    assert generated(boss) == [kept.what]


def test_a_cancel_of_a_request_that_waited_for_the_end_of_a_changed_model_is_not_lost(boss: Boss) -> None:
    boss.chat()
    actor = boss.stage.actor(boss.record().ref)
    gone = boss.chat()
    actor.actor_ref.tell(m.Unload("the configuration changed", 5.0, hand_back=True))
    actor.actor_ref.tell(m.Cancel(gone.what, "a"))
    boss.stage.drain()
    assert gone.ending.reason == "cancelled"


def test_a_cancel_that_finds_nothing_goes_round_once(boss: Boss) -> None:
    boss.ready()
    boss.tell_model(m.Unload("asked for", 60.0))
    assert boss.state == State.DRAINING
    boss.tell(m.Cancel("never heard of", "a"))
    boss.step(finish=True)
    assert boss.state == State.STOPPING


# ---- messages of a former life


def successor(boss: Boss) -> str:
    """The life that has ended; the next one waits for its grant."""
    boss.idle()
    life = boss.record().ref.actor_urn
    boss.tell(m.UnloadModel("a", boss.fakes.Answer(boss.stage, "unload", (ModelStatus,)), 0.0))
    boss.die(0)
    boss.sample()
    return str(life)


def test_a_late_word_of_a_stopped_life_does_not_cost_its_successor_the_load(boss: Boss) -> None:
    life = successor(boss)
    boss.stage.after_each = lambda: None  # no sample comes: the load waits for its grant
    boss.stage.time += 1.0
    answer = boss.chat()
    assert boss.state == State.LOADING
    boss.tell(m.StateChanged("a", life, ModelStatus("a", State.STOPPED)))
    assert boss.state == State.LOADING
    boss.sample()
    boss.worker.get_ready()
    boss.stage.drain()
    boss.step(finish=True)
    assert isinstance(answer.ending, Finished)


FIELDS: dict[type[m.FromModel], tuple[Any, ...]] = {
    m.StateChanged: (ModelStatus("a", State.STOPPED),),
    m.LeaseRequested: (1, 0, 0),
    m.Counted: (5, 1.0),
    m.LoadRequested: ((),),
    m.Stays: (),
    m.RanOutOfMemory: (InternalError("late"),),
    m.WorkerHangs: (),
    m.WorkerStuck: (77,),
    m.ChildStopped: ("late",),
    m.Handback: (m.Cancel("chat", "a"),),
}


@pytest.mark.parametrize("kind", m.FromModel.__subclasses__())
def test_what_a_former_life_says_is_ignored_unless_it_matters_all_the_same(boss: Boss, kind: type[m.FromModel]) -> None:
    life = successor(boss)
    boss.chat()
    heard: list[m.Message] = []
    boss.stage.actor(boss.ref)._handlers[kind] = heard.append
    boss.tell(kind("a", life, *FIELDS[kind]))
    assert bool(heard) is kind.matters_after_death
    heard.clear()
    boss.tell(kind("a", boss.record().ref.actor_urn, *FIELDS[kind]))
    assert heard


def test_what_matters_after_death_is_a_process_and_a_request() -> None:
    assert {kind for kind in FIELDS if kind.matters_after_death} == {m.WorkerStuck, m.Handback}


# ---- one ending


def test_a_failure_behind_a_chat_that_was_passed_on_is_no_second_ending(boss: Boss) -> None:
    supervisor = boss.stage.actor(boss.ref)
    follow = supervisor._footprints.follow
    supervisor._footprints.follow = lambda *, hurry: 1 / 0
    answer = boss.chat()
    assert not answer.ended
    supervisor._footprints.follow = follow
    boss.sample()
    boss.worker.get_ready()
    boss.stage.drain()
    boss.step(finish=True)
    assert isinstance(answer.ending, Finished)
    assert not boss.stage.broken


def test_a_chat_that_comes_back_to_a_supervisor_that_fails_on_it_gets_its_ending(boss: Boss) -> None:
    boss.idle()
    answer = boss.fakes.Answer(boss.stage, "chat")
    supervisor = boss.stage.actor(boss.ref)
    supervisor._handlers[m.Handback] = lambda _message: 1 / 0
    chat = m.Chat("chat", "a", boss.fakes.CHAT, answer)
    boss.tell(m.Handback("a", boss.record().ref.actor_urn, chat))
    assert isinstance(answer.ending.error, InternalError)


# ---- a process that is still being started


@pytest.fixture
def starting(boss: Boss) -> tuple[Boss, Any]:
    """A model whose worker was ordered and does not run yet, and whoever waits for it."""
    boss.host.starts_later = True
    answer = boss.chat()
    assert boss.state == State.LOADING
    assert boss.record().status.pid is None
    return boss, answer


def test_a_start_in_the_background_is_told_and_the_load_goes_on(starting: tuple[Boss, Any]) -> None:
    boss, answer = starting
    boss.worker.start()
    boss.stage.drain()
    assert boss.record().status.pid == boss.worker.pid
    boss.worker.get_ready()
    boss.stage.drain()
    boss.step(finish=True)
    assert isinstance(answer.ending, Finished)


@pytest.mark.parametrize("end", ["emergency", "unload", "failure", "stop"])
def test_whatever_ends_a_model_ends_the_process_that_is_still_being_started(
    starting: tuple[Boss, Any], end: str
) -> None:
    boss, answer = starting
    actor = boss.record().ref
    match end:
        case "emergency":
            boss.emergency()
        case "unload":
            boss.tell(m.UnloadModel("a", boss.fakes.Answer(boss.stage, "unload", (ModelStatus,)), 0.0))
        case "failure":
            boss.tell_model(boss.fakes.Bug())
        case "stop":
            boss.tell(m.StopAll(0.0, boss.fakes.Answer(boss.stage, "stop", (type(None),))))
    assert isinstance(answer.ending, Failed)
    assert boss.worker.told in ("term", "kill")
    worker = boss.worker
    worker.start()
    boss.stage.drain()
    assert worker.dead
    assert boss.record() is None or boss.record().ref is not actor


def test_a_second_grant_does_not_start_a_second_process(starting: tuple[Boss, Any]) -> None:
    boss, _ = starting
    boss.tell_model(m.Load(states.NEED))
    boss.chat()
    assert len(boss.host.workers) == 1


def test_a_process_that_never_starts_hangs_like_one_that_says_nothing(fakes: Any, stage: Any) -> None:
    boss = Boss(fakes, stage, hang_after_s=30.0)
    boss.host.starts_later = True
    boss.chat()
    stage.advance(31.0)
    assert boss.worker.told == "kill"


def with_spare_on_its_way(fakes: Any, stage: Any) -> tuple[Any, Any]:
    """The Supervisor and its spare worker, which is ordered and does not run yet."""
    boss = Boss(fakes, stage)
    spare = stage.actor(boss.ref)._spare
    spare.serves = lambda _model: True
    boss.chat()
    boss.host.starts_later = True
    boss.worker.get_ready()
    stage.drain()
    boss.step(finish=True)
    boss.sample()
    return boss, spare


def test_a_spare_worker_that_ends_before_it_runs_is_forgotten(fakes: Any, stage: Any) -> None:
    boss, spare = with_spare_on_its_way(fakes, stage)
    ordered = boss.host.newest
    assert spare.pid is None
    assert not spare.gone
    ordered.die(127)
    stage.drain()
    assert spare.gone


def test_a_spare_worker_that_is_dismissed_before_it_runs_is_waited_for(fakes: Any, stage: Any) -> None:
    boss, spare = with_spare_on_its_way(fakes, stage)
    spare.dismiss()
    assert not spare.gone
    boss.host.newest.start()
    stage.drain()
    assert boss.host.newest.dead
    assert spare.gone
