"""Admission alone: seats, clock and samples are the test's, and what it tells the models is only written down."""

from typing import Any

import msgspec
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.admission import Admission
from plimsoll.actors.outlook import Outlook
from plimsoll.errors import InsufficientMemory, NeverFits, Unavailable
from plimsoll.journal.journal import Journal
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.plan import Need, Seat
from plimsoll.memory.reclaim import TIMEOUT_S
from plimsoll.memory.sample import Level, Reading, Sample

GIB = 1024**3
GRACE_S = 10.0


def need(gib: float) -> tuple[Need, ...]:
    return (Need(weights_bytes=int(gib * GIB), measured_bytes=int(gib * GIB)),)


class Desk:
    """An Admission in a machine of 100 GiB; models hold what they were granted."""

    def __init__(self, stage: Any, fakes: Any) -> None:
        self.stage, self.fakes = stage, fakes
        self.seats: dict[str, Seat] = {}
        self.told: list[tuple[str, m.Message]] = []
        self.external: list[Sample] = []
        self.journal: list[Any] = []
        self.others_gib = 10.0
        journal = Journal()
        journal.subscribe(lambda entry: self.journal.append(entry.event))
        self.outlook = Outlook(Thresholds(), journal, stage.now, self.sitting)
        self.admission = Admission(
            self.outlook,
            journal,
            stage.now,
            GRACE_S,
            seats=self.sitting,
            tell=lambda name, message: self.told.append((name, message)),
            on_external=self.external.append,
        )
        self.sample()

    def sitting(self) -> list[Seat]:
        return list(self.seats.values())

    def sit(self, name: str, gib: float = 20, **flags: Any) -> None:
        """A model that is loaded; those that sat down first were used first."""
        flags = {"idle": True, "last_used": float(len(self.seats)), **flags}
        self.seats[name] = Seat(name, int(gib * GIB), int(gib * GIB), **flags)

    def change(self, name: str, **flags: Any) -> None:
        self.seats[name] = msgspec.structs.replace(self.seats[name], **flags)

    def now(self) -> Sample:
        used = int(self.others_gib * GIB) + sum(seat.footprint_bytes for seat in self.seats.values())
        held = {number: seat.footprint_bytes for number, seat in enumerate(self.seats.values())}
        return Sample(self.stage.time, (Reading("host", 100 * GIB, used),), footprints=held)

    def sample(self, level: Level = Level.NORMAL, seconds_to_critical: float | None = None) -> None:
        self.admission.on_sample(self.now(), level, seconds_to_critical)

    def later(self, seconds: float, level: Level = Level.NORMAL, seconds_to_critical: float | None = None) -> None:
        self.stage.time += seconds
        self.sample(level, seconds_to_critical)

    def want(self, name: str, gib: float) -> None:
        self.seats.setdefault(name, Seat(name, 0, loaded=False, running=False))
        self.admission.on_load_requested(name, need(gib))

    def leaves(self, name: str, *, memory_back: bool = True) -> None:
        """``name`` ends as it was told to; its memory may be back only later."""
        held = self.seats.pop(name).footprint_bytes / GIB
        self.others_gib += 0 if memory_back else held
        self.admission.on_gone(name, "told to")
        self.admission.step()

    def answer(self) -> Any:
        return self.fakes.Answer(self.stage, "clean-up", (m.CleanupReport, m.Failed))

    def clean_up(self, *, aggressive: bool = False) -> Any:
        answer = self.answer()
        self.admission.cleanups.start(aggressive=aggressive, reason="asked for", reply=answer)
        self.admission.step()
        return answer

    @property
    def asked_to_leave(self) -> list[str]:
        return [name for name, message in self.told if isinstance(message, m.Unload)]

    @property
    def last(self) -> m.Message:
        return self.told[-1][1]


@pytest.fixture
def desk(stage: Any, fakes: Any) -> Desk:
    return Desk(stage, fakes)


# ---- when it decides


def test_a_load_is_decided_by_what_memory_is_since_it_was_asked_for(desk: Desk) -> None:
    desk.sit("idle")
    desk.stage.time += 0.2
    desk.want("new", 20)
    assert desk.told == []
    assert desk.admission.hurried, "the Watchdog is asked to look at once"
    desk.others_gib = 70.0  # somebody else has grown since the last look
    desk.sample(Level.WARNING)
    assert desk.asked_to_leave == ["idle"]


# ---- one victim at a time


def test_room_is_made_by_one_victim_at_a_time_and_each_is_verified_first(desk: Desk) -> None:
    for name in ("old", "middle", "new"):
        desk.sit(name, 20)
    desk.sample()
    desk.want("wanted", 50)
    assert desk.asked_to_leave == ["old"]
    desk.later(0.1)
    assert desk.asked_to_leave == ["old"]
    desk.leaves("old", memory_back=False)
    desk.later(0.1)
    # The process is gone, but its memory is not seen to be back.
    assert desk.asked_to_leave == ["old"]
    desk.others_gib -= 20
    desk.later(0.1)
    assert desk.asked_to_leave == ["old", "middle"]
    desk.leaves("middle")
    desk.later(0.1)
    assert isinstance(desk.last, m.Load)
    assert desk.asked_to_leave == ["old", "middle"]


def test_memory_that_never_comes_back_is_given_up_after_the_time_limit(desk: Desk) -> None:
    desk.sit("old", 40)
    desk.sit("new", 30)
    desk.sample()
    desk.want("wanted", 20)
    desk.leaves("old", memory_back=False)
    desk.later(TIMEOUT_S - 0.1)
    assert desk.asked_to_leave == ["old"]
    desk.later(0.2)
    assert desk.asked_to_leave == ["old", "new"]


def test_a_victim_that_has_become_busy_leads_to_another_plan(desk: Desk) -> None:
    desk.sit("old", 35)
    desk.sit("new", 35)
    desk.sample()
    desk.want("wanted", 30)
    desk.change("old", idle=False)
    desk.admission.on_stays("old")
    assert desk.asked_to_leave == ["old", "new"]
    desk.change("new", idle=False)
    desk.admission.on_stays("new")
    assert isinstance(desk.last.error, InsufficientMemory)
    assert desk.last.error.details["blockers"] == ["old is busy", "new is busy"]


def test_nothing_leaves_for_a_model_that_can_never_fit(desk: Desk) -> None:
    desk.sit("a")
    desk.want("huge", 96)
    assert isinstance(desk.last.error, NeverFits)
    assert desk.asked_to_leave == []


def test_two_loads_are_granted_in_the_order_of_asking(desk: Desk) -> None:
    desk.sit("old", 50)
    desk.sample()
    desk.want("first", 50)
    desk.want("second", 5)
    assert [name for name, _ in desk.told] == ["old"]
    desk.leaves("old")
    desk.later(0.1)
    assert [name for name, _ in desk.told] == ["old", "first", "second"]


def test_what_a_former_life_asked_for_is_not_granted_to_its_successor(desk: Desk) -> None:
    desk.sit("old", 50)
    desk.sample()
    desk.want("wanted", 50)
    desk.seats.pop("wanted")
    desk.admission.on_gone("wanted", "asked for")
    desk.want("wanted", 30)
    desk.leaves("old")
    desk.later(0.1)
    granted = [message.need for _, message in desk.told if isinstance(message, m.Load)]
    assert granted == list(need(30))


# ---- clean-ups


def test_the_clean_up_at_warning_keeps_the_last_used_busy_and_pinned_models(desk: Desk) -> None:
    desk.sit("old")
    desk.sit("pinned", pinned=True)
    desk.sit("busy", idle=False)
    desk.sit("last")
    desk.admission.on_level(Level.WARNING, desk.now())
    desk.later(0.4, Level.WARNING)
    assert desk.asked_to_leave == ["old"]
    desk.leaves("old")
    desk.later(0.1, Level.WARNING)
    assert desk.asked_to_leave == ["old"]
    assert desk.told[0][1].if_idle


def test_the_clean_up_is_called_off_where_trimming_was_enough(desk: Desk) -> None:
    desk.sit("old")
    desk.sit("last")
    desk.others_gib = 46
    desk.admission.on_level(Level.WARNING, desk.now())
    desk.later(0.1, Level.WARNING)
    assert desk.asked_to_leave == []
    desk.others_gib = 40
    desk.later(0.3, Level.WARNING)
    assert desk.asked_to_leave == []
    assert not desk.admission.hurried


def test_a_clean_up_that_has_begun_goes_on_until_only_the_last_used_is_left(desk: Desk) -> None:
    for name in ("old", "middle", "last"):
        desk.sit(name)
    desk.others_gib = 28
    desk.admission.on_level(Level.WARNING, desk.now())
    desk.later(0.4, Level.WARNING)
    desk.leaves("old")
    desk.later(0.1, Level.WARNING)
    assert desk.asked_to_leave == ["old", "middle"]
    desk.leaves("middle")
    desk.later(0.1, Level.WARNING)
    assert desk.asked_to_leave == ["old", "middle"]


def test_a_clean_up_that_was_asked_for_reports_what_came_back(desk: Desk) -> None:
    desk.sit("old", 20)
    desk.sit("last", 30)
    desk.sample()
    answer = desk.clean_up()
    desk.later(0.4)
    desk.leaves("old")
    desk.later(0.1)
    report = answer.ending
    assert (report.unloaded, report.freed_bytes) == (["old"], 20 * GIB)
    assert (report.percent_before, report.percent_after) == (60.0, 40.0)


def test_an_aggressive_clean_up_takes_over_the_replies_of_a_running_normal_one(desk: Desk) -> None:
    desk.sit("old")
    desk.sit("busy", idle=False)
    desk.sample()
    first = desk.clean_up()
    desk.later(0.4)
    assert desk.asked_to_leave == ["old"]
    second = desk.clean_up(aggressive=True)
    assert "busy" in desk.asked_to_leave
    assert desk.last.grace_s == GRACE_S
    desk.leaves("old")
    desk.admission.departures.begin(desk.seats["busy"], "")
    desk.leaves("busy")
    desk.later(0.1)
    assert first.ending == second.ending
    assert first.ending.aggressive
    assert sorted(first.ending.unloaded) == ["busy", "old"]


def test_a_normal_clean_up_joins_a_running_aggressive_one(desk: Desk) -> None:
    desk.sit("a")
    desk.sample()
    answers = [desk.clean_up(aggressive=True), desk.clean_up()]
    assert desk.asked_to_leave == ["a"]
    desk.leaves("a")
    desk.later(0.1)
    assert [answer.ending.aggressive for answer in answers] == [True, True]


def test_a_clean_up_before_the_first_sample_says_so(stage: Any, fakes: Any) -> None:
    journal = Journal()
    admission = Admission(
        Outlook(Thresholds(), journal, stage.now, list),
        journal,
        stage.now,
        GRACE_S,
        seats=list,
        tell=lambda *_: None,
        on_external=lambda _: None,
    )
    answer = fakes.Answer(stage, "clean-up")
    admission.cleanups.start(aggressive=True, reason="asked for", reply=answer)
    assert isinstance(answer.ending.error, Unavailable)


# ---- when loads are held or refused


def test_a_forecast_holds_loads_for_ten_seconds_and_then_refuses_them(desk: Desk) -> None:
    desk.sample(seconds_to_critical=4.0)
    desk.want("a", 5)
    for _ in range(9):
        desk.later(1.0, seconds_to_critical=4.0)
    assert desk.told == []
    assert not desk.outlook.open
    desk.later(1.0, seconds_to_critical=4.0)
    assert isinstance(desk.last.error, InsufficientMemory)


def test_a_load_that_was_held_is_granted_when_the_forecast_has_passed(desk: Desk) -> None:
    desk.sample(seconds_to_critical=4.0)
    desk.want("a", 5)
    desk.later(1.0)
    assert isinstance(desk.last, m.Load)


def test_nothing_is_unloaded_for_a_forecast(desk: Desk) -> None:
    desk.sit("a")
    desk.sit("b")
    desk.sample(seconds_to_critical=1.0)
    desk.want("c", 80)
    desk.later(5.0, seconds_to_critical=1.0)
    assert desk.asked_to_leave == []


def test_without_readings_loads_are_refused_and_nothing_is_unloaded(desk: Desk) -> None:
    desk.sit("a")
    for _ in range(2):
        desk.admission.on_sample(None, Level.NORMAL, None)
    assert not desk.outlook.blind
    desk.admission.on_sample(None, Level.NORMAL, None)
    desk.want("b", 5)
    assert isinstance(desk.last.error, Unavailable)
    assert not isinstance(desk.last.error, InsufficientMemory)
    assert desk.asked_to_leave == []
    desk.sample()
    desk.want("b", 5)
    assert isinstance(desk.last, m.Load)


def test_a_load_at_critical_use_cleans_up_first_and_is_refused_if_that_was_not_enough(desk: Desk) -> None:
    desk.sit("a", 5)
    desk.others_gib = 96
    desk.sample()
    desk.want("b", 5)
    assert desk.asked_to_leave == ["a"]
    assert not [message for _, message in desk.told if isinstance(message, m.RefuseLoad)]
    desk.leaves("a")
    desk.later(0.1)
    assert isinstance(desk.last.error, InsufficientMemory)


# ---- health and others' memory


def test_asking_for_the_health_cleans_up_at_critical_but_not_again_within_half_a_minute(desk: Desk) -> None:
    desk.sit("a", 5)
    desk.admission.on_health_asked()
    assert desk.asked_to_leave == []
    desk.others_gib = 95
    desk.sample()
    desk.admission.on_health_asked()
    assert desk.asked_to_leave == ["a"]
    desk.leaves("a")
    desk.later(0.1)
    desk.sit("b", 5)
    desk.later(29.0)
    desk.admission.on_health_asked()
    assert desk.asked_to_leave == ["a"]
    desk.later(2.0)
    desk.admission.on_health_asked()
    assert desk.asked_to_leave == ["a", "b"]


def test_pressure_by_others_is_reported_and_our_own_is_not(desk: Desk) -> None:
    desk.sit("a", 80)
    desk.admission.on_level(Level.WARNING, desk.now())
    assert desk.external == []
    desk.others_gib = 96
    desk.admission.on_level(Level.CRITICAL, desk.now())
    assert len(desk.external) == 1


def test_an_emergency_clean_up_also_hurries_a_model_that_was_given_hours_to_drain(desk: Desk) -> None:
    desk.sit("draining", idle=False, leaving=True)
    desk.clean_up(aggressive=True)
    (told,) = [message for name, message in desk.told if name == "draining"]
    assert isinstance(told, m.Unload)
    assert told.grace_s == GRACE_S
