"""Conversations on disk: a model that was unloaded comes back with them warm."""

import os
import threading
from pathlib import Path

import mlx.core as mx
import mlx_helpers as helpers
import pytest
import tiny_llama
from mlx_lm.models.cache import KVCache
from safetensors import safe_open

from plimsoll.engine import disk_cache
from plimsoll.engine.disk_cache import DiskCache, can_be_stored, fingerprint, layers_of
from plimsoll.engine.protocol import ChatRequest, EngineOptions

LONG = "the line on her side shows how deep she may lie in the water " * 20
LIMIT = 64 << 20


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tiny_llama.build(tmp_path_factory.mktemp("tiny"), max_position_embeddings=2048)


@pytest.fixture
def opened(folder, tmp_path):
    engines = []

    def open_(**options):
        options = {"cache_dir": str(tmp_path), "disk_cache_bytes": LIMIT, **options}
        engine = helpers.MlxEngine(EngineOptions(**options))
        engine.load(Path(folder), lambda *_: None)
        disk(engine)._thread.submit(int).result()  # the folder was looked through
        engines.append(engine)
        return engine

    yield open_
    for engine in engines:
        engine.close()


def disk(engine):
    return engine._recall._disk


def tidy(engine):
    """Let it write all it wants to."""
    while engine.idle():
        disk(engine)._thread.submit(int).result()


def files(tmp_path):
    return sorted((tmp_path / "conversations").glob("*/*"))


def turn(engine, *contents, **rest):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)]
    run = helpers.Run(engine)
    run.submit("a", ChatRequest(messages, helpers.GREEDY, max_tokens=8, **rest)).finish()
    return run.texts["a"], run.usage["a"].cached_tokens


def layers(tokens, dtype=mx.float32, seed=0):
    made = []
    for index in range(2):
        layer = KVCache()
        key = mx.random.key(seed + index)
        layer.keys = mx.random.normal((1, 3, tokens, 8), dtype=mx.float32, key=key).astype(dtype)
        layer.values = layer.keys + 1
        layer.offset = tokens
        made.append(layer)
    mx.eval([layer.state for layer in made])
    return made


@pytest.fixture
def cache(tmp_path):
    made = DiskCache(tmp_path, "model", LIMIT)
    yield made
    made.close()


def done(cache):
    cache._thread.submit(int).result()
    assert not cache.writing
    return cache


# ---- through the engine


def test_a_conversation_goes_on_warm_after_an_unload(opened, tmp_path):
    first = opened()
    said, cached = turn(first, LONG)
    assert cached == 0
    tidy(first)
    first.close()
    second = opened()
    _, cached = turn(second, LONG, said, "and then?")
    assert cached > 256
    assert len(files(tmp_path)) == 1


def test_the_answer_is_the_one_of_a_cold_model(opened, folder):
    first = opened()
    said, _ = turn(first, LONG)
    tidy(first)
    warm, cached = turn(opened(), LONG, said, "and then?")
    cold = helpers.open_engine(folder, prompt_cache_bytes=0)
    assert cached > 0
    assert turn(cold, LONG, said, "and then?") == (warm, 0)
    cold.close()


def test_a_later_turn_takes_the_place_of_the_earlier_one(opened, tmp_path):
    engine = opened()
    said, _ = turn(engine, LONG)
    tidy(engine)
    (before,) = files(tmp_path)
    turn(engine, LONG, said, "and then?")
    tidy(engine)
    (after,) = files(tmp_path)
    assert before != after


def test_short_conversations_are_not_written(opened, tmp_path):
    engine = opened()
    turn(engine, "hello")
    tidy(engine)
    assert not files(tmp_path)


def test_nothing_is_written_twice(opened, tmp_path):
    engine = opened()
    turn(engine, LONG)
    tidy(engine)
    (path,) = files(tmp_path)
    before = path.stat().st_mtime_ns
    turn(engine, "hello")
    tidy(engine)
    assert path.stat().st_mtime_ns == before


def test_a_broken_file_costs_nothing_but_itself(opened, tmp_path, capsys):
    engine = opened()
    said, _ = turn(engine, LONG)
    tidy(engine)
    (path,) = files(tmp_path)
    second = opened()
    os.truncate(path, path.stat().st_size // 2)
    assert turn(second, LONG) == (said, 0)
    assert not path.exists()
    assert "can't be read and is dropped" in capsys.readouterr().err


def test_a_request_that_waits_for_the_disk_can_be_cancelled(opened):
    engine = opened()
    turn(engine, LONG)
    tidy(engine)
    second = opened()
    release = threading.Event()
    disk(second)._thread.submit(release.wait)
    run = helpers.Run(second).submit("a", ChatRequest([{"role": "user", "content": LONG}], helpers.GREEDY))
    run.step()
    assert second.busy()
    second.cancel("a")
    run.finish()
    release.set()
    assert run.reasons == {"a": "cancelled"}


# ---- the files


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_what_was_written_is_read_bit_for_bit(cache, dtype):
    tokens, stored = list(range(300)), layers(300, dtype)
    assert can_be_stored(stored)
    assert cache.wants(tokens, stored)
    cache.write(tokens, stored)
    found = done(cache).find([*tokens, 7, 8], 0, LIMIT)
    read = layers_of(cache.read(found).result())
    assert all(
        mx.array_equal(one.keys, other.keys) and mx.array_equal(one.values, other.values) and one.keys.dtype == dtype
        for one, other in zip(read, stored, strict=True)
    )
    assert [layer.offset for layer in read] == [300, 300]


def test_files_are_safetensors_for_the_owner_only(cache):
    cache.write(list(range(300)), layers(300))
    path = done(cache)._stored[0].path
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with safe_open(path, framework="numpy") as file:
        assert file.get_tensor("tokens").tolist() == list(range(300))
        assert file.get_tensor("k.1").shape == (1, 3, 300, 8)
    assert not list(path.parent.glob("*.part"))


def test_the_longest_beginning_is_found_if_it_is_worth_it(cache):
    cache.write(list(range(300)), layers(300))
    cache.write([*range(400), 9], layers(401, seed=5))
    asked = [*range(400), 1, 2, 3]
    assert len(done(cache).find(asked, 0, LIMIT).tokens) == 401
    assert cache.find(asked, 200, LIMIT) is None
    assert cache.find(asked, 0, 1000) is None
    assert cache.find([5, *range(400)], 0, LIMIT) is None


def test_the_least_recently_used_leave_when_the_limit_is_reached(tmp_path):
    one = sum(layer.nbytes for layer in layers(300))
    cache = DiskCache(tmp_path, "model", int(2.6 * one))
    for start in (0, 1000):
        cache.write(list(range(start, start + 300)), layers(300))
    first, second = done(cache)._stored
    os.utime(first.path, (1, 1))
    os.utime(second.path, (2, 2))
    cache.read(first).result()
    cache.write(list(range(2000, 2300)), layers(300))
    assert {stored.tokens[0] for stored in done(cache)._stored} == {0, 2000}
    assert not second.path.exists()
    cache.close()


def test_all_models_share_the_limit(tmp_path):
    one = sum(layer.nbytes for layer in layers(300))
    limit = int(2.6 * one)
    others = DiskCache(tmp_path, "other", limit)
    for start in (0, 1000):
        others.write(list(range(start, start + 300)), layers(300))
    done(others)
    cache = DiskCache(tmp_path, "model", limit)
    cache.write(list(range(300)), layers(300))
    done(cache)
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*.safetensors")) <= limit
    # What the other one's index still names is gone: found out when it is read.
    for stored in others._stored:
        tensors = others.read(stored).result()
        assert (tensors is None) == (not stored.path.exists())
    for made in (others, cache):
        made.close()


def test_one_conversation_does_not_take_most_of_the_room(tmp_path):
    one = sum(layer.nbytes for layer in layers(300))
    cache = DiskCache(tmp_path, "model", int(1.9 * one))
    assert not cache.wants(list(range(300)), layers(300))
    cache.close()


def test_the_disk_keeps_room_for_its_owner(cache, monkeypatch):
    monkeypatch.setattr(disk_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    cache.write(list(range(300)), layers(300))
    assert not done(cache)._stored


def test_a_disk_that_fails_is_said_and_nothing_more(cache, capsys):
    done(cache)
    cache._folder.rmdir()
    cache._root.joinpath("model").write_text("a file where the folder was")
    cache.write(list(range(300)), layers(300))
    assert not done(cache)._stored
    assert "conversations can't be kept on disk" in capsys.readouterr().err


def test_parts_of_killed_workers_and_foreign_files_are_cleared_away(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    stale, fresh, foreign = folder / "a.1.part", folder / "b.2.part", folder / "c.safetensors"
    for path in (stale, fresh, foreign):
        path.write_bytes(b"rubbish")
    os.utime(stale, (1, 1))
    cache = DiskCache(tmp_path, "model", LIMIT)
    done(cache)
    assert [path.exists() for path in (stale, fresh, foreign)] == [False, True, False]
    cache.close()


def test_other_kinds_of_caches_are_left_alone():
    trimmed = layers(300)
    trimmed[0].trim(3)
    assert not can_be_stored(trimmed)
    assert not can_be_stored([])
    assert not can_be_stored([object()])


def test_a_changed_model_has_other_files(folder, tmp_path):
    options = EngineOptions(cache_dir="")
    before = fingerprint(Path(folder), options)
    assert fingerprint(Path(folder), options) == before
    assert fingerprint(Path(folder), EngineOptions(cache_dir="", dequantize=True)) != before
    copy = tmp_path / "copy"
    copy.mkdir()
    assert fingerprint(copy, options) != before
