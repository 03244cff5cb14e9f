"""The KV memory of a running engine: what is really held stays within what is claimed, and that within the grant."""

import json
import random
import re

import mlx.core as mx
import mlx_helpers as helpers
import pytest
import tiny_llama
from mlx_helpers import Run, open_engine, request, store_of
from mlx_lm.models.cache import make_prompt_cache

from plimsoll.engine.chat.kv_budget import STEP_TOKENS, KvCost
from plimsoll.engine.chat.kv_measure import measure
from plimsoll.engine.protocol import ChatRequest, EngineOptions, Format, Lease

LAYERS = 2
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
    assert open_engine(folder)._model.room.budget._cost == KvCost(((TOKEN_BYTES, None),))
    half = TOKEN_BYTES // 2
    window = 300 + 160 + STEP_TOKENS  # a whole chunk is let in while nobody streams
    assert open_engine(sliding)._model.room.budget._cost == KvCost(((half, None), (half, window)))


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
    generator, budget, run, rng = engine._model.generator, engine._model.room.budget, Run(engine), random.Random(chunk)
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
        claimed, stored = budget.claimed_bytes, store_of(engine).nbytes
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


# ---- waiting and pausing


def test_a_request_begins_when_its_prompt_and_a_first_step_fit(folder):
    engine = open_engine(folder, kv_bytes=tokens_of_room(1000))
    run = Run(engine).submit("a", request("dog " * 600, max_tokens=3000))
    run.step()
    assert engine._live
    run.finish()
    assert run.reasons == {"a": "length"}
    assert 1000 - STEP_TOKENS < run.usage["a"].prompt_tokens + run.counts["a"] <= 1000, "it ends where memory does"


def test_a_request_that_does_not_fit_waits_for_the_others_and_is_told_so(folder):
    clock = Clock()
    engine = open_engine(folder, clock, kv_bytes=tokens_of_room(1000))
    run = Run(engine).submit("a", request("dog " * 400, max_tokens=50)).submit("b", request("dog " * 400, max_tokens=5))
    while "a" not in run.reasons:
        run.step()
        clock.now += 60.0
        assert len(engine._live) <= 1
    assert run.held["b"][-1].needed_bytes > tokens_of_room(1000)
    run.finish()
    assert run.reasons == {"a": "length", "b": "length"}
    assert run.refused == {}


def test_the_youngest_answer_pauses_and_goes_on_with_the_same_tokens(folder):
    texts = {"old": "hello", "young": "fox"}
    engine = open_engine(folder, kv_bytes=2 * tokens_of_room(500))
    run = Run(engine)
    for name, text in texts.items():
        run.submit(name, request(text, max_tokens=900))
    run.finish()
    assert run.parked == {"young"}
    assert run.held["young"]
    assert run.reasons == dict.fromkeys(texts, "length")
    assert run.counts == dict.fromkeys(texts, 900)
    for name, text in texts.items():
        prompt = engine.prepare(request(text)).tokens
        assert run.usage[name].prompt_tokens == len(prompt)
        assert_greedy(folder, prompt, run.tokens[name])


def assert_greedy(folder, prompt, chosen):
    """Every token is the likeliest one after all before it, as far as the order of additions lets that be said."""
    model, _ = helpers.reference_model(str(folder))
    logits = model(mx.array([[*prompt, *chosen]]))[0, len(prompt) - 1 : -1]
    taken = mx.take_along_axis(logits, mx.array(chosen)[:, None], axis=1)[:, 0]
    assert mx.max(mx.max(logits, axis=1) - taken).item() < 1e-2


def test_what_a_paused_answer_has_read_is_on_disk_before_it_leaves_memory(folder, tmp_path):
    engine = helpers.MlxEngine(EngineOptions(str(tmp_path), 2 * tokens_of_room(290), disk_cache_bytes=1 << 30))
    engine.load(folder, lambda *_: None)
    engine._model.reuse.disk._open.result()
    run, resumed = Run(engine), None
    for name, text in (("old", "hello"), ("young", "fox")):
        run.submit(name, request(text, max_tokens=300))
    while engine.busy() and not run.parked:
        run.step()
    run.step()
    engine.trim()  # as at a warning, before the disk has had any time
    while engine.busy():
        run.step()
        resumed = next((one for one in engine._live.values() if one.id == "young"), resumed)
    assert run.counts == {"old": 300, "young": 300}
    assert resumed.reused.source == "disk"
    assert resumed.reused.length == len(resumed.tokens) - 1 > STEP_TOKENS
    assert_greedy(folder, engine.prepare(request("fox")).tokens, run.tokens["young"])
    engine.close()


def test_a_paused_answer_goes_on_under_its_grammar(folder):
    run = Run(open_engine(folder, kv_bytes=2 * tokens_of_room(500)))
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 2000}
    run.submit("old", request("hello", max_tokens=900))
    run.submit("young", request("fox", max_tokens=900, format=Format(schema))).finish()
    assert run.parked == {"young"}
    assert run.refused == {}
    assert run.counts["young"] == 900
    assert re.fullmatch(r"\[\s*(-?\d+\s*,\s*)*-?\d*", run.texts["young"])


def test_a_paused_answer_can_be_cancelled(folder):
    engine = open_engine(folder, kv_bytes=2 * tokens_of_room(500))
    run = Run(engine).submit("old", request("hello", max_tokens=900)).submit("young", request("fox", max_tokens=900))
    while not run.parked:
        run.step()
    engine.cancel("young")
    run.finish()
    assert run.reasons == {"old": "length", "young": "cancelled"}
    assert run.usage["young"].completion_tokens == run.counts["young"]


def test_nobody_overtakes_a_request_that_waits(folder):
    engine = open_engine(folder, kv_bytes=2 * tokens_of_room(600))
    run = Run(engine).submit("runs", request("hello", max_tokens=100))
    run.step()
    run.submit("long", request("dog " * 700, max_tokens=5)).submit("short", request("hello", max_tokens=5))
    while "long" not in run.counts:
        run.step()
        assert "short" not in run.counts
    run.finish()
    assert run.reasons == dict.fromkeys(("runs", "long", "short"), "length")


def test_a_request_that_waits_for_memory_can_be_cancelled(folder):
    engine = open_engine(folder, kv_bytes=tokens_of_room(1000))
    run = (
        Run(engine).submit("a", request("dog " * 400, max_tokens=50)).submit("b", request("dog " * 400, max_tokens=50))
    )
    run.step()
    engine.cancel("b")
    run.finish()
    assert run.reasons == {"a": "length", "b": "cancelled"}


# ---- refused


def test_a_prompt_that_can_never_fit_is_too_long(folder):
    engine = open_engine(folder, kv_bytes=tokens_of_room(1000))
    run = Run(engine).submit("a", request("dog " * 900))
    assert engine.busy()
    run.step()
    refused = run.refused["a"]
    assert (refused.code, refused.param) == ("context_length_exceeded", "messages")
    assert f"> {1000 - STEP_TOKENS} maximum" in refused.message
    assert f"maximum context length is {engine.info.longest} tokens" in refused.message
    assert not engine.busy()


def test_with_room_an_answer_goes_to_the_end_of_the_context(folder):
    engine = open_engine(folder, context=1000, kv_bytes=tokens_of_room(8000))
    usage = Run(engine).submit("a", request("dog " * 400)).finish().usage["a"]
    assert usage.prompt_tokens + usage.completion_tokens == 1000


# ---- leases


class Front(Run):
    """Answers what the engine asks for, as the Supervisor would with ``free_bytes`` more."""

    def __init__(self, engine, free_bytes=0, *, more=True):
        super().__init__(engine)
        self.free_bytes, self.more = free_bytes, more
        self.room = engine._model.room.budget.room_bytes
        self.wanted = []

    def step(self):
        super().step()
        while self.leases:
            self.answer(self.leases.pop(0))

    def answer(self, event):
        self.wanted.append(event)
        if event.kv_bytes <= self.room:
            self.free_bytes += self.room - event.kv_bytes
            self.room = event.kv_bytes
            return
        grown = min(event.kv_bytes - self.room, self.free_bytes)
        self.free_bytes -= grown
        self.room += grown
        self.engine.lease(Lease(self.room, 1 << 40, self.more))


def leased(folder, **options):
    small = tokens_of_room(1000)
    return open_engine(folder, kv_bytes=small, kv_lease=True, kv_most_bytes=1 << 40, **options)


def test_room_is_asked_for_before_it_is_needed_and_handed_back_after(folder):
    engine = leased(folder, prompt_cache_bytes=0)
    run = Front(engine, 1 << 30).submit("a", request("dog " * 900, max_tokens=600)).finish()
    assert run.reasons == {"a": "length"}
    assert run.counts["a"] == 600
    assert len(run.held.get("a", [])) <= 1, "it waits for no more than the answer to its first request for room"
    assert run.room < 1 << 27
    run.step()
    assert run.room == engine._model.room.budget.room_bytes


def test_a_denied_request_waits_while_anything_else_runs_and_is_refused_when_nothing_does(folder):
    engine = leased(folder)
    run = Front(engine).submit("a", request("dog " * 900, max_tokens=100))
    for _ in range(20):
        run.step()
    assert run.refused == {}
    assert run.held["a"]
    run.more = False
    run.finish()
    assert run.refused["a"].code == "insufficient_memory"
    assert "nothing else runs" in run.refused["a"].message


def test_a_paused_answer_goes_on_when_its_lease_grows(folder):
    engine = leased(folder)
    run = Front(engine).submit("a", request("dog " * 700, max_tokens=600))
    while not run.parked:
        run.step()
    for _ in range(20):
        run.step()
    assert run.reasons == {}
    run.free_bytes = 1 << 30
    run.finish()
    assert run.counts["a"] == 600
    assert_greedy(folder, engine.prepare(request("dog " * 700)).tokens, run.tokens["a"])


def test_giving_way_drops_stored_caches_and_hands_back_what_no_request_uses(folder):
    engine = leased(folder)
    run = Front(engine, 1 << 30).submit("a", request("dog " * 900, max_tokens=100)).finish()
    assert store_of(engine).nbytes
    (handed_back,) = engine.give_way()
    run.answer(handed_back)
    assert store_of(engine).nbytes == 0
    assert run.room == engine._model.room.budget.room_bytes == tokens_of_room(1000)
    assert engine.give_way() == []


# ---- stored caches


def test_stored_caches_leave_for_a_request_that_needs_their_room(folder):
    engine = open_engine(folder, kv_bytes=tokens_of_room(1000))
    texts = ("ship " * 200, "dog " * 200, "fox " * 200)
    for text in texts:
        Run(engine).submit("a", request(text, max_tokens=20)).finish()
    prompts = [engine.prepare(request(text)).tokens for text in texts]
    assert all(store_of(engine).find(tokens).held.length == len(tokens) - 1 for tokens in prompts)
    run = Run(engine).submit("a", request(texts[0], max_tokens=600)).finish()
    assert run.usage["a"].cached_tokens == len(prompts[0]) - 1
    assert any(store_of(engine).find(tokens).held.length < len(tokens) - 1 for tokens in prompts[1:])


def test_a_cache_that_must_leave_for_its_own_next_turn_still_serves_it(folder):
    engine = open_engine(folder, kv_bytes=tokens_of_room(1000))
    turns = [{"role": "user", "content": "ship " * 100}]
    said = Run(engine).submit("a", ChatRequest(turns, helpers.GREEDY, 20)).finish().texts["a"]
    turns.append({"role": "assistant", "content": said})
    short = len(engine.prepare(ChatRequest([*turns, {"role": "user", "content": "fox "}])).tokens)
    turns.append({"role": "user", "content": "fox " * (1000 - STEP_TOKENS - short + 1)})
    run = Run(engine).submit("a", ChatRequest(turns, helpers.GREEDY, STEP_TOKENS))
    run.step()
    assert len(store_of(engine)) == 0
    run.finish()
    assert run.usage["a"].cached_tokens > 100
    assert len(store_of(engine)) > 0


def test_without_a_grant_nothing_waits(folder):
    engine = open_engine(folder, kv_bytes=0)
    run = Run(engine)
    for index in range(8):
        run.submit(str(index), request("hello", max_tokens=None if index % 2 else 3900))
    for _ in range(4):
        run.step()
    assert len(engine._live) == 8
    engine.close()
