"""Whoever waits without any progress shows in the health, whatever the reason."""

from typing import Any

import pytest
import test_model_states as states

from plimsoll.actors import messages as m
from plimsoll.actors.model_load import WEIGH_S
from plimsoll.actors.status import State, Status
from plimsoll.actors.status_report import STILL_S, Wait, stalled
from plimsoll.engine import protocol as p

Boss = states.Boss
GIB = states.GIB


@pytest.fixture
def boss(fakes: Any, stage: Any) -> Boss:
    return Boss(fakes, stage)


def problems(boss: Boss) -> list[str]:
    """What the health says now, memory having been read just before."""
    boss.sample()
    reply = boss.fakes.Answer(boss.stage, "status", (Status,))
    boss.tell(m.GetStatus(reply))
    found: list[str] = reply.items[0].problems
    return found


@pytest.mark.parametrize(
    ("waits", "said"),
    [
        ([], []),
        ([Wait("a", 100.0 - STILL_S + 0.1, "x")], []),
        ([Wait("a", 100.0 - STILL_S, "x")], ["a: the oldest waiting request has seen no progress for 60 s: x"]),
        (
            [Wait("a", -100.0, "x"), Wait("b", 99.0, "y"), Wait("c", 25.0, "z")],
            [
                "a: the oldest waiting request has seen no progress for 200 s: x",
                "c: the oldest waiting request has seen no progress for 75 s: z",
            ],
        ),
    ],
)
def test_only_who_waits_for_long_is_named(waits: list[Wait], said: list[str]) -> None:
    assert stalled(waits, 100.0) == said


def test_files_that_can_not_be_looked_at_end_the_wait_and_show(boss: Boss) -> None:
    boss.stage.tasks = Swallowed()
    boss.chat()
    assert boss.state == State.LOADING
    boss.stage.advance(WEIGH_S - 1)
    assert problems(boss) == []
    boss.stage.advance(1.0)
    (said,) = problems(boss)
    assert said.startswith(f"a: a can't be loaded: its files have not answered for {WEIGH_S:.0f} s")


class Swallowed(list[Any]):
    """Background work that is never done, as on a disk that does not answer."""

    def append(self, _: Any) -> None:
        pass


def test_a_load_that_is_never_answered_shows_and_names_memory(boss: Boss) -> None:
    # As if the grant had been lost: nobody decides.
    boss.stage.actor(boss.ref)._admission.on_load_requested = lambda _model, _needs: None
    boss.chat()
    boss.stage.advance(STILL_S)
    (said,) = problems(boss)
    assert "memory" in said
    assert "/admin/plan?model=a" in said


def test_a_load_behind_another_one_that_waits_shows(boss: Boss) -> None:
    boss.stage.after_each = lambda: None
    boss.stage.time += 1.0
    boss.chat("a")
    boss.chat("b")
    boss.stage.actor(boss.ref)._admission.step = lambda: None
    boss.stage.advance(STILL_S)
    said = problems(boss)
    assert [one.split(":")[0] for one in said] == ["a", "b"]


def test_requests_that_wait_for_a_long_drain_show(boss: Boss) -> None:
    boss.ready()
    boss.tell_model(m.Unload("asked for", 3600.0))
    boss.chat()
    boss.stage.advance(STILL_S)
    (said,) = problems(boss)
    assert "draining" in said


def test_a_load_that_makes_progress_is_no_problem_and_one_that_stops_is(boss: Boss) -> None:
    boss.chat()
    for done in range(1, 6):
        boss.stage.advance(50.0)
        boss.worker.say(p.LoadProgress("fetch", done * GIB, 10 * GIB))
        boss.stage.drain()
        assert problems(boss) == []
    boss.stage.advance(30.0)
    boss.worker.say(p.LoadProgress("fetch", 5 * GIB, 10 * GIB))  # says the same again: no progress
    boss.stage.drain()
    boss.stage.advance(30.0)
    (said,) = problems(boss)
    assert "stage fetch" in said


def test_who_runs_or_rests_waits_for_nothing(boss: Boss) -> None:
    boss.ready()
    boss.stage.advance(600.0)
    assert problems(boss) == []
    boss.step(finish=True)
    boss.stage.advance(600.0)
    assert problems(boss) == []
    assert boss.record() is None or boss.record().status.still_since is None


def test_tokens_cost_no_message_for_this(boss: Boss) -> None:
    boss.ready()
    told: list[m.Message] = []
    boss.stage.actor(boss.ref)._handlers[m.StateChanged] = told.append
    for _ in range(10):
        boss.step()
    assert not told
