"""The ranks of a group keep the same pieces of KV caches and put the same ones together."""

from pathlib import Path

import mlx_helpers as helpers
import msgspec
import pytest
import tiny_llama

from plimsoll.engine.chat import engine as mlx_engine
from plimsoll.engine.chat.prefix_store.pieces import leaves
from plimsoll.engine.group.follower import Follower
from plimsoll.engine.group.group_ops import Op
from plimsoll.engine.protocol import ChatRequest, EngineOptions

SYSTEM = "You are a careful assistant who answers in one short sentence. " * 6
_OPTIONS = EngineOptions(cache_dir="")


class OneMachine:
    """Both ranks of a group, in one process: what the first one tells, the second does at once."""

    leads = True

    def __init__(self):
        self.follower = None
        self.told = []

    def tell(self, op):
        self.told.append(op)
        self.follower.replay(msgspec.msgpack.decode(msgspec.msgpack.encode(op), type=Op))

    def split(self, model, **_):
        return model

    def any_of(self, fact):
        return fact


@pytest.fixture(params=["plain", "windows"])
def group(request, tmp_path):
    windows = {"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}
    different = windows if request.param == "windows" else {}
    folder = tiny_llama.build(tmp_path / "tiny", max_position_embeddings=2048, **different)
    rank = OneMachine()
    rank.follower = Follower(_OPTIONS, rank)
    rank.follower.load(Path(folder), lambda *_: None)
    engine = mlx_engine.MlxEngine(_OPTIONS, rank=rank)
    engine.load(Path(folder), lambda *_: None)
    engine.rank = rank
    yield engine
    engine.close()
    rank.follower.close()


def asked(*texts):
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 3, texts, strict=False)]
    return ChatRequest([{"role": "system", "content": SYSTEM}, *turns], helpers.GREEDY, max_tokens=12)


def same_lengths(engine):
    """Whether the rows of both ranks stand at the same tokens."""

    def lengths(generator):
        return [
            (batch.uids, [one.state[2].tolist() for one in leaves(batch.prompt_cache)]) for batch in generator.batches
        ]

    return lengths(engine._model.generator) == lengths(engine.rank.follower._generator)


def test_rows_that_begin_with_kept_pieces_do_so_on_every_rank(group):
    follower = group.rank.follower
    first = helpers.Run(group).submit("a", asked("hello")).finish()
    for texts in (("hello", first.texts["a"], "and then?"), ("fox",), ("hello",)):
        run = helpers.Run(group).submit("b", asked(*texts))
        while group.busy():
            run.step()
            assert same_lengths(group)
        assert run.usage["b"].cached_tokens > 100
        assert run.usage["b"].cached_from == "memory"
    store = group._model.reuse.store
    numbers = {piece.number for piece in store.newest_first()}
    assert numbers == follower._blocks.keys() | follower._snapshots.keys()
    assert not follower._aside
    store.clear()
    assert not follower._blocks
    assert not follower._snapshots


def test_rows_that_leave_early_and_rows_that_run_serve_others_too(group):
    run = helpers.Run(group).submit("a", asked("hello"))
    for _ in range(2):
        run.step()
    run.submit("b", asked("fox"))
    while group.busy():
        run.step()
        assert same_lengths(group)
        if run.counts.get("a", 0) == 2:
            group.cancel("a")
    assert run.reasons["a"] == "cancelled"
    assert run.usage["b"].cached_tokens > 100
    assert not group.rank.follower._aside
