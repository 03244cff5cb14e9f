"""A node without Ray: what it answers whatever goes wrong on it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec

from plimsoll.actors import replies
from plimsoll.actors.replies import Failed, PromptLogprobs
from plimsoll.cluster import node_protocol
from plimsoll.cluster.node_server import NodeServer
from plimsoll.engine.protocol import TokenLogprob
from plimsoll.errors import InternalError
from plimsoll.inbox import Inbox


async def no_status() -> None: ...


async def weigh(error: Exception) -> Any:
    def broken(_: object) -> Any:
        raise error

    node: Any = NodeServer()
    node._inbox = Inbox()
    node._system = SimpleNamespace(weigh=broken)
    node._status = no_status
    node._catalog = SimpleNamespace(find=lambda _: None)
    await node.tell(node_protocol.encode_commands([node_protocol.Weigh("1", "a")]))
    ((one, item),) = node_protocol.decode_items(await asyncio.wait_for(node.poll(), 60.0))
    assert one == "1"
    return item


def test_a_model_that_can_not_be_weighed_for_a_reason_that_nobody_thought_of_is_answered() -> None:
    item = asyncio.run(weigh(RecursionError()))
    assert isinstance(item, Failed)
    assert isinstance(item.error, InternalError)
    assert "a can't be weighed here" in item.error.message


def test_every_item_of_an_answer_has_a_number_on_the_wire() -> None:
    kinds = {one for one in msgspec.Struct.__subclasses__() if one.__module__ == replies.__name__}
    assert PromptLogprobs in kinds
    assert kinds - {Failed} <= set(node_protocol._KINDS)
    items = [("a", PromptLogprobs([TokenLogprob("A", 0.0), TokenLogprob(" ship", -1.0, [(" sea", -0.5)])]))]
    assert node_protocol.decode_items(node_protocol.encode_items(items)) == items
