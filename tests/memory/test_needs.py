"""The ways to load a model, best first."""

from typing import Any

from plimsoll.memory.ledger import MIB, Need
from plimsoll.memory.load_options import Weight, ways_to_load

# The 135M model in 4 bits: 98 MB on disk, 538 MB as dense float32, 46 KB of KV cache for a token on a CPU.
SMALL = Weight(98_000_000, 115_000_000, 538_000_000, 11_520, 8192)
PLAIN = Weight(500, 1000, 1000, 100, None)


def ways(weight: Weight = SMALL, **options: Any) -> tuple[Need, ...]:
    defaults: dict[str, Any] = {
        "device": "cpu",
        "dequantize": "auto",
        "context": None,
        "kv_budget_bytes": 1 * MIB,
        "measured": {},
    }
    return ways_to_load(weight, **{**defaults, **options})


def test_a_cpu_prefers_dense_float32_and_settles_for_packed() -> None:
    assert [(way.weights_bytes, way.dequantize) for way in ways()] == [(538_000_000, True), (115_000_000, False)]


def test_the_config_can_ask_for_one_form_only() -> None:
    assert [way.dequantize for way in ways(dequantize="always")] == [True]
    assert [way.dequantize for way in ways(dequantize="never")] == [False]


def test_what_is_not_quantised_has_one_form() -> None:
    assert [way.weights_bytes for way in ways(PLAIN)] == [1000]
    assert [way.weights_bytes for way in ways(PLAIN, dequantize="always")] == [1000]


def test_a_gpu_takes_the_weights_as_they_are() -> None:
    assert [(way.weights_bytes, way.dequantize) for way in ways(device="gpu")] == [(98_000_000, False)]


def test_without_a_budget_room_for_32768_tokens_is_preferred_to_room_for_4096() -> None:
    per_token = 11_520 * 4
    kv = [way.kv_bytes for way in ways(kv_budget_bytes=None)]
    good, least = (32768 + 256) * per_token, (4096 + 256) * per_token
    assert kv == [good, good, least, least]


def test_the_context_is_the_models_own_at_most() -> None:
    assert ways(context=4096)[0].context == 4096
    assert ways(context=100_000)[0].context == 8192


def test_what_was_measured_replaces_the_estimate_of_that_form() -> None:
    dense, packed = ways(measured={True: 600_000_000})
    assert dense.total_bytes == 600_000_000 + 1 * MIB
    assert packed.measured_bytes == 0


def test_leased_ways_begin_with_little_and_prefer_a_form_that_leaves_headroom() -> None:
    per_token = 11_520 * 4
    good, least = (32768 + 256) * per_token, (4096 + 256) * per_token
    made = ways(kv_budget_bytes=None, leased=True)
    assert {way.kv_bytes for way in made} == {least}
    assert [(way.dequantize, way.headroom_bytes) for way in made] == [
        (True, good - least),
        (False, good - least),
        (True, 0),
        (False, 0),
    ]


def test_a_budget_is_a_limit_of_leases_and_not_taken_at_the_load() -> None:
    (way, *_) = ways(kv_budget_bytes=1 << 40, leased=True)
    assert way.kv_bytes == (4096 + 256) * 11_520 * 4
    assert way.kv_most_bytes == 1 << 40
    assert {one.kv_bytes for one in ways(leased=True)} == {1 * MIB}
