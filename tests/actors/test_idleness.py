"""Idleness alone, on the stage's clock."""

from typing import Any

import pykka
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.idle_and_drain import Idleness
from plimsoll.actors.settings import Settings
from plimsoll.memory.levels import Thresholds

SETTINGS = Settings(Thresholds(), None, queue=4, critical_grace_s=10.0)
RULES = m.Rules(pin=False, idle_ttl_s=60.0, settings=SETTINGS)


class Owner(pykka.ThreadingActor):
    """A model that notes when it was told that its time is over."""

    use_daemon_thread = True

    def __init__(self, stage: Any) -> None:
        super().__init__()
        self.stage = stage
        self.busy = False
        self.over: list[float] = []
        self.looks = 0
        self.idleness = Idleness(self.actor_ref, stage, RULES)

    def on_receive(self, _message: Any) -> None:
        self.looks += 1
        if self.idleness.is_over(busy=self.busy):
            self.over.append(self.stage.time)


@pytest.fixture
def owner(stage: Any) -> Any:
    owner = stage.actor(stage.start(Owner, stage))
    owner.idleness.watch()
    return owner


def test_the_time_counts_from_the_last_use(owner: Any) -> None:
    start = owner.stage.time
    owner.stage.advance(50.0)
    owner.idleness.used()
    owner.stage.advance(59.0)
    assert owner.over == []
    owner.stage.advance(2.0)
    assert owner.over == [start + 110.0]
    assert owner.looks == 2


def test_a_busy_model_is_looked_at_again_and_leaves_when_it_has_become_idle(owner: Any) -> None:
    owner.busy = True
    owner.stage.advance(61.0)
    assert (owner.looks, owner.over) == (1, [])
    owner.busy = False
    owner.stage.advance(60.0)
    assert len(owner.over) == 1


def test_a_pinned_model_is_never_idle_for_too_long(owner: Any) -> None:
    owner.idleness.pinned = True
    owner.idleness.watch()
    assert owner.idleness.ttl_s is None
    owner.stage.advance(1000.0)
    assert owner.looks == 0


def test_a_shorter_time_counts_from_the_last_use_too(owner: Any) -> None:
    owner.stage.advance(30.0)
    owner.idleness.keep(20.0)
    owner.idleness.watch()
    owner.stage.advance(0.0)
    assert len(owner.over) == 1


def test_rules_that_say_the_same_leave_what_was_set_meanwhile(owner: Any) -> None:
    owner.idleness.keep(20.0)
    owner.idleness.pinned = True
    owner.idleness.follow(RULES)
    assert owner.idleness.pinned
    owner.idleness.pinned = False
    assert owner.idleness.ttl_s == 20.0
    owner.idleness.follow(m.Rules(pin=True, idle_ttl_s=5.0, settings=SETTINGS))
    assert owner.idleness.ttl_s is None
    owner.idleness.pinned = False
    assert owner.idleness.ttl_s == 5.0
