"""Packed weights become dense when memory allows: the real Supervisor and ModelActors, moved by hand."""

from typing import Any

import msgspec
import pytest
import test_model_states as states

from plimsoll.actors import messages as m
from plimsoll.actors.faster_form import FITS_S, IDLE_S
from plimsoll.actors.replies import Finished
from plimsoll.actors.status import State
from plimsoll.journal import events
from plimsoll.memory.ledger import Need
from plimsoll.memory.sample import Level, Tracked

GIB = states.GIB
DENSE = Need(
    weights_bytes=40 * GIB,
    measured_bytes=40 * GIB,
    kv_bytes=GIB,
    dequantize=True,
    leased=True,
    headroom_bytes=4 * GIB,
)
PACKED = msgspec.structs.replace(DENSE, weights_bytes=10 * GIB, measured_bytes=10 * GIB, dequantize=False)


class Boss(states.Boss):
    """Other programs hold 70 of 100 GiB, so ``a`` was loaded packed; it is idle."""

    def __init__(self, fakes: Any, stage: Any, **settings: Any) -> None:
        super().__init__(fakes, stage, **settings)
        self.events: list[Any] = []
        self.told: list[str] = []
        self.models.journal.subscribe(lambda entry: self.events.append(entry.event))
        self.host.on_told = lambda _worker, how: self.told.append(how)
        self.models.needs = {"a": (DENSE, PACKED), "b": (states.NEED,)}
        self.host.others_bytes = 70 * GIB
        self.sample()
        self.idle()
        self.sample()
        assert self.record().need.dequantize is False

    def pass_time(self, seconds: float, level: Level = Level.NORMAL) -> None:
        """With a sample each second."""
        for _ in range(int(seconds)):
            self.stage.advance(1.0)
            self.tell(m.Sampled(self.host.sample([Tracked(one.pid) for one in self.host.alive]), level))

    @property
    def changes(self) -> list[events.FasterForm]:
        return [one for one in self.events if isinstance(one, events.FasterForm)]

    def leave(self) -> None:
        """The worker that was told to end does, and its memory is seen to be back."""
        assert self.told[:1] == ["shutdown"]
        self.told.clear()
        self.die(0)
        self.pass_time(3)

    def change(self) -> None:
        """Memory comes free, and the model is loaded anew in its faster form."""
        self.host.others_bytes = 10 * GIB
        self.pass_time(FITS_S + 2)
        self.leave()


@pytest.fixture
def boss(fakes: Any, stage: Any) -> Boss:
    return Boss(fakes, stage)


def test_an_idle_model_is_loaded_dense_once_memory_has_allowed_it_for_a_minute(boss: Boss) -> None:
    packed = boss.worker
    boss.host.others_bytes = 10 * GIB
    boss.pass_time(FITS_S - 2)
    assert not boss.told
    boss.pass_time(4)
    assert boss.changes == [events.FasterForm("a", 45 * GIB, 75 * GIB, FITS_S)]
    boss.leave()
    assert boss.worker is not packed
    assert boss.record().need.dequantize
    boss.worker.get_ready(40 * GIB)
    boss.pass_time(3 * FITS_S)
    assert len(boss.changes) == 1, "there is no faster form than this one"


def test_the_faster_form_has_to_fit_below_the_warning_line_with_its_headroom(boss: Boss) -> None:
    boss.host.others_bytes = 41 * GIB  # 41 and 45 are 86 %
    boss.pass_time(3 * FITS_S)
    assert not boss.told
    boss.host.others_bytes = 39 * GIB
    boss.pass_time(FITS_S + 2)
    assert boss.told[:1] == ["shutdown"]


def test_memory_that_is_short_now_and_then_changes_nothing(boss: Boss) -> None:
    for _ in range(8):
        boss.host.others_bytes = 10 * GIB
        boss.pass_time(FITS_S - 10)
        boss.host.others_bytes = 60 * GIB
        boss.pass_time(1)
    assert not boss.told
    boss.host.others_bytes = 10 * GIB
    boss.pass_time(FITS_S - 10)
    boss.pass_time(1, Level.WARNING)
    boss.pass_time(FITS_S - 10)
    assert not boss.told


def test_a_busy_model_goes_on_until_it_has_been_idle_for_a_while(boss: Boss) -> None:
    boss.host.others_bytes = 10 * GIB
    boss.chat()
    boss.step()
    boss.pass_time(2 * FITS_S)
    assert not boss.told
    boss.step(finish=True)
    boss.pass_time(IDLE_S - 2)
    assert not boss.told
    boss.pass_time(4)
    assert boss.told[:1] == ["shutdown"]


def test_a_request_that_comes_meanwhile_waits_and_is_answered(boss: Boss) -> None:
    boss.host.others_bytes = 10 * GIB
    boss.pass_time(FITS_S + 2)
    answer = boss.chat()
    boss.leave()
    boss.worker.get_ready(40 * GIB)
    boss.stage.drain()
    boss.step(finish=True)
    assert isinstance(answer.ending, Finished)


def test_a_request_that_comes_at_the_last_moment_keeps_the_worker(boss: Boss) -> None:
    boss.host.others_bytes = 10 * GIB
    boss.pass_time(FITS_S - 1)
    boss.stage.advance(2.0)
    answer = boss.fakes.Answer(boss.stage, "late")
    boss.record().ref.tell(m.Chat("late", "a", boss.fakes.CHAT, answer))
    boss.sample()
    assert not boss.told
    boss.step(finish=True)
    assert isinstance(answer.ending, Finished)
    assert boss.state == State.READY


def test_a_pinned_model_keeps_its_pin(boss: Boss) -> None:
    boss.tell(m.PinModel("a", True, boss.fakes.Answer(boss.stage, "pin", (object,))))
    boss.change()
    assert boss.record().need.dequantize
    assert boss.record().status.pinned


def test_a_time_to_live_that_was_set_at_run_time_holds_in_the_next_life(boss: Boss) -> None:
    boss.tell(m.KeepAlive("a", 777.0))
    boss.change()
    assert boss.record().status.idle_ttl_s == 777.0


def test_nothing_is_loaded_anew_while_another_load_waits_for_memory(boss: Boss) -> None:
    boss.host.others_bytes = 10 * GIB
    boss.models.on_a_dead_disk = {"b"}
    boss.chat("b")
    boss.pass_time(FITS_S / 3)
    assert boss.record("b").status.state == State.LOADING
    boss.stage.advance(FITS_S)
    boss.sample()
    assert not boss.told


def test_each_change_of_a_model_takes_twice_as_long_as_the_one_before(boss: Boss) -> None:
    for wait_s in (FITS_S, 2 * FITS_S, 4 * FITS_S):
        boss.host.others_bytes = 10 * GIB
        boss.pass_time(wait_s - 2)
        assert not boss.told
        boss.pass_time(4)
        boss.host.others_bytes = 70 * GIB
        boss.leave()  # and memory is short again before it is loaded
        boss.worker.get_ready(10 * GIB)
        boss.pass_time(1)
        assert boss.record().need.dequantize is False


def test_a_model_that_was_taken_out_of_the_configuration_meanwhile_is_not_loaded_again(boss: Boss, caplog: Any) -> None:
    boss.host.others_bytes = 10 * GIB
    boss.pass_time(FITS_S + 2)
    boss.models.needs = {"b": (states.NEED,)}
    boss.leave()
    assert boss.record() is None
    assert not [one for one in caplog.messages if "failed" in one]
