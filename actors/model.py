"""The ModelActor: owns one model by owning its worker process, from the first request to the last byte given back.

COLD --request--> LOADING --Ready--> READY <-> BUSY
READY/BUSY --Unload, critical, idle--> DRAINING --idle or deadline--> STOPPING --exit--> STOPPED
LOADING/READY/BUSY --worker died--> BACKOFF --timer--> LOADING, or FAILED after 3 deaths in 60 s
any --emergency--> STOPPING at once
"""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgspec
import pykka

from plimsoll.actors import messages as m
from plimsoll.actors.dead_letters import answer_dead_letters
from plimsoll.actors.exits import Failures, death, explain
from plimsoll.actors.hang_watch import HangCheck, HangWatch, Hung
from plimsoll.actors.idleness import IdleCheck, Idleness
from plimsoll.actors.leaving import EMERGENCY, DrainDeadline, Leaving
from plimsoll.actors.loading import Loading, Weighed
from plimsoll.actors.messages import LEAVING, LOADED, SERVING, State
from plimsoll.actors.requests import Requests
from plimsoll.actors.worker_life import Effects, Escalate, WorkerLife
from plimsoll.engine import protocol as p
from plimsoll.errors import (
    InsufficientMemory,
    InternalError,
    LoadFailed,
    ModelUnloaded,
    PlimsollError,
    QueueFull,
)
from plimsoll.journal import events
from plimsoll.memory.report import out_of_memory


class ModelSettings(msgspec.Struct, frozen=True):
    """What one ModelActor has to know of the configuration; times in seconds."""

    source: p.ModelSource
    options: p.EngineOptions
    rules: m.Rules
    stop_grace_s: float = 2.0
    hang_after_s: float | None = None


class BackoffOver(m.Message, frozen=True):
    """Timer: try to load again."""


class ModelActor(pykka.ThreadingActor):
    """One life of one model. After STOPPED it loads nothing more; the Supervisor starts a fresh one."""

    use_daemon_thread = True

    def __init__(self, settings: ModelSettings, supervisor: m.Ref, effects: Effects) -> None:
        super().__init__()
        self._max_batch = settings.options.max_batch
        self._critical_grace_s = settings.rules.critical_grace_s
        self._name = settings.source.name
        self._supervisor = supervisor
        self._timers = effects.timers
        self._journal = effects.journal
        self._worker = WorkerLife(self._name, self.actor_ref, effects, settings.stop_grace_s)
        self._hangs = HangWatch(self.actor_ref, effects.timers, effects.activity, settings.hang_after_s)
        self._loading = Loading(settings.source, settings.options, self.actor_ref, effects.weigh)
        self._leaving = Leaving(self._name, self.actor_ref, effects.timers)
        self._idleness = Idleness(self.actor_ref, effects.timers, settings.rules)
        # Running answers and waiting requests share one bound: the batch in front of the queue is part of it.
        self._requests = Requests(settings.rules.queue + self._max_batch)
        self._state = State.COLD
        self._info: p.ModelInfo | None = None
        self._failures = Failures()
        self._published: m.ModelStatus | None = None
        self._handlers: dict[type, Callable[[Any], object]] = {
            m.FromWorker: self._on_event,
            m.Chat: self._on_chat,
            m.Cancel: self._on_cancel,
            m.WorkerExited: self._on_exit,
            m.Warm: self._on_load_wanted,
            BackoffOver: self._on_load_wanted,
            Weighed: self._on_weighed,
            m.Load: self._on_load,
            m.RefuseLoad: self._on_load_refused,
            m.Unload: self._on_unload,
            m.KeepAlive: self._on_keep_alive,
            m.Rules: self._on_rules,
            m.Pin: self._on_pin,
            m.CountTokens: self._on_count_tokens,
            m.MemoryNormal: lambda _: None,
            m.MemoryWarning: lambda _: self._worker.send(p.TrimCaches()),
            m.MemoryCritical: self._on_critical,
            m.MemoryEmergency: self._on_emergency,
            DrainDeadline: self._on_drain_deadline,
            Escalate: self._worker.escalate,
            HangCheck: self._on_hang_check,
            IdleCheck: self._on_idle_check,
        }
        self._events: dict[type, Callable[[Any], object]] = {
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
        }

    def on_receive(self, message: Any) -> None:
        self._handlers[type(message)](message)
        self._hangs.follow(working=self._owes_an_answer)
        self._publish()

    def on_failure(
        self, _type: type[BaseException] | None, value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """A bug in here costs this model's requests and worker, and nothing else."""
        self._worker.kill()
        error = InternalError(f"the actor of {self._name} failed; the next request starts a new one")
        self._requests.fail_all(error)
        answer_dead_letters(self, error)
        m.tell(self._supervisor, m.ChildStopped(self._name, f"actor failed: {value!r}", self.actor_urn))

    def on_stop(self) -> None:
        self._worker.kill()
        self._requests.fail_all(self._leaving.error)

    # ---- requests

    def _on_chat(self, chat: m.Chat) -> None:
        now = self._timers.now()
        if self._state in LEAVING:
            if not m.tell(self._supervisor, m.Handback(chat)):
                chat.reply.send(m.Failed(self._leaving.error))
        elif self._state == State.FAILED and (refusal := self._failures.refusal(now)):
            chat.reply.send(m.Failed(refusal))
        elif not self._requests.has_room():
            count = self._requests.waiting + self._requests.running
            text = f"{self._name} has {count} requests already; try again shortly or raise models.queue"
            chat.reply.send(m.Failed(QueueFull(text, retry_after_s=1.0)))
        else:
            self._idleness.used()
            self._requests.add(chat)
            if self._state in SERVING:
                self._start_requests()
            else:
                self._request_load()
                chat.reply.send(self._loading.progress)

    def _on_cancel(self, message: m.Cancel) -> None:
        if self._requests.cancel(message.id):
            self._worker.send(p.CancelRequest(message.id))

    def _start_requests(self) -> None:
        for chat in self._requests.start():
            self._worker.send(p.Generate(chat.id, chat.request))
        self._settle()

    def _settle(self) -> None:
        """READY or BUSY by what runs; a draining model that has become idle stops."""
        if self._state in SERVING:
            self._state = State.BUSY if self._requests.running else State.READY
            if self._state == State.READY and self._idleness.ttl_s == 0:
                self._leave("not kept alive", self._leaving.error, 0.0)
        elif self._state == State.DRAINING and not self._requests.running:
            self._stop_worker()

    # ---- loading

    def _on_load_wanted(self, _: m.Warm | BackoffOver) -> None:
        self._request_load()

    def _request_load(self) -> None:
        if self._state in (State.COLD, State.FAILED, State.BACKOFF):
            self._state = State.LOADING
            self._failures.last = None
            self._loading.begin()

    def _on_weighed(self, message: Weighed) -> None:
        if not self._awaits_grant:
            return
        if failure := self._loading.failure(message):
            self._fail(failure)
        else:
            m.tell(self._supervisor, m.LoadRequested(self._name, message.needs))

    @property
    def _awaits_grant(self) -> bool:
        return self._state == State.LOADING and self._worker.pid is None

    def _on_load(self, message: m.Load) -> None:
        if not self._awaits_grant:
            if message.spare:
                message.spare.kill()
            return
        self._info = None
        try:
            self._worker.start(self._loading.command(message.need), message.spare)
        except OSError as error:
            self._fail(LoadFailed(f"no worker process can be started for {self._name}: {error}"))

    def _on_load_refused(self, message: m.RefuseLoad) -> None:
        if self._awaits_grant:
            self._refuse(message.error)

    def _refuse(self, error: PlimsollError) -> None:
        """There is no room: the next request asks again."""
        self._requests.fail_all(error)
        self._failures.last = error
        self._state = State.COLD

    # ---- what the worker says

    def _on_event(self, message: m.FromWorker) -> None:
        if not self._worker.is_current(message.generation):
            return
        event = message.event
        if not isinstance(event, p.HostMemory):  # which comes from a thread beside the one that computes
            self._hangs.heard()
        self._events[type(event)](event)

    def _on_step(self, step: p.Step) -> None:
        self._requests.deliver(step)
        if step.endings:
            self._idleness.used()
            self._settle()

    def _on_load_progress(self, event: p.LoadProgress) -> None:
        self._loading.on_progress(event)
        self._requests.progress(self._loading.progress)

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
        self._state = State.READY
        self._idleness.used()
        self._idleness.watch()
        self._start_requests()

    @property
    def _owes_an_answer(self) -> bool:
        if self._state == State.LOADING:
            return self._worker.pid is not None
        return self._state in LOADED and self._requests.running > 0

    def _on_hang_check(self, _: HangCheck) -> None:
        pid = self._worker.pid
        hung = self._hangs.look(pid)
        if hung and pid:
            self._worker.last_words = hung
            doing = "loading" if self._state == State.LOADING else "generating"
            self._journal.record(events.WorkerHung(self._name, pid, hung.silent_s, doing, self._requests.running))
            m.tell(self._supervisor, m.WorkerHangs(self._name))
            self._worker.kill()

    def _on_exit(self, message: m.WorkerExited) -> None:
        if not self._worker.is_current(message.generation):
            return
        if message.stuck_pid:
            m.tell(self._supervisor, m.WorkerStuck(self._name, message.stuck_pid))
        self._worker.ended()
        if self._state in LEAVING:
            self._requests.fail_all(self._leaving.error)
            self._stopped()
            return
        loading = self._state == State.LOADING
        self._info = None
        if loading and self._loading.fetched and message.code == 0:
            self._loading.weigh()
            return
        last_words = self._worker.last_words
        hung_s = last_words.silent_s if isinstance(last_words, Hung) else 0.0
        error = explain(self._name, loading=loading, exit_=message, last_words=last_words)
        if isinstance(last_words, p.LoadError) and last_words.kind in ("host_full", "host_never"):
            self._refuse(error)
            return
        # What has not answered anything yet may be asked again, but only once: it may be what the worker died of.
        self._requests.requeue_untouched()
        self._requests.fail_running(error)
        wanted = bool(self._requests.waiting) or self._idleness.pinned
        now = self._timers.now()
        self._rest(error, self._failures.died(error, loading=loading, wanted=wanted, now=now, hung_s=hung_s))
        if not hung_s:
            elsewhere = isinstance(last_words, p.EngineError) and last_words.kind == "host"
            self._tell_of_death(error, message.code, loading=loading, elsewhere=elsewhere)

    def _tell_of_death(self, error: PlimsollError, code: int, *, loading: bool, elsewhere: bool) -> None:
        if isinstance(error, InsufficientMemory) and not elsewhere:
            # After the new state: what has no worker any more is not asked to leave by the clean-up that follows.
            self._publish()
            m.tell(self._supervisor, m.RanOutOfMemory(self._name, error))
        else:
            self._journal.record(death(self._name, error, code, loading=loading))

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
        if message.if_idle and (self._requests.running or self._requests.waiting or self._idleness.pinned):
            m.tell(self._supervisor, m.Stays(self._name))
            return
        if message.hand_back:
            for chat in self._requests.take_waiting():
                m.tell(self._supervisor, m.Handback(chat))
        text = f"{self._name} was unloaded ({message.reason}); ask again to load it"
        self._leave(message.reason, message.error or ModelUnloaded(text, retry_after_s=1.0), message.grace_s)

    def _on_critical(self, message: m.MemoryCritical) -> None:
        error = out_of_memory(message.sample, f"{self._name} is unloaded because memory is critically full")
        self._leave("critical", error, self._critical_grace_s)

    def _on_emergency(self, message: m.MemoryEmergency) -> None:
        error = out_of_memory(message.sample, f"{self._name} was stopped because memory is almost exhausted")
        self._leave(EMERGENCY, error, 0.0)

    def _leave(self, reason: str, error: PlimsollError, grace_s: float) -> None:
        """Take no more requests; running ones get ``grace_s``, then end with ``error``."""
        if self._state in (State.STOPPING, State.STOPPED):
            if reason == EMERGENCY:
                self._worker.stop(hard=True)
            return
        if not self._leaving.accept(reason, error, grace_s):
            return
        if self._requests.running and grace_s > 0:
            self._state = State.DRAINING
            self._leaving.drain(grace_s)
        else:
            self._stop_worker()

    def _on_drain_deadline(self, message: DrainDeadline) -> None:
        if self._state == State.DRAINING and self._leaving.is_over(message):
            self._stop_worker()

    def _stop_worker(self) -> None:
        self._requests.fail_all(self._leaving.error)
        self._state = State.STOPPING
        # A worker that still loads does not listen to commands.
        if not self._worker.stop(hard=self._leaving.is_urgent or self._info is None):
            self._stopped()

    def _stopped(self) -> None:
        self._state = State.STOPPED
        self._publish()
        m.tell(self._supervisor, m.ChildStopped(self._name, self._leaving.reason, self.actor_urn))

    # ---- idleness

    def _on_keep_alive(self, message: m.KeepAlive) -> None:
        self._idleness.keep(message.seconds)
        self._watch_idleness()

    def _on_pin(self, message: m.Pin) -> None:
        self._idleness.pinned = message.pinned
        self._watch_idleness()
        if message.pinned and self._state == State.FAILED:
            self._request_load()  # nobody set a timer for that while it was not pinned

    def _on_rules(self, message: m.Rules) -> None:
        self._critical_grace_s = message.critical_grace_s
        self._requests.limit = message.queue + self._max_batch
        self._idleness.follow(message)
        self._watch_idleness()

    def _watch_idleness(self) -> None:
        if self._state in SERVING:
            self._idleness.watch()

    def _on_idle_check(self, _: IdleCheck) -> None:
        if self._state in SERVING and self._idleness.is_over(busy=self._state == State.BUSY):
            self._leave("idle", self._leaving.error, 0.0)

    # ---- what others see

    def _on_count_tokens(self, _: m.CountTokens) -> None:
        m.tell(self._supervisor, m.Counted(self._name, self._requests.tokens, self._timers.now(), self.actor_urn))

    def _publish(self) -> None:
        loading, progress = self._state == State.LOADING, self._loading.progress
        status = m.ModelStatus(
            self._name,
            self._state,
            active=self._requests.running,
            queued=self._requests.waiting,
            pinned=self._idleness.pinned,
            pid=self._worker.pid,
            last_used=self._idleness.last_used,
            idle_ttl_s=self._idleness.ttl_s,
            stage=progress.stage if loading else "",
            done_bytes=progress.done if loading else 0,
            total_bytes=progress.total if loading else 0,
            mlx_bytes=self._worker.mlx_bytes,
            info=self._info,
            error=self._failures.last.message if self._failures.last else "",
            more_pids=self._worker.more_pids,
            hosts=tuple(self._worker.hosts.values()),
        )
        if status != self._published:
            self._published = status
            m.tell(self._supervisor, m.StateChanged(status))
