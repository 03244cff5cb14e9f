"""A head's commands as what a node's Supervisor is told, and where its answers go."""

from collections.abc import Callable
from typing import Any

from plimsoll.actors import messages as m
from plimsoll.cluster import wire
from plimsoll.http.stream import Inbox


class Outlet:
    """A ``Reply`` whose items go to the head under the id of what they answer; one without an id goes nowhere."""

    def __init__(self, one: str, inbox: Inbox) -> None:
        self._id = one
        self._inbox = inbox

    def send(self, item: Any) -> None:
        if self._id:
            self._inbox.send((self._id, item))


def message_of(command: wire.Command, reply: m.Reply) -> m.Message:
    """What the Supervisor is told; for the commands that are for it alone."""
    return _MESSAGES[type(command)](command, reply)


_MESSAGES: dict[type, Callable[[Any, m.Reply], m.Message]] = {
    wire.Chat: lambda one, reply: m.Chat(one.id, one.model, one.request, reply, one.retried),
    wire.Cancel: lambda one, _: m.Cancel(one.id, one.model),
    wire.KeepAlive: lambda one, _: m.KeepAlive(one.model, one.seconds),
    wire.Load: lambda one, reply: m.LoadModel(one.model, reply),
    wire.Unload: lambda one, reply: m.UnloadModel(one.model, reply, one.grace_s),
    wire.Pin: lambda one, reply: m.PinModel(one.model, one.pinned, reply),
    wire.CleanUp: lambda one, reply: m.CleanUpModels(reply, one.aggressive),
    wire.LookAtMemory: lambda _, reply: m.GetStatus(reply, clean_up=True),
}
