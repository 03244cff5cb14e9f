"""The Supervisor: the single owner of which models live, and the one that every request passes on its way in.

Requests go through its mailbox to the ModelActor's: both are FIFO, so no request can reach an actor after the
Supervisor has given that actor up, and none falls between two lives of a model.
"""

import logging
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import pykka

from plimsoll.actors import messages as m
from plimsoll.actors.admission import Admission
from plimsoll.actors.dead_letters import answer_dead_letters
from plimsoll.actors.keeper import SILENT_S, Keeper, LookAfterWatchdog
from plimsoll.actors.messages import LOADED, SERVING, State
from plimsoll.actors.outlook import Outlook
from plimsoll.actors.slot import Slot
from plimsoll.actors.spare import Spare
from plimsoll.actors.stuck import StuckWorkers
from plimsoll.catalog import Catalog, CatalogModel
from plimsoll.engine.protocol import Usage
from plimsoll.errors import InternalError, LoadFailed, PlimsollError, QueueFull, ShuttingDown, Unavailable, UnknownModel
from plimsoll.journal import events
from plimsoll.journal.journal import Journal
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.plan import Seat, choose
from plimsoll.memory.sample import Level, Sample, Tracked

log = logging.getLogger("plimsoll.memory")

# Room for a pinned model whose load was refused may come without any event that would say so.
_PIN_AGAIN_S = 30.0

StartModel = Callable[[CatalogModel, m.Rules, m.Ref], m.Ref]
"""Starts the ModelActor of a model by these rules; called with the Supervisor too."""


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
        on_settled: Callable[[CatalogModel, bool, int], None],
        spare: Spare,
        clock: Callable[[], float],
        queue: int,
        critical_grace_s: float,
    ) -> None:
        super().__init__()
        self._catalog = catalog
        self._journal = journal
        self._keeper = keeper
        self._start_model = start_model
        self._on_settled = on_settled
        self._spare = spare
        self._clock = clock
        self._queue = queue
        self._critical_grace_s = critical_grace_s
        self._slots: dict[str, Slot] = {}
        self._stop_reply: m.Reply | None = None
        self._stopping = False
        self._sampler_lag_s = 0.0
        self._tracked = m.Track((), hurry=False)
        self._stuck = StuckWorkers(journal)
        self._pinned_at = clock()
        self._pins: dict[str, bool] = {}
        self._outlook = Outlook(thresholds, journal, clock, self._seats)
        self._admission = Admission(
            self._outlook,
            journal,
            clock,
            critical_grace_s,
            seats=self._seats,
            tell=self._tell_model,
            on_external=on_external,
            held_bytes=self._held_bytes,
        )
        self._handlers: dict[type, Callable[[Any], object]] = {
            m.Chat: self._on_chat,
            m.Cancel: self._on_cancel,
            m.StateChanged: self._on_state_changed,
            m.Sampled: self._on_sampled,
            LookAfterWatchdog: self._on_look,
            m.LoadRequested: lambda message: self._admission.on_load_requested(message.model, message.needs),
            m.Stays: lambda message: self._admission.on_stays(message.model),
            m.RanOutOfMemory: self._on_out_of_memory,
            m.WorkerHangs: self._on_worker_hangs,
            m.WorkerStuck: self._on_worker_stuck,
            m.ChildStopped: self._on_child_stopped,
            m.SpareExited: self._on_spare_exited,
            m.Handback: lambda message: self._on_chat(message.chat),
            m.KeepAlive: lambda message: self._tell_model(message.model, message),
            m.GetStatus: self._on_get_status,
            m.Counted: self._on_counted,
            m.LoadModel: self._on_load_model,
            m.UnloadModel: self._on_unload_model,
            m.PinModel: self._on_pin_model,
            m.CleanUpModels: lambda message: self.cleanup_unused_models(message.aggressive, message.reply),
            m.PlanLoad: self._on_plan_load,
            m.Reconfigure: self._on_reconfigure,
            m.StopAll: self._on_stop_all,
            m.MemoryNormal: self._on_memory_normal,
            m.MemoryWarning: lambda message: self._on_raised(Level.WARNING, message.sample),
            m.MemoryCritical: lambda message: self._on_raised(Level.CRITICAL, message.sample),
            m.MemoryEmergency: lambda message: self._on_raised(Level.EMERGENCY, message.sample),
        }

    def on_start(self) -> None:
        self._keeper.look_later(self.actor_ref)
        m.tell(self._keeper.watchdog, m.Subscribe(self.actor_ref, every_sample=True))
        self._load_pinned()

    def on_receive(self, message: Any) -> None:
        try:
            self._handlers[type(message)](message)
            self._track()
        except Exception:
            # The root of the tree has nobody to restart it: one bad message must not end the server.
            log.exception("the supervisor failed on %s", type(message).__name__)
            if (reply := getattr(message, "reply", None)) is not None:
                reply.send(m.Failed(InternalError("the server failed on this request; the log says why")))

    def on_stop(self) -> None:
        self._spare.dismiss()
        error = ShuttingDown("the server is stopping", retry_after_s=5.0)
        self._admission.cleanups.close(error)
        answer_dead_letters(self, error)

    # ---- requests

    def _on_chat(self, chat: m.Chat) -> None:
        try:
            slot = self._slot(chat.model)
        except PlimsollError as error:
            chat.reply.send(m.Failed(error))
            return
        if not slot.leaving:
            if not m.tell(slot.ref, chat):
                chat.reply.send(m.Failed(InternalError(f"the actor of {chat.model} has just failed; try again")))
        elif len(slot.waiting) < self._queue:
            slot.waiting.append(chat)
            chat.reply.send(m.Waiting("queue"))
        else:
            text = f"{len(slot.waiting)} requests wait for {chat.model} to come back; try again shortly"
            chat.reply.send(m.Failed(QueueFull(text, retry_after_s=1.0)))

    def _on_cancel(self, message: m.Cancel) -> None:
        slot = self._slots.get(message.model)
        if slot is None:
            return
        for chat in slot.waiting:
            if chat.id == message.id:
                slot.waiting.remove(chat)
                chat.reply.send(m.Finished("cancelled", Usage()))
                return
        m.tell(slot.ref, message)

    def _on_load_model(self, message: m.LoadModel) -> None:
        try:
            slot = self._slot(message.model)
        except PlimsollError as error:
            message.reply.send(m.Failed(error))
            return
        if slot.status.state in SERVING:
            message.reply.send(slot.status)
            return
        slot.loads.append(message.reply)
        if not slot.leaving:
            m.tell(slot.ref, m.Warm())

    def _on_unload_model(self, message: m.UnloadModel) -> None:
        slot = self._slots.get(message.model)
        if slot is None:
            try:
                self._catalog.find(message.model)
            except PlimsollError as error:
                message.reply.send(m.Failed(error))
            else:
                message.reply.send(m.ModelStatus(message.model, State.COLD))
            return
        slot.unloads.append(message.reply)
        m.tell(slot.ref, m.Unload("asked for", message.grace_s))

    def _on_pin_model(self, message: m.PinModel) -> None:
        try:
            self._catalog.find(message.model)
        except PlimsollError as error:
            message.reply.send(m.Failed(error))
            return
        self._pins[message.model] = message.pinned
        self._tell_model(message.model, m.Pin(message.pinned))
        self._load_pinned()
        slot = self._slots.get(message.model)
        status = slot.status if slot else m.ModelStatus(message.model, State.COLD)
        message.reply.send(msgspec.structs.replace(status, pinned=message.pinned))

    def _slot(self, name: str) -> Slot:
        """The living actor of ``name``, started if there is none. Raises ``UnknownModel``, ``ShuttingDown``."""
        if self._stopping:
            raise ShuttingDown("the server is stopping", retry_after_s=5.0)
        slot = self._slots.get(name)
        if slot is None:
            model = self._catalog.find(name)
            ref = self._start_model(model, self._rules(model), self.actor_ref)
            slot = self._slots[name] = Slot(ref, name, model)
            m.tell(self._keeper.watchdog, m.Subscribe(slot.ref))
            if name in self._pins:
                m.tell(slot.ref, m.Pin(self._pins[name]))
        return slot

    def _tell_model(self, name: str, message: m.Message) -> None:
        if slot := self._slots.get(name):
            if isinstance(message, m.Load):
                slot.need = message.need
                message = self._with_spare(name, message)
            if not m.tell(slot.ref, message) and isinstance(message, m.Load) and message.spare:
                message.spare.kill()

    # ---- the models' lives

    def _on_state_changed(self, message: m.StateChanged) -> None:
        slot = self._slots.get(message.status.name)
        if slot is None:
            return
        before, slot.status = slot.status, message.status
        if before.state == State.LOADING and slot.status.state in SERVING:
            self._order_spare(slot.status.name)
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
        if slot.loads:
            self._answer_loads(slot, slot.status)
        self._admission.step()

    def _on_worker_hangs(self, message: m.WorkerHangs) -> None:
        """Its memory has to be back before anything is loaded in its place."""
        if slot := self._slots.get(message.model):
            slot.hung = True
            self._admission.departures.begin(slot.seat(), "it hung")

    def _on_worker_stuck(self, message: m.WorkerStuck) -> None:
        slot = self._slots.get(message.model)
        self._stuck.add(message.model, message.pid, slot.footprint_bytes if slot else 0)

    def _answer_loads(self, slot: Slot, status: m.ModelStatus) -> None:
        answer: m.Message | None = None
        if status.state in SERVING:
            answer = status
        elif status.error and status.state in (State.COLD, State.FAILED):
            answer = m.Failed(LoadFailed(status.error, retry_after_s=5.0))
        elif status.state == State.LOADING:
            for reply in slot.loads:
                reply.send(m.Waiting(status.stage or "queue", status.done_bytes, status.total_bytes))
        if answer is not None:
            for reply in slot.loads:
                reply.send(answer)
            slot.loads.clear()

    def _on_child_stopped(self, message: m.ChildStopped) -> None:
        slot = self._slots.get(message.model)
        if slot is None or slot.ref.actor_urn != message.actor_urn:
            return
        del self._slots[message.model]
        slot.ref.stop(block=False)
        self._admission.on_gone(message.model, message.reason)
        gone = m.ModelStatus(message.model, State.STOPPED)
        for reply in slot.unloads:
            reply.send(gone)
        for chat in slot.waiting:
            self._on_chat(chat)
        for reply in slot.loads:
            self._on_load_model(m.LoadModel(message.model, reply))
        self._admission.step()
        self._load_pinned()
        self._finish_stop()

    def _load_pinned(self) -> None:
        """Pinned models live whenever memory allows it."""
        if self._stopping or self._outlook.level != Level.NORMAL:
            return
        self._pinned_at = self._clock()
        for name in self._pinned():
            if (slot := self._slot(name)).status.state == State.COLD:
                m.tell(slot.ref, m.Warm())

    def _pinned(self) -> list[str]:
        by_entry = dict.fromkeys(self._catalog.pinned(), True)
        return [name for name, pinned in (by_entry | self._pins).items() if pinned]

    # ---- memory

    def _seats(self) -> list[Seat]:
        return [slot.seat() for slot in self._slots.values()]

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
            for slot in self._slots.values():
                m.tell(self._keeper.watchdog, m.Subscribe(slot.ref))
            m.tell(self._keeper.watchdog, self._tracked)
        self._admission.on_silence(self._keeper.silent_s)

    def _on_sampled(self, message: m.Sampled) -> None:
        self._keeper.heard()
        self._sampler_lag_s = message.sampler_lag_s
        if message.sample is not None:
            for slot in self._slots.values():
                self._measure(slot, message.sample)
            self._spare.footprint_bytes = message.sample.footprints.get(self._spare.pid or 0, 0)
            self._stuck.on_sample(message.sample)
            self._journal.sample(message.sample, message.level)
        self._admission.on_sample(message.sample, message.level, message.seconds_to_critical)
        self._count_tokens()
        if message.sample is not None and self._clock() - self._pinned_at > _PIN_AGAIN_S:
            self._load_pinned()

    def _count_tokens(self) -> None:
        """At every sample, so once or a few times a second: nothing is counted per token."""
        for slot in self._slots.values():
            if slot.status.state in (State.BUSY, State.DRAINING) or slot.throughput.per_second:
                m.tell(slot.ref, m.CountTokens())

    def _on_counted(self, message: m.Counted) -> None:
        slot = self._slots.get(message.model)
        if slot is not None and slot.ref.actor_urn == message.actor_urn:
            slot.throughput.note(message.tokens, message.at)

    def _measure(self, slot: Slot, sample: Sample) -> None:
        status = slot.status
        if status.pid is None or (held := sample.footprints.get(status.pid)) is None:
            return
        slot.footprint_bytes = held
        # The first look at the whole model: later ones hold what conversations happened to leave in its caches.
        if status.state in LOADED and slot.need and not slot.base_bytes and status.info:
            slot.base_bytes = held
            self._on_settled(slot.model, slot.need.dequantize, held)
            info = status.info
            self._journal.record(events.ModelLoaded(status.name, info.load_s, info.weights_bytes, held, info.device))

    def _on_memory_normal(self, message: m.MemoryNormal) -> None:
        self._admission.on_level(Level.NORMAL, message.sample)
        self._load_pinned()

    def _on_out_of_memory(self, message: m.RanOutOfMemory) -> None:
        percent = self._outlook.sample.used_percent if self._outlook.sample else 0.0
        self._journal.record(events.OutOfMemory(message.model, message.error.message, percent))
        self._admission.cleanups.start(aggressive=True, reason=f"MemoryError of {message.model}")
        self._admission.step()

    def _on_plan_load(self, message: m.PlanLoad) -> None:
        if self._outlook.sample is None:
            message.reply.send(m.Failed(Unavailable("memory has not been read yet; try again in a second")))
            return
        others = [slot.seat() for name, slot in self._slots.items() if name != message.model]
        held = self._held_bytes(message.model)
        message.reply.send(choose(message.needs, others, self._outlook.sample, self._outlook.thresholds.critical, held))

    def _track(self) -> None:
        """Have the Watchdog measure the workers there are, fast while something is waited for."""
        statuses = [slot.status for slot in self._slots.values() if slot.status.pid is not None]
        workers = tuple(
            Tracked(status.pid, status.mlx_bytes, status.info.working_set_bytes if status.info else 0)
            for status in statuses
            if status.pid is not None
        )
        if self._spare.pid:
            workers += (Tracked(self._spare.pid),)
        workers += self._stuck.tracked(workers)
        loading = any(status.state == State.LOADING for status in statuses)
        track = m.Track(workers, hurry=loading or self._admission.hurried)
        if track != self._tracked:
            self._tracked = track
            m.tell(self._keeper.watchdog, track)

    # ---- the spare worker

    def _order_spare(self, model: str) -> None:
        """A model has been loaded: the next one's worker is made ready, unless memory is wanted for better."""
        if not self._stopping and self._outlook.level == Level.NORMAL and self._spare_serves(model):
            self._spare.order(self.actor_ref)

    def _with_spare(self, model: str, load: m.Load) -> m.Load:
        if not load.need.weights_bytes or not self._spare_serves(model):
            return load
        return m.Load(load.need, self._spare.take())

    def _spare_serves(self, model: str) -> bool:
        slot = self._slots.get(model)
        return slot is not None and self._spare.serves(slot.model)

    def _held_bytes(self, model: str) -> int:
        """What a load of this model holds before it has begun."""
        return self._spare.footprint_bytes if self._spare_serves(model) else 0

    def _on_spare_exited(self, message: m.SpareExited) -> None:
        self._spare.exited(message.pid)
        self._finish_stop()

    def _on_raised(self, level: Level, sample: Sample) -> None:
        self._spare.dismiss()
        self._admission.on_level(level, sample)

    # ---- the whole

    def _on_reconfigure(self, message: m.Reconfigure) -> None:
        """Requests that come after this message meet the new configuration, running answers end by the old one."""
        self._forget_pins(message.catalog)
        self._catalog = message.catalog
        self._queue, self._critical_grace_s = message.queue, message.critical_grace_s
        self._outlook.thresholds = message.thresholds
        self._admission.cleanups.grace_s = message.critical_grace_s
        self._keeper.mark(m.Marks(message.thresholds, message.limit_bytes))
        for name, slot in self._slots.items():
            model = _known(message.catalog, name)
            if model is None or not model.loads_like(slot.model):
                self._tell_model(name, m.Unload("the configuration changed", message.drain_s, hand_back=True))
            else:
                slot.model = model
                self._tell_model(name, self._rules(model))
        self._load_pinned()
        message.reply.send(None)

    def _forget_pins(self, catalog: Catalog) -> None:
        """What was pinned or not at run time goes by the file again where that says another thing now."""
        for name in list(self._pins):
            before, now = _known(self._catalog, name), _known(catalog, name)
            if before is None or now is None or before.pin != now.pin:
                del self._pins[name]

    def _rules(self, model: CatalogModel) -> m.Rules:
        return m.Rules(model.pin, model.idle_ttl_s, self._queue, self._critical_grace_s)

    def _on_stop_all(self, message: m.StopAll) -> None:
        self._stopping = True
        self._stop_reply = message.reply
        self._admission.cancel_loads()
        self._spare.dismiss()
        error = ShuttingDown("the server is stopping", retry_after_s=5.0)
        for slot in self._slots.values():
            while slot.waiting:
                slot.waiting.popleft().reply.send(m.Failed(error))
            m.tell(slot.ref, m.Unload("the server stops", message.grace_s, error=error))
        self._finish_stop()

    def _finish_stop(self) -> None:
        if self._stopping and not self._slots and self._spare.gone and self._stop_reply:
            self._stop_reply.send(None)
            self._stop_reply = None

    def _on_get_status(self, message: m.GetStatus) -> None:
        if message.clean_up:
            self._admission.on_health_asked()
        outlook = self._outlook
        admitted: Literal["open", "closed"] = "open" if outlook.open and not self._stopping else "closed"
        message.reply.send(
            m.Status(
                level=outlook.level,
                sample=outlook.sample,
                models=[slot.status for slot in self._slots.values()],
                admission=admitted,
                stopping=self._stopping,
                problems=self._problems(),
                footprints={name: slot.footprint_bytes for name, slot in self._slots.items()},
                sampler_lag_s=self._sampler_lag_s,
                tokens_per_s={name: rate for name, slot in self._slots.items() if (rate := slot.throughput.per_second)},
                pinned=frozenset(self._pinned()),
                seconds_to_critical=outlook.seconds_to_critical,
            )
        )

    def _problems(self) -> list[str]:
        problems = []
        age_s = self._clock() - self._outlook.sampled_at
        if self._outlook.blind or age_s > SILENT_S:
            problems.append(
                f"memory can't be read: the last reading is {age_s:.0f} s old, no model is loaded meanwhile"
            )
        if self._outlook.sample and self._outlook.sample.failed:
            problems.append(f"memory readers that fail: {', '.join(self._outlook.sample.failed)}")
        if self._journal.problem:
            problems.append(self._journal.problem)
        problems += self._stuck.problems()
        problems += [
            f"{slot.status.name}: {slot.status.error}"
            for slot in self._slots.values()
            if slot.status.state in (State.FAILED, State.BACKOFF)
        ]
        return problems


def _known(catalog: Catalog, name: str) -> CatalogModel | None:
    try:
        return catalog.find(name)
    except UnknownModel:
        return None
