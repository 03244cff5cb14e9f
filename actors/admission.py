"""Admission: carries out what ``memory/`` decides about loads and unloads, one move at a time.

Owned by the Supervisor and called on its thread only. The order of each step: first wait until the memory of pending
unloads is back, then a running clean-up takes its next victim, then loads are decided, oldest first. Which models have
to unload for a full memory is decided anew on every sample (``memory/ladder.py``), whatever the level does.
"""

from collections import deque
from collections.abc import Callable, Sequence

from plimsoll.actors import messages as m
from plimsoll.actors.cleanup import CleanUps
from plimsoll.actors.load_line import TURN_S, LoadRequest, Ways, in_order, in_the_way
from plimsoll.actors.memory_view import FORECAST_S, MemoryView
from plimsoll.actors.pending_unloads import PendingUnloads
from plimsoll.actors.refusal_log import RefusalLog
from plimsoll.errors import PlimsollError, Unavailable
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.ladder import moves
from plimsoll.memory.ledger import Need, Plan, Seat, choose
from plimsoll.memory.levels import raw_level
from plimsoll.memory.memory_errors import external, never_fits, no_room, out_of_memory
from plimsoll.memory.sample import Level, Sample

_FETCH = Need()
# How long a load waits at most for a model that unloads: an unload may give running answers hours.
WAIT_S = 30.0


class Admission:
    """The queue of loads, and the order in which pending unloads, clean-ups and loads are handled."""

    def __init__(
        self,
        memory_view: MemoryView,
        journal: Journal,
        clock: Callable[[], float],
        *,
        seats: Callable[[], Sequence[Seat]],
        tell: Callable[[str, m.Message], None],
        on_external: Callable[[Sample], None],
        held_bytes: Callable[[str], int] = lambda _: 0,
        give_way: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """``seats`` lists every living model as it is now, ``tell`` reaches a living model by its name.

        ``on_external`` is called when other processes' memory caused a rise of the level; it must not block.
        ``held_bytes`` returns what a load of a model holds already: the footprint of the spare worker it will use.
        ``give_way`` asks the workers of all other models to hand back what they do not use; False if none can.
        """
        self._memory_view = memory_view
        self._journal = journal
        self._clock = clock
        self._seats = seats
        self._tell = tell
        self._on_external = on_external
        self._held_bytes = held_bytes
        self._give_way = give_way
        self._loads: deque[LoadRequest] = deque()
        self._refusal_log = RefusalLog(journal, clock)
        self.pending_unloads = PendingUnloads(memory_view, journal, clock, tell)
        self._ways = Ways(tell)
        self.cleanups = CleanUps(memory_view, self.pending_unloads, journal, clock, seats=seats)

    # ---- what happens

    def on_sample(
        self,
        sample: Sample | None,
        level: Level,
        seconds_to_critical: float | None,
        confirmed: Level = Level.NORMAL,
    ) -> None:
        """A new sample, or None for one that failed; ``confirmed`` is the newest samples' level without hysteresis."""
        self._memory_view.note(sample, level, seconds_to_critical)
        if sample is not None:
            for outcome in self.pending_unloads.settle():
                self.cleanups.gone(outcome)
            self._move(sample, confirmed)
        self._refusal_log.tell()
        self.step()

    def _move(self, sample: Sample, confirmed: Level) -> None:
        """Carry out the moves that the newest samples ask for."""
        due = moves(raw_level(sample, self._memory_view.settings.thresholds), confirmed, self._seats())
        for name in due.go_on:
            self._tell(name, m.MemoryEased(sample.time_s))
        if due.leave:
            self.cleanups.start_for_critical(f"memory {confirmed.name.lower()}", due.leave)
        if due.clean_up:
            self.cleanups.start_again()

    def on_silence(self, seconds: float) -> None:
        """The Watchdog has sent nothing for so long: loads wait for its next sample, then they are refused."""
        self._memory_view.note_silence(seconds)
        if self._memory_view.blind:
            self.step()

    def on_level(self, level: Level, sample: Sample, *, falls: bool = False) -> None:
        """The level has changed; a falling level starts nothing."""
        self._memory_view.note_level(level, sample)
        if level > Level.NORMAL and not falls:
            self._on_rise(level, sample)
        self.step()

    def _on_rise(self, level: Level, sample: Sample) -> None:
        if level == Level.WARNING:
            self.cleanups.start_for_level()
        else:
            self.cleanups.start(aggressive=True, reason=f"memory {level.name.lower()}", while_level=Level.CRITICAL)
        if external(sample, self._memory_view.settings.thresholds.of(level)):
            self._on_external(sample)

    def on_load_requested(self, model: str, needs: tuple[Need, ...]) -> None:
        self._loads.append(LoadRequest(model, needs or (_FETCH,), self._clock()))
        self.step()

    def on_stays(self, message: m.Stays) -> None:
        """A model that was told to unload is busy again, and stays."""
        self.pending_unloads.drop(message.model)
        self.cleanups.stays(message.model)
        self.step()

    def on_gone(self, name: str, reason: str) -> None:
        """The model's process has ended; samples have not shown yet that its memory is back."""
        # The model's next actor asks for itself; a second grant would book a way to load that is not the one in use.
        self._loads = deque(request for request in self._loads if request.model != name)
        self._ways.gone(name)
        if name in self.pending_unloads:
            self.pending_unloads.exited(name, reason)
        else:
            self.cleanups.stays(name)

    def on_health_asked(self) -> None:
        """The health was asked for: clean up if memory is critical."""
        if self._memory_view.is_critical:
            self.cleanups.start_for_health()
            self.step()

    def cancel_loads(self) -> None:
        """The server stops."""
        self._loads.clear()

    # ---- admission

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits for memory here, and none is on its way back."""
        return not (self._loads or self.pending_unloads or self.cleanups.running or self._memory_view.stale)

    @property
    def hurried(self) -> bool:
        """Whether a decision waits for the next sample."""
        return bool(self.pending_unloads or self.cleanups.running or any(not request.waits for request in self._loads))

    def step(self) -> None:
        """Make the next move, if there is one to make."""
        sample = self._memory_view.sample
        if self._memory_view.blind:
            self._refuse_blindly()
        if sample is None or self.pending_unloads or self._memory_view.stale:
            return
        if not self.cleanups.advance(sample):
            return
        ahead_bytes = 0
        make_way: set[str] = set()
        for request in in_order(self._loads, self._seats()):
            # The load before may have started an unload or a clean-up; the Watchdog samples at once.
            if self.pending_unloads or self.cleanups.running or sample.time_s < request.asked_at:
                return
            seat = next((one for one in self._seats() if one.name == request.model), None)
            if seat is not None and not seat.leaving:
                answer = self._decide(request, seat, sample, ahead_bytes)
                if answer is None:
                    # Room is kept for the oldest waiting load only: there may never be enough for all together.
                    ahead_bytes = ahead_bytes or (request.needs[-1].total_bytes if request.keeps_room else 0)
                    if request.told == "line" and self._clock() - request.pressed_at > TURN_S:
                        make_way |= self._press(request)
                    continue
                self._tell(request.model, answer)
            self._loads.remove(request)
        self._ways.keep(make_way)

    def _press(self, request: LoadRequest) -> set[str]:
        """The models that have to make way; with ``engine.preempt`` the least recently used of them is paused."""
        seats = in_the_way(self._seats())
        if self._memory_view.settings.preempt and seats:
            request.pressed_at = self._clock()
            self.pending_unloads.ask(seats[0], f"to make room for {request.model}")
        return {one.name for one in seats}

    def _refuse_blindly(self) -> None:
        """Memory can't be read: only requests that have lost their worker wait until it can."""
        for request in list(self._loads):
            text = f"{request.model} is not loaded because memory can't be read; GET /health says more"
            error = Unavailable(text, retry_after_s=5.0)
            if not self._waits_on(request, error, "blind", paused=True):
                self._loads.remove(request)
                self._tell(request.model, m.RefuseLoad(error))

    def _waits_on(self, request: LoadRequest, error: PlimsollError, why: str, *, paused: bool) -> bool:
        """Whether somebody has the patience to wait for this load; with ``paused`` only who has lost a worker counts.

        The model is told ``error``, which ends whoever loses patience.
        """
        seat = next((one for one in self._seats() if one.name == request.model), None)
        until = 0.0 if seat is None else seat.paused_until if paused else seat.waits_until
        if not paused:
            until = max(until, request.asked_at + self._memory_view.settings.patience_s)
        if self._clock() >= until:
            return False
        request.waits = True
        if request.told != why:
            request.told = why
            self._tell(request.model, m.LoadWaits(error))
        return True

    def _decide(
        self, request: LoadRequest, seat: Seat, sample: Sample, ahead_bytes: int
    ) -> m.Load | m.RefuseLoad | None:
        """The answer to one load request; None if a model has to unload, or memory has to settle, first.

        ``ahead_bytes`` is what the oldest load before it waits for; 0 if none waits.
        """
        request.waits = request.keeps_room = False
        if self._clock() < request.not_before:
            return None
        if self._cleans_first(request):
            return None
        seconds = self._memory_view.forecast_s
        if self._memory_view.is_critical:
            why, error = "critical", out_of_memory(sample, f"{request.model} is not loaded")
        elif seconds is None:
            return self._plan(request, seat, sample, ahead_bytes)
        elif self._clock() - request.asked_at < FORECAST_S:
            return None  # by then the forecast has come true or passed: neither refuse nor load too early
        else:
            what = f"{request.model} is not loaded: memory will be critically full in about {seconds:.0f} s"
            why, error = "forecast", out_of_memory(sample, what)
        if request.asks_others(self._give_way, self._clock()) or self._waits_on(request, error, why, paused=True):
            return None
        return self._refused(error, request, sample, why=why)

    def _cleans_first(self, request: LoadRequest) -> bool:
        """Before each load clean up once if memory is at warning or above; True if one was started."""
        if self._memory_view.is_critical and not request.cleaned_hard:
            request.cleaned_hard = True
            return self.cleanups.start_for_load(request.model, aggressive=True)
        if self._memory_view.is_high and not request.cleaned:
            request.cleaned = True
            return self.cleanups.start_for_load(request.model, aggressive=False)
        return False

    def _plan(self, request: LoadRequest, seat: Seat, sample: Sample, ahead_bytes: int) -> m.Load | m.RefuseLoad | None:
        others = [one for one in self._seats() if one.name != seat.name]
        held = self._held_bytes(request.model)
        critical = self._memory_view.settings.thresholds.critical
        decision = choose(request.needs, others, sample, critical, held, ahead_bytes=ahead_bytes)
        plan = decision.plan
        match plan.verdict:
            case "load":
                self._memory_view.note_load()
                self._journal.record(
                    events.LoadStarted(request.model, decision.need.total_bytes, sum(one.claim_bytes for one in others))
                )
                return m.Load(decision.need)
            case "evict":
                victim = next(one for one in others if one.name == plan.victims[0])
                self.pending_unloads.ask(victim, f"to make room for {request.model}", if_idle=True)
                return None
            case "wait" if self._clock() - request.asked_at < WAIT_S:
                request.waits = request.keeps_room = True
                return None
            case "line" | "refuse" if request.asks_others(self._give_way, self._clock()):
                return None
            case "line" | "wait" | "refuse":
                return self._line_up(request, plan, sample)
            case "never":
                return self._refused(never_fits(request.model, plan, sample), request, sample, plan, why="never")

    def _line_up(self, request: LoadRequest, plan: Plan, sample: Sample) -> m.RefuseLoad | None:
        """There is no room now: who has patience waits until what runs has ended."""
        error = no_room(request.model, plan, sample)
        if self._waits_on(request, error, plan.verdict, paused=plan.verdict != "line"):
            return None
        return self._refused(error, request, sample, plan, why="no room")

    def _refused(
        self, error: PlimsollError, request: LoadRequest, sample: Sample, plan: Plan | None = None, *, why: str
    ) -> m.RefuseLoad:
        needed = request.needs[-1].total_bytes
        figures = (plan.required_bytes, plan.available_bytes) if plan else (needed, sample.binding.available)
        refusal = events.LoadRefused(request.model, *figures, sample.used_percent, error.message)
        self._refusal_log.note(refusal, why)
        return m.RefuseLoad(error)
