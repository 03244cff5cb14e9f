"""The KV memory of a running engine: what is really held stays within what is claimed, and that within the grant."""

import json
import random

import mlx.core as mx
import mlx_helpers as helpers
import pytest
import tiny_llama
from mlx_helpers import Run, open_engine, request
from mlx_lm.models.cache import make_prompt_cache

from plimsoll.engine.kv_budget import FIRST_TOKENS, STEP_TOKENS, KvCost
from plimsoll.engine.kv_measure import measure
from plimsoll.engine.protocol import ChatRequest
from plimsoll.engine.waiting_line import PATIENCE_S

LAYERS = 4
TOKEN_BYTES = LAYERS * 2 * 2 * 16 * 4  # layers x (keys and values) x heads x dimensions x float32
MIB = 1 << 20


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Its answers never end by themselves: the end-of-text token's logit is always 0, others go up to 40."""
    path = tmp_path_factory.mktemp("endless")
    tiny_llama.build(path, num_hidden_layers=LAYERS, max_position_embeddings=4096)
    weights = mx.load(str(path / "model.safetensors"))
    weights["lm_head.weight"][json.loads((path / "config.json").read_text())["eos_token_id"]] = 0
    mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
    return path


@pytest.fixture(scope="session")
def sliding(tmp_path_factory):
    """Every second layer sees 300 tokens only."""
    kinds = ["full_attention", "sliding_attention"] * (LAYERS // 2)
    return tiny_llama.build(
        tmp_path_factory.mktemp("sliding"),
        num_hidden_layers=LAYERS,
        max_position_embeddings=4096,
        sliding_window=300,
        layer_types=kinds,
    )


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def tokens_of_room(tokens):
    return (tokens + STEP_TOKENS) * TOKEN_BYTES


# ---- measuring


def test_bytes_per_token_are_measured_on_the_model(folder, sliding):
    assert open_engine(folder)._model.budget._cost == KvCost(((TOKEN_BYTES, None),))
    half = TOKEN_BYTES // 2
    window = 300 + 160 + STEP_TOKENS  # a whole chunk is let in while nobody streams
    assert open_engine(sliding)._model.budget._cost == KvCost(((half, None), (half, window)))


def test_the_measured_cost_bounds_what_a_long_sequence_takes(folder, sliding):
    for path in (folder, sliding):
        model, _ = helpers.reference_model(str(path))
        cost = measure(model, 64)
        layers = make_prompt_cache(model)
        read = 0
        for _ in range(20):
            mx.eval(model(mx.ones((1, 64), dtype=mx.int32), cache=layers))
            read += 64
            held = sum(layer.nbytes for layer in layers)
            assert cost.sequence_bytes(read) * 0.5 < held <= cost.sequence_bytes(read + STEP_TOKENS)


def test_states_that_do_not_grow_and_nested_caches_are_counted():
    from mlx_lm.models.cache import ArraysCache, CacheList, KVCache

    class Odd:
        """A model with a recurrent state and two KV caches in one layer."""

        layers = ()

        def make_cache(self):
            return [ArraysCache(1), CacheList(KVCache(), KVCache())]

        def __call__(self, tokens, cache):
            state, pair = cache
            state[0] = mx.zeros((1, 10, 10))
            for one in pair.caches:
                one.update_and_fetch(mx.zeros((1, 3, tokens.shape[1], 8)), mx.zeros((1, 3, tokens.shape[1], 8)))
            return mx.zeros((1, tokens.shape[1], 5))

    assert measure(Odd(), 64) == KvCost(((2 * 2 * 3 * 8 * 4, None),), 400)


# ---- what is really held


@pytest.mark.parametrize("chunk", [16, 64, 300])
@pytest.mark.parametrize("kind", ["folder", "sliding"])
def test_real_bytes_stay_within_the_claims_and_claims_within_the_grant(kind, chunk, request, capsys):
    grant = 6000 * TOKEN_BYTES
    engine = open_engine(request.getfixturevalue(kind), kv_bytes=grant, prefill_chunk=chunk, max_batch=8)
    generator, budget, run, rng = engine._model.generator, engine._model.budget, Run(engine), random.Random(chunk)
    mx.synchronize(generator.stream)
    idle = mx.get_active_memory()
    todo = [
        (
            str(index),
            helpers.request(
                f"{index % 3} dog " * rng.choice([1, 5, 40, 200, 300]), max_tokens=rng.choice([None, 1, 5, 30, 200])
            ),
        )
        for index in range(16)
    ]
    together = 0
    fullest = peak = 0.0
    while todo or engine.busy():
        while todo and rng.random() < 0.25:
            run.submit(*todo.pop())
        if engine._live and rng.random() < 0.04:
            engine.cancel(rng.choice(list(engine._live.values())).id)
        mx.reset_peak_memory()
        run.step()
        engine._tidy(generator)  # as the next step does first
        mx.synchronize(generator.stream)
        claimed, stored = budget.claimed_bytes, engine._cache.nbytes
        assert generator.prompt_cache_nbytes <= claimed
        assert claimed + stored <= grant
        # Logits, tokens and random keys take a little too.
        assert mx.get_active_memory() - idle <= claimed + stored + MIB // 8
        together = max(together, len(engine._live))
        fullest = max(fullest, generator.prompt_cache_nbytes / max(claimed, 1))
        peak = max(peak, (mx.get_peak_memory() - idle) / grant)
    assert len(run.reasons) == 16
    assert run.refused == {}
    assert together >= 3
    with capsys.disabled():
        print(f" [at most {fullest:.0%} of the claims held; peak with activations {peak:.0%} of the grant]")  # noqa: T201


def test_what_a_long_neighbour_took_is_given_back_when_it_leaves(folder):
    engine = open_engine(folder, kv_bytes=6000 * TOKEN_BYTES, prompt_cache_bytes=0)
    mx.synchronize(engine._model.generator.stream)
    idle = mx.get_active_memory()
    run = Run(engine).submit("long", request("dog " * 1000, max_tokens=3)).submit("short", request("hello"))
    while "long" not in run.reasons:
        run.step()
    run.step()  # its tokens are handed out first
    assert engine._live
    mx.synchronize(engine._model.generator.stream)
    assert mx.get_active_memory() - idle < 2 * STEP_TOKENS * TOKEN_BYTES
    engine.close()


def test_answers_are_the_same_in_little_memory(folder):
    texts = ["hello", "fox", "who are you?", "ship " * 100, "船", "dog " * 300]
    plain, tight = Run(open_engine(folder)), Run(open_engine(folder, kv_bytes=tokens_of_room(1200)))
    for run in (plain, tight):
        for text in texts:
            run.submit(text, request(text, max_tokens=40))
        run.finish()
    assert tight.tokens == plain.tokens
    assert tight.reasons == plain.reasons


# ---- waiting


def test_a_request_that_does_not_fit_waits_for_the_others_and_is_answered(folder):
    engine = open_engine(folder, kv_bytes=tokens_of_room(1000))
    run = Run(engine).submit("a", request("hello", max_tokens=500)).submit("b", request("hello", max_tokens=500))
    while "a" not in run.reasons:
        run.step()
        assert len(engine._live) <= 1
    run.finish()
    assert run.reasons == {"a": "length", "b": "length"}
    assert run.counts == {"a": 500, "b": 500}


def test_nobody_overtakes_a_request_that_waits(folder):
    engine = open_engine(folder, kv_bytes=2 * tokens_of_room(200))
    run = Run(engine).submit("runs", request("hello", max_tokens=100))
    run.step()
    run.submit("long", request("hello", max_tokens=350)).submit("short", request("hello", max_tokens=5))
    while "long" not in run.counts:
        run.step()
        assert "short" not in run.counts
    run.finish()
    assert run.reasons == dict.fromkeys(("runs", "long", "short"), "length")


def test_who_waits_too_long_is_refused_and_the_batch_goes_on(folder):
    clock = Clock()
    engine = open_engine(folder, clock, kv_bytes=tokens_of_room(1000))
    run = Run(engine).submit("runs", request("hello", max_tokens=600)).submit("waits", request("fox", max_tokens=600))
    run.step()
    clock.now = PATIENCE_S - 1
    run.step()
    assert run.refused == {}
    clock.now = PATIENCE_S
    run.step()
    refused = run.refused["waits"]
    assert (refused.code, refused.param) == ("insufficient_memory", "max_tokens")
    assert "2 answers would need" in refused.message
    run.finish()
    assert run.counts["runs"] == 600
    assert "waits" not in run.reasons


def test_waiting_for_a_full_batch_is_no_wait_for_memory(folder):
    clock = Clock()
    engine = open_engine(folder, clock, max_batch=1, kv_bytes=tokens_of_room(4000))
    run = Run(engine).submit("a", request("hello", max_tokens=5)).submit("b", request("fox", max_tokens=5))
    while engine.busy():
        run.step()
        clock.now += PATIENCE_S
    assert run.reasons == {"a": "length", "b": "length"}


def test_a_request_that_waits_for_memory_can_be_cancelled(folder):
    engine = open_engine(folder, kv_bytes=tokens_of_room(1000))
    run = Run(engine).submit("a", request("hello", max_tokens=500)).submit("b", request("hello", max_tokens=500))
    run.step()
    engine.cancel("b")
    run.finish()
    assert run.reasons == {"a": "length", "b": "cancelled"}


# ---- refused at once, or cut


def test_max_tokens_that_never_fit_are_refused_at_once_and_not_cut(folder):
    engine = open_engine(folder, kv_bytes=tokens_of_room(1000))
    run = Run(engine).submit("a", request("hello", max_tokens=3000)).submit("b", request("hello", max_tokens=5))
    run.step()
    assert run.refused["a"].code == "never_fits"
    assert run.refused["a"].param == "max_tokens"
    fits = 1000 - len(engine.prepare(request("hello")).tokens)
    assert f"With this prompt {fits} tokens of answer fit" in run.refused["a"].message
    run.finish()
    assert run.reasons == {"b": "length"}
    assert Run(engine).submit("c", request("hello", max_tokens=fits)).finish().counts["c"] == fits


def test_a_refusal_alone_is_something_to_step_for(folder):
    engine = open_engine(folder, kv_bytes=tokens_of_room(1000))
    run = Run(engine).submit("a", request("dog " * 900))
    assert engine.busy()
    run.step()
    assert run.refused["a"].param == "messages"
    assert not engine.busy()


def test_without_max_tokens_an_answer_ends_where_memory_does(folder):
    engine = open_engine(folder, kv_bytes=tokens_of_room(1400))
    run = Run(engine).submit("a", request("hello")).finish()
    usage = run.usage["a"]
    assert run.reasons == {"a": "length"}
    assert usage.completion_tokens > FIRST_TOKENS
    assert 1400 - STEP_TOKENS < usage.prompt_tokens + usage.completion_tokens <= 1400
    assert len(run.tokens["a"]) == usage.completion_tokens


def test_without_max_tokens_and_with_room_an_answer_goes_to_the_end_of_the_context(folder):
    engine = open_engine(folder, context=1300, kv_bytes=tokens_of_room(8000))
    usage = Run(engine).submit("a", request("hello")).finish().usage["a"]
    assert usage.prompt_tokens + usage.completion_tokens == 1300


# ---- stored caches


def test_stored_caches_leave_for_a_request_that_needs_their_room(folder):
    engine = open_engine(folder, kv_bytes=tokens_of_room(1000))
    for text in ("ship " * 50, "dog " * 50, "fox " * 50):
        Run(engine).submit("a", request(text, max_tokens=20)).finish()
    assert len(engine._cache) == 3
    # So long an answer leaves room for one stored cache only: the one it was served from.
    prompt = len(engine.prepare(request("ship " * 50)).tokens)
    run = Run(engine).submit("a", request("ship " * 50, max_tokens=1000 - prompt - 100))
    run.step()
    assert len(engine._cache) == 1
    run.finish()
    assert run.usage["a"].cached_tokens == prompt - 1


def test_a_cache_that_must_leave_for_its_own_next_turn_still_serves_it(folder):
    engine = open_engine(folder, kv_bytes=tokens_of_room(1000))
    turns = [{"role": "user", "content": "ship " * 100}]
    said = Run(engine).submit("a", ChatRequest(turns, helpers.GREEDY, 20)).finish().texts["a"]
    turns += [{"role": "assistant", "content": said}, {"role": "user", "content": "fox"}]
    second = ChatRequest(turns, helpers.GREEDY, 1000 - len(engine.prepare(ChatRequest(turns)).tokens))
    run = Run(engine).submit("a", second)
    run.step()
    assert len(engine._cache) == 0
    run.finish()
    assert run.usage["a"].cached_tokens > 100
    assert len(engine._cache) == 1


def test_without_a_grant_nothing_waits(folder):
    engine = open_engine(folder, kv_bytes=0)
    run = Run(engine)
    for index in range(8):
        run.submit(str(index), request("hello", max_tokens=None if index % 2 else 3900))
    for _ in range(4):
        run.step()
    assert len(engine._live) == 8
    engine.close()
