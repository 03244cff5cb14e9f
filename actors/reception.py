"""The way of every request to its model: to the living actor, or into the line for the next one."""

from plimsoll.actors import messages as m
from plimsoll.actors.messages import SERVING, State
from plimsoll.actors.slot import Slot
from plimsoll.actors.slots import Slots
from plimsoll.engine.protocol import Usage
from plimsoll.errors import InternalError, LoadFailed, PlimsollError, QueueFull


class Reception:
    """Owned by the Supervisor, whose mailbox every request passes."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    # ---- what is asked for

    def on_chat(self, chat: m.Chat) -> None:
        try:
            slot = self._slots.open(chat.model)
        except PlimsollError as error:
            chat.reply.send(m.Failed(error))
            return
        if not slot.leaving:
            if not m.tell(slot.ref, chat):
                chat.reply.send(m.Failed(InternalError(f"the actor of {chat.model} has just failed; try again")))
        elif len(slot.waiting) < self._slots.queue:
            slot.waiting.append(chat)
            chat.reply.send(m.Waiting("queue"))
        else:
            text = f"{len(slot.waiting)} requests wait for {chat.model} to come back; try again shortly"
            chat.reply.send(m.Failed(QueueFull(text, retry_after_s=1.0)))

    def on_cancel(self, message: m.Cancel) -> None:
        slot = self._slots.get(message.model)
        if slot is None:
            return
        for chat in slot.waiting:
            if chat.id == message.id:
                slot.waiting.remove(chat)
                chat.reply.send(m.Finished("cancelled", Usage()))
                return
        m.tell(slot.ref, message)

    def on_load(self, message: m.LoadModel) -> None:
        try:
            slot = self._slots.open(message.model)
        except PlimsollError as error:
            message.reply.send(m.Failed(error))
            return
        if slot.status.state in SERVING:
            message.reply.send(slot.status)
            return
        slot.loads.append(message.reply)
        if not slot.leaving:
            m.tell(slot.ref, m.Warm())

    def on_unload(self, message: m.UnloadModel) -> None:
        slot = self._slots.get(message.model)
        if slot is None:
            try:
                self._slots.catalog.find(message.model)
            except PlimsollError as error:
                message.reply.send(m.Failed(error))
            else:
                message.reply.send(m.ModelStatus(message.model, State.COLD))
            return
        slot.unloads.append(message.reply)
        m.tell(slot.ref, m.Unload("asked for", message.grace_s))

    # ---- what becomes of it

    def on_status(self, slot: Slot) -> None:
        """Tell those who have asked for a load how far it is, or how it has ended."""
        status = slot.status
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

    def on_end(self, name: str, slot: Slot) -> None:
        """The actor is gone: what has waited for its end goes to the next one."""
        gone = m.ModelStatus(name, State.STOPPED)
        for reply in slot.unloads:
            reply.send(gone)
        for chat in slot.waiting:
            self.on_chat(chat)
        for reply in slot.loads:
            self.on_load(m.LoadModel(name, reply))

    def close(self, error: PlimsollError) -> None:
        """Nobody comes back for those who wait."""
        for slot in self._slots:
            while slot.waiting:
                slot.waiting.popleft().reply.send(m.Failed(error))
