"""The link on a made-up Ray, whose calls take as long as the test wants."""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from plimsoll.cluster import node_protocol, ray_link
from plimsoll.cluster.node_protocol import NodeJoined, NodeLeft
from plimsoll.cluster.ray_link import RayLink
from plimsoll.engine.protocol import ChatRequest

DEADLINE_S = 60.0


class Call:
    """One method of a remote actor."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.remote = work


class Machines:
    """What Ray says of its nodes, and the actors that it starts there."""

    def __init__(self) -> None:
        self.there: list[str] = []
        self.problem = ""
        self.breaks = False
        self.asked: queue.Queue[None] = queue.Queue()
        self.frames: queue.Queue[list[node_protocol.Command]] = queue.Queue()
        self.carry_out = threading.Event()
        self.starts: queue.Queue[None] = queue.Queue()

    def nodes(self) -> list[dict[str, Any]]:
        self.asked.put(None)
        if self.breaks:
            raise ConnectionError("no answer")
        return [
            {
                "NodeID": one.encode().hex().ljust(56, "0"),
                "NodeName": one,
                "Alive": True,
                "Resources": {ray_link.RESOURCE: 1024.0},
            }
            for one in self.there
        ]

    def watched(self, times: int) -> None:
        """So many more looks at the nodes have begun."""
        while not self.asked.empty():
            self.asked.get()
        for _ in range(times):
            self.asked.get(timeout=DEADLINE_S)

    # ---- the actor class, and an actor

    def options(self, **_: Any) -> "Machines":
        return self

    def remote(self) -> Any:
        actor = Machines.__new__(Machines)
        methods = {"start": self._start, "warning": self._warning, "tell": self._tell, "poll": self._poll}
        actor.__dict__ = {name: Call(method) for name, method in methods.items()}
        return actor

    async def _start(self, *_: Any) -> str:
        self.starts.put(None)
        return self.problem

    async def _warning(self) -> str:
        return ""

    async def _tell(self, frame: bytes) -> None:
        self.frames.put(node_protocol.decode_commands(frame))
        await asyncio.to_thread(self.carry_out.wait, DEADLINE_S)

    async def _poll(self) -> bytes:
        await asyncio.sleep(0.01)
        return node_protocol.encode_items([])


class Heard:
    """Whom the link tells."""

    def __init__(self) -> None:
        self._messages: queue.Queue[Any] = queue.Queue()
        self.tell = self._messages.put

    def next(self, kind: type) -> Any:
        while not isinstance(message := self._messages.get(timeout=DEADLINE_S), kind):
            pass
        return message


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Machines:
    made_up = Machines()
    monkeypatch.setattr(ray_link, "_remote_class", lambda: made_up)
    monkeypatch.setattr(ray_link, "_kill", lambda _: None)
    monkeypatch.setattr(ray_link.ray, "nodes", made_up.nodes)
    monkeypatch.setattr(ray_link.ray, "shutdown", lambda: None)
    for name in ("_WATCH_S", "_AGAIN_S", "_AGAIN_MOST_S"):
        monkeypatch.setattr(ray_link, name, 0.01)
    return made_up


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def link(machines: Machines, heard: Heard) -> Iterator[RayLink]:
    one = RayLink("")
    one.start(heard)
    yield one
    machines.carry_out.set()
    one.close()


def test_a_command_is_sent_when_the_ones_before_it_were_carried_out(
    link: RayLink, machines: Machines, heard: Heard
) -> None:
    machines.there = ["x"]
    node = heard.next(NodeJoined).id
    chat = node_protocol.Chat("1", "a", ChatRequest([{"role": "user", "content": "hi"}]))
    link.send(node, chat)
    assert machines.frames.get(timeout=DEADLINE_S) == [chat]
    link.send(node, node_protocol.Cancel("1", "a"))
    link.send(node, node_protocol.Cancel("2", "a"))
    machines.watched(3)
    assert machines.frames.empty(), "Ray might carry it out first"
    machines.carry_out.set()
    assert machines.frames.get(timeout=DEADLINE_S) == [node_protocol.Cancel("1", "a"), node_protocol.Cancel("2", "a")]


def test_what_is_sent_after_the_end_goes_nowhere(machines: Machines, heard: Heard) -> None:
    one = RayLink("")
    one.start(heard)
    machines.watched(1)
    one.close()
    one.send("x", node_protocol.LookAtMemory())
    one.drop("x", "gone")


def test_why_a_node_can_not_be_used_is_said_once_however_often_it_is_tried(
    link: RayLink, machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    machines.problem = "it is too old"
    machines.there = ["x"]
    for _ in range(4):
        machines.starts.get(timeout=DEADLINE_S)
    assert [one.message for one in caplog.records] == ["the node x can't be used: it is too old"]
    machines.problem = "it is too new"
    for _ in range(3):
        machines.starts.get(timeout=DEADLINE_S)
    assert caplog.records[-1].message == "the node x can't be used: it is too new"
    assert len(caplog.records) == 2


def test_a_node_that_dies_while_it_starts_is_told_of(
    link: RayLink, machines: Machines, heard: Heard, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(*_: Any) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(machines, "_start", start)
    machines.there = ["x"]
    assert heard.next(NodeLeft).why.startswith("no space left")
    (said,) = [one.message for one in caplog.records]
    assert said.startswith("the node x can't be used: no space left; Plimsoll ")


def test_the_link_goes_on_watching_whatever_ray_raises_and_says_so_once(
    link: RayLink,
    machines: Machines,
    heard: Heard,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(**_: Any) -> Any:
        raise ConnectionError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(machines, "options", broken)
        machines.there = ["x"]
        machines.watched(4)
    assert heard.next(NodeJoined).name == "x"
    machines.breaks = True
    machines.watched(4)
    said = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert said == ["Ray does not say which nodes there are, what runs goes on: no answer"] * 2


def test_machines_that_are_gone_for_good_are_forgotten(link: RayLink, machines: Machines, heard: Heard) -> None:
    for name in ("x", "y", "z"):
        machines.there = [name]
        heard.next(NodeJoined)
    machines.there = []
    heard.next(NodeLeft)
    machines.watched(3)
    assert not link._rests
