"""The Supervisor: the single owner of which models live, and the one that every request passes on its way in.

Requests go through its mailbox to the ModelActor's: both are FIFO, so no request can reach an actor after the
Supervisor has given that actor up, and none falls between two lives of a model.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import pykka

from plimsoll.actors import messages as m
from plimsoll.actors.messages import State
from plimsoll.catalog import Catalog
from plimsoll.engine.protocol import Usage
from plimsoll.errors import InternalError, LoadFailed, PlimsollError, QueueFull, ShuttingDown, Unavailable
from plimsoll.memory.ledger import Candidate, victims
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.report import out_of_memory
from plimsoll.memory.sample import Level, Sample

log = logging.getLogger("plimsoll.memory")

_LEAVING = frozenset({State.DRAINING, State.STOPPING, State.STOPPED})
_LOADED = frozenset({State.READY, State.BUSY})
_ALIVE = frozenset(State) - _LEAVING
_STALE_SAMPLE_S = 5.0
_BLIND_AFTER = 3


class Slot:
    """What the Supervisor knows of one living ModelActor, and what waits for its end or its load."""

    def __init__(self, ref: m.Ref, status: m.ModelStatus) -> None:
        self.ref = ref
        self.status = status
        self.waiting: deque[m.Chat] = deque()
        self.loads: list[m.Reply] = []
        self.unloads: list[m.Reply] = []

    @property
    def leaving(self) -> bool:
        return self.status.state in _LEAVING


StartModel = Callable[[str, m.Ref], m.Ref]
"""Starts the ModelActor of a known model; called with its name and the Supervisor."""


class Supervisor(pykka.ThreadingActor):
    """Starts and ends ModelActors, admits loads, carries out clean-ups, knows everything for ``/health``."""

    use_daemon_thread = True

    def __init__(
        self,
        catalog: Catalog,
        thresholds: Thresholds,
        *,
        watchdog: m.Ref,
        start_model: StartModel,
        clock: Callable[[], float],
        queue: int,
    ) -> None:
        super().__init__()
        self._catalog = catalog
        self._thresholds = thresholds
        self._watchdog = watchdog
        self._start_model = start_model
        self._clock = clock
        self._queue = queue
        self._slots: dict[str, Slot] = {}
        self._load_requests: deque[str] = deque()
        self._level = Level.NORMAL
        self._sample: Sample | None = None
        self._sampled_at = clock()
        self._missed_samples = 0
        self._stop_reply: m.Reply | None = None
        self._stopping = False
        self._handlers: dict[type, Callable[[Any], object]] = {
            m.Chat: self._on_chat,
            m.Cancel: self._on_cancel,
            m.StateChanged: self._on_state_changed,
            m.Sampled: self._on_sampled,
            m.LoadRequested: self._on_load_requested,
            m.ChildStopped: self._on_child_stopped,
            m.Handback: lambda message: self._on_chat(message.chat),
            m.GetStatus: lambda message: message.reply.send(self._status()),
            m.LoadModel: self._on_load_model,
            m.UnloadModel: self._on_unload_model,
            m.StopAll: self._on_stop_all,
            m.MemoryNormal: self._on_memory,
            m.MemoryWarning: self._on_memory,
            m.MemoryCritical: self._on_memory,
            m.MemoryEmergency: self._on_memory,
        }

    def on_start(self) -> None:
        m.tell(self._watchdog, m.Subscribe(self.actor_ref, every_sample=True))
        self._load_pinned()

    def on_receive(self, message: Any) -> None:
        try:
            self._handlers[type(message)](message)
        except Exception:
            # The root of the tree has nobody to restart it: one bad message must not end the server.
            log.exception("the supervisor failed on %s", type(message).__name__)
            if reply := getattr(message, "reply", None):
                reply.send(m.Failed(InternalError("the server failed on this request; the log says why")))

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
        if slot.status.state in (State.READY, State.BUSY):
            message.reply.send(slot.status)
            return
        slot.loads.append(message.reply)
        if not slot.leaving:
            slot.ref.tell(m.Warm())

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

    def _slot(self, name: str) -> Slot:
        """The living actor of ``name``, started if there is none. Raises ``UnknownModel``, ``ShuttingDown``."""
        if self._stopping:
            raise ShuttingDown("the server is stopping", retry_after_s=5.0)
        slot = self._slots.get(name)
        if slot is None:
            ref = self._start_model(name, self.actor_ref)
            slot = self._slots[name] = Slot(ref, m.ModelStatus(name, State.COLD))
            m.tell(self._watchdog, m.Subscribe(ref))
        return slot

    # ---- the models' lives

    def _on_state_changed(self, message: m.StateChanged) -> None:
        slot = self._slots.get(message.status.name)
        if slot is None:
            return
        slot.status = status = message.status
        if slot.loads:
            self._answer_loads(slot, status)

    def _answer_loads(self, slot: Slot, status: m.ModelStatus) -> None:
        answer: m.Message | None = None
        if status.state in (State.READY, State.BUSY):
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
        gone = m.ModelStatus(message.model, State.STOPPED)
        for reply in slot.unloads:
            reply.send(gone)
        for chat in slot.waiting:
            self._on_chat(chat)
        for reply in slot.loads:
            self._on_load_model(m.LoadModel(message.model, reply))
        self._admit()
        self._load_pinned()
        self._finish_stop()

    def _load_pinned(self) -> None:
        """Pinned models live whenever memory allows it."""
        if self._stopping or self._level != Level.NORMAL:
            return
        for name in self._catalog.names():
            if self._catalog.find(name).pin and (slot := self._slot(name)).status.state == State.COLD:
                m.tell(slot.ref, m.Warm())

    # ---- memory

    def _on_sampled(self, message: m.Sampled) -> None:
        self._level = message.level
        if message.sample is None:
            self._missed_samples += 1
        else:
            self._missed_samples = 0
            self._sample = message.sample
            self._sampled_at = self._clock()
        self._admit()

    def _on_memory(self, message: m.MemoryEvent) -> None:
        self._sample = message.sample
        match message:
            case m.MemoryWarning():
                self.cleanup_unused_models(aggressive=False)
            case m.MemoryNormal():
                self._load_pinned()
        self._admit()

    def cleanup_unused_models(self, *, aggressive: bool = False) -> list[str]:
        """Unload what nobody uses right now; the names of the models that were asked to leave.

        Normal: all idle, unpinned models but the most recently used one. Aggressive: ALL models, busy ones too.
        """
        considered = _ALIVE if aggressive else _LOADED
        statuses = [slot.status for slot in self._slots.values() if slot.status.state in considered]
        names = victims([_candidate(status) for status in statuses], aggressive=aggressive)
        for name in names:
            reason = "emergency clean-up" if aggressive else "clean-up"
            self._slots[name].ref.tell(m.Unload(reason, if_idle=not aggressive))
        return names

    def _on_load_requested(self, message: m.LoadRequested) -> None:
        self._load_requests.append(message.model)
        self._admit()

    def _admit(self) -> None:
        """Grant or refuse what asks to be loaded, oldest first."""
        while self._load_requests:
            name = self._load_requests[0]
            slot = self._slots.get(name)
            if slot is not None and not slot.leaving:
                answer = self._decide(name)
                if answer is None:
                    return
                m.tell(slot.ref, answer)
            self._load_requests.popleft()

    def _decide(self, name: str) -> m.Load | m.RefuseLoad | None:
        """Whether ``name`` may load; None when that is not known yet and will be asked again."""
        if self._missed_samples >= _BLIND_AFTER:
            text = f"{name} is not loaded because memory can't be read; GET /health says more"
            return m.RefuseLoad(Unavailable(text, retry_after_s=5.0))
        if self._sample is None:
            return None
        if self._level >= Level.CRITICAL:
            return m.RefuseLoad(out_of_memory(self._sample, f"{name} is not loaded because memory is critically full"))
        if self._level == Level.WARNING and (self.cleanup_unused_models() or self._someone_leaves()):
            # The seat has to be free before the next one sits down: asked again when the victim has stopped.
            return None
        return m.Load(self._budget_bytes(self._sample))

    def _someone_leaves(self) -> bool:
        return any(slot.leaving for slot in self._slots.values())

    def _budget_bytes(self, sample: Sample) -> int:
        binding = sample.binding
        return max(0, int(binding.total * self._thresholds.critical / 100) - binding.used)

    # ---- the whole

    def _on_stop_all(self, message: m.StopAll) -> None:
        self._stopping = True
        self._stop_reply = message.reply
        self._load_requests.clear()
        error = ShuttingDown("the server is stopping", retry_after_s=5.0)
        for slot in self._slots.values():
            while slot.waiting:
                slot.waiting.popleft().reply.send(m.Failed(error))
            m.tell(slot.ref, m.Unload("the server stops", message.grace_s))
        self._finish_stop()

    def _finish_stop(self) -> None:
        if self._stopping and not self._slots and self._stop_reply:
            self._stop_reply.send(None)
            self._stop_reply = None

    def _status(self) -> m.Status:
        problems = []
        age_s = self._clock() - self._sampled_at
        if self._missed_samples >= _BLIND_AFTER or age_s > _STALE_SAMPLE_S:
            problems.append(
                f"memory can't be read: the last reading is {age_s:.0f} s old, no model is loaded meanwhile"
            )
        problems += [
            f"{slot.status.name}: {slot.status.error}"
            for slot in self._slots.values()
            if slot.status.state in (State.FAILED, State.BACKOFF)
        ]
        open_ = self._level < Level.CRITICAL and not self._stopping
        admission: Literal["open", "closed"] = "open" if open_ else "closed"
        models = [slot.status for slot in self._slots.values()]
        return m.Status(self._level, self._sample, models, admission, self._stopping, problems)


def _candidate(status: m.ModelStatus) -> Candidate:
    idle = status.state == State.READY and not status.queued
    return Candidate(status.name, status.last_used, idle, status.pinned)
