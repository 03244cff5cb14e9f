"""The prefix store on disk: a model that was unloaded comes back warm, and no file ever costs more than a miss."""

import json
import os
import shutil
import struct
import threading
import zlib
from pathlib import Path

import mlx.core as mx
import mlx_helpers as helpers
import numpy as np
import pytest
import tiny_llama
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from test_prefix_store import MODELS, PLAIN, N, check, put, text

from plimsoll.engine.chat.prefix_store import disk_store as disk_module
from plimsoll.engine.chat.prefix_store import files
from plimsoll.engine.chat.prefix_store import folder as folder_module
from plimsoll.engine.chat.prefix_store.disk_store import DiskStore
from plimsoll.engine.chat.prefix_store.files import BLOCK, STATE, BrokenPiece, read_piece, write_piece
from plimsoll.engine.chat.prefix_store.fingerprint import fingerprint, is_remembered
from plimsoll.engine.chat.prefix_store.prefix_store import PrefixStore
from plimsoll.engine.chat.prefix_store.spec import Spec
from plimsoll.engine.protocol import ChatRequest, EngineOptions, ModelInfo

LONG = "the line on her side shows how deep she may lie in the water " * 20
LIMIT = 64 << 20
PLENTY = 1 << 30
INFO = ModelInfo(2048, 256, 1, "cpu", "float32")


class Worker:
    """A store and its folder, as one process of a model has them."""

    def __init__(self, root, model, limit=LIMIT, budget=PLENTY, name="model"):
        self.model = model
        self.store = PrefixStore(model.caches, budget)
        self.disk = DiskStore(root, lambda _: name, limit, Spec(model.read(text(9)), 9))
        wait(self.disk)
        assert self.disk.look(self.store)

    def put(self, tokens):
        put(self.store, self.model, tokens)

    def write(self):
        while self.disk.put_away(self.store):
            wait(self.disk)
        wait(self.disk)
        self.disk.put_away(self.store)
        wait(self.disk)

    def recall(self, tokens):
        """How much of a prompt is in memory once the disk has been asked."""
        for _ in range(20):
            found = self.store.find(tokens)
            if found.stored.length <= found.held.length or not self.disk.read(found.stored, self.store.budget_bytes):
                break
            wait(self.disk)
            self.disk.take_in(self.store)
        return check(self.store, self.model, tokens)


def wait(disk):
    disk._thread.submit(int).result()


@pytest.fixture
def opened(tmp_path):
    workers = []

    def open_(model=PLAIN, **options):
        workers.append(Worker(tmp_path / "root", model, **options))
        return workers[-1]

    yield open_
    for worker in workers:
        worker.disk.close()


def written(tmp_path, suffix=""):
    return sorted((tmp_path / "root").glob(f"*/*{suffix}"))


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_cache_comes_back_from_disk_bit_for_bit(opened, kind):
    model, tokens = MODELS[kind], text(3 * N + 20)
    first = opened(model)
    first.put(tokens[: 2 * N])
    first.put(tokens)
    first.write()
    second = opened(model)
    assert second.recall([*tokens, 1]) == len(tokens)
    assert second.recall([*tokens[: 2 * N], 999, 998]) == 2 * N


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_arrays_keep_their_bits(tmp_path, dtype):
    from plimsoll.engine.chat.prefix_store.spec import to_mlx, to_numpy

    array = mx.random.normal((1, 3, 37, 8)).astype(dtype)
    heads, views, _ = to_numpy([array, None, mx.zeros((1, 3, 37, 0), dtype)])
    write_piece(tmp_path / "a.block", files.Head("", 0, (1, 2), heads), views)
    piece = read_piece(tmp_path / "a.block")
    back = to_mlx(piece.head.arrays, piece.arrays)
    assert back[0].dtype == dtype
    assert mx.array_equal(back[0], array)
    assert back[1] is None
    assert back[2].shape == (1, 3, 37, 0)


def test_files_are_for_the_owner_only_and_nothing_is_written_twice(opened, tmp_path):
    worker = opened()
    worker.put(text(3 * N))
    worker.write()
    before = {path: path.stat().st_mtime_ns for path in written(tmp_path)}
    assert len(before) == 3
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in before)
    assert (tmp_path / "root" / "model").stat().st_mode & 0o777 == 0o700
    inodes = {path: path.stat().st_ino for path in before}
    worker.put(text(3 * N))
    worker.write()
    assert {path: path.stat().st_ino for path in written(tmp_path)} == inodes


def test_a_later_turn_takes_the_place_of_the_earlier_ones_end(opened, tmp_path):
    worker = opened()
    tokens = text(2 * N - 30)
    worker.put(tokens)
    worker.write()
    assert len(written(tmp_path)) == 2
    longer = [*tokens, *text(100, 3)]
    worker.put(longer)
    worker.write()
    assert len(written(tmp_path)) == 3
    assert opened().recall([*longer, 1]) == len(longer)


def test_short_conversations_are_not_written(opened, tmp_path):
    worker = opened()
    worker.put(text(disk_module.LEAST_TOKENS - 1))
    worker.write()
    assert not written(tmp_path)


# ---- broken files


def spoil_byte(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def spoil_header(path):
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)


def cut_short(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b"")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def folder(path):
    path.unlink()
    path.mkdir()


def link(path):
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def endless(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def another(path):
    others = [one for one in path.parent.iterdir() if one.suffix == path.suffix and one != path]
    shutil.copy(others[0], path)


def forged(change):
    """A file with other contents whose checksums are right."""

    def forge(path):
        piece = read_piece(path)
        head = json.loads(json.dumps(msgspec_to_builtins(piece.head)))
        arrays = list(piece.arrays)
        change(head, arrays)
        path.write_bytes(encode(head, arrays))

    return forge


def msgspec_to_builtins(head):
    import msgspec

    return msgspec.to_builtins(head)


def encode(head, arrays):
    out = json.dumps(head).encode()
    out += b" " * (-(16 + len(out)) % 64)
    data = b"".join(one.tobytes() + bytes(-one.nbytes % 64) for one in arrays if one is not None)
    return (
        struct.pack("<8sII", b"plprefix", len(out), zlib.crc32(out)) + out + data + struct.pack("<I", zlib.crc32(data))
    )


def fewer_layers(head, arrays):
    del head["arrays"][-2:], arrays[-2:]


def other_shape(head, arrays):
    head["arrays"][0][1] = [1, *head["arrays"][0][1][2:], 2]
    arrays[0] = arrays[0].reshape(head["arrays"][0][1])


def other_dtype(head, arrays):
    head["arrays"][0][0] = "int32"
    arrays[0] = arrays[0].astype(np.int32)


def shifted_tokens(head, _arrays):
    head["tokens"] = [token + 1 for token in head["tokens"]]


SPOILED = [spoil_byte, spoil_header, cut_short, empty, pipe, folder, link, endless, another]
FORGED = [forged(change) for change in (fewer_layers, other_shape, other_dtype, shifted_tokens)]


@pytest.mark.parametrize("spoil", SPOILED + FORGED)
@pytest.mark.parametrize("seen_before", [True, False])
def test_a_broken_file_costs_a_miss(opened, tmp_path, capfd, spoil, seen_before):
    first = opened()
    tokens = text(3 * N)
    first.put(tokens)
    first.write()
    second = opened() if seen_before else None
    blocks = {read_piece(path).head.start: path for path in written(tmp_path, BLOCK)}
    spoil(blocks[N])
    second = second or opened()
    assert second.recall([*tokens, 1]) == N
    # What was read instead takes its place.
    second.put(tokens)
    second.write()
    if spoil is not folder:
        assert opened().recall([*tokens, 1]) == 3 * N
    capfd.readouterr()


@pytest.mark.parametrize("change", [fewer_layers, other_dtype, lambda head, _: head.update(states=[{"kind": "x"}])])
def test_a_broken_snapshot_costs_a_miss(opened, tmp_path, change):
    model, tokens = MODELS["windows"], text(3 * N)
    first = opened(model)
    first.put(tokens[:N])
    first.put(tokens)
    first.write()
    (last,) = (path for path in written(tmp_path, STATE) if read_piece(path).head.start == 2 * N)
    forged(change)(last)
    assert opened(model).recall([*tokens, 1]) == N


def test_a_file_that_promises_too_much_is_not_read(tmp_path):
    path = tmp_path / "a.block"
    write_piece(
        path, files.Head("", 0, (1,), (files.ArrayHead("float32", (1 << 20, 1 << 20)),)), [np.zeros(1, np.float32)]
    )
    with pytest.raises(BrokenPiece, match="long"):
        read_piece(path)


# ---- room


def test_the_least_recently_used_leave_when_the_limit_is_reached(opened, tmp_path):
    worker = opened()
    for seed in (1, 2):
        worker.put(text(2 * N, seed))
    worker.write()
    one, two = 2 * N, int(1.4 * sum(path.stat().st_size for path in written(tmp_path)))
    age = iter(range(100))
    for path in sorted(written(tmp_path), key=lambda path: -read_piece(path).head.start):
        os.utime(path, (next(age), next(age)))
    second = opened(limit=two)
    second.recall([*text(one, 1), 1])
    second.write()
    second.put(text(2 * N, 3))
    second.write()
    third = opened(limit=two)
    assert third.recall([*text(one, 1), 1]) == one
    assert third.recall([*text(one, 3), 1]) == one
    assert third.recall([*text(one, 2), 1]) < one
    assert sum(path.stat().st_size for path in written(tmp_path)) <= two


def test_all_models_share_the_limit_and_what_another_deleted_is_a_miss(opened, tmp_path):
    worker = opened()
    worker.put(text(2 * N))
    worker.write()
    limit = int(1.2 * sum(path.stat().st_size for path in written(tmp_path)))
    reader = opened()
    other = opened(limit=limit, name="other")
    other.put(text(2 * N))
    other.write()
    assert sum(path.stat().st_size for path in written(tmp_path)) <= limit
    assert reader.recall([*text(2 * N), 1]) == 0


def test_a_conversation_larger_than_the_limit_keeps_its_beginning(opened, tmp_path):
    worker = opened()
    worker.put(text(N))
    worker.write()
    size = written(tmp_path)[0].stat().st_size
    small = opened(limit=int(4.5 * size))
    small.put(text(12 * N))
    small.write()
    assert opened(limit=int(4.5 * size)).recall([*text(12 * N), 1]) >= 3 * N


def test_the_disk_keeps_room_for_its_owner(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_FREE_BYTES", 1 << 60)
    worker = opened()
    worker.put(text(2 * N))
    worker.write()
    assert not written(tmp_path)
    assert worker.recall([*text(2 * N), 1]) == 2 * N, "it is in memory all the same"
    worker.store.clear()
    assert worker.recall([*text(2 * N), 1]) == 0


def test_what_leaves_memory_while_it_is_written_is_read_again_from_disk(opened):
    worker = opened()
    worker.put(text(3 * N))
    begun = threading.Event()
    worker.disk._thread.submit(begun.wait)
    worker.disk.put_away(worker.store)
    worker.store.clear()
    begun.set()
    assert worker.recall([*text(3 * N), 1]) == 3 * N


def test_a_disk_that_fails_is_said_and_nothing_more(opened, tmp_path, capfd):
    worker = opened()
    (tmp_path / "root" / "model").rmdir()
    (tmp_path / "root" / "model").write_text("a file where the folder was")
    worker.put(text(2 * N))
    worker.write()
    assert "can't be kept on disk" in capfd.readouterr().err


def test_parts_of_killed_workers_and_foreign_files_are_cleared_away(opened, tmp_path):
    home = tmp_path / "root" / "model"
    home.mkdir(parents=True)
    stale, fresh, foreign = home / "a.1.part", home / "b.2.part", home / "c.block"
    for path in (stale, fresh, foreign):
        path.write_bytes(b"rubbish")
    os.utime(stale, (1, 1))
    opened()
    assert [path.exists() for path in (stale, fresh, foreign)] == [False, True, False]


def test_what_nothing_stands_before_is_cleared_away(opened, tmp_path):
    worker = opened()
    worker.put(text(3 * N))
    worker.write()
    first = next(path for path in written(tmp_path) if read_piece(path).head.start == 0)
    first.unlink()
    second = opened()
    wait(second.disk)
    assert not written(tmp_path)
    assert second.recall([*text(3 * N), 1]) == 0


def test_what_left_memory_is_read_again_from_disk(opened):
    worker = opened()
    for seed in range(4):
        worker.put(text(2 * N, seed))
    worker.write()
    worker.store.clear()
    assert worker.store.nbytes == 0
    for seed in range(4):
        assert worker.recall([*text(2 * N, seed), 1]) == 2 * N


@pytest.mark.parametrize("model", [PLAIN, MODELS["windows"]])
def test_a_beginning_is_read_in_portions(opened, monkeypatch, model):
    worker = opened(model)
    worker.put(text(8 * N))
    worker.write()
    worker.store.clear()
    size = max(piece.size for piece in worker.disk._pieces.values())
    monkeypatch.setattr(disk_module, "_BUSY_PORTION_BYTES", 2 * size)
    monkeypatch.setattr(disk_module, "_READ_SHARE", PLENTY)
    portions = []
    read = worker.disk._folder.read
    monkeypatch.setattr(
        worker.disk._folder,
        "read",
        lambda paths: portions.append(sum(path.stat().st_size for path in paths)) or read(paths),
    )
    assert worker.recall([*text(8 * N), 1]) == 8 * N
    assert len(portions) >= 4
    assert max(portions) < 3 * size


def test_a_beginning_is_read_as_far_as_memory_has_room(opened):
    worker = opened()
    worker.put(text(8 * N))
    worker.write()
    budget = worker.store.nbytes // 2
    assert 0 < opened(budget=budget).recall([*text(8 * N), 1]) <= 4 * N
    assert opened(budget=10).recall([*text(8 * N), 1]) == 0
    assert opened(MODELS["windows"], budget=10).recall([*text(8 * N), 1]) == 0


# ---- what a model is


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return tiny_llama.build(tmp_path_factory.mktemp("tiny"), max_position_embeddings=2048)


def test_every_byte_of_the_weights_counts(tiny, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    options = EngineOptions(cache_dir="")
    name = fingerprint(model, options, INFO, tmp_path)
    assert fingerprint(model, options, INFO, tmp_path) == name
    weights = next(model.glob("*.safetensors"))
    times = weights.stat()
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights.stat().st_size == times.st_size
    assert fingerprint(model, options, INFO, tmp_path) != name
    data[-5] ^= 1
    weights.write_bytes(data)
    assert fingerprint(model, options, INFO, tmp_path) == name


def test_a_moved_model_keeps_its_conversations_and_all_else_has_others(tiny, tmp_path):
    options = EngineOptions(cache_dir="")
    name = fingerprint(Path(tiny), options, INFO, tmp_path)
    shutil.copytree(tiny, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy", options, INFO, tmp_path) == name
    config = tmp_path / "copy" / "config.json"
    config.write_text(config.read_text() + " ")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapters.safetensors").write_bytes(b"x")
    others = {
        fingerprint(tmp_path / "copy", options, INFO, tmp_path),
        fingerprint(Path(tiny), EngineOptions(cache_dir="", adapter=str(adapter)), INFO, tmp_path),
        fingerprint(Path(tiny), options, ModelInfo(2048, 256, 1, "gpu", "bfloat16"), tmp_path),
    }
    assert len(others | {name}) == 4


def test_weights_are_hashed_once(tiny, tmp_path):
    options = EngineOptions(cache_dir="")
    assert not is_remembered(Path(tiny), options, tmp_path)
    name = fingerprint(Path(tiny), options, INFO, tmp_path)
    assert is_remembered(Path(tiny), options, tmp_path)
    (tmp_path / "digests.json").write_text("[rubbish")
    assert fingerprint(Path(tiny), options, INFO, tmp_path) == name


# ---- through the engine


@pytest.fixture
def engines(tiny, tmp_path):
    made = []

    def open_(**options):
        options = {"cache_dir": str(tmp_path), "disk_cache_bytes": LIMIT, **options}
        engine = helpers.MlxEngine(EngineOptions(**options))
        engine.load(Path(tiny), lambda *_: None)
        made.append(engine)
        return engine

    yield open_
    for engine in made:
        engine.close()


def turn(engine, *contents, **rest):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": said} for role, said in zip(roles, contents, strict=False)]
    run = helpers.Run(engine)
    run.submit("a", ChatRequest(messages, helpers.GREEDY, max_tokens=8, **rest)).finish()
    return run.texts["a"], run.usage["a"]


def test_a_worker_that_ends_at_once_leaves_its_conversations_for_the_next(engines):
    first = engines()
    said, usage = turn(first, LONG)
    assert usage.cached_tokens == 0
    first.close()  # it has not been idle for a moment
    second = engines()
    again, usage = turn(second, LONG)
    assert again == said
    assert usage.cached_tokens == usage.prompt_tokens - 1
    assert usage.cached_from == "disk"
    _, usage = turn(second, LONG, said, "and then?")
    assert usage.cached_from == "memory"


def test_the_answer_is_the_one_of_a_cold_model(engines, tiny):
    first = engines()
    said, _ = turn(first, LONG)
    first.close()
    warm, usage = turn(engines(), LONG, said, "and then?")
    assert usage.cached_tokens > 0
    cold = helpers.open_engine(tiny, prompt_cache_bytes=0)
    assert turn(cold, LONG, said, "and then?")[0] == warm
    cold.close()


def test_a_model_that_is_loaded_dense_takes_up_what_it_has_read_packed(tmp_path):
    folder = tiny_llama.build(tmp_path / "model", max_position_embeddings=2048)
    model, config = load_model(folder)
    nn.quantize(model, group_size=32, bits=4)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config | {"quantization": {"group_size": 32, "bits": 4}}))
    dtypes, usage = [], None
    for dense in (False, True):
        engine = helpers.MlxEngine(EngineOptions(str(tmp_path), disk_cache_bytes=LIMIT, dequantize=dense))
        dtypes.append(engine.load(folder, lambda *_: None).dtype)
        _, usage = turn(engine, LONG)
        engine.close()
    assert dtypes == ["4-bit, float32", "float32"]
    assert usage.cached_from == "disk"
    assert usage.cached_tokens == usage.prompt_tokens - 1


def test_a_request_that_waits_for_the_disk_can_be_cancelled(engines):
    first = engines()
    turn(first, LONG)
    first.close()
    second = engines()
    disk = second._model.reuse.disk
    wait(disk)
    release = threading.Event()
    disk._thread.submit(release.wait)
    run = helpers.Run(second).submit("a", ChatRequest([{"role": "user", "content": LONG}], helpers.GREEDY))
    run.step()
    assert second.busy()
    second.cancel("a")
    run.finish()
    release.set()
    assert run.reasons == {"a": "cancelled"}
