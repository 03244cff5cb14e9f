"""What the front keeps of requests that it has refused: nothing."""

import asyncio
import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

from plimsoll.engine.protocol import ChatRequest
from plimsoll.errors import LoadFailed
from plimsoll.http.answer import Answer


def test_refused_requests_leave_nothing_of_themselves_behind(server: Callable[..., Any]) -> None:
    system = server({"a": "fake:fail_load=the weights are torn"})

    async def refused(number: int) -> float | None:
        text = f"{number} ".ljust(100_000, "x")
        try:
            async with Answer(
                system.system.supervisor, "a", ChatRequest([{"role": "user", "content": text}])
            ) as answer:
                async for _ in answer.batches():
                    pass
        except LoadFailed as error:
            return error.retry_after_s
        raise AssertionError("it was answered")

    async def scenario(count: int) -> list[float | None]:
        return [await refused(number) for number in range(count)]

    asyncio.run(scenario(20))
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        waits = asyncio.run(scenario(2000))
        gc.collect()  # in a process with many objects the collector comes by seldom
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(waits) == 2000
    assert all(waits)
    assert grown < 1_000_000
