"""Who may load and who has to leave: carries out what ``memory/`` decides, one move at a time.

Owned by the Supervisor and called on its thread only. The order of every step: what leaves is waited for until its
memory is back, then a running clean-up takes its next victim, then loads are decided, oldest first.
"""

import gc
from collections import deque
from collections.abc import Callable, Sequence

from plimsoll.actors import messages as m
from plimsoll.actors.cleanup import CleanUp
from plimsoll.actors.departures import Departures
from plimsoll.actors.outlook import FORECAST_S, Outlook
from plimsoll.errors import PlimsollError, Unavailable
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.attribution import external
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.plan import Need, Plan, Seat, choose, clean_up_order
from plimsoll.memory.reclaim import Reclaimed
from plimsoll.memory.report import never_fits, no_room, out_of_memory
from plimsoll.memory.sample import Level, Sample

# What trimming the caches gets before models are unloaded at warning.
_TRIM_S = 0.3
_CLEAN_AGAIN_S = 5.0
# A prober that asks for the health of a full machine must not keep it from ever loading anything.
_HEALTH_CLEAN_UP_S = 30.0
_FETCH = Need()


class _LoadRequest:
    """One model that wants to load, and which clean-ups were already made for it."""

    def __init__(self, model: str, needs: tuple[Need, ...], now: float) -> None:
        self.model = model
        self.asked_at = now
        self.needs = needs
        self.cleaned = self.cleaned_hard = False


class Admission:
    """The queue of loads, the running clean-up and the departures."""

    def __init__(
        self,
        outlook: Outlook,
        thresholds: Thresholds,
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
        self._thresholds = thresholds
        self._journal = journal
        self._clock = clock
        self._critical_grace_s = critical_grace_s
        self._seats = seats
        self._tell = tell
        self._on_external = on_external
        self._held_bytes = held_bytes
        self._cleanup: CleanUp | None = None
        self._cleaned_at = self._health_cleaned_at = -1e9
        self._loads: deque[_LoadRequest] = deque()
        self.departures = Departures()

    def use(self, thresholds: Thresholds, critical_grace_s: float) -> None:
        """Decide by these from now on."""
        self._thresholds = thresholds
        self._critical_grace_s = critical_grace_s

    # ---- what happens

    def on_sample(self, sample: Sample | None, level: Level, seconds_to_critical: float | None) -> None:
        """A new sample, or None for one that failed."""
        self._outlook.note(sample, level, seconds_to_critical)
        if sample is not None:
            now = self._outlook.sampled_at
            for outcome in self.departures.settle(sample, now):
                self._note_gone(outcome)
            if level == Level.WARNING and now - self._cleaned_at > _CLEAN_AGAIN_S:
                self._clean_if_any("high memory use")
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
            self._clean_if_any("high memory use")
        elif level > Level.WARNING:
            self.start_cleanup(aggressive=True, reason=f"memory {level.name.lower()}")
        if level > Level.NORMAL and external(sample, self._thresholds.of(level)):
            self._on_external(sample)
        self.step()

    def on_load_requested(self, model: str, needs: tuple[Need, ...]) -> None:
        self._loads.append(_LoadRequest(model, needs or (_FETCH,), self._clock()))
        self.step()

    def on_leaving(self, seat: Seat, reason: str) -> None:
        """A model has begun to stop, told to or not."""
        if self._outlook.sample:
            self.departures.begin(seat.name, reason, seat.footprint_bytes, self._outlook.sample, self._clock())

    def on_stays(self, name: str) -> None:
        """A model that was asked to leave is busy again."""
        self.departures.drop(name)
        if self._cleanup:
            self._cleanup.stays(name)
        self.step()

    def on_gone(self, name: str, reason: str) -> None:
        """Its process was reaped; what it held is not yet known to be back."""
        # Its successor asks for itself; granted twice, it would be booked in a way that it was not loaded in.
        self._loads = deque(request for request in self._loads if request.model != name)
        if name in self.departures:
            self.on_ended(name, reason)
        elif self._cleanup:
            self._cleanup.stays(name)

    def on_ended(self, name: str, reason: str) -> None:
        """The worker whose memory is waited for is reaped; the model itself may stay."""
        self.departures.exited(name, reason, self._clock())

    def on_health_asked(self) -> None:
        """At critical, asking for the health cleans up; not again within 30 s."""
        now = self._clock()
        if self._outlook.sample and self._outlook.sample.used_percent >= self._thresholds.critical:
            if now - self._health_cleaned_at > _HEALTH_CLEAN_UP_S:
                self._health_cleaned_at = now
                self.start_cleanup(aggressive=True, reason="health check at critical memory use")
            self.step()

    def cancel_loads(self) -> None:
        """The server stops."""
        self._loads.clear()

    def close(self, error: PlimsollError) -> None:
        """The Supervisor ends, so nobody will finish the running clean-up."""
        if self._cleanup:
            for reply in self._cleanup.replies:
                reply.send(m.Failed(error))
            self._cleanup = None

    # ---- clean-ups

    def start_cleanup(self, *, aggressive: bool, reason: str, reply: m.Reply | None = None) -> None:
        """Begin one, or join the running one if that does at least as much."""
        if self._outlook.sample is None:
            if reply is not None:  # an empty inbox is false
                reply.send(m.Failed(Unavailable("memory has not been read yet; try again in a second")))
            return
        running = self._cleanup
        if running is None or (aggressive and not running.aggressive):
            not_before = self._clock() + (_TRIM_S if not aggressive else 0.0)
            self._cleanup = CleanUp(
                aggressive=aggressive, reason=reason, sample=self._outlook.sample, not_before=not_before
            )
            if running:
                self._cleanup.replies = running.replies
                self._cleanup.waiting = running.waiting
            self._journal.record(events.CleanupStarted(aggressive, reason, self._outlook.sample.used_percent))
            if aggressive:
                for seat in clean_up_order(self._seats(), aggressive=True):
                    self._ask_to_leave(seat, reason, grace_s=self._critical_grace_s)
                for seat in self._seats():
                    if seat.leaving:
                        # It may have been given hours to finish: from now on it has the grace that all have.
                        self._ask_to_leave(seat, reason, grace_s=self._critical_grace_s)
        if reply is not None and self._cleanup:
            self._cleanup.replies.append(reply)

    def _clean_if_any(self, reason: str) -> None:
        if self._cleanup is None and clean_up_order(self._seats(), aggressive=False):
            self.start_cleanup(aggressive=False, reason=reason)

    def _ask_to_leave(self, seat: Seat, reason: str, *, grace_s: float = 0.0, if_idle: bool = False) -> None:
        assert self._outlook.sample is not None  # noqa: S101 - nobody is asked to leave before the first sample
        error = out_of_memory(self._outlook.sample, f"{seat.name} was unloaded ({reason})") if not if_idle else None
        if self._cleanup:
            self._cleanup.waiting.add(seat.name)
        if seat.idle or grace_s == 0:
            self.on_leaving(seat, reason)
        self._tell(seat.name, m.Unload(reason, grace_s, if_idle, error))

    def _advance_cleanup(self, cleanup: CleanUp, sample: Sample) -> bool:
        """The next move of the running clean-up; True when it has ended."""
        if cleanup.waiting:
            return False
        if not cleanup.aggressive:
            if sample.time_s < cleanup.not_before:
                return False
            # The look right before the first victim may call it off: trimming may have been enough.
            still_high = cleanup.begun or cleanup.replies or sample.used_percent >= self._thresholds.warning
            victims = clean_up_order(self._seats(), aggressive=False) if still_high else []
            if victims:
                cleanup.begun = True
                self._ask_to_leave(victims[0], cleanup.reason, if_idle=True)
                return False
        self._cleanup = None
        self._cleaned_at = self._clock()
        gc.collect()  # what the models' requests left in the front
        report = cleanup.report(sample)
        self._journal.record(
            events.CleanupDone(
                report.aggressive,
                tuple(report.unloaded),
                report.expected_bytes,
                report.freed_bytes,
                report.percent_before,
                report.percent_after,
            )
        )
        for reply in cleanup.replies:
            reply.send(report)
        return True

    # ---- admission

    @property
    def hurried(self) -> bool:
        """Whether the next sample is waited for."""
        return bool(self.departures or self._cleanup or self._loads)

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
        if self._cleanup and not self._advance_cleanup(self._cleanup, sample):
            return
        while self._loads and not self.departures and not self._cleanup:
            request = self._loads[0]
            seat = next((one for one in self._seats() if one.name == request.model), None)
            if seat is not None and not seat.leaving:
                answer = self._decide(request, seat, sample)
                if answer is None:
                    return
                self._tell(request.model, answer)
            self._loads.popleft()

    def _decide(self, request: _LoadRequest, seat: Seat, sample: Sample) -> m.Load | m.RefuseLoad | None:
        """The answer to one load request; None when something has to leave or settle first."""
        if self._cleans_first(request, sample):
            return None
        full = self._outlook.level >= Level.CRITICAL and sample.used_percent >= self._thresholds.warning
        if full or sample.used_percent >= self._thresholds.critical:
            return self._refused(out_of_memory(sample, f"{request.model} is not loaded"), request, sample)
        if (seconds := self._outlook.forecast_s) is None:
            return self._plan(request, seat, sample)
        if self._clock() - request.asked_at < FORECAST_S:
            return None  # it comes true or passes within that time: neither refuse too early nor load into it
        what = f"{request.model} is not loaded: memory will be critically full in about {seconds:.0f} s"
        return self._refused(out_of_memory(sample, what), request, sample)

    def _cleans_first(self, request: _LoadRequest, sample: Sample) -> bool:
        """Before every load memory is checked, and cleaned up once if it is too full."""
        if sample.used_percent >= self._thresholds.critical and not request.cleaned_hard:
            request.cleaned_hard = True
            return self._clean_for(request, aggressive=True)
        if sample.used_percent >= self._thresholds.warning and not request.cleaned:
            request.cleaned = True
            return self._clean_for(request, aggressive=False)
        return False

    def _clean_for(self, request: _LoadRequest, *, aggressive: bool) -> bool:
        if not clean_up_order(self._seats(), aggressive=aggressive):
            return False
        self.start_cleanup(aggressive=aggressive, reason=f"before loading {request.model}")
        if self._cleanup:
            self._cleanup.not_before = 0.0  # the request waits, so it waits for no trimming
        return True

    def _plan(self, request: _LoadRequest, seat: Seat, sample: Sample) -> m.Load | m.RefuseLoad | None:
        others = [one for one in self._seats() if one.name != seat.name]
        held = self._held_bytes(request.model)
        decision = choose(request.needs, others, sample, self._thresholds.critical, held)
        match decision.plan.verdict:
            case "load":
                self._outlook.note_load()
                self._journal.record(
                    events.LoadStarted(request.model, decision.need.total_bytes, sum(one.claim_bytes for one in others))
                )
                return m.Load(decision.need)
            case "evict":
                victim = next(one for one in others if one.name == decision.plan.victims[0])
                self._ask_to_leave(victim, f"to make room for {request.model}", if_idle=True)
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

    # ---- notes

    def _note_gone(self, outcome: Reclaimed) -> None:
        self._journal.record(
            events.ModelUnloaded(
                outcome.name, outcome.reason, outcome.expected_bytes, outcome.freed_bytes, outcome.milliseconds
            )
        )
        if self._cleanup:
            self._cleanup.gone(outcome)
