"""Cache and wired limits on a GPU, with a fake in the place of MLX: no GPU has seen them yet."""

import mlx_helpers
import pytest
import tiny_llama

from plimsoll.engine.chat import generator
from plimsoll.engine.load.device_memory import CLEAR_EVERY, cache_bytes, limit_memory
from plimsoll.engine.protocol import EngineOptions, Lease, ModelInfo

GIB = 1 << 30


class FakeMlx:
    """Takes limits as MLX does: more wired memory than the system's limit is an error."""

    def __init__(self, system_limit=1000 * GIB):
        self.system_limit, self.cache, self.wired = system_limit, None, 0
        self.calls = 0

    def set_cache_limit(self, limit):
        before, self.cache = self.cache, limit
        return before

    def set_wired_limit(self, limit):
        self.calls += 1
        if limit > self.system_limit:
            raise ValueError("[metal::set_wired_limit] Setting a wired limit larger than the maximum working set size")
        before, self.wired = self.wired, limit
        return before


def info(*, weights=40, recommended=48, device="gpu"):
    return ModelInfo(
        context=4096,
        vocab_size=1000,
        weights_bytes=int(weights * GIB),
        device=device,
        dtype="bfloat16",
        working_set_bytes=int(recommended * GIB),
    )


def limited(*, weights=40, recommended=48, kv=4, wired=None, mlx=None, device="gpu"):
    mlx = mlx or FakeMlx()
    options = EngineOptions(
        cache_dir="", kv_bytes=int(kv * GIB), wired_bytes=None if wired is None else int(wired * GIB)
    )
    limit_memory(info(weights=weights, recommended=recommended, device=device), options, mlx)
    return mlx


def test_what_the_model_needs_is_wired_with_its_kv_caches():
    assert limited(weights=10, kv=2).wired == pytest.approx(12.5 * GIB)


def test_never_more_than_the_recommended_working_set_less_a_margin():
    assert limited(weights=46, kv=4).wired == pytest.approx(0.9 * 48 * GIB)
    assert limited(wired=400).wired == pytest.approx(0.9 * 48 * GIB)


def test_nothing_is_wired_where_the_configuration_says_so():
    assert limited(wired=0).wired == 0
    assert limited(wired=3).wired == 3 * GIB


def test_a_limit_that_the_system_refuses_costs_no_load(capsys):
    mlx = limited(mlx=FakeMlx(system_limit=GIB))
    assert mlx.wired == 0
    assert mlx.cache is not None
    assert "no more memory is wired" in capsys.readouterr().err


def test_wired_memory_follows_the_lease_of_the_kv_caches_in_steps():
    mlx = FakeMlx()
    wired = limit_memory(info(weights=10), EngineOptions(cache_dir="", kv_bytes=GIB, kv_lease=True), mlx)
    assert mlx.wired == pytest.approx(11.5 * GIB)
    for kv in (1.1, 0.9, 1.2):
        wired.follow(int(kv * GIB))
    assert mlx.calls == 1
    wired.follow(6 * GIB)
    assert mlx.wired == pytest.approx(16.5 * GIB)
    wired.follow(100 * GIB)
    assert mlx.wired == pytest.approx(0.9 * 48 * GIB)
    wired.follow(2 * GIB)
    assert mlx.wired == pytest.approx(12.5 * GIB)


@pytest.mark.parametrize(
    ("known", "options"),
    [
        (info(recommended=0), {"kv_lease": True}),
        (info(device="cpu"), {"kv_lease": True}),
        (info(), {"kv_lease": True, "wired_bytes": 0}),
        (info(), {"kv_lease": False}),
    ],
)
def test_wired_memory_stays_where_it_has_no_lease_to_follow(known, options):
    mlx = FakeMlx()
    wired = limit_memory(known, EngineOptions(cache_dir="", kv_bytes=GIB, **options), mlx)
    before = mlx.wired
    wired.follow(30 * GIB)
    assert mlx.wired == before


def test_every_change_of_a_workers_room_is_told_to_its_wired_memory(tmp_path):
    small = 64 << 20
    folder = tiny_llama.build(tmp_path, max_position_embeddings=4096)
    engine = mlx_helpers.open_engine(folder, kv_bytes=small, kv_lease=True, kv_most_bytes=GIB)
    told = []
    engine._model.room._wired.follow = told.append
    engine.lease(Lease(4 * small, GIB))
    engine.give_way()
    assert told == [4 * small, small]
    engine.close()


def test_a_cpu_has_no_limits():
    mlx = limited(recommended=0, device="cpu")
    assert (mlx.cache, mlx.wired) == (None, 0)


def test_a_gpu_that_recommends_no_size_gets_a_bound_for_the_cache_and_wires_nothing():
    mlx = limited(recommended=0)
    assert (mlx.cache, mlx.wired) == (2 * GIB, 0)


@pytest.mark.parametrize(("recommended", "cache"), [(2, 0.25), (11, 11 / 16), (48, 2), (400, 2)])
def test_the_allocators_cache_is_bounded(recommended, cache):
    assert cache_bytes(recommended * GIB) == cache * GIB
    assert limited(recommended=recommended).cache == cache * GIB


def test_the_allocators_cache_is_emptied_every_so_many_steps(monkeypatch):
    cleared = []
    monkeypatch.setattr(generator.mx, "clear_cache", lambda: cleared.append(made._decoded))
    made = object.__new__(generator.Generator)
    made._stream, made._decoded = generator.mx.default_stream(generator.mx.default_device()), 0
    made._groups, made.lookup = [], None
    made._old_wired_limit = None
    made.decoding = FakeBatch()
    for _ in range(2 * CLEAR_EVERY + 1):
        made.decode()
    assert cleared == [CLEAR_EVERY, 2 * CLEAR_EVERY]


class FakeBatch:
    def __len__(self):
        return 1

    def next(self):
        return []
