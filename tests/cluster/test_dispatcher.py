"""The Dispatcher on made-up nodes: what it sends them, and what becomes of what they say."""

from collections.abc import Callable
from typing import Any

import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Finished, Tokens, Waiting
from plimsoll.actors.settings import Settings
from plimsoll.actors.status import LEAVING, LOADED, ModelStatus, State, Status
from plimsoll.catalog.names import Catalog
from plimsoll.cluster import node_protocol
from plimsoll.cluster.dispatcher import Dispatcher
from plimsoll.cluster.node_protocol import FromNode, NodeJoined, NodeLeft, Tick
from plimsoll.cluster.replicas import Rules
from plimsoll.config import parse
from plimsoll.engine.protocol import ChatRequest, Usage
from plimsoll.errors import InsufficientMemory, NeverFits, ShuttingDown, UnknownModel, WorkerDied
from plimsoll.journal.journal import Journal
from plimsoll.memory.ledger import Need, Seat
from plimsoll.memory.levels import Thresholds
from plimsoll.memory.sample import Level, Reading, Sample

GIB = 1024**3
NEED = Need(measured_bytes=10 * GIB)


class Reply:
    def __init__(self) -> None:
        self.items: list[Any] = []

    def send(self, item: Any) -> None:
        self.items.append(item)

    @property
    def error(self) -> Any:
        assert isinstance(self.items[-1], Failed), self.items
        return self.items[-1].error


class Stage:
    """A Dispatcher without a thread, told and looked at in one; its clock and its nodes are the test's."""

    def __init__(self, patience_s: float = 0.0, **models: Any) -> None:
        self.time = 1000.0
        self.sent: list[tuple[str, Any]] = []
        self.dropped: list[str] = []
        entries = {
            name: {"source": f"fake:length={number}", **more} for number, (name, more) in enumerate(models.items())
        }
        self._numbers = iter(range(1000))
        self.dispatcher: Any = Dispatcher(
            Catalog(parse({"models": {"builtin": False, "entries": entries}}).models),
            self,
            Journal(),
            self,
            settings=Settings(Thresholds(), None, queue=3, critical_grace_s=10.0, patience_s=patience_s),
            rules=Rules(grow_after_s=5.0, shrink_after_s=60.0),
            slots=2,
        )

    # ---- what the Dispatcher has of the world

    def send(self, node: str, command: Any) -> None:
        self.sent.append((node, command))

    def drop(self, node: str, why: str) -> None:
        self.dropped.append(node)

    def now(self) -> float:
        return self.time

    def tell_later(self, delay_s: float, ref: Any, message: Any) -> None: ...

    # ---- what the test does

    def tell(self, message: Any) -> None:
        self.dispatcher.on_receive(message)

    def node(self, node: str, used: float = 5, *, total: float = 40, **models: Any) -> None:
        """The node joins, or reports again; ``models`` gives states, or whole ``ModelStatus``es."""
        self.tell(NodeJoined(node, node))
        self.report(node, used, total=total, **models)

    def report(self, node: str, used: float = 5, *, total: float = 40, **models: Any) -> None:
        sample = Sample(self.time, (Reading("limit", int(total * GIB), int(used * GIB)),))
        told = [one if isinstance(one, ModelStatus) else ModelStatus(name, one) for name, one in models.items()]
        seats = tuple(
            Seat(
                one.name,
                10 * GIB,
                10 * GIB if one.state in LOADED else 0,
                self.time,
                loaded=one.state in LOADED,
                idle=one.state is State.READY,
                pinned=one.pinned,
                leaving=one.state in LEAVING,
            )
            for one in told
        )
        status = Status(Level.NORMAL, sample, told, "open", False, [], seats=seats)
        self.says(node, "", node_protocol.Report(self.time, status))

    def says(self, node: str, one: str, *items: Any) -> None:
        self.tell(FromNode(node, [(one, item) for item in items]))

    def chat(self, model: str = "a", *texts: str, chat_id: str = "") -> tuple[str, Reply]:
        """Its id and its reply."""
        reply, one = Reply(), chat_id or f"chat{next(self._numbers)}"
        request = ChatRequest([{"role": "user", "content": text} for text in texts or ("hi",)])
        self.tell(m.Chat(one, model, request, reply))
        return one, reply

    def taken(self, kind: type) -> list[tuple[str, Any]]:
        """The commands of that kind that were sent since; they are taken away."""
        found = [(node, command) for node, command in self.sent if isinstance(command, kind)]
        self.sent = [one for one in self.sent if not isinstance(one[1], kind)]
        return found

    def weigh(self, need: Need = NEED) -> None:
        """Every node that was asked says what the model takes."""
        for node, command in self.taken(node_protocol.Weigh):
            self.says(node, command.id, node_protocol.Ways((need,)))

    def status(self) -> Status:
        reply = Reply()
        self.tell(m.GetStatus(reply))
        status: Status = reply.items[0]
        return status


@pytest.fixture
def stage() -> Callable[..., Stage]:
    return lambda patience_s=0.0, **models: Stage(patience_s, **(models or {"a": {}, "b": {}}))


def test_a_chat_that_the_dispatcher_fails_on_after_it_was_sent_has_one_ending_and_runs_for_nobody(stage: Any) -> None:
    one = stage()
    one.node("x", a=State.READY)

    def send(node: str, command: Any) -> None:
        one.sent.append((node, command))
        if isinstance(command, node_protocol.Chat):
            raise TypeError("told to")

    one.dispatcher._chats._nodes = one
    one.send = send
    chat, reply = one.chat("a")
    assert [type(item) for item in reply.items] == [Failed]
    assert [command.id for _, command in one.taken(node_protocol.Cancel)] == [chat]
    one.says("x", chat, Finished("cancelled", Usage()))
    one.dispatcher.on_stop()
    assert len(reply.items) == 1


def test_a_chat_goes_to_the_node_that_its_model_is_placed_on_and_its_items_come_back(stage: Any) -> None:
    one = stage()
    one.node("x", used=30)
    one.node("y", used=5)
    chat, reply = one.chat("a")
    assert reply.items == [Waiting("queue")]
    one.weigh()
    ((node, command),) = one.taken(node_protocol.Chat)
    assert (node, command.model, command.so_far) == ("y", "a", ())
    one.says("y", chat, Delta("Paris", 1), Finished("stop", Usage(3, 1)))
    one.says("y", chat, Delta("late", 2))
    assert reply.items[1:] == [Delta("Paris", 1), Finished("stop", Usage(3, 1))]


def test_ten_callers_of_a_cold_model_cause_one_placement_and_no_more_than_the_queue_wait(stage: Any) -> None:
    one = stage()
    one.node("x")
    replies = [one.chat("a")[1] for _ in range(5)]
    assert len(one.taken(node_protocol.Weigh)) == 1
    assert [reply.error.code for reply in replies[3:]] == ["queue_full"] * 2


def test_a_model_that_fits_nowhere_is_refused_with_the_reason_of_each_node(stage: Any) -> None:
    one = stage()
    one.node("x", used=35, b=ModelStatus("b", State.BUSY, active=1))
    one.node("y", used=36)
    _, reply = one.chat("a")
    one.weigh()
    assert isinstance(reply.error, InsufficientMemory)
    assert [reason.split()[0] for reason in reply.error.details["reasons"]] == ["x", "y"]
    assert "b is busy" in reply.error.details["reasons"][0]
    _, reply = one.chat("a")
    one.weigh(Need(measured_bytes=99 * GIB))
    assert isinstance(reply.error, NeverFits)


def test_a_model_that_busy_ones_leave_no_room_for_waits_until_they_have_answered(stage: Any) -> None:
    one = stage(patience_s=60.0)
    one.node("x", used=35, b=ModelStatus("b", State.BUSY, active=1))
    chat, reply = one.chat("a")
    loaded = Reply()
    one.tell(m.LoadModel("a", loaded))
    one.weigh()
    assert reply.items == [Waiting("queue")]
    one.time += 5.0
    one.report("x", used=35, b=State.READY)
    assert [(node, command.id) for node, command in one.taken(node_protocol.Chat)] == [("x", chat)]
    assert [node for node, _ in one.taken(node_protocol.Load)] == ["x"]
    assert not loaded.items


def test_a_request_waits_for_the_first_of_all_nodes_and_after_a_while_in_the_line_of_one(stage: Any) -> None:
    one = stage(patience_s=60.0)
    busy = {"b": ModelStatus("b", State.BUSY, active=1)}
    one.node("x", used=35, **busy)
    one.node("y", used=34, **busy)
    chat, _ = one.chat("a")
    one.weigh()
    for _ in range(9):
        one.time += 1.0
        one.report("x", used=35, **busy)
        one.report("y", used=34, **busy)
    assert not one.taken(node_protocol.Chat)
    one.time += 1.0
    one.report("y", used=34, **busy)
    assert [(node, command.id) for node, command in one.taken(node_protocol.Chat)] == [("y", chat)]


def test_who_has_waited_for_busy_models_for_as_long_as_it_may_ends_with_the_reasons(stage: Any) -> None:
    one = stage(patience_s=5.0)
    busy = {"b": ModelStatus("b", State.BUSY, active=1)}
    one.node("x", used=35, **busy)
    replies = [one.chat("a")[1] for _ in range(4)]
    one.weigh()
    assert [reply.error.code for reply in replies[3:]] == ["queue_full"]
    for _ in range(5):
        assert all(reply.items == [Waiting("queue")] for reply in replies[:3])
        one.time += 1.0
        one.report("x", used=35, **busy)
    for reply in replies[:3]:
        assert isinstance(reply.error, InsufficientMemory)
        assert "for 5 s; see memory.patience" in reply.error.message
        assert "b is busy" in reply.error.details["reasons"][0]
        assert len(reply.items) == 2
    _, reply = one.chat("a")
    one.weigh(Need(measured_bytes=99 * GIB))
    assert isinstance(reply.error, NeverFits)


def test_a_client_that_leaves_the_line_of_busy_models_is_not_sent_to_a_node(stage: Any) -> None:
    one = stage(patience_s=60.0)
    one.node("x", used=35, b=ModelStatus("b", State.BUSY, active=1))
    chat, reply = one.chat("a")
    one.weigh()
    one.tell(m.Cancel(chat, "a"))
    one.report("x", used=35, b=State.READY)
    assert not one.taken(node_protocol.Chat)
    assert reply.items == [Waiting("queue"), Finished("cancelled", Usage())]


def test_a_request_for_a_model_that_its_node_unloads_waits_for_the_end_of_that(stage: Any) -> None:
    one = stage(patience_s=60.0)
    one.node("x", used=35, a=State.DRAINING, b=ModelStatus("b", State.BUSY, active=1))
    chat, reply = one.chat("a")
    one.weigh()
    assert reply.items == [Waiting("queue")]
    one.report("x", used=15, b=State.READY)
    assert [(node, command.id) for node, command in one.taken(node_protocol.Chat)] == [("x", chat)]


def test_an_answer_whose_node_was_lost_waits_for_busy_models_of_another_one(stage: Any) -> None:
    one = stage(patience_s=60.0)
    one.node("x", a=State.READY)
    one.node("y", used=35, b=ModelStatus("b", State.BUSY, active=1))
    chat, reply = one.chat("a")
    one.says("x", chat, Delta("one ", 1), Tokens([1]))
    one.taken(node_protocol.Chat)
    one.tell(NodeLeft("x", "its process has ended"))
    one.weigh()
    for _ in range(3):
        one.time += 1.0
        one.tell(Tick())
        one.report("y", used=35, b=ModelStatus("b", State.BUSY, active=1))
    assert not one.taken(node_protocol.Chat)
    one.report("y", used=35, b=State.READY)
    assert [(node, command.so_far) for node, command in one.taken(node_protocol.Chat)] == [("y", (1,))]
    assert not any(isinstance(item, Failed) for item in reply.items)


def test_nothing_is_evicted_for_a_load_that_has_just_ended_on_a_node_that_has_not_said_so_yet(stage: Any) -> None:
    one = stage(c={})
    one.node("x", used=31, a=State.READY)
    one.node("y", used=36, b=State.LOADING)
    chat, _ = one.chat("c")
    asked = dict(one.taken(node_protocol.Weigh))
    one.says("x", asked["x"].id, node_protocol.Ways((NEED,)))
    assert not one.taken(node_protocol.Chat)
    one.report("y", used=15, b=State.READY)
    one.says("y", asked["y"].id, node_protocol.Ways((NEED,)))
    assert [(node, command.id) for node, command in one.taken(node_protocol.Chat)] == [("y", chat)]


def test_a_node_that_does_not_say_how_it_stands_holds_up_a_load_for_a_second(stage: Any) -> None:
    one = stage(c={})
    one.node("x", used=31, a=State.READY)
    one.node("y", used=36)
    one.chat("c")
    asked = dict(one.taken(node_protocol.Weigh))
    one.says("x", asked["x"].id, node_protocol.Ways((NEED,)))
    one.time += 0.9
    one.report("x", used=31, a=State.READY)
    assert not one.taken(node_protocol.Chat)
    one.time += 0.1
    one.report("x", used=31, a=State.READY)
    assert [node for node, _ in one.taken(node_protocol.Chat)] == ["x"]


def test_a_node_whose_own_ledger_refuses_is_left_out_and_another_one_asked(stage: Any) -> None:
    one = stage()
    one.node("x", used=20)
    one.node("y", used=5)
    chat, reply = one.chat("a")
    one.weigh()
    ((first, _),) = one.taken(node_protocol.Chat)
    one.says(first, chat, Waiting("queue"), Failed(InsufficientMemory("no room")))
    one.weigh()
    ((second, _),) = one.taken(node_protocol.Chat)
    assert {first, second} == {"x", "y"}
    one.says(second, chat, Failed(InsufficientMemory("no room")))
    one.weigh()
    assert reply.error.details["reasons"] == [f"{node} has just refused it: no room" for node in ("x", "y")]
    assert sum(isinstance(item, Failed) for item in reply.items) == 1


def test_a_loaded_models_refusal_of_one_request_is_the_clients(stage: Any) -> None:
    one = stage()
    one.node("x", a=State.READY)
    chat, reply = one.chat("a")
    one.taken(node_protocol.Chat)
    one.says("x", chat, Failed(NeverFits("the prompt is too long for its KV cache")))
    assert reply.error.message == "the prompt is too long for its KV cache"
    assert not one.sent


def test_the_next_turn_goes_where_the_first_was_answered(stage: Any) -> None:
    one = stage()
    one.node("x", a=ModelStatus("a", State.BUSY, active=1))
    one.node("y", a=State.READY)
    one.chat("a", "first")
    one.report("x", a=State.READY)
    one.report("y", a=ModelStatus("a", State.BUSY, active=1))
    one.chat("a", "first", "answer", "second")
    one.chat("a", "another")
    assert [node for node, _ in one.taken(node_protocol.Chat)] == ["y", "y", "x"]


def test_a_lost_node_ends_what_has_begun_and_the_rest_goes_elsewhere_once(stage: Any) -> None:
    one = stage()
    one.node("x", a=State.READY)
    begun, ended = one.chat("a", "begun")
    _, fresh = one.chat("a", "fresh")
    one.says("x", begun, Delta("some", 1), Tokens([7]))
    one.node("y", a=State.READY)
    one.taken(node_protocol.Chat)
    one.tell(NodeLeft("x", "its process has ended"))
    assert isinstance(ended.error, WorkerDied)
    text = "the node x, which ran this answer, was lost: its process has ended; send the request again"
    assert ended.error.message == text
    ((node, again),) = one.taken(node_protocol.Chat)
    assert (node, again.so_far) == ("y", ())
    one.tell(NodeLeft("y", "its process has ended"))
    assert isinstance(fresh.error, WorkerDied)
    assert sum(isinstance(item, Failed) for item in [*ended.items, *fresh.items]) == 2


def test_a_lost_nodes_answers_go_on_elsewhere_behind_the_tokens_that_the_client_has_had(stage: Any) -> None:
    one = stage(patience_s=60.0, a={})
    one.node("x", a=State.READY)
    begun, reply = one.chat("a", "begun")
    fresh, other = one.chat("a", "fresh")
    first = {command.id: command for _, command in one.taken(node_protocol.Chat)}
    # What came without its token is not passed on: the next node says it again.
    one.says("x", begun, Delta("one ", 1), Tokens([1]), Delta("two ", 2), Tokens([2]), Delta("lost ", 3))
    one.node("y", a=State.READY)
    one.tell(NodeLeft("x", "its process has ended"))
    again = {command.id: command for node, command in one.taken(node_protocol.Chat) if node == "y"}
    assert {name: command.so_far for name, command in again.items()} == {begun: (1, 2), fresh: ()}
    assert again[begun].request == first[begun].request
    assert again[begun].request.sampling.seed is not None
    one.says("y", begun, Delta("three", 3), Tokens([3]), Finished("stop", Usage(1, 3)))
    one.says("y", fresh, Finished("stop", Usage(1, 0)))
    assert "".join(item.text for item in reply.items if isinstance(item, Delta)) == "one two three"
    assert Waiting("resume") in reply.items
    assert isinstance(other.items[-1], Finished)


def test_an_answer_whose_node_was_lost_waits_for_another_one_as_long_as_it_may(stage: Any) -> None:
    one = stage(patience_s=60.0, a={})
    one.node("x", a=State.READY)
    replies = []
    for _ in range(2):
        chat, reply = one.chat("a")
        one.says("x", chat, Delta("one ", 1), Tokens([1]))
        replies.append(reply)
    one.taken(node_protocol.Chat)
    one.tell(NodeLeft("x", "its process has ended"))
    for _ in range(30):
        one.time += 1.0
        one.tell(Tick())
    assert not any(isinstance(item, Failed) for reply in replies for item in reply.items)
    one.node("y")
    one.time += 1.0
    one.tell(Tick())
    one.weigh()
    assert [(node, command.so_far) for node, command in one.taken(node_protocol.Chat)] == [("y", (1,)), ("y", (1,))]
    one.tell(NodeLeft("y", "its process has ended"))
    for _ in range(61):
        one.time += 1.0
        one.tell(Tick())
    assert all("see memory.patience" in reply.error.message for reply in replies)


def test_a_lost_nodes_models_are_loaded_where_they_fit(stage: Any) -> None:
    one = stage(a={}, b={}, c={})
    one.node("x", used=5)
    for name in "abc":
        one.chat(name)
        one.weigh()
    one.node("y", used=15)
    one.report("x", used=35, a=State.READY, b=State.READY, c=State.READY)
    one.sent.clear()
    one.tell(NodeLeft("x", "gone"))
    # 15 of 40 GiB are used there and 38 is the line, so two of them fit.
    assert [(node, command.model) for node, command in one.taken(node_protocol.Load)] == [("y", "a"), ("y", "b")]


def test_a_client_that_leaves_is_told_to_the_node_or_leaves_the_line(stage: Any) -> None:
    one = stage()
    one.node("x")
    chat, reply = one.chat("a")
    one.tell(m.Cancel(chat, "a"))
    assert reply.items[-1] == Finished("cancelled", Usage())
    one.weigh()
    assert not one.taken(node_protocol.Chat)
    sent, _ = one.chat("a")
    one.weigh()
    one.tell(m.Cancel(sent, "a"))
    assert one.taken(node_protocol.Cancel) == [("x", node_protocol.Cancel(sent, "a"))]


@pytest.mark.parametrize("ending", [NodeLeft("x", "gone"), InsufficientMemory("no room")], ids=["lost", "refused"])
def test_what_nobody_waits_for_any_more_is_not_sent_to_another_node(stage: Any, ending: Any) -> None:
    one = stage()
    one.node("x")
    one.node("y", used=10)
    chat, reply = one.chat("a")
    one.weigh()
    ((node, _),) = one.taken(node_protocol.Chat)
    one.tell(m.Cancel(chat, "a"))
    if isinstance(ending, NodeLeft):
        one.tell(NodeLeft(node, ending.why))
    else:
        one.says(node, chat, Failed(ending))
    one.weigh()
    assert not one.taken(node_protocol.Chat)
    assert sum(isinstance(item, Failed) for item in reply.items) == 1


def test_a_pinned_model_is_pinned_on_one_node_and_on_another_after_a_loss(stage: Any) -> None:
    one = stage(a={"pin": True})
    one.node("x", used=20)
    one.weigh()
    assert [(node, command.pinned) for node, command in one.taken(node_protocol.Pin)] == [("x", True)]
    one.report("x", used=30, a=ModelStatus("a", State.READY, pinned=True))
    one.node("y")
    assert not one.taken(node_protocol.Pin)
    one.tell(NodeLeft("x", "gone"))
    assert [(node, command.pinned) for node, command in one.taken(node_protocol.Pin)] == [("y", True)]


def test_a_model_whose_requests_queue_gets_a_replica(stage: Any) -> None:
    one = stage()
    one.node("x")
    one.chat("a")
    one.weigh()
    one.node("y")
    for _ in range(3):
        one.report("x", used=15, a=ModelStatus("a", State.BUSY, active=3))
        one.report("y")
        one.tell(Tick())
        one.time += 3
    assert [(node, command.model) for node, command in one.taken(node_protocol.Load)] == [("y", "a")]


def test_a_load_is_answered_with_the_models_status_and_an_unload_when_no_node_has_it(stage: Any) -> None:
    one = stage()
    one.node("x", a=State.READY)
    one.node("y", a=State.READY)
    loaded, unloaded = Reply(), Reply()
    one.tell(m.LoadModel("a", loaded))
    assert loaded.items[0].state is State.READY
    one.tell(m.UnloadModel("a", unloaded, 1.0))
    (_, first), (_, second) = one.taken(node_protocol.Unload)
    one.says("x", first.id, ModelStatus("a", State.STOPPED))
    assert not unloaded.items
    one.says("y", second.id, ModelStatus("a", State.STOPPED))
    assert unloaded.items == [ModelStatus("a", State.STOPPED)]
    unknown = Reply()
    one.tell(m.LoadModel("nothing", unknown))
    assert isinstance(unknown.error, UnknownModel)


def test_the_whole_shows_the_fullest_nodes_memory_and_each_node(stage: Any) -> None:
    one = stage()
    one.node("x", used=10, a=ModelStatus("a", State.READY, active=1))
    one.node("y", used=20, a=ModelStatus("a", State.BUSY, active=2), b=State.LOADING)
    status = one.status()
    assert status.sample is not None
    assert status.sample.used_percent == 50.0
    (a, b) = status.models
    assert (a.name, a.state, a.active, b.state) == ("a", State.BUSY, 3, State.LOADING)
    assert [(node.name, node.used_percent, node.models) for node in status.nodes or ()] == [
        ("x", 25.0, ("a",)),
        ("y", 50.0, ("a", "b")),
    ]


def test_a_request_that_waits_for_a_node_to_give_memory_back_is_answered_when_that_node_is_lost(stage: Any) -> None:
    one = stage()
    one.node("x", used=35, b=State.DRAINING)
    _, reply = one.chat("a")
    one.weigh()
    assert reply.items == [Waiting("queue")]
    one.tell(NodeLeft("x", "gone"))
    assert isinstance(reply.error, InsufficientMemory)
    assert "no node is there" in reply.error.message


def test_a_silent_node_is_given_up(stage: Any) -> None:
    one = stage()
    one.node("x")
    one.time += 31
    one.tell(Tick())
    assert one.dropped == ["x"]


def test_a_node_that_stops_is_not_given_up_while_its_answers_end(stage: Any) -> None:
    one = stage()
    one.node("x", a=State.READY)
    one.tell(m.StopAll(120.0, Reply()))
    one.time += 100
    one.tell(Tick())
    assert not one.dropped


def test_what_was_asked_of_nodes_is_answered_when_the_server_ends_before_they_do(stage: Any) -> None:
    one = stage()
    one.node("x", a=State.READY)
    loaded, unloaded = Reply(), Reply()
    one.tell(m.LoadModel("b", loaded))
    one.weigh()
    one.tell(m.UnloadModel("a", unloaded, 60.0))
    one.dispatcher.on_stop()
    assert isinstance(loaded.error, ShuttingDown)
    assert isinstance(unloaded.error, ShuttingDown)


def test_a_stop_ends_those_who_wait_and_is_answered_when_every_node_has_stopped(stage: Any) -> None:
    one = stage()
    one.node("x")
    one.node("y")
    _, waiting = one.chat("a")
    stopped = Reply()
    one.tell(m.StopAll(5.0, stopped))
    assert isinstance(waiting.error, ShuttingDown)
    (_, first), (lost, _) = one.taken(node_protocol.Stop)
    one.says("x", first.id, None)
    assert not stopped.items
    one.tell(NodeLeft(lost, "gone"))
    assert stopped.items == [None]
