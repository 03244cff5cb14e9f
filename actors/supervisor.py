"""The Supervisor: owns the list of living models; each request passes its mailbox on the way in.

Requests go through its mailbox to the ModelActor's: both are FIFO, so no request can reach an actor after the
Supervisor has forgotten that actor, and no request is lost between two actors of a model.
"""

import logging
from collections.abc import Callable
from typing import Any

import msgspec

from plimsoll.actors import messages as m
from plimsoll.actors.admission import Admission
from plimsoll.actors.faster_form import REASON as FASTER_FORM
from plimsoll.actors.faster_form import FasterForms
from plimsoll.actors.footprints import OnSettled, WorkerFootprints
from plimsoll.actors.leases import Leases
from plimsoll.actors.memory_view import MemoryView
from plimsoll.actors.messages import Actor, reply_of
from plimsoll.actors.model_records import ModelRecords, StartModel, known, shutting_down
from plimsoll.actors.replies import Failed, Reply
from plimsoll.actors.request_routing import RequestRouting
from plimsoll.actors.settings import Settings
from plimsoll.actors.spare_worker import SpareWorker
from plimsoll.actors.status import LEAVING, SERVING, ModelStatus, State
from plimsoll.actors.status_report import StatusReport
from plimsoll.actors.watchdog_supervision import CheckWatchdog, WatchdogSupervision
from plimsoll.catalog.names import Catalog
from plimsoll.errors import InternalError, PlimsollError, Unavailable
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.lease import bounded, lease_percent
from plimsoll.memory.ledger import Need, foresee, without
from plimsoll.memory.sample import Level, Sample

log = logging.getLogger("plimsoll.memory")

# Room for a pinned model whose load was refused may come without any event.
_PIN_AGAIN_S = 30.0

_AT_WORK = frozenset({State.LOADING, State.BUSY})
# After these the Watchdog has the same workers to measure as before, just as often.
_MEASURES_THE_SAME = frozenset({m.Chat, m.Cancel, m.KeepAlive, m.PlanLoad, m.Counted})


class Supervisor(Actor):
    """Starts and ends ModelActors, grants loads, carries out clean-ups, reports the status of the whole server."""

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        journal: Journal,
        *,
        supervision: WatchdogSupervision,
        start_model: StartModel,
        on_external: Callable[[Sample], None],
        on_settled: OnSettled,
        spare: SpareWorker,
        clock: Callable[[], float],
    ) -> None:
        super().__init__()
        self._journal = journal
        self._supervision = supervision
        self._spare = spare
        self._clock = clock
        self._pinned_at = clock()
        self._stop_reply: Reply | None = None
        # When the model was last used after whose answer a spare worker was ordered.
        self._spare_ordered_after = 0.0
        self._records = ModelRecords(self.actor_ref, catalog, supervision, start_model, settings)
        self._routing = RequestRouting(self._records, clock)
        self._memory_view = MemoryView(settings, journal, clock, self._records.seats)
        self._admission = Admission(
            self._memory_view,
            journal,
            clock,
            seats=self._records.seats,
            tell=self._tell_model,
            on_external=on_external,
            held_bytes=self._held_bytes,
            give_way=self._give_way,
        )
        self._leases = Leases(self._memory_view, self._records, self._admission.pending_unloads, clock)
        self._faster_forms = FasterForms(
            self._memory_view, self._records, self._admission.pending_unloads, journal, clock
        )
        self._footprints = WorkerFootprints(self._records, spare, supervision, journal, on_settled)
        self._report = StatusReport(self._memory_view, self._records, self._footprints.stuck, journal, clock)
        self._handlers: dict[type, Callable[[Any], object]] = {
            m.Chat: self._routing.on_chat,
            m.Handback: self._routing.on_handback,
            m.Cancel: self._routing.on_cancel,
            m.LoadModel: self._routing.on_load,
            m.UnloadModel: self._routing.on_unload,
            m.KeepAlive: self._on_keep_alive,
            m.PinModel: self._on_pin_model,
            m.StateChanged: self._on_state_changed,
            m.WorkerHangs: self._on_worker_hangs,
            m.WorkerStuck: self._footprints.on_stuck,
            m.ChildStopped: self._on_child_stopped,
            m.SpareExited: self._on_spare_exited,
            m.LoadRequested: self._on_load_requested,
            m.LeaseRequested: self._on_lease_requested,
            m.Stays: self._admission.on_stays,
            m.CleanUpModels: self._on_clean_up_models,
            m.RanOutOfMemory: self._on_out_of_memory,
            m.PlanLoad: self._on_plan_load,
            CheckWatchdog: self._on_check_watchdog,
            m.Sampled: self._on_sampled,
            m.Counted: self._footprints.on_counted,
            **dict.fromkeys((m.MemoryNormal, m.MemoryWarning, m.MemoryCritical, m.MemoryEmergency), self._on_level),
            m.GetStatus: self._on_get_status,
            m.Reconfigure: self._on_reconfigure,
            m.StopAll: self._on_stop_all,
        }

    def on_start(self) -> None:
        self._supervision.check_later(self.actor_ref)
        m.tell(self._supervision.watchdog, m.Subscribe(self.actor_ref, every_sample=True))
        self._load_pinned()

    def on_receive(self, message: Any) -> None:
        if isinstance(message, m.FromModel) and not (
            message.matters_after_death or self._records.has(message.model, message.life)
        ):
            return
        try:
            self._handlers[type(message)](message)
        except Exception:
            # Nothing restarts the Supervisor: a message that it fails on must not end the server.
            log.exception("the supervisor failed on %s", type(message).__name__)
            if (reply := reply_of(message)) is not None:
                reply.send(Failed(InternalError("the server failed on this request; the log says why")))
        if type(message) in _MEASURES_THE_SAME:
            return
        try:
            # Separate from the message: its request may have been passed on, and then gets its ending elsewhere.
            self._footprints.follow(hurry=self._admission.hurried or self._leases.waiting)
        except Exception:
            log.exception("the supervisor failed to say which workers are to be measured")

    def on_stop(self) -> None:
        self._spare.dismiss()
        error = shutting_down()
        self._admission.cleanups.close(error)
        self.close_mailbox(error)

    # ---- the models' lives

    def _tell_model(self, name: str, message: m.Message) -> None:
        if record := self._records.get(name):
            if isinstance(message, m.Load | m.RefuseLoad):
                record.load_asked = False
            if isinstance(message, m.MakeWay):
                record.makes_way = message.on
            if isinstance(message, m.Load):
                record.granted(message.need)
                need = record.need = self._bounded(message.need)
                message = m.Load(need, self._spare.for_load(record.model, need))
            if not m.tell(record.ref, message) and isinstance(message, m.Load) and message.spare:
                message.spare.kill()

    def _bounded(self, need: Need) -> Need:
        """``need`` with the most that its KV caches may ever take on this machine."""
        sample, line = self._memory_view.sample, lease_percent(self._memory_view.settings.thresholds)
        return bounded(need, sample, line) if sample and need.leased else need

    def _give_way(self, model: str) -> bool:
        return self._leases.give_way(model)  # which is made after admission, out of what that owns

    def _on_lease_requested(self, message: m.LeaseRequested) -> None:
        self._leases.on_request(message)
        self._admission.step()  # what was handed back may be room for a load

    def _on_state_changed(self, message: m.StateChanged) -> None:
        record = self._records.get(message.status.name)
        if record is None:
            return
        before, record.published = record.published, message.status
        record.load_asked = record.load_asked and record.status.state == State.LOADING
        if record.status.state == State.LOADING != before.state:
            self._spare.foresee(record.model)
        if record.status.state == State.STOPPING and before.pid is not None:
            self._admission.pending_unloads.begin(record.seat(), "")
        if record.status.pid is None:
            record.footprint_bytes = record.device_bytes = record.base_bytes = 0
            if record.hung:
                record.hung = False
                self._admission.pending_unloads.exited(record.status.name, "it hung")
            if record.status.state != State.LOADING:
                # A model that loads without a worker may have published this before the grant reached it.
                record.need = None
        self._routing.on_status(record)
        if before.state == State.DRAINING and record.status.state not in LEAVING:
            self._routing.on_return(record)
        self._admission.step()
        self._leases.step()

    def _on_keep_alive(self, message: m.KeepAlive) -> None:
        self._tell_model(message.model, message)

    def _on_load_requested(self, message: m.LoadRequested) -> None:
        if record := self._records.get(message.model):
            record.load_asked, record.ways = True, message.needs
        self._admission.on_load_requested(message.model, message.needs)

    def _on_worker_hangs(self, message: m.WorkerHangs) -> None:
        """The memory of the hung worker has to be back before the model is loaded again."""
        if record := self._records.get(message.model):
            record.hung = True
            self._admission.pending_unloads.begin(record.seat(), "it hung")

    def _on_child_stopped(self, message: m.ChildStopped) -> None:
        record = self._records.end(message.model)
        if record is None:
            return
        self._admission.on_gone(message.model, message.reason)
        self._routing.on_end(message.model, record)
        if message.reason == FASTER_FORM:
            self._faster_forms.load_again(message.model, record)
        self._admission.step()
        self._leases.step()
        self._load_pinned()
        self._finish_stop()

    # ---- pinned models live whenever memory allows it

    def _on_pin_model(self, message: m.PinModel) -> None:
        try:
            self._records.catalog.find(message.model)
        except PlimsollError as error:
            message.reply.send(Failed(error))
            return
        self._records.pins.say(message.model, pinned=message.pinned)
        self._tell_model(message.model, m.Pin(message.pinned))
        self._load_pinned()
        record = self._records.get(message.model)
        status = record.status if record else ModelStatus(message.model, State.COLD)
        message.reply.send(msgspec.structs.replace(status, pinned=message.pinned))

    def _load_pinned(self) -> None:
        if self._records.closed or self._memory_view.is_high or self._memory_view.is_critical:
            return
        self._pinned_at = self._clock()
        for name in self._records.pinned():
            if (record := self._records.get_or_start(name)).status.state == State.COLD:
                m.tell(record.ref, m.Warm())

    # ---- memory

    def cleanup_unused_models(self, aggressive: bool = False, reply: Reply | None = None) -> None:
        """Unload models that no request uses; the report goes to ``reply``.

        Normal: idle, unpinned models, least recently used first, until only the most recently used one is left.
        Aggressive: ALL models, busy ones after ``critical_grace``.
        """
        self._admission.cleanups.start(aggressive=aggressive, reason="asked for", reply=reply)
        self._admission.step()

    def _on_clean_up_models(self, message: m.CleanUpModels) -> None:
        self.cleanup_unused_models(message.aggressive, message.reply)

    def _on_check_watchdog(self, _: CheckWatchdog) -> None:
        """Replace a Watchdog that has died or sends nothing; without its samples no load is granted."""
        self._supervision.check_later(self.actor_ref)
        if self._supervision.check(self._memory_view.level):
            m.tell(self._supervision.watchdog, m.Subscribe(self.actor_ref, every_sample=True))
            for record in self._records:
                m.tell(self._supervision.watchdog, m.Subscribe(record.ref))
            m.tell(self._supervision.watchdog, self._footprints.tracked)
        self._admission.on_silence(self._supervision.silent_s)

    def _on_sampled(self, message: m.Sampled) -> None:
        self._supervision.heard()
        self._report.sampler_lag_s = message.sampler_lag_s
        if message.sample is not None:
            self._footprints.note(message.sample)
            self._journal.sample(message.sample, message.level)
        if message.confirmed >= Level.WARNING:
            self._spare.dismiss()
        else:
            self._order_spare()
        was_high = self._memory_view.is_high
        self._routing.end_overdue()
        self._admission.on_sample(message.sample, message.level, message.seconds_to_critical, message.confirmed)
        self._leases.step()
        self._faster_forms.step(at_rest=self._admission.at_rest and not self._leases.waiting)
        self._footprints.count_tokens()
        has_room = was_high and not self._memory_view.is_high
        if has_room or (message.sample is not None and self._clock() - self._pinned_at > _PIN_AGAIN_S):
            self._load_pinned()

    def _on_level(self, message: m.MemoryEvent) -> None:
        level = message.level
        if level > Level.NORMAL and not message.falls:
            self._spare.dismiss()
        self._admission.on_level(level, message.sample, falls=message.falls)
        if level == Level.NORMAL:
            self._load_pinned()

    def _on_out_of_memory(self, message: m.RanOutOfMemory) -> None:
        percent = self._memory_view.sample.used_percent if self._memory_view.sample else 0.0
        self._journal.record(events.OutOfMemory(message.model, message.error.message, percent))
        self._admission.cleanups.start_for_death(message.model)
        self._admission.step()

    def _on_plan_load(self, message: m.PlanLoad) -> None:
        sample = self._memory_view.sample
        if sample is None:
            message.reply.send(Failed(Unavailable("memory has not been read yet; try again in a second")))
            return
        others = [seat for seat in self._records.seats() if seat.name != message.model]
        held = self._held_bytes(message.model)
        record = self._records.get(message.model)
        if record:
            sample = without(sample, record.footprint_bytes)  # the plan is for loading it anew
        decision = foresee(message.needs, others, sample, self._memory_view.settings.thresholds.critical, held)
        if record and record.need and record.status.state in SERVING:
            decision = msgspec.structs.replace(decision, granted=record.need)
        elif decision.granted:
            decision = msgspec.structs.replace(decision, granted=self._bounded(decision.granted))
        message.reply.send(decision)

    # ---- the spare worker

    def _order_spare(self) -> None:
        """After an answer, and while nothing runs, start the spare worker that the next load will use.

        Not before: its imports would take a core from the first answers.
        """
        if self._records.closed or self._memory_view.level != Level.NORMAL:
            return
        if any(record.status.state in _AT_WORK for record in self._records):
            return
        ready = [record.status for record in self._records if self._spare.serves(record.model)]
        answered_at = max((status.last_used for status in ready if status.state == State.READY), default=0.0)
        if answered_at > self._spare_ordered_after:
            self._spare_ordered_after = answered_at
            self._spare.order(self.actor_ref)

    def _held_bytes(self, model: str) -> int:
        """What a load of this model holds before it begins: the footprint of the spare worker if it uses that."""
        record = self._records.get(model)
        found = record.model if record else known(self._records.catalog, model)
        return self._spare.footprint_bytes if found and self._spare.serves(found) else 0

    def _on_spare_exited(self, message: m.SpareExited) -> None:
        self._spare.exited(message.number)
        self._finish_stop()

    # ---- status, configuration, stop

    def _on_get_status(self, message: m.GetStatus) -> None:
        if message.clean_up:
            self._admission.on_health_asked()
        message.reply.send(self._report.status())

    def _on_reconfigure(self, message: m.Reconfigure) -> None:
        """Requests that come after this message meet the new configuration, running answers end by the old one.

        What still runs after the drain goes on in a new worker if the model's files are the same.
        """
        self._memory_view.settings = message.settings
        self._supervision.follow(message.settings)
        for name, change in self._records.follow(message.catalog, message.settings, message.drain_s):
            self._tell_model(name, change)
        self._load_pinned()
        message.reply.send(None)

    def _on_stop_all(self, message: m.StopAll) -> None:
        self._records.closed = True
        self._stop_reply = message.reply
        self._admission.cancel_loads()
        self._spare.dismiss()
        error = shutting_down()
        self._routing.close(error)
        for record in self._records:
            m.tell(record.ref, m.Unload("the server stops", message.grace_s, error=error))
        self._finish_stop()

    def _finish_stop(self) -> None:
        if self._records.closed and not self._records and self._spare.gone and self._stop_reply:
            self._stop_reply.send(None)
            self._stop_reply = None
