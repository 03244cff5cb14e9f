"""A message that is put while its addressee ends: handled, or answered."""

import threading
import time
from typing import Any

import pykka
import pytest
import test_model_states as states

from plimsoll.actors import messages as m
from plimsoll.actors.messages import Actor
from plimsoll.actors.replies import Failed
from plimsoll.engine.protocol import ChatRequest
from plimsoll.errors import InternalError, ShuttingDown


class Endings:
    """A Reply that counts."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    def send(self, item: Any) -> None:
        self.items.append(item)


def chat(reply: Any) -> m.Chat:
    return m.Chat("chat", "a", ChatRequest([]), reply)


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every ``tell`` happens between an actor's end and the moment when it looks dead."""
    monkeypatch.setattr(pykka.ActorRef, "is_alive", lambda _ref: True)


@pytest.mark.usefixtures("between")
def test_a_chat_that_is_put_after_a_model_s_actor_has_failed_is_answered(fakes: Any, stage: Any) -> None:
    boss = states.Boss(fakes, stage)
    boss.idle()
    ref = boss.record().ref
    boss.tell_model(fakes.Bug())
    late, handed_back = Endings(), Endings()
    m.tell(ref, chat(late))
    m.tell(ref, m.Handback("a", "life", chat(handed_back)))
    for reply in (late, handed_back):
        assert [type(item.error) for item in reply.items] == [InternalError]
    spare = boss.host.spawn(lambda _event: None, lambda _code, _killed: None)
    m.tell(ref, m.Load(states.NEED, spare))
    assert spare.told == "kill"


@pytest.mark.usefixtures("between")
def test_a_chat_that_is_put_after_the_supervisor_has_stopped_is_answered(fakes: Any, stage: Any) -> None:
    boss = states.Boss(fakes, stage)
    boss.ref.stop(block=False)
    stage.drain()
    late = Endings()
    m.tell(boss.ref, chat(late))
    assert [type(item.error) for item in late.items] == [ShuttingDown]


class Fragile(Actor):
    """Handles chats and fails on anything else."""

    def on_receive(self, message: Any) -> None:
        message.reply.send(Failed(InternalError("handled")))

    def on_failure(self, *_: Any) -> None:
        self.close_mailbox(InternalError("failed"))


def talk(ref: m.Ref, told: list[Endings], start: threading.Barrier) -> None:
    start.wait()
    for _ in range(200):
        reply = Endings()
        if not m.tell(ref, chat(reply)):
            return
        told.append(reply)


def test_every_chat_that_was_told_to_an_actor_while_it_failed_has_one_ending() -> None:
    for _ in range(30):
        ref = Fragile.start()
        told: list[Endings] = []
        start = threading.Barrier(4)
        talkers = [threading.Thread(target=talk, args=(ref, told, start)) for _ in range(3)]
        for talker in talkers:
            talker.start()
        start.wait()
        m.tell(ref, m.Warm())
        for talker in talkers:
            talker.join()
        # Its thread may still be on the way to the closing of the mailbox.
        until = time.monotonic() + 5.0
        while any(not reply.items for reply in told) and time.monotonic() < until:
            time.sleep(0.001)
        assert [len(reply.items) for reply in told] == [1] * len(told)


def test_a_stop_that_waits_is_answered_by_a_closed_mailbox_too() -> None:
    class Closed(Actor):
        def on_stop(self) -> None:
            self.close_mailbox(InternalError("over"))

    ref = Closed.start()
    assert ref.stop(timeout=60)
    assert not ref.stop(timeout=60)
