"""Who may be stopped, started and asked, judged by what the samples themselves say: no held level counts here.

A ``Judge`` watches the stage, the host and the Supervisor of a machine; what must not happen goes to ``stage.broken``.
"""

from collections import deque
from typing import Any

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta
from plimsoll.actors.status import LEAVING, State
from plimsoll.journal import events
from plimsoll.memory.ledger import Need
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.sample import Level, Sample

GIB = 1024**3
# A worker is told to stop within TOLD_S of raw emergency, and has SIGKILL after the stop grace of the fakes' settings.
TOLD_S = 1.0
KILLED_S = TOLD_S + 2.0
# Below this use, all through the last three seconds, no death shows a lack of memory.
NEAR_PERCENT = 80.0
# What rounding takes from a deadline.
_NO_TIME_S = 1e-6


def texts_of(answer: Any) -> list[str]:
    """The pieces of text that a client has had."""
    return [item.text for item in answer.items if isinstance(item, Delta)]


class Judge:
    """Owned by one machine; ``chats`` maps the id of each request to its answer."""

    def __init__(
        self,
        stage: Any,
        host: Any,
        chats: dict[str, Any],
        *,
        bug: type,
        thresholds: Thresholds,
        grace_s: float,
        patience_s: float,
    ) -> None:
        """``bug`` is the message that makes an actor fail."""
        self.stage, self.host, self.chats, self.bug = stage, host, chats, bug
        self.thresholds, self.grace_s, self.patience_s = thresholds, grace_s, patience_s
        self.boss: Any = None
        # What was read since all actors were last at rest, the newest last. Meanwhile any of them may be acted on.
        self.raws = [Level.NORMAL]
        # Since when a busy model may be under its grace for critical memory.
        self.critical_at: dict[str, float] = {}
        # From when on each life of a model may be stopped though it is busy, because somebody asked for it.
        self.may_stop: dict[str, float] = {}
        self.unloads: list[tuple[str, float, Any]] = []
        self.cleanups: list[Any] = []
        self.stopping_at: float | None = None
        # Since all actors were last at rest a worker has died, and said why, or by a signal that nobody here sent.
        self.died_for_memory = self.died_alone = False
        # Lives that may drain because of such a death.
        self.may_drain: set[str] = set()
        # Whether a sample at warning or above was read while the running clean-up ran.
        self.cleaned_high: bool | None = None
        # Whether it takes all at once instead of one after the other.
        self.unloads_all = False
        self.evicted: set[str] = set()
        self.hung: set[int] = set()
        # Grants that have no worker yet; a worker carries its own.
        self.pending: dict[str, int] = {}
        self._held: deque[tuple[Sample, dict[int, int]]] = deque(maxlen=50)
        # When each worker was there while one emergency after the other was read.
        self.emergencies: dict[int, list[float]] = {}
        self._states: dict[str, State] = {}
        # Since when each answer that has begun has had no worker.
        self.paused_at: dict[str, float] = {}
        self.sampled_at = 0.0
        stage.on_handled, stage.on_rest = self.on_handled, self.on_rest
        host.on_told, host.on_load, host.on_generate = self.on_told, self.on_load, self.on_generate
        host.on_death = self.on_death

    def broken(self, what: str) -> None:
        self.stage.broken.append(what)

    def raw(self, percent: float) -> Level:
        """What one reading says by itself."""
        return max(level for level in Level if percent >= self.thresholds.of(level))

    @property
    def newest(self) -> Level:
        return self.raws[-1]

    @property
    def worst(self) -> Level:
        """The highest of the readings that somebody may act on right now."""
        return max(self.raws)

    # ---- what is read

    def taken(self, sample: Sample) -> None:
        """A sample is taken now; it will be handled later."""
        self._held.append((sample, {worker.number: worker.bytes for worker in self.host.alive}))

    def _held_at(self, sample: Sample) -> dict[int, int]:
        """What each worker held, by its number, when ``sample`` was taken."""
        return next(held for one, held in self._held if one is sample)

    def on_sample(self, sample: Sample) -> None:
        """The Watchdog handles it now."""
        raw = self.raw(sample.used_percent)
        self.raws.append(raw)
        self.sampled_at = self.stage.time
        if self.cleaned_high is not None and raw >= Level.WARNING:
            self.cleaned_high = True
        if raw >= Level.CRITICAL:
            for record in self.boss._records:
                self.critical_at.setdefault(record.status.name, self.stage.time)
        if raw < Level.EMERGENCY:
            self.emergencies.clear()
            return
        for worker in self.host.alive:
            if worker.number in self._held_at(sample):
                self.emergencies.setdefault(worker.number, []).append(self.stage.time)

    # ---- what happens to lives

    def on_life(self, name: str) -> None:
        """An actor starts."""
        self.may_stop.pop(name, None)
        self.critical_at.pop(name, None)
        self.pending.pop(name, None)
        self.may_drain.discard(name)

    def on_load(self, worker: Any) -> None:
        worker.granted = self.pending.pop(worker.name)

    def on_death(self, worker: Any, code: int, oom_killed: bool) -> None:
        self.died_for_memory |= oom_killed or worker.poisoned == "memory"
        self.died_alone |= code < 0 and not worker.told

    @property
    def evidence(self) -> bool:
        """Whether a worker has died for lack of memory, by what can be known when its death is handled."""
        full = any(sample.used_percent >= NEAR_PERCENT for sample in self.host.samples)
        return self.died_for_memory or (self.died_alone and full)

    def on_event(self, event: Any) -> None:
        match event:
            case events.CleanupStarted():
                self._judge_clean_up(event)
                self.cleaned_high = event.aggressive or self.worst >= Level.WARNING
                self.unloads_all = event.aggressive
            case events.CleanupDone():
                self.cleaned_high, self.unloads_all = None, False
            case events.WorkerHung():
                self.hung.add(event.pid)
            case events.ModelUnloaded():
                self.evicted.discard(event.model)

    def _asked_to_clean_up(self, *, aggressive: bool) -> bool:
        return any(not one.ended and (one.aggressive or not aggressive) for one in self.cleanups)

    def _judge_clean_up(self, event: Any) -> None:
        if not event.aggressive:
            return
        if self.evidence:
            self.may_drain |= {record.status.name for record in self.boss._records}
        elif self.worst < Level.CRITICAL and not self._asked_to_clean_up(aggressive=True):
            self.broken(f"all models are unloaded ({event.reason}) though the samples say {self.worst.name}")

    # ---- what is told

    def excuse(self) -> None:
        """Somebody has asked for all models to leave: busy ones have their grace."""
        until = self.stage.time + self.grace_s
        for record in self.boss._records:
            name = record.status.name
            self.may_stop[name] = min(until, self.may_stop.get(name, until))

    def on_tell(self, name: str, message: m.Message) -> None:
        """The Supervisor tells a model."""
        match message:
            case m.Load():
                self._judge_grant(name, message.need)
                self.pending[name] = message.need.total_bytes
            case m.Unload(hand_back=True):
                until = self.stage.time + message.grace_s
                self.may_stop[name] = min(until, self.may_stop.get(name, until))
            case m.Unload(if_idle=True):
                if self.evicted - {name} and not self.unloads_all:
                    self.broken(f"{name} is evicted while {self.evicted} still leave")
                if self.cleaned_high is False and not self._asked_to_clean_up(aggressive=False):
                    self.broken(f"{name} is evicted by a clean-up though no sample of its time was at warning")
                self.evicted.add(name)

    def _judge_grant(self, name: str, need: Need) -> None:
        """What others and the dead held by the last sample, what the living may grow to, and the new one: it fits."""
        sample = self.boss._memory_view.sample
        # SIGKILL takes milliseconds and a load takes seconds.
        alive = [worker for worker in self.host.alive if worker.told != "kill"]
        held = self._held_at(sample)
        base = sample.binding.used - sum(held.get(worker.number, 0) for worker in alive)
        for worker in alive:
            base += worker.bytes if worker.told else max(worker.granted, worker.bytes)
        base += sum(size for other, size in self.pending.items() if other != name)
        if base + need.total_bytes > sample.binding.total * self.thresholds.critical / 100:
            self.broken(f"{name} was granted {need.total_bytes / GIB} GiB on top of {base / GIB} GiB of 100")
        if self.raw(sample.used_percent) >= Level.CRITICAL:
            self.broken(f"{name} was granted a load at {sample.used_percent} %")

    def on_told(self, worker: Any, how: str) -> None:
        """A worker is told to stop; a busy one, or one whose actor knows that it is pinned, only for a reason."""
        name, now, handling = worker.name, self.stage.time, self.stage.handling
        if worker.told or worker.poisoned or worker.pid in self.hung or isinstance(handling, self.bug):
            return
        if isinstance(handling, m.MemoryEvent) and self.worst < Level.CRITICAL:
            self.broken(f"{type(handling).__name__} stops {name} ({how}) though the samples say {self.worst.name}")
            return
        busy = bool(worker.open)
        pinned = any(actor._idleness.pinned for actor in self.stage.actors if getattr(actor, "_name", "") == name)
        if not (busy or pinned) or self.worst >= Level.EMERGENCY:
            return
        reasons = self._asked(name)
        if self.worst >= Level.CRITICAL:
            reasons.append(self.critical_at.get(name, now) + self.grace_s)
        if not reasons and not (name in self.may_drain and not busy):
            self.broken(f"{name} ({busy=}) was told to stop ({how}) at {self.worst.name}, and nobody had asked for it")
        elif busy and now < min(reasons) - _NO_TIME_S:
            self.broken(f"{name} was told to stop ({how}) {min(reasons) - now} s before its grace was over")

    def _asked(self, name: str) -> list[float]:
        """From when on the model may be stopped because somebody asked for that."""
        asked = [self.may_stop[name]] if name in self.may_stop else []
        asked += [at for model, at, answer in self.unloads if model == name and not answer.ended]
        return asked if self.stopping_at is None else [*asked, self.stopping_at]

    def on_generate(self, worker: Any, command: Any) -> None:
        if self.chats[command.id].closed_at_rest:
            self.broken(f"{command.id} was cancelled, and {worker.pid} is asked for it")
        self._judge_text(command.id)
        had = len(texts_of(self.chats[command.id]))
        if command.so_far != tuple(range(1, had + 1)):
            self.broken(f"{command.id} has had {had} tokens, and goes on behind {command.so_far}")

    def _judge_text(self, name: str) -> None:
        """Whatever a request went through, each token of its answer came once and in order."""
        had = texts_of(self.chats[name])
        if had != [f"{number} " for number in range(1, len(had) + 1)]:
            self.broken(f"the answer of {name} is {''.join(had)}")

    # ---- after every message, and at rest

    def on_handled(self, actor: Any) -> None:
        state = getattr(actor, "_state", None)
        if not isinstance(state, State):
            return
        before, self._states[actor.actor_urn] = self._states.get(actor.actor_urn), state
        if state != State.DRAINING or before == State.DRAINING:
            return
        name = actor._name
        if self.worst < Level.CRITICAL and not self._asked(name) and name not in self.may_drain:
            self.broken(f"{name} begins to drain at {self.worst.name}, and nobody had asked for it")

    def on_rest(self) -> None:
        self.raws = self.raws[-1:]
        self.died_for_memory = self.died_alone = False
        self.pending.clear()
        self._judge_emergency()
        self._judge_cancels()
        self._judge_slots()
        self._judge_waits()

    def _judge_emergency(self) -> None:
        for worker in self.host.alive:
            read_at = self.emergencies.get(worker.number, [])
            if len(read_at) < 2:
                continue
            late_s = self.stage.time - read_at[0]
            if late_s > TOLD_S + _NO_TIME_S and worker.told not in ("term", "kill"):
                self.broken(f"{worker.name} runs {late_s} s after raw emergency, told {worker.told or 'nothing'}")
            if late_s > KILLED_S + _NO_TIME_S and worker.told != "kill":
                self.broken(f"{worker.name} has no SIGKILL {late_s} s after raw emergency")

    def _judge_cancels(self) -> None:
        for name, answer in self.chats.items():
            if not answer.closed or answer.ended:
                continue
            answer.closed_at_rest = True
            running = [worker for worker in self.host.alive if name in worker.open]
            if not running:
                self.broken(f"{name} was cancelled, and waits still")
            elif not any(name in worker.cancelled or worker.told for worker in running):
                self.broken(f"{name} was cancelled, and runs still")

    def _judge_waits(self) -> None:
        """An answer that has begun and has no worker waits no longer than it may for a load to begin."""
        working = {worker.name for worker in self.host.alive if not worker.told}
        for name, answer in self.chats.items():
            self._judge_text(name)
            if answer.ended or answer.model in working or not texts_of(answer):
                self.paused_at.pop(name, None)
                continue
            waited_s = self.stage.time - self.paused_at.setdefault(name, self.stage.time)
            if self.sampled_at == self.stage.time and waited_s > self.patience_s + _NO_TIME_S:
                self.broken(f"{name} was paused {waited_s} s ago, and still waits")

    def _judge_slots(self) -> None:
        """At rest the Supervisor knows what is true of each life, and nothing of a former one."""
        for record in self.boss._records if self.boss else ():
            actor = next((one for one in self.stage.actors if one.actor_ref == record.ref), None)
            if actor is None:
                self.broken(f"the actor of {record.status.name} is dead and nobody has noticed")
            elif record.status != actor._status.newest and actor._status.newest is not None:
                self.broken(f"the Supervisor takes {record.status} for {actor._status.newest}")
            elif record.leaving != (actor._state in LEAVING):
                self.broken(f"the Supervisor takes {actor._name} for {record.leaving=} though it is {actor._state}")
        calm = self.newest < Level.CRITICAL
        for name in list(self.critical_at):
            record = self.boss._records.get(name)
            if calm and (record is None or record.status.state != State.DRAINING):
                del self.critical_at[name]
