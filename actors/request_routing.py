"""Routes each request to its model's actor, or queues it for the next actor while this one unloads."""

from collections.abc import Callable

from plimsoll.actors import messages as m
from plimsoll.actors.expected_wait import expected_wait_s
from plimsoll.actors.model_records import ModelRecord, ModelRecords
from plimsoll.actors.replies import Failed, Waiting
from plimsoll.actors.resume import too_late
from plimsoll.actors.status import SERVING, ModelStatus, State
from plimsoll.errors import InternalError, LoadFailed, PlimsollError, QueueFull


class RequestRouting:
    """Owned by the Supervisor, whose mailbox every request passes."""

    def __init__(self, records: ModelRecords, clock: Callable[[], float]) -> None:
        self._records = records
        self._clock = clock

    # ---- requests

    def on_chat(self, chat: m.Chat) -> None:
        try:
            record = self._records.get_or_start(chat.model)
        except PlimsollError as error:
            chat.reply.send(Failed(error))
            return
        if not record.leaving:
            if not m.tell(record.ref, chat):
                chat.reply.send(Failed(InternalError(f"the actor of {chat.model} has just failed; try again")))
        elif chat.resume:
            self._queue(record, chat)
            chat.reply.send(Waiting("resume"))
        elif len(record.waiting) < self._records.settings.queue:
            self._queue(record, chat)
            chat.reply.send(Waiting("queue"))
        else:
            text = f"{len(record.waiting)} requests wait for {chat.model} to come back; try again shortly"
            wait_s = expected_wait_s(record.usage.pace, len(record.waiting), loaded=False)
            chat.reply.send(Failed(QueueFull(text, retry_after_s=wait_s)))

    def _queue(self, record: ModelRecord, chat: m.Chat) -> None:
        if not record.waiting:
            record.waiting_since = self._clock()
        record.waiting.add(chat)

    def end_overdue(self) -> None:
        """End the requests that have waited for the end of their model's life for as long as they may."""
        now = self._clock()
        for record in self._records:
            for chat, resume in record.waiting.take_overdue(now):
                chat.reply.send(Failed(too_late(resume.error, now - resume.since)))

    def on_cancel(self, message: m.Cancel) -> None:
        record = self._records.get(message.model)
        if record is not None and not self._end_waiting(message):
            m.tell(record.ref, message)

    def _end_waiting(self, message: m.Cancel) -> bool:
        """Whether the request was queued here; then it ends as cancelled."""
        record = self._records.get(message.model)
        return record is not None and record.waiting.cancel(message.id)

    def on_handback(self, message: m.Handback) -> None:
        """An actor that unloads got this request. It hands chats back in order, so a cancel comes after its chat."""
        record = self._records.get(message.model)
        ours = self._records.has(message.model, message.life)
        if isinstance(message.request, m.Chat):
            if record and ours:
                record.handed_back = True  # else the same actor would get the chat again, behind its cancel
            self.on_chat(message.request)
        elif ours:
            self._end_waiting(message.request)
        else:
            self.on_cancel(message.request)

    def on_load(self, message: m.LoadModel) -> None:
        try:
            record = self._records.get_or_start(message.model)
        except PlimsollError as error:
            message.reply.send(Failed(error))
            return
        if record.status.state in SERVING:
            message.reply.send(record.status)
            return
        record.loads.append(message.reply)
        if not record.leaving:
            m.tell(record.ref, m.Warm())

    def on_unload(self, message: m.UnloadModel) -> None:
        record = self._records.get(message.model)
        if record is None:
            try:
                self._records.catalog.find(message.model)
            except PlimsollError as error:
                message.reply.send(Failed(error))
            else:
                message.reply.send(ModelStatus(message.model, State.COLD))
            return
        record.unloads.append(message.reply)
        m.tell(record.ref, m.Unload("asked for", message.grace_s))

    # ---- a model's state changes

    def on_status(self, record: ModelRecord) -> None:
        """Tell the callers of a load its progress, or how it ended."""
        status = record.status
        answer: ModelStatus | Failed | None = None
        if status.state in SERVING:
            answer = status
        elif status.error and status.state in (State.COLD, State.FAILED):
            answer = Failed(LoadFailed(status.error, retry_after_s=5.0))
        elif status.state == State.LOADING:
            for reply in record.loads:
                reply.send(Waiting(status.stage or "queue", status.done_bytes, status.total_bytes))
        if answer is not None:
            for reply in record.loads:
                reply.send(answer)
            record.loads.clear()

    def on_return(self, record: ModelRecord) -> None:
        """The model stays after all: its actor gets the requests that were queued for the next one."""
        record.handed_back = False
        for chat in record.waiting.take():
            self.on_chat(chat)

    def on_end(self, name: str, record: ModelRecord) -> None:
        """The actor has ended: answer the callers of unload, and route queued requests to a new actor."""
        gone = ModelStatus(name, State.STOPPED)
        for reply in record.unloads:
            reply.send(gone)
        for chat in record.waiting.take():
            self.on_chat(chat)
        for reply in record.loads:
            self.on_load(m.LoadModel(name, reply))

    def close(self, error: PlimsollError) -> None:
        """The server stops: end all queued requests with ``error``."""
        for record in self._records:
            record.waiting.fail(error)
