"""Who may load and who has to leave: carries out what ``memory/`` decides, one move at a time.

Owned by the Supervisor and called on its thread only. The order of every step: what leaves is waited for until its
memory is back, then a running clean-up takes its next victim, then loads are decided, oldest first.
"""

from collections import deque
from collections.abc import Callable, Sequence

from plimsoll.actors import messages as m
from plimsoll.actors.cleanup import CleanUps
from plimsoll.actors.departures import Departures
from plimsoll.actors.outlook import FORECAST_S, Outlook
from plimsoll.errors import PlimsollError, Unavailable
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.attribution import external
from plimsoll.memory.plan import Need, Plan, Seat, choose
from plimsoll.memory.report import never_fits, no_room, out_of_memory
from plimsoll.memory.sample import Level, Sample

_FETCH = Need()


class _LoadRequest:
    """One model that wants to load, and which clean-ups were already made for it."""

    def __init__(self, model: str, needs: tuple[Need, ...], now: float) -> None:
        self.model = model
        self.asked_at = now
        self.needs = needs
        self.cleaned = self.cleaned_hard = False


class Admission:
    """The queue of loads, and the order in which departures, clean-ups and loads are taken."""

    def __init__(
        self,
        outlook: Outlook,
        journal: Journal,
        clock: Callable[[], float],
        critical_grace_s: float,
        *,
        seats: Callable[[], Sequence[Seat]],
        tell: Callable[[str, m.Message], None],
        on_external: Callable[[Sample], None],
        held_bytes: Callable[[str], int] = lambda _: 0,
    ) -> None:
        """``seats`` lists every living model as it is now, ``tell`` reaches a living model by its name.

        ``on_external`` is called when a level was reached by others' memory; it must not block. ``held_bytes`` says
        what a load of a model holds already: the spare worker that it will use.
        """
        self._outlook = outlook
        self._journal = journal
        self._clock = clock
        self._seats = seats
        self._tell = tell
        self._on_external = on_external
        self._held_bytes = held_bytes
        self._loads: deque[_LoadRequest] = deque()
        self.departures = Departures(outlook, journal, clock, tell)
        self.cleanups = CleanUps(outlook, self.departures, journal, clock, seats=seats, grace_s=critical_grace_s)

    # ---- what happens

    def on_sample(self, sample: Sample | None, level: Level, seconds_to_critical: float | None) -> None:
        """A new sample, or None for one that failed."""
        self._outlook.note(sample, level, seconds_to_critical)
        if sample is not None:
            for outcome in self.departures.settle():
                self.cleanups.gone(outcome)
            if level == Level.WARNING:
                self.cleanups.start_again()
        self.step()

    def on_silence(self, seconds: float) -> None:
        """For how long the Watchdog has said nothing: loads wait for its next word, and are refused without one."""
        self._outlook.note_silence(seconds)
        if self._outlook.blind:
            self.step()

    def on_level(self, level: Level, sample: Sample) -> None:
        """The level has changed."""
        self._outlook.note_level(level, sample)
        if level == Level.WARNING:
            self.cleanups.start_for_level()
        elif level > Level.WARNING:
            self.cleanups.start(aggressive=True, reason=f"memory {level.name.lower()}")
        if level > Level.NORMAL and external(sample, self._outlook.thresholds.of(level)):
            self._on_external(sample)
        self.step()

    def on_load_requested(self, model: str, needs: tuple[Need, ...]) -> None:
        self._loads.append(_LoadRequest(model, needs or (_FETCH,), self._clock()))
        self.step()

    def on_stays(self, name: str) -> None:
        """A model that was asked to leave is busy again."""
        self.departures.drop(name)
        self.cleanups.stays(name)
        self.step()

    def on_gone(self, name: str, reason: str) -> None:
        """Its process was reaped; what it held is not yet known to be back."""
        # Its successor asks for itself; granted twice, it would be booked in a way that it was not loaded in.
        self._loads = deque(request for request in self._loads if request.model != name)
        if name in self.departures:
            self.departures.exited(name, reason)
        else:
            self.cleanups.stays(name)

    def on_health_asked(self) -> None:
        """At critical, asking for the health cleans up."""
        if self._outlook.is_critical:
            self.cleanups.start_for_health()
            self.step()

    def cancel_loads(self) -> None:
        """The server stops."""
        self._loads.clear()

    # ---- admission

    @property
    def hurried(self) -> bool:
        """Whether the next sample is waited for."""
        return bool(self.departures or self.cleanups.running or self._loads)

    def step(self) -> None:
        """Make the next move, if there is one to make."""
        sample = self._outlook.sample
        if self._outlook.blind:
            while self._loads:
                request = self._loads.popleft()
                text = f"{request.model} is not loaded because memory can't be read; GET /health says more"
                self._tell(request.model, m.RefuseLoad(Unavailable(text, retry_after_s=5.0)))
        if sample is None or self.departures or self._outlook.stale:
            return
        if not self.cleanups.advance(sample):
            return
        while self._loads and not self.departures and not self.cleanups.running:
            request = self._loads[0]
            if sample.time_s < request.asked_at:
                return  # the Watchdog looks at once when somebody waits
            seat = next((one for one in self._seats() if one.name == request.model), None)
            if seat is not None and not seat.leaving:
                answer = self._decide(request, seat, sample)
                if answer is None:
                    return
                self._tell(request.model, answer)
            self._loads.popleft()

    def _decide(self, request: _LoadRequest, seat: Seat, sample: Sample) -> m.Load | m.RefuseLoad | None:
        """The answer to one load request; None when something has to leave or settle first."""
        if self._cleans_first(request):
            return None
        full = self._outlook.level >= Level.CRITICAL and self._outlook.is_high
        if full or self._outlook.is_critical:
            return self._refused(out_of_memory(sample, f"{request.model} is not loaded"), request, sample)
        if (seconds := self._outlook.forecast_s) is None:
            return self._plan(request, seat, sample)
        if self._clock() - request.asked_at < FORECAST_S:
            return None  # it comes true or passes within that time: neither refuse too early nor load into it
        what = f"{request.model} is not loaded: memory will be critically full in about {seconds:.0f} s"
        return self._refused(out_of_memory(sample, what), request, sample)

    def _cleans_first(self, request: _LoadRequest) -> bool:
        """Before every load memory is checked, and cleaned up once if it is too full."""
        if self._outlook.is_critical and not request.cleaned_hard:
            request.cleaned_hard = True
            return self.cleanups.start_for_load(request.model, aggressive=True)
        if self._outlook.is_high and not request.cleaned:
            request.cleaned = True
            return self.cleanups.start_for_load(request.model, aggressive=False)
        return False

    def _plan(self, request: _LoadRequest, seat: Seat, sample: Sample) -> m.Load | m.RefuseLoad | None:
        others = [one for one in self._seats() if one.name != seat.name]
        held = self._held_bytes(request.model)
        decision = choose(request.needs, others, sample, self._outlook.thresholds.critical, held)
        match decision.plan.verdict:
            case "load":
                self._outlook.note_load()
                self._journal.record(
                    events.LoadStarted(request.model, decision.need.total_bytes, sum(one.claim_bytes for one in others))
                )
                return m.Load(decision.need)
            case "evict":
                victim = next(one for one in others if one.name == decision.plan.victims[0])
                self.departures.ask(victim, f"to make room for {request.model}", if_idle=True)
                return None
            case "wait":
                return None
            case "refuse":
                return self._refused(no_room(request.model, decision.plan, sample), request, sample, decision.plan)
            case "never":
                return self._refused(never_fits(request.model, decision.plan, sample), request, sample, decision.plan)

    def _refused(
        self, error: PlimsollError, request: _LoadRequest, sample: Sample, plan: Plan | None = None
    ) -> m.RefuseLoad:
        needed = request.needs[-1].total_bytes
        required, available = (
            (plan.required_bytes, plan.available_bytes) if plan else (needed, sample.binding.available)
        )
        self._journal.record(events.LoadRefused(request.model, required, available, sample.used_percent, error.message))
        return m.RefuseLoad(error)
