"""A node without Ray: what it answers whatever goes wrong on it."""

import asyncio
from types import SimpleNamespace
from typing import Any

from plimsoll.actors import messages as m
from plimsoll.cluster import wire
from plimsoll.cluster.node_server import NodeServer
from plimsoll.errors import InternalError
from plimsoll.http.stream import Inbox


async def weigh(error: Exception) -> Any:
    def broken(_: object) -> Any:
        raise error

    node: Any = NodeServer()
    node._inbox = Inbox()
    node._system = SimpleNamespace(ways_to_load=broken)
    node._catalog = SimpleNamespace(find=lambda _: None)
    await node.tell(wire.encode_commands([wire.Weigh("1", "a")]))
    ((one, item),) = wire.decode_items(await asyncio.wait_for(node.poll(), 10.0))
    assert one == "1"
    return item


def test_a_model_that_can_not_be_weighed_for_a_reason_that_nobody_thought_of_is_answered() -> None:
    item = asyncio.run(weigh(RecursionError()))
    assert isinstance(item, m.Failed)
    assert isinstance(item.error, InternalError)
    assert "a can't be weighed here" in item.error.message
