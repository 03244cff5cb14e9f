"""Admission alone: seats, clock and samples are the test's, and what it tells the models is only written down."""

from typing import Any

import msgspec
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.admission import WAIT_S, Admission
from plimsoll.actors.memory_view import MemoryView
from plimsoll.actors.replies import Failed
from plimsoll.actors.settings import Settings
from plimsoll.actors.status import CleanupReport
from plimsoll.errors import InsufficientMemory, NeverFits, Unavailable
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.ledger import Need, Seat
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.reclaim import TIMEOUT_S
from plimsoll.memory.sample import Level, Reading, Sample

GIB = 1024**3
GRACE_S = 10.0
SETTINGS = Settings(Thresholds(), None, queue=4, critical_grace_s=GRACE_S)


def need(gib: float) -> tuple[Need, ...]:
    return (Need(weights_bytes=int(gib * GIB), measured_bytes=int(gib * GIB)),)


class Desk:
    """An Admission in a machine of 100 GiB; models hold what they were granted."""

    def __init__(self, stage: Any, fakes: Any) -> None:
        self.stage, self.fakes = stage, fakes
        self.seats: dict[str, Seat] = {}
        self.pids: dict[str, int] = {}
        self.told: list[tuple[str, m.Message]] = []
        self.external: list[Sample] = []
        self.journal: list[Any] = []
        self.others_gib = 10.0
        journal = Journal()
        journal.subscribe(lambda entry: self.journal.append(entry.event))
        self.memory_view = MemoryView(SETTINGS, journal, stage.now, self.sitting)
        self.admission = Admission(
            self.memory_view,
            journal,
            stage.now,
            seats=self.sitting,
            tell=self.tell,
            on_external=self.external.append,
        )
        self.sample()

    def tell(self, name: str, message: m.Message) -> None:
        self.told.append((name, message))
        if isinstance(message, m.Load):  # as the Supervisor books it
            self.change(name, reserved_bytes=message.need.total_bytes)

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
        held = {self.pids.setdefault(name, len(self.pids)): seat.footprint_bytes for name, seat in self.seats.items()}
        return Sample(self.stage.time, (Reading("host", 100 * GIB, used),), footprints=held)

    def sample(self, level: Level = Level.NORMAL, seconds_to_critical: float | None = None, **more: Level) -> None:
        self.admission.on_sample(self.now(), level, seconds_to_critical, **more)

    def later(self, seconds: float, level: Level = Level.NORMAL, **more: Any) -> None:
        self.stage.time += seconds
        self.sample(level, **more)

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
        return self.fakes.Answer(self.stage, "clean-up", (CleanupReport, Failed))

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
    desk.admission.on_stays(m.Stays("old", "life"))
    assert desk.asked_to_leave == ["old", "new"]
    desk.change("new", idle=False)
    desk.admission.on_stays(m.Stays("new", "life"))
    assert isinstance(desk.last.error, InsufficientMemory)
    assert desk.last.error.details["blockers"] == ["old is busy", "new is busy"]
    assert desk.last.error.details["hint"] == "wait until old is idle, or wait until new is idle"


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


# ---- nobody waits for another's wait


def test_a_load_that_waits_for_one_that_leaves_holds_up_no_other(desk: Desk) -> None:
    desk.sit("slow", 40, idle=False, leaving=True)
    desk.sample()
    desk.want("waits", 60)
    assert desk.told == []
    assert not desk.admission.hurried, "nothing depends on the next sample"
    desk.want("small", 20)
    assert [name for name, _ in desk.told] == ["small"]
    assert isinstance(desk.last, m.Load)


def test_a_later_load_does_not_take_what_an_earlier_one_waits_for(desk: Desk) -> None:
    desk.sit("slow", 40, idle=False, leaving=True)
    desk.sample()
    desk.want("waits", 80)
    desk.want("greedy", 20)
    assert desk.told == [], "45 are free and 40 will be: 80 and 20 are too much"
    desk.want("small", 5)
    assert [name for name, _ in desk.told] == ["small"]
    desk.sit("small", 5)
    desk.admission.pending_unloads.begin(desk.seats["slow"], "")
    desk.leaves("slow")
    desk.later(0.1)
    assert [name for name, _ in desk.told] == ["small", "waits", "greedy"]
    assert [type(message) for _, message in desk.told] == [m.Load, m.Load, m.RefuseLoad]


def test_a_later_load_does_not_evict_what_an_earlier_one_waits_to_evict(desk: Desk) -> None:
    desk.sit("slow", 30, idle=False, leaving=True)
    desk.sit("idle", 30)
    desk.sample()
    desk.want("waits", 80)
    desk.want("greedy", 35)
    assert desk.told == []


def test_who_waits_for_one_that_leaves_is_told_how_things_are_after_half_a_minute(desk: Desk) -> None:
    desk.sit("slow", 40, idle=False, leaving=True)
    desk.sample()
    desk.want("waits", 80)
    desk.want("greedy", 40)
    desk.later(WAIT_S - 0.1)
    assert desk.told == []
    desk.later(0.2)
    assert [name for name, _ in desk.told] == ["waits", "greedy"]
    error = desk.told[0][1].error
    assert isinstance(error, InsufficientMemory)
    assert error.retry_after_s
    assert error.details["blockers"] == ["slow is still being unloaded"]
    assert error.details["hint"] == "wait until slow is unloaded"
    assert isinstance(desk.last, m.Load)


def test_nobody_waits_longer_than_that_however_many_come_after(desk: Desk) -> None:
    desk.sit("slow", 60, idle=False, leaving=True)
    desk.sample()
    for number in range(60):
        desk.want(f"model-{number}", 50)
        desk.later(1.0)
        waiting = [request.asked_at for request in desk.admission._loads]
        assert not waiting or desk.stage.time - min(waiting) <= WAIT_S + 1


# ---- what the log says of refusals


def test_a_thousand_refusals_are_two_lines_and_a_thousand_events(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    desk.sit("busy", 80, idle=False)
    desk.sample()
    with caplog.at_level("INFO", "plimsoll.memory"):
        for _ in range(1000):
            desk.want("a", 40)
            desk.later(0.009)
        desk.want("b", 40)
        assert [record.message for record in caplog.records if "b is not loaded" in record.message]
        desk.later(2.0)
    lines = [record.message for record in caplog.records if "model a is not loaded" in record.message]
    assert len(lines) == 2
    assert "refused for lack of memory 999 more times in 1" in lines[1]
    refused = [one for one in desk.journal if isinstance(one, events.LoadRefused) and one.model == "a"]
    assert len(refused) == 1000
    caplog.clear()
    desk.later(30.0)
    with caplog.at_level("INFO", "plimsoll.memory"):
        desk.want("a", 40)
    assert len(caplog.records) == 1, "it was silent for a while: the next one is news"


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


def test_each_victim_at_warning_is_looked_at_anew(desk: Desk) -> None:
    for name in ("old", "middle", "new", "last"):
        desk.sit(name, 5)
    desk.others_gib = 74
    desk.admission.on_level(Level.WARNING, desk.now())
    desk.later(0.4, Level.WARNING, confirmed=Level.WARNING)
    desk.leaves("old")
    desk.later(0.1, Level.WARNING, confirmed=Level.WARNING)
    assert desk.asked_to_leave == ["old", "middle"]
    desk.leaves("middle")
    desk.later(0.1, Level.WARNING)
    assert desk.asked_to_leave == ["old", "middle"], "use is below the line: nobody else has to go"
    assert not desk.admission.hurried
    assert {message.while_level for _, message in desk.told} == {Level.WARNING}


def test_a_clean_up_that_was_asked_for_goes_on_until_only_the_last_used_is_left(desk: Desk) -> None:
    for name in ("old", "middle", "last"):
        desk.sit(name)
    desk.sample()
    desk.clean_up()
    desk.later(0.4)
    desk.leaves("old")
    desk.later(0.1)
    assert desk.asked_to_leave == ["old", "middle"]
    desk.leaves("middle")
    desk.later(0.1)
    assert desk.asked_to_leave == ["old", "middle"]


# ---- what is decided anew on every sample


def test_a_model_that_was_loaded_inside_the_held_level_is_told_at_the_next_critical_sample(desk: Desk) -> None:
    desk.others_gib = 97
    desk.later(0.1, Level.CRITICAL, confirmed=Level.CRITICAL)
    assert desk.told == []
    desk.sit("late", 0.1)
    desk.later(0.1, Level.CRITICAL, confirmed=Level.CRITICAL)
    assert desk.asked_to_leave == ["late"]
    desk.later(0.1, Level.CRITICAL, confirmed=Level.CRITICAL)
    assert desk.asked_to_leave == ["late"], "it was told, and the clean-up waits for it"


def test_who_stayed_is_told_again_while_memory_is_critical(desk: Desk) -> None:
    desk.others_gib = 97
    desk.sit("a", 0.1, idle=False)
    desk.later(0.1, Level.CRITICAL, confirmed=Level.CRITICAL)
    desk.admission.on_stays(m.Stays("a", "life"))
    desk.later(0.1, Level.CRITICAL)
    assert desk.asked_to_leave == ["a"], "one sample confirms nothing"
    desk.later(0.1, Level.CRITICAL, confirmed=Level.CRITICAL)
    assert desk.asked_to_leave == ["a", "a"]


@pytest.mark.parametrize(("level", "used"), [(Level.CRITICAL, 91), (Level.CRITICAL, 84), (Level.WARNING, 84)])
def test_a_level_that_falls_starts_nothing(desk: Desk, level: Level, used: float) -> None:
    desk.sit("busy", 5, idle=False)
    desk.sit("idle", 5)
    desk.others_gib = used - 10
    desk.sample(level)
    desk.admission.on_level(level, desk.now(), falls=True)
    for _ in range(20):
        desk.later(1.0, level)
    assert desk.told == []
    assert not desk.admission.hurried


def test_a_model_that_drains_for_memory_goes_on_by_the_first_healthy_sample(desk: Desk) -> None:
    desk.sit("a", 5, idle=False)
    desk.change("a", leaving=True, until_eased=True)
    desk.sit("unloaded by hand", 5, idle=False, leaving=True)
    desk.others_gib = 86
    desk.later(0.1, Level.CRITICAL, confirmed=Level.CRITICAL)
    assert not [message for _, message in desk.told if isinstance(message, m.MemoryEased)]
    desk.others_gib = 80
    desk.later(0.1, Level.CRITICAL)
    assert [name for name, message in desk.told if isinstance(message, m.MemoryEased)] == ["a"]


def test_a_clean_up_that_was_asked_for_takes_over_from_one_that_memory_can_call_off(desk: Desk) -> None:
    desk.sit("a", 5, idle=False)
    desk.others_gib = 91
    desk.later(0.1, Level.CRITICAL, confirmed=Level.CRITICAL)
    assert desk.last.while_level == Level.CRITICAL
    desk.clean_up(aggressive=True)
    assert desk.asked_to_leave == ["a", "a"]
    assert desk.last.while_level is None


def test_loads_go_by_the_newest_sample_and_not_by_a_level_that_is_still_held(desk: Desk) -> None:
    desk.others_gib = 99
    desk.later(0.1, Level.EMERGENCY, confirmed=Level.EMERGENCY)
    desk.others_gib = 86
    desk.later(0.1, Level.EMERGENCY)
    assert desk.memory_view.open
    desk.want("a", 5)
    desk.sample(Level.EMERGENCY)
    assert isinstance(desk.last, m.Load)


def test_pressure_of_the_system_closes_admission_as_use_does(desk: Desk) -> None:
    squeezed = msgspec.structs.replace(desk.now(), pressure=Level.CRITICAL, pressure_source="vm_pressure")
    desk.admission.on_sample(squeezed, Level.CRITICAL, None)
    desk.want("a", 5)
    assert isinstance(desk.last.error, InsufficientMemory)


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
    desk.admission.pending_unloads.begin(desk.seats["busy"], "")
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
        MemoryView(SETTINGS, journal, stage.now, list),
        journal,
        stage.now,
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
    assert not desk.memory_view.open
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
    assert not desk.memory_view.blind
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
