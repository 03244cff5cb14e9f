"""A real worker whose room for KV caches follows its conversation, with a model of a long context."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_llama

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta
from plimsoll.engine.protocol import Sampling

Start = Callable[..., Any]
CONTEXT = 131_072
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def long_context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(
        tmp_path_factory.mktemp("long"),
        max_position_embeddings=CONTEXT,
        hidden_size=256,
        num_hidden_layers=4,
        num_key_value_heads=4,  # 8 KiB of KV cache for a token
    )


def test_a_prompt_beyond_the_first_room_is_answered_and_its_room_is_handed_back(
    server: Start, long_context: Path
) -> None:
    system = server({"a": str(long_context)}, engine={"prompt_cache": "1MiB", "disk_cache": 0})
    system.chat("a", "hello", max_tokens=1, sampling=GREEDY).ending(120.0)
    status = system.status()
    (first,) = [seat.reserved_bytes for seat in status.seats]
    assert status.contexts["a"] == CONTEXT, "the machine has room for the whole context"
    answer = system.chat("a", "dog " * 12_000, max_tokens=32_000, sampling=GREEDY)
    answer.next(Delta, 300.0)
    (grown,) = [seat.reserved_bytes for seat in system.status().seats]
    assert grown > first
    system.system.supervisor.tell(m.Cancel(answer.id, "a"))
    assert answer.ending().reason == "cancelled"
    system.chat("a", "hello", max_tokens=1, sampling=GREEDY).ending(120.0)
    (handed_back,) = [seat.reserved_bytes for seat in system.status().seats]
    assert handed_back < grown
