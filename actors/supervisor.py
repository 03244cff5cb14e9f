"""The Supervisor: the single owner of which models live, and the one that every request passes on its way in.

Requests go through its mailbox to the ModelActor's: both are FIFO, so no request can reach an actor after the
Supervisor has given that actor up, and none falls between two lives of a model.
"""

import logging
from collections.abc import Callable
from typing import Any

import msgspec
import pykka

from plimsoll.actors import messages as m
from plimsoll.actors.admission import Admission
from plimsoll.actors.dead_letters import answer_dead_letters
from plimsoll.actors.keeper import Keeper, LookAfterWatchdog
from plimsoll.actors.measuring import Measuring, OnSettled
from plimsoll.actors.messages import State
from plimsoll.actors.outlook import Outlook
from plimsoll.actors.pins import known
from plimsoll.actors.reception import Reception
from plimsoll.actors.slot import Slot
from plimsoll.actors.slots import Slots, StartModel, shutting_down
from plimsoll.actors.spare import Spare
from plimsoll.actors.status_report import StatusReport
from plimsoll.catalog import Catalog
from plimsoll.errors import InternalError, PlimsollError, Unavailable
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.plan import choose
from plimsoll.memory.sample import Level, Sample

log = logging.getLogger("plimsoll.memory")

# Room for a pinned model whose load was refused may come without any event that would say so.
_PIN_AGAIN_S = 30.0

_AT_WORK = frozenset({State.LOADING, State.BUSY})


class Supervisor(pykka.ThreadingActor):
    """Starts and ends ModelActors, grants loads, carries out clean-ups, knows everything for ``/health``."""

    use_daemon_thread = True

    def __init__(
        self,
        catalog: Catalog,
        thresholds: Thresholds,
        journal: Journal,
        *,
        keeper: Keeper,
        start_model: StartModel,
        on_external: Callable[[Sample], None],
        on_settled: OnSettled,
        spare: Spare,
        clock: Callable[[], float],
        queue: int,
        critical_grace_s: float,
    ) -> None:
        super().__init__()
        self._journal = journal
        self._keeper = keeper
        self._spare = spare
        self._clock = clock
        self._pinned_at = clock()
        self._stop_reply: m.Reply | None = None
        self._slots = Slots(
            self.actor_ref, catalog, keeper, start_model, queue=queue, critical_grace_s=critical_grace_s
        )
        self._reception = Reception(self._slots)
        self._outlook = Outlook(thresholds, journal, clock, self._slots.seats)
        self._admission = Admission(
            self._outlook,
            journal,
            clock,
            critical_grace_s,
            seats=self._slots.seats,
            tell=self._tell_model,
            on_external=on_external,
            held_bytes=self._held_bytes,
        )
        self._measuring = Measuring(self._slots, spare, keeper, journal, on_settled)
        self._report = StatusReport(self._outlook, self._slots, self._measuring.stuck, journal, clock)
        self._handlers: dict[type, Callable[[Any], object]] = {
            m.Chat: self._reception.on_chat,
            m.Handback: lambda message: self._reception.on_chat(message.chat),
            m.Cancel: self._reception.on_cancel,
            m.LoadModel: self._reception.on_load,
            m.UnloadModel: self._reception.on_unload,
            m.KeepAlive: lambda message: self._tell_model(message.model, message),
            m.PinModel: self._on_pin_model,
            m.StateChanged: self._on_state_changed,
            m.WorkerHangs: self._on_worker_hangs,
            m.WorkerStuck: self._measuring.on_stuck,
            m.ChildStopped: self._on_child_stopped,
            m.SpareExited: self._on_spare_exited,
            m.LoadRequested: lambda message: self._admission.on_load_requested(message.model, message.needs),
            m.Stays: lambda message: self._admission.on_stays(message.model),
            m.CleanUpModels: lambda message: self.cleanup_unused_models(message.aggressive, message.reply),
            m.RanOutOfMemory: self._on_out_of_memory,
            m.PlanLoad: self._on_plan_load,
            LookAfterWatchdog: self._on_look,
            m.Sampled: self._on_sampled,
            m.Counted: self._measuring.on_counted,
            m.MemoryNormal: self._on_memory_normal,
            m.MemoryWarning: lambda message: self._on_raised(Level.WARNING, message.sample),
            m.MemoryCritical: lambda message: self._on_raised(Level.CRITICAL, message.sample),
            m.MemoryEmergency: lambda message: self._on_raised(Level.EMERGENCY, message.sample),
            m.GetStatus: self._on_get_status,
            m.Reconfigure: self._on_reconfigure,
            m.StopAll: self._on_stop_all,
        }

    def on_start(self) -> None:
        self._keeper.look_later(self.actor_ref)
        m.tell(self._keeper.watchdog, m.Subscribe(self.actor_ref, every_sample=True))
        self._load_pinned()

    def on_receive(self, message: Any) -> None:
        try:
            self._handlers[type(message)](message)
            self._measuring.follow(hurry=self._admission.hurried)
        except Exception:
            # The root of the tree has nobody to restart it: one bad message must not end the server.
            log.exception("the supervisor failed on %s", type(message).__name__)
            if (reply := getattr(message, "reply", None)) is not None:
                reply.send(m.Failed(InternalError("the server failed on this request; the log says why")))

    def on_stop(self) -> None:
        self._spare.dismiss()
        error = shutting_down()
        self._admission.cleanups.close(error)
        answer_dead_letters(self, error)

    # ---- the models' lives

    def _tell_model(self, name: str, message: m.Message) -> None:
        if slot := self._slots.get(name):
            if isinstance(message, m.Load):
                slot.need = message.need
                message = m.Load(message.need, self._spare.for_load(slot.model, message.need))
            if not m.tell(slot.ref, message) and isinstance(message, m.Load) and message.spare:
                message.spare.kill()

    def _on_state_changed(self, message: m.StateChanged) -> None:
        slot = self._slots.get(message.status.name)
        if slot is None:
            return
        before, slot.status = slot.status, message.status
        self._order_spare(slot)
        if slot.status.state == State.LOADING != before.state:
            self._spare.foresee(slot.model)
        if slot.status.state == State.STOPPING and before.pid is not None:
            self._admission.departures.begin(slot.seat(), "")
        if slot.status.pid is None:
            slot.footprint_bytes = slot.base_bytes = 0
            if slot.hung:
                slot.hung = False
                self._admission.departures.exited(slot.status.name, "it hung")
            if slot.status.state != State.LOADING:
                # While it loads without a worker, this may be older than the grant that is on its way to it.
                slot.need = None
        self._reception.on_status(slot)
        self._admission.step()

    def _on_worker_hangs(self, message: m.WorkerHangs) -> None:
        """Its memory has to be back before anything is loaded in its place."""
        if slot := self._slots.get(message.model):
            slot.hung = True
            self._admission.departures.begin(slot.seat(), "it hung")

    def _on_child_stopped(self, message: m.ChildStopped) -> None:
        slot = self._slots.end(message.model, message.actor_urn)
        if slot is None:
            return
        self._admission.on_gone(message.model, message.reason)
        self._reception.on_end(message.model, slot)
        self._admission.step()
        self._load_pinned()
        self._finish_stop()

    # ---- pinned models live whenever memory allows it

    def _on_pin_model(self, message: m.PinModel) -> None:
        try:
            self._slots.catalog.find(message.model)
        except PlimsollError as error:
            message.reply.send(m.Failed(error))
            return
        self._slots.pins.say(message.model, pinned=message.pinned)
        self._tell_model(message.model, m.Pin(message.pinned))
        self._load_pinned()
        slot = self._slots.get(message.model)
        status = slot.status if slot else m.ModelStatus(message.model, State.COLD)
        message.reply.send(msgspec.structs.replace(status, pinned=message.pinned))

    def _load_pinned(self) -> None:
        if self._slots.closed or self._outlook.level != Level.NORMAL:
            return
        self._pinned_at = self._clock()
        for name in self._slots.pinned():
            if (slot := self._slots.open(name)).status.state == State.COLD:
                m.tell(slot.ref, m.Warm())

    # ---- memory

    def cleanup_unused_models(self, aggressive: bool = False, reply: m.Reply | None = None) -> None:
        """Unload what nobody uses; the report goes to ``reply``.

        Normal: idle, unpinned models, least recently used first, until only the most recently used one is left.
        Aggressive: ALL models, busy ones after ``critical_grace``.
        """
        self._admission.cleanups.start(aggressive=aggressive, reason="asked for", reply=reply)
        self._admission.step()

    def _on_look(self, _: LookAfterWatchdog) -> None:
        """A Watchdog that has died or says nothing is replaced; without one no load is granted."""
        self._keeper.look_later(self.actor_ref)
        if self._keeper.look(self._outlook.level):
            m.tell(self._keeper.watchdog, m.Subscribe(self.actor_ref, every_sample=True))
            for slot in self._slots:
                m.tell(self._keeper.watchdog, m.Subscribe(slot.ref))
            m.tell(self._keeper.watchdog, self._measuring.tracked)
        self._admission.on_silence(self._keeper.silent_s)

    def _on_sampled(self, message: m.Sampled) -> None:
        self._keeper.heard()
        self._report.sampler_lag_s = message.sampler_lag_s
        if message.sample is not None:
            self._measuring.note(message.sample)
            self._journal.sample(message.sample, message.level)
        self._admission.on_sample(message.sample, message.level, message.seconds_to_critical)
        self._measuring.count_tokens()
        if message.sample is not None and self._clock() - self._pinned_at > _PIN_AGAIN_S:
            self._load_pinned()

    def _on_memory_normal(self, message: m.MemoryNormal) -> None:
        self._admission.on_level(Level.NORMAL, message.sample)
        self._load_pinned()

    def _on_raised(self, level: Level, sample: Sample) -> None:
        self._spare.dismiss()
        self._admission.on_level(level, sample)

    def _on_out_of_memory(self, message: m.RanOutOfMemory) -> None:
        percent = self._outlook.sample.used_percent if self._outlook.sample else 0.0
        self._journal.record(events.OutOfMemory(message.model, message.error.message, percent))
        self._admission.cleanups.start(aggressive=True, reason=f"MemoryError of {message.model}")
        self._admission.step()

    def _on_plan_load(self, message: m.PlanLoad) -> None:
        sample = self._outlook.sample
        if sample is None:
            message.reply.send(m.Failed(Unavailable("memory has not been read yet; try again in a second")))
            return
        others = [seat for seat in self._slots.seats() if seat.name != message.model]
        held = self._held_bytes(message.model)
        message.reply.send(choose(message.needs, others, sample, self._outlook.thresholds.critical, held))

    # ---- the spare worker

    def _order_spare(self, slot: Slot) -> None:
        """Once a model has answered, the next one's worker is made ready, unless memory is wanted for better.

        Not before: its imports would take a core from the first answers.
        """
        if slot.status.state != State.READY or any(other.status.state in _AT_WORK for other in self._slots):
            return
        if not self._slots.closed and self._outlook.level == Level.NORMAL and self._spare.serves(slot.model):
            self._spare.order(self.actor_ref)

    def _held_bytes(self, model: str) -> int:
        """What a load of this model holds before it has begun; asked for a plan also of one that does not live."""
        slot = self._slots.get(model)
        found = slot.model if slot else known(self._slots.catalog, model)
        return self._spare.footprint_bytes if found and self._spare.serves(found) else 0

    def _on_spare_exited(self, message: m.SpareExited) -> None:
        self._spare.exited(message.pid)
        self._finish_stop()

    # ---- the whole

    def _on_get_status(self, message: m.GetStatus) -> None:
        if message.clean_up:
            self._admission.on_health_asked()
        message.reply.send(self._report.status())

    def _on_reconfigure(self, message: m.Reconfigure) -> None:
        """Requests that come after this message meet the new configuration, running answers end by the old one."""
        self._outlook.thresholds = message.thresholds
        self._admission.cleanups.grace_s = message.critical_grace_s
        self._keeper.mark(m.Marks(message.thresholds, message.limit_bytes))
        leave = m.Unload("the configuration changed", message.drain_s, hand_back=True)
        for name, rules in self._slots.follow(message.catalog, message.queue, message.critical_grace_s):
            self._tell_model(name, rules or leave)
        self._load_pinned()
        message.reply.send(None)

    def _on_stop_all(self, message: m.StopAll) -> None:
        self._slots.closed = True
        self._stop_reply = message.reply
        self._admission.cancel_loads()
        self._spare.dismiss()
        error = shutting_down()
        self._reception.close(error)
        for slot in self._slots:
            m.tell(slot.ref, m.Unload("the server stops", message.grace_s, error=error))
        self._finish_stop()

    def _finish_stop(self) -> None:
        if self._slots.closed and not self._slots and self._spare.gone and self._stop_reply:
            self._stop_reply.send(None)
            self._stop_reply = None
