"""Log-probabilities, biases, raw prompts and counting."""

import math

import mlx.core as mx
import mlx_helpers as helpers
import pytest
import tiny_llama
from mlx_helpers import Run, open_engine, request

from plimsoll.engine.chat.sampling import TokenLogprobs
from plimsoll.engine.protocol import ChatRequest, EmbedRequest, Format, Sampling, Usage
from plimsoll.errors import BadRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(folder):
    engine = open_engine(folder)
    yield engine
    engine.close()


def reference(folder, prompt, tokens):
    """Log-probabilities of every token of the vocabulary, after each of ``tokens``, of the model itself."""
    model, _ = helpers.reference_model(str(folder))
    logits = model(mx.array([prompt + tokens]))[0, len(prompt) - 1 : -1]
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def test_log_probabilities_are_the_models_own(folder, engine):
    chat = request("hello", max_tokens=12, logprobs=5)
    run = Run(engine).submit("a", chat).submit("b", request("fox", max_tokens=12)).finish()
    tokens = run.tokens["a"]
    expected = reference(folder, engine.prepare(chat).tokens, tokens)
    assert list(run.logprobs) == ["a"]
    assert len(run.logprobs["a"]) == len(tokens)
    decode = engine._model.loaded.tokenizer.decode
    for token, said, row in zip(tokens, run.logprobs["a"], expected, strict=True):
        assert said.text == decode([token])
        assert said.logprob == pytest.approx(row[token].item(), abs=1e-4)
        assert [value for _, value in said.top] == pytest.approx(sorted(row.tolist())[-5:][::-1], abs=1e-4)


def test_tokens_that_are_a_part_of_a_character_have_its_bytes(engine):
    tokenizer = engine._model.loaded.tokenizer
    text = "水 ships \U0001f40b"  # the whale is no token of its own
    scored = TokenLogprobs(tokenizer)
    logprobs = mx.zeros((len(tokenizer.get_vocab()),))
    said = [scored.of(token, logprobs, 0) for token in tokenizer.encode(text, add_special_tokens=False)]
    assert any("\ufffd" in one.text for one in said)
    assert b"".join(one.encoded for one in said).decode() == text
    # The same holds for a token that was not chosen.
    for token in tokenizer.encode(text, add_special_tokens=False):
        best = scored.of(0, mx.where(mx.arange(len(tokenizer.get_vocab())) == token, 0.0, -5.0), 1)
        assert [other[2] for other in best.alternatives] == [scored.of(token, logprobs, 0).encoded]


def test_the_greedy_token_is_the_likeliest(engine):
    run = Run(engine).submit("a", request("hello", max_tokens=8, logprobs=3)).finish()
    for said in run.logprobs["a"]:
        assert said.top[0] == (said.text, said.logprob)
        assert [value for _, value in said.top] == sorted((value for _, value in said.top), reverse=True)


def test_the_probabilities_of_the_whole_vocabulary_sum_to_one(engine):
    run = Run(engine).submit("a", request("hello", max_tokens=3, logprobs=100_000)).finish()
    for said in run.logprobs["a"]:
        assert sum(math.exp(value) for _, value in said.top) == pytest.approx(1, abs=1e-4)


def test_only_the_chosen_tokens_where_no_others_are_asked_for(engine):
    run = Run(engine).submit("a", request("hello", Sampling(seed=1), max_tokens=4, logprobs=0)).finish()
    assert [said.top for said in run.logprobs["a"]] == [[]] * 4


def test_temperature_and_filters_do_not_change_them(folder, engine):
    chat = request("hello", Sampling(temperature=2, top_p=0.5, top_k=40, seed=4), max_tokens=6, logprobs=1)
    run = Run(engine).submit("a", chat).finish()
    expected = reference(folder, engine.prepare(chat).tokens, run.tokens["a"])
    for token, said, row in zip(run.tokens["a"], run.logprobs["a"], expected, strict=True):
        assert said.logprob == pytest.approx(row[token].item(), abs=1e-4)


def test_what_a_grammar_forbids_is_no_alternative(engine):
    schema = {"const": "x"}
    run = Run(engine).submit("a", request("hello", max_tokens=20, logprobs=5, format=Format(schema))).finish()
    assert run.texts["a"] == '"x"'
    assert all(math.isfinite(value) for said in run.logprobs["a"] for _, value in said.top)


def test_they_come_with_their_token_while_others_stream(engine):
    run = Run(engine)
    for name in "abcd":
        run.submit(name, request(name, Sampling(seed=1), max_tokens=6, logprobs=2))
    while engine.busy():
        run.step()
        assert {name: len(said) for name, said in run.logprobs.items()} == run.counts


# ---- biases


def test_a_bias_forces_a_token_and_forbids_one(engine):
    free = Run(engine).submit("a", request("hello", max_tokens=1)).finish().tokens["a"]
    forced = Sampling(temperature=0, logit_bias={77: 100.0})
    run = Run(engine).submit("a", request("hello", forced, max_tokens=3)).finish()
    assert run.tokens["a"] == [77] * 3
    forbidden = Sampling(temperature=0, logit_bias={free[0]: -100.0})
    assert Run(engine).submit("a", request("hello", forbidden, max_tokens=1)).finish().tokens["a"] != free


def test_a_bias_works_with_every_sampler_and_leaves_neighbours_alone(engine):
    alone = Run(engine).submit("b", request("fox", max_tokens=8)).finish().tokens["b"]
    run = Run(engine).submit("b", request("fox", max_tokens=8))
    run.submit("a", request("hello", Sampling(logit_bias={77: 100.0}, top_p=0.9), max_tokens=3)).finish()
    assert (run.tokens["a"], run.tokens["b"]) == ([77] * 3, alone)


@pytest.mark.parametrize("token", [-1, 10_000])
def test_a_bias_for_no_token_is_refused(engine, token):
    with pytest.raises(BadRequest, match=str(token)) as caught:
        engine.prepare(request("hello", Sampling(logit_bias={token: 1.0})))
    assert caught.value.param == "logit_bias"


# ---- raw prompts, counting, other kinds of request


def test_a_raw_prompt_has_no_template(folder, engine):
    _, tokenizer = helpers.reference_model(str(folder))
    assert engine.prepare(ChatRequest([], prompt="The fox")).tokens == tokenizer.encode("The fox")
    run = Run(engine).submit("a", ChatRequest([], Sampling(temperature=0), 5, prompt="The fox")).finish()
    assert run.usage["a"] == Usage(len(tokenizer.encode("The fox")), 5, 0)
    assert engine.prepare(ChatRequest([], prompt="<|im_end|>")).tokens == [tokenizer.eos_token_id]


def test_an_empty_raw_prompt_is_refused_where_the_model_has_no_beginning_of_text(engine):
    with pytest.raises(BadRequest) as caught:
        engine.prepare(ChatRequest([], prompt=""))
    assert caught.value.param == "prompt"


def test_counting_generates_nothing(engine):
    chat = request("hello", count_only=True)
    run = Run(engine).submit("busy", request("fox", max_tokens=4)).submit("a", chat).finish()
    assert (run.reasons["a"], "a" in run.texts) == ("stop", False)
    assert run.usage["a"] == Usage(len(engine.prepare(request("hello")).tokens), 0, 0)


def test_a_prompt_longer_than_the_context_can_be_counted(engine):
    run = Run(engine).submit("a", request("dog " * 2000, count_only=True)).finish()
    assert run.usage["a"].prompt_tokens > engine.info.context


def test_a_chat_model_gives_no_embeddings(engine):
    with pytest.raises(BadRequest, match="no embeddings"):
        engine.prepare(EmbedRequest(["hello"]))


def test_an_answer_to_a_raw_prompt_keeps_the_space_it_begins_with(folder, engine):
    _, tokenizer = helpers.reference_model(str(folder))
    forced = next(token for token in range(len(tokenizer)) if tokenizer.decode([token]).startswith(" "))
    biased = Sampling(temperature=0, logit_bias={forced: 100.0})
    run = Run(engine).submit("a", ChatRequest([], biased, 2, prompt="The fox")).finish()
    assert run.texts["a"] == 2 * tokenizer.decode([forced])
