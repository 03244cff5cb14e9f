"""The ModelActor: owns one model and its worker process, from the first request until the process has ended.

COLD --request--> LOADING --Ready--> READY <-> BUSY
READY/BUSY --Unload, critical, idle--> DRAINING --idle or deadline--> STOPPING --exit--> STOPPED
DRAINING for a critical memory alone --memory eased--> READY/BUSY
LOADING/READY/BUSY --worker died--> BACKOFF --timer--> LOADING, or FAILED after 3 deaths in 60 s
any --emergency--> STOPPING at once
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgspec

from plimsoll.actors import messages as m
from plimsoll.actors.hang_detection import HangCheck, HangWatch, Hung
from plimsoll.actors.idle_and_drain import EMERGENCY, DrainDeadline, IdleCheck, Idleness, UnloadOrders
from plimsoll.actors.messages import Actor
from plimsoll.actors.model_load import Loading, Weighed
from plimsoll.actors.model_requests import Requests
from plimsoll.actors.model_status import Parts, PublishedStatus
from plimsoll.actors.patience import PatienceOver, Waits
from plimsoll.actors.replies import Failed, Waiting
from plimsoll.actors.status import LEAVING, LOADED, SERVING, LiveUsage, State
from plimsoll.actors.worker_deaths import Failures, death, explain, is_of_another_host
from plimsoll.actors.worker_life import Effects, Escalate, WorkerLife
from plimsoll.catalog.source import ModelSource
from plimsoll.engine import protocol as p
from plimsoll.engine.handle.process import Started
from plimsoll.errors import (
    InsufficientMemory,
    InternalError,
    LoadFailed,
    ModelUnloaded,
    PlimsollError,
)
from plimsoll.journal import events
from plimsoll.memory.memory_errors import out_of_memory
from plimsoll.memory.sample import Level

# Only a healthy sample that is newer by this calls off an emergency.
_EMERGENCY_HOLDS_S = 1.0


class ModelSettings(msgspec.Struct, frozen=True):
    """The configuration of one ModelActor; times in seconds. ``usage`` is where the actor shows what runs and waits."""

    source: ModelSource
    options: p.EngineOptions
    rules: m.Rules
    usage: LiveUsage
    stop_grace_s: float = 2.0
    hang_after_s: float | None = None


class BackoffOver(m.Message, frozen=True):
    """Timer: try to load again."""


class ModelActor(Actor):
    """One life of a model. After STOPPED the actor loads nothing more; the Supervisor starts a new actor."""

    def __init__(self, settings: ModelSettings, supervisor: m.Ref, effects: Effects) -> None:
        super().__init__()
        self._max_batch = settings.options.max_batch
        self._settings = settings.rules.settings
        self._name = settings.source.name
        self._life = self.actor_urn
        self._supervisor = supervisor
        self._timers = effects.timers
        self._journal = effects.journal
        self._recent_samples = effects.recent_samples
        self._gauge = effects.gauge
        self._worker = WorkerLife(self._name, self.actor_ref, effects, settings.stop_grace_s)
        self._hangs = HangWatch(self.actor_ref, effects.timers, effects.activity, settings.hang_after_s)
        self._loading = Loading(settings.source, settings.options, self.actor_ref, effects.weigh, effects.timers)
        self._unloading = UnloadOrders(self._name, self.actor_ref, effects.timers)
        self._idleness = Idleness(self.actor_ref, effects.timers, settings.rules)
        # Running and waiting requests share one limit: the queue, and the batch in front of it.
        self._requests = Requests(self._settings.queue + self._max_batch, settings.usage.pace, effects.timers.now)
        self._waits = Waits(self._name, self.actor_ref, self._requests, effects)
        self._makes_way = False
        self._state = State.COLD
        self._info: p.ModelInfo | None = None
        self._failures = Failures()
        self._status = PublishedStatus(
            self._name,
            self._life,
            supervisor,
            settings.usage,
            Parts(self._requests, self._worker, self._loading, self._unloading, self._idleness, self._failures),
        )
        self._handlers: dict[type, Callable[[Any], object]] = {
            m.FromWorker: self._on_event,
            m.Chat: self._on_chat,
            m.Cancel: self._on_cancel,
            m.WorkerExited: self._on_exit,
            m.Warm: self._request_load,
            BackoffOver: self._request_load,
            Weighed: self._on_weighed,
            m.Load: self._on_load,
            m.RefuseLoad: self._on_load_refused,
            m.LoadWaits: self._waits.on_load_waits,
            PatienceOver: self._waits.on_patience_over,
            m.MakeWay: self._on_make_way,
            m.Lease: self._on_lease,
            m.GiveWay: lambda _: self._worker.send(p.GiveWay()),
            m.Unload: self._on_unload,
            m.KeepAlive: self._on_keep_alive,
            m.Rules: self._on_rules,
            m.Pin: self._on_pin,
            m.CountTokens: self._on_count_tokens,
            m.MemoryNormal: lambda _: None,
            m.MemoryWarning: self._on_warning,
            m.MemoryEased: self._on_eased,
            m.MemoryCritical: self._on_critical,
            m.MemoryEmergency: self._on_emergency,
            DrainDeadline: self._on_drain_deadline,
            Escalate: self._worker.escalate,
            HangCheck: self._on_hang_check,
            IdleCheck: self._on_idle_check,
        }
        self._events: dict[type, Callable[[Any], object]] = {
            Started: lambda _: None,
            p.Step: self._on_step,
            p.PrefillProgress: self._requests.on_prefill,
            p.LoadProgress: self._on_load_progress,
            p.Fetched: self._loading.on_fetched,
            p.Ready: self._on_ready,
            p.Trimmed: self._worker.on_trimmed,
            p.Embedded: self._on_embedded,
            p.RequestError: self._on_request_error,
            p.LoadError: self._worker.on_load_error,
            p.EngineError: self._worker.on_engine_error,
            p.HostMemory: self._worker.on_host_memory,
            p.LeaseWanted: self._on_lease_wanted,
            p.Held: self._requests.on_held,
        }

    def on_receive(self, message: Any) -> None:
        self._handlers[type(message)](message)
        if type(message) is m.FromWorker and type(message.event) is p.Step and not message.event.endings:
            return  # a decode step that ends no request changes nothing that others see
        self._hangs.follow(working=self._owes_an_answer)
        self._waits.follow(self._settings.patience_s, waits=not self._worker.exists or self._makes_way)
        self._publish()

    def on_failure(
        self, _type: type[BaseException] | None, value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """An unexpected error ends this model's requests and worker, and nothing else."""
        error = InternalError(f"the actor of {self._name} failed; the next request starts a new one")
        self.close_mailbox(error)
        self._requests.fail_all(error)
        self._worker.kill()
        m.tell(self._supervisor, m.ChildStopped(self._name, self._life, f"actor failed: {value!r}"))

    def on_stop(self) -> None:
        self.close_mailbox(self._unloading.error)
        self._requests.fail_all(self._unloading.error)
        self._worker.kill()

    # ---- requests

    def _on_chat(self, chat: m.Chat) -> None:
        if self._state in LEAVING:
            if not m.tell(self._supervisor, m.Handback(self._name, self._life, chat)):
                chat.reply.send(Failed(self._unloading.error))
        elif self._state == State.FAILED and (refusal := self._failures.refusal(self._timers.now())):
            chat.reply.send(Failed(refusal))
        elif chat.resume is None and not self._requests.has_room():
            chat.reply.send(Failed(self._requests.full(self._name, loaded=self._state in SERVING)))
        else:
            self._idleness.used()
            self._requests.line.add(chat)
            if self._state in SERVING:
                self._start_requests()
            else:
                self._request_load()
                chat.reply.send(Waiting("resume") if chat.is_paused else self._loading.progress)

    def _on_cancel(self, message: m.Cancel) -> None:
        if self._requests.cancel(message.id):
            self._worker.send(p.CancelRequest(message.id))
        elif self._state in LEAVING:
            # The chat may have been handed back before the cancel came.
            m.tell(self._supervisor, m.Handback(self._name, self._life, message))

    def _start_requests(self) -> None:
        if not self._makes_way:
            for chat in self._requests.start():
                self._worker.send(p.Generate(chat.id, chat.request, chat.resume.tokens if chat.resume else ()))
        self._settle()

    def _settle(self) -> None:
        """Set READY or BUSY by the running requests; stop a draining model whose requests have ended."""
        if self._state in SERVING:
            self._state = State.BUSY if self._requests.running else State.READY
            if self._state == State.READY and self._idleness.ttl_s == 0 and not self._requests.waiting:
                self._leave("not kept alive", self._unloading.error, 0.0)
        elif self._state == State.DRAINING and not self._requests.running:
            if self._unloading.is_firm or self._gauge.still(Level.CRITICAL):
                self._stop_worker()
            else:
                self._call_off()

    # ---- loading

    def _request_load(self, _: m.Warm | BackoffOver | None = None) -> None:
        if self._state in (State.COLD, State.FAILED, State.BACKOFF):
            self._state = State.LOADING
            self._failures.last = None
            self._loading.begin()

    def _on_weighed(self, message: Weighed) -> None:
        if not (self._loading.is_awaited(message) and self._awaits_grant):
            return
        if failure := self._loading.failure(message):
            self._fail(failure)
        else:
            m.tell(self._supervisor, m.LoadRequested(self._name, self._life, message.needs))

    @property
    def _awaits_grant(self) -> bool:
        return self._state == State.LOADING and not self._worker.exists

    def _on_load(self, message: m.Load) -> None:
        if not self._awaits_grant:
            if message.spare:
                message.spare.kill()
            return
        self._info = None
        self._waits.load_begins()
        try:
            self._worker.start(self._loading.command(message.need), message.need.total_bytes, message.spare)
        except RuntimeError as error:
            self._fail(LoadFailed(f"no worker process can be started for {self._name}: {error}"))

    def _on_load_refused(self, message: m.RefuseLoad) -> None:
        if self._awaits_grant:
            self._refuse(message.error)

    def _on_make_way(self, message: m.MakeWay) -> None:
        self._makes_way = message.on
        if not message.on and self._state in SERVING:
            self._start_requests()

    def _refuse(self, error: PlimsollError) -> None:
        """The load was refused: end the waiting requests; the next request asks again."""
        self._requests.fail_all(error)
        self._failures.last = error
        self._state = State.COLD

    # ---- the lease of its KV caches

    def _on_lease_wanted(self, event: p.LeaseWanted) -> None:
        asks = (self._worker.generation, event.kv_bytes, event.needed_bytes, event.longest)
        m.tell(self._supervisor, m.LeaseRequested(self._name, self._life, *asks))

    def _on_lease(self, message: m.Lease) -> None:
        if self._worker.is_current(message.worker):
            self._worker.send(p.Lease(message.kv_bytes, message.most_bytes, message.more))

    # ---- events of the worker

    def _on_event(self, message: m.FromWorker) -> None:
        if not self._worker.is_current(message.generation):
            return
        event = message.event
        # HostMemory comes from a thread beside the one that computes, so it does not show that the worker is alive.
        if not isinstance(event, p.HostMemory):
            self._hangs.heard()
        self._events[type(event)](event)

    def _on_step(self, step: p.Step) -> None:
        if self._requests.deliver(step):
            self._start_requests()  # those that waited until another one was seen to be harmless
        if step.endings:
            self._idleness.used()
            self._settle()

    def _on_load_progress(self, event: p.LoadProgress) -> None:
        self._loading.on_progress(event)
        self._requests.line.progress(self._loading.progress)

    def _on_embedded(self, event: p.Embedded) -> None:
        self._requests.embedded(event)
        self._idleness.used()
        self._settle()

    def _on_request_error(self, event: p.RequestError) -> None:
        self._requests.refused(event)
        self._settle()

    def _on_ready(self, event: p.Ready) -> None:
        if self._state != State.LOADING:
            return
        self._info = event.info
        self._requests.pace.load_s = event.info.load_s
        self._state = State.READY
        self._idleness.used()
        self._idleness.watch()
        self._start_requests()
        self._waits.resumed()

    @property
    def _owes_an_answer(self) -> bool:
        if self._state == State.LOADING:
            return self._worker.exists
        return self._state in LOADED and self._requests.running > 0

    def _on_hang_check(self, _: HangCheck) -> None:
        pid = self._worker.pid
        if hung := self._hangs.look(pid):
            self._worker.last_words = hung
            doing = "loading" if self._state == State.LOADING else "generating"
            self._journal.record(events.WorkerHung(self._name, pid or 0, hung.silent_s, doing, self._requests.running))
            m.tell(self._supervisor, m.WorkerHangs(self._name, self._life))
            self._worker.kill()

    def _on_exit(self, message: m.WorkerExited) -> None:
        if not self._worker.is_current(message.generation):
            return
        if message.stuck_pid:
            m.tell(self._supervisor, m.WorkerStuck(self._name, self._life, message.stuck_pid))
        samples = self._recent_samples()
        died = self._worker.ended(message, samples)
        if self._state in LEAVING:
            self._end_or_pause()
            self._stopped()
            return
        loading = self._state == State.LOADING
        self._info = None
        if loading and self._loading.fetched and message.code == 0:
            self._loading.weigh()
            return
        last_words = self._worker.last_words
        hung_s = last_words.silent_s if isinstance(last_words, Hung) else 0.0
        error = explain(self._name, loading=loading, death=died, samples=samples, last_words=last_words)
        elsewhere, hopes = is_of_another_host(last_words), bool(self._requests.line.paused())
        if isinstance(last_words, p.LoadError) and elsewhere and not (hopes and last_words.kind == "host_full"):
            self._refuse(error)
            return
        now, served = self._timers.now(), self._requests.has_progress
        self._waits.pause(error, died=not elsewhere, killed=last_words is None and died.is_kill)
        wanted, hopes = bool(self._requests.waiting) or self._idleness.pinned, bool(self._requests.line.paused())
        self._rest(
            error, self._failures.died(error, now, hung_s, loading=loading, wanted=wanted, served=served, hopes=hopes)
        )
        if not hung_s:
            if isinstance(error, InsufficientMemory) and not elsewhere:
                # With the new state published: the clean-up that follows must not unload a model without a worker.
                self._publish()
                m.tell(self._supervisor, m.RanOutOfMemory(self._name, self._life, error))
            else:
                self._journal.record(death(self._name, error, message.code, loading=loading))

    def _fail(self, error: PlimsollError) -> None:
        """Give up for a while: until the cool-down is over, who comes next gets the reason too."""
        self._rest(error, self._failures.give_up(error, self._timers.now()))

    def _rest(self, error: PlimsollError, verdict: tuple[State, float]) -> None:
        """No worker for now; ``verdict`` is the state and when to try again."""
        self._state, delay_s = verdict
        if self._state == State.FAILED:
            self._requests.fail_all(error)
        if self._state == State.BACKOFF or (self._state == State.FAILED and self._idleness.pinned):
            self._timers.tell_later(delay_s, self.actor_ref, BackoffOver())

    # ---- leaving

    def _on_unload(self, message: m.Unload) -> None:
        # It may have been pinned since the decision, too.
        waited_for = self._requests.waiting and not (self._makes_way and message.hand_back)
        held = self._idleness.pinned and not message.reload
        wanted = message.if_idle and (self._requests.running or waited_for or held)
        level = message.while_level
        outdated = level is not None and not self._gauge.still(level)
        if (wanted or outdated) and self._state not in (State.STOPPING, State.STOPPED):
            m.tell(self._supervisor, m.Stays(self._name, self._life))
            return
        if message.hand_back:
            self._hand_back()
        text = f"{self._name} was unloaded ({message.reason}); ask again to load it"
        error = message.error or ModelUnloaded(text, retry_after_s=1.0)
        self._leave(message.reason, error, message.grace_s, until_eased=level == Level.CRITICAL, pauses=message.pause)

    def _hand_back(self) -> None:
        """The model's next life gets what waits, in order."""
        for chat in self._requests.line.take():
            m.tell(self._supervisor, m.Handback(self._name, self._life, chat))

    def _on_warning(self, message: m.MemoryWarning) -> None:
        if not message.falls:
            self._worker.send(p.TrimCaches())

    def _on_critical(self, message: m.MemoryCritical) -> None:
        # A model without a worker holds nothing; admission decides whether it may load.
        if self._worker.pid is None or not self._has_to_stop(message, Level.CRITICAL):
            return
        error = out_of_memory(message.sample, f"{self._name} is unloaded because memory is critically full")
        self._leave("critical", error, self._settings.critical_grace_s, until_eased=True, pauses=True)

    def _on_emergency(self, message: m.MemoryEmergency) -> None:
        # The next samples may be healthy because other workers have stopped; in an emergency all have to stop.
        if not self._has_to_stop(message, Level.EMERGENCY, holds_s=_EMERGENCY_HOLDS_S):
            return
        error = out_of_memory(message.sample, f"{self._name} was stopped because memory is almost exhausted")
        if self._requests.waiting and not self._worker.exists and self._settings.patience_s:
            self._waits.pause(error, by_order=True)
            if self._requests.waiting:
                return  # a model without a worker holds nothing
        self._leave(EMERGENCY, error, 0.0, pauses=True)

    def _has_to_stop(self, message: m.MemoryEvent, level: Level, holds_s: float = 0.0) -> bool:
        """Check once more before a worker is stopped: a newer sample than this message's may be healthy."""
        return not message.falls and self._gauge.still(level, message.sample.time_s + holds_s)

    def _leave(
        self, reason: str, error: PlimsollError, grace_s: float, *, until_eased: bool = False, pauses: bool = False
    ) -> None:
        """Take no more requests; running ones get ``grace_s``, then end with ``error``, or are paused."""
        if self._state in (State.STOPPING, State.STOPPED):
            if reason == EMERGENCY and not self._unloading.is_urgent:
                self._unloading.accept(reason, error, grace_s, pauses=pauses)
                self._worker.stop(hard=True)
            return
        if not self._unloading.accept(reason, error, grace_s, until_eased=until_eased, pauses=pauses):
            return
        if self._requests.running and grace_s > 0:
            self._state = State.DRAINING
            if until_eased:  # what its pools hold may be what memory lacks
                self._worker.send(p.TrimCaches())
        else:
            self._stop_worker()

    def _on_drain_deadline(self, message: DrainDeadline) -> None:
        if self._state != State.DRAINING or not self._unloading.is_over(message):
            return
        if self._unloading.until_eased and not self._gauge.still(Level.CRITICAL):
            self._call_off()
        else:
            self._stop_worker()

    def _on_eased(self, message: m.MemoryEased) -> None:
        # Memory may be critical again by now, and this drain may belong to that.
        eased = self._gauge.eased(Level.CRITICAL, message.at)
        if eased and self._state == State.DRAINING and self._unloading.until_eased:
            self._call_off()

    def _call_off(self) -> None:
        """Memory is not critical any more: serve again, unless there is another order to unload."""
        if self._unloading.call_off():
            self._state = State.READY
            self._idleness.watch()
            self._start_requests()
        self._settle()
        self._publish()
        m.tell(self._supervisor, m.Stays(self._name, self._life))

    def _end_or_pause(self) -> None:
        """What is left of the requests goes on in the model's next life, if the order to unload allows that."""
        if self._unloading.pauses and self._settings.patience_s:
            self._waits.pause(self._unloading.error, died=self._worker.outgrew(self._recent_samples()), by_order=True)
            self._hand_back()
        else:
            self._requests.fail_all(self._unloading.error)

    def _stop_worker(self) -> None:
        self._end_or_pause()
        self._state = State.STOPPING
        # A worker that still loads does not read commands.
        if not self._worker.stop(hard=self._unloading.is_urgent or self._info is None):
            self._stopped()

    def _stopped(self) -> None:
        self._state = State.STOPPED
        self._publish()
        m.tell(self._supervisor, m.ChildStopped(self._name, self._life, self._unloading.reason))

    # ---- idleness

    def _on_keep_alive(self, message: m.KeepAlive) -> None:
        self._idleness.keep(message.seconds)
        self._watch_idleness()

    def _on_pin(self, message: m.Pin) -> None:
        self._idleness.pinned = message.pinned
        self._watch_idleness()
        if message.pinned and self._state == State.FAILED:
            self._request_load()  # while it was not pinned, no timer was set for the next try

    def _on_rules(self, message: m.Rules) -> None:
        self._settings = message.settings
        self._requests.limit = self._settings.queue + self._max_batch
        self._idleness.follow(message)
        self._watch_idleness()

    def _watch_idleness(self) -> None:
        if self._state in SERVING:
            self._idleness.watch()

    def _on_idle_check(self, _: IdleCheck) -> None:
        if self._state in SERVING and self._idleness.is_over(
            busy=self._state == State.BUSY or self._requests.waiting > 0
        ):
            self._leave("idle", self._unloading.error, 0.0)

    # ---- status

    def _on_count_tokens(self, _: m.CountTokens) -> None:
        m.tell(self._supervisor, m.Counted(self._name, self._life, self._requests.tokens, self._timers.now()))

    def _publish(self) -> None:
        self._status.publish(self._state, self._info, self._timers.now(), self._settings.patience_s)
