"""Whatever one request's own code raises ends that request: its neighbours' tokens stay what they are alone."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
import tiny_llama
from mlx_helpers import GREEDY, Run, open_engine, request, store_of
from mlx_lm.models.cache import KVCache

from plimsoll.engine.chat import engine as chat_engine
from plimsoll.engine.chat import row_batch, sampling
from plimsoll.engine.chat.prefix_store.reuse import Reused
from plimsoll.engine.chat.row_batch import RowBatch
from plimsoll.engine.dialect.parts import Parts
from plimsoll.engine.protocol import ChatRequest, Format, Sampling
from plimsoll.engine.row_guard import NoFiniteScore, RowGuard, is_out_of_memory
from plimsoll.errors import BadRequest

TEXTS = {"left": "hello", "right": "who are you?"}
TOKENS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def alone(folder):
    engine = open_engine(folder, prompt_cache_bytes=0)
    run = Run(engine)
    for name, text in TEXTS.items():
        run.submit(name, request(text, max_tokens=TOKENS)).finish()
    engine.close()
    return run.tokens


@pytest.fixture(params=["eager", "pipelined"])
def engine(folder, request, monkeypatch):
    """On a CPU, and with the batch that a GPU gets."""
    if request.param == "pipelined":
        monkeypatch.setattr("plimsoll.engine.chat.generator.EagerBatch", RowBatch)
    engine = open_engine(folder, prompt_cache_bytes=1 << 20)
    yield engine
    engine.close()


class Panic(BaseException):
    """What a library in Rust raises."""


class Constraint:
    """A grammar that raises where it is told to, at its third token."""

    failure = ""

    def __init__(self, where, error=None, change=None):
        self.where, self.error, self.change, self.seen = where, error, change, 0

    def advance(self, _token):
        if self.where == "advance" and self.seen >= 3:
            raise self.error

    def __call__(self, _tokens, logits):
        self.seen += 1
        if self.where == "call" and self.seen >= 3:
            if self.error:
                raise self.error
            return self.change(logits)
        return logits


def among_neighbours(engine, submit, alone, *, prompt_cached=False):
    """What became of the request that ``submit`` adds between two others."""
    run = Run(engine).submit("left", request(TEXTS["left"], max_tokens=TOKENS))
    for _ in range(3):
        run.step()
    submit(run)
    run.submit("right", request(TEXTS["right"], max_tokens=TOKENS)).finish()
    for name in TEXTS:
        assert run.tokens[name] == alone[name], name
        assert run.reasons[name] == "length"
    assert "bad" not in run.reasons
    # Nothing of it is left: the same again comes to the same.
    assert not engine._live
    again = Run(engine).submit("left", request(TEXTS["left"], max_tokens=TOKENS)).finish()
    assert again.tokens["left"] == alone["left"]
    return run.refused["bad"]


def constrained(engine, constraint):
    def submit(run):
        prepared = engine.prepare(request("fox", max_tokens=TOKENS))
        engine.submit("bad", dataclasses.replace(prepared, constraint=constraint))

    return submit


@pytest.mark.parametrize("error", [ValueError("no such state"), Panic("panicked at lexer.rs"), KeyError("\ud800")])
@pytest.mark.parametrize("where", ["advance", "call"])
def test_a_grammar_that_raises(engine, alone, where, error):
    refused = among_neighbours(engine, constrained(engine, Constraint(where, error)), alone)
    assert refused.code == "internal_error"
    assert type(error).__name__ in refused.message
    assert "Other answers of the model are not touched" in refused.message
    refused.message.encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits * math.nan,
        lambda logits: mx.where(mx.arange(logits.shape[1]) == 7, math.nan, logits),
        lambda logits: mx.where(mx.arange(logits.shape[1]) == 7, math.inf, logits),
        lambda logits: logits - math.inf,
    ],
    ids=["all NaN", "one NaN", "one infinite", "all minus infinite"],
)
def test_scores_that_are_not_finite(engine, alone, change):
    refused = among_neighbours(engine, constrained(engine, Constraint("call", change=change)), alone)
    assert "The model computed no finite score for token 3 of the answer" in refused.message
    assert refused.code == "internal_error"


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=3), Sampling(top_p=0.5)])
def test_scores_of_the_model_itself_that_are_not_finite(engine, alone, sampling):
    """A row's logits are NaN out of the model, whatever samples from them."""
    model = engine._model.generator.model
    row = []

    def poisoned(tokens, cache):
        logits = model(tokens, cache=cache)
        uids = engine._model.generator.decoding.uids
        if row and row[0] in uids and tokens.shape == (len(uids), 1):
            broken = (mx.arange(len(uids)) == uids.index(row[0]))[:, None, None]
            return mx.where(broken, math.nan, logits)
        return logits

    def submit(run):
        run.submit("bad", request("fox", sampling, max_tokens=TOKENS))
        run.step()
        row.extend(uid for uid, live in engine._live.items() if live.id == "bad")
        engine._model.generator.decoding.model = poisoned

    assert "no finite score" in among_neighbours(engine, submit, alone).message


def test_a_processor_that_changes_the_shape(engine, alone):
    narrow = Constraint("call", change=lambda logits: logits[:, :5])
    assert "of shape (1," in among_neighbours(engine, constrained(engine, narrow), alone).message


@pytest.mark.parametrize("own", [Sampling(seed=5), Sampling(temperature=0.5), Sampling(logit_bias={3: 1.0})])
@pytest.mark.parametrize("error", [ValueError("no distribution"), Panic("panicked")])
def test_a_sampler_or_a_penalty_that_raises(engine, alone, own, error, monkeypatch):
    def broken(*_):
        raise error

    def submit(run):
        if own.logit_bias:
            monkeypatch.setattr(sampling, "_biased", lambda _: broken)
        else:
            monkeypatch.setattr(chat_engine, "sampler_for", lambda _: broken)
        run.submit("bad", request("fox", own, max_tokens=TOKENS))
        run.step()
        monkeypatch.undo()

    assert type(error).__name__ in among_neighbours(engine, submit, alone).message


def test_a_sampler_that_all_rows_share(engine, monkeypatch):
    """It fails for each of them, and each is told."""

    def broken(_logprobs):
        raise ValueError("no distribution")

    monkeypatch.setattr(chat_engine, "sampler_for", lambda _: broken)
    run = Run(engine)
    for name in "abc":
        run.submit(name, request(name, max_tokens=TOKENS))
    run.finish()
    assert set(run.refused) == set("abc")
    assert not run.reasons


@pytest.mark.parametrize("part", ["add", "finish"])
@pytest.mark.parametrize("error", [IndexError("list index out of range"), Panic("panicked at decoder.rs")])
def test_a_detokenizer_a_stop_string_or_a_reader_of_calls_that_raises(engine, alone, part, error):
    def submit(run):
        run.submit("bad", request("fox", max_tokens=6))
        run.step()
        (live,) = (live for live in engine._live.values() if live.id == "bad")

        def broken(*_):
            raise error

        setattr(live.answer.parts, part, broken)

    assert type(error).__name__ in among_neighbours(engine, submit, alone).message


def test_half_a_character_in_an_answer(engine, alone):
    """No frame can carry it: the whole step would be lost, and the worker with it."""

    def submit(run):
        run.submit("bad", request("fox", max_tokens=6))
        run.step()
        (live,) = (live for live in engine._live.values() if live.id == "bad")
        live.answer.parts._reader.add = lambda _: Parts("\ud83d")

    assert "UnicodeEncodeError" in among_neighbours(engine, submit, alone).message


def test_log_probabilities_that_raise(engine, alone, monkeypatch):
    def broken(*_):
        raise ValueError("a token without a text")

    monkeypatch.setattr(engine._model.logprobs, "of", broken)

    def submit(run):
        run.submit("bad", request("fox", max_tokens=TOKENS, logprobs=2))

    assert "a token without a text" in among_neighbours(engine, submit, alone).message


class Unmergeable(KVCache):
    @classmethod
    def merge(cls, caches):
        raise ValueError(f"{len(caches)} caches do not go together")


def test_a_kv_cache_that_can_not_be_merged(engine, alone, monkeypatch):
    take = engine._model.reuse.take

    def submit(run):
        prepared = engine.prepare(request("fox", max_tokens=TOKENS))
        monkeypatch.setattr(
            engine._model.reuse,
            "take",
            lambda tokens, generator: (
                Reused([Unmergeable(), Unmergeable()]) if tokens == prepared.tokens else take(tokens, generator)
            ),
        )
        engine.submit("bad", prepared)

    assert "do not go together" in among_neighbours(engine, submit, alone).message


@pytest.mark.parametrize("where", ["known", "take", "is_coming"])
def test_a_prompt_cache_that_raises_for_one_prompt(engine, alone, where, monkeypatch):
    real = getattr(engine._model.reuse, where)

    def submit(run):
        prepared = engine.prepare(request("fox", max_tokens=TOKENS))

        def broken(tokens, *rest):
            if tokens == prepared.tokens:
                raise LookupError("no such row")
            return real(tokens, *rest)

        monkeypatch.setattr(engine._model.reuse, where, broken)
        engine.submit("bad", prepared)

    assert "no such row" in among_neighbours(engine, submit, alone).message


def test_a_cache_that_can_not_be_kept_costs_no_answer(engine, monkeypatch):
    def broken(*_):
        raise ValueError("can't be taken out")

    monkeypatch.setattr(row_batch.RowBatch, "extract_cache", broken)
    monkeypatch.setattr(store_of(engine), "put", broken)
    run = Run(engine).submit("ends", request("hello", max_tokens=4)).submit("leaves", request("fox", max_tokens=9))
    for _ in range(4):
        run.step()
    engine.cancel("leaves")
    run.finish()
    assert run.reasons == {"ends": "length", "leaves": "cancelled"}
    assert not run.refused


def test_a_prompt_without_a_token_that_comes_through_all_the_same(engine, alone):
    def submit(run):
        prepared = engine.prepare(request("fox", max_tokens=TOKENS))
        engine.submit("bad", dataclasses.replace(prepared, tokens=[]))

    assert among_neighbours(engine, submit, alone).code == "internal_error"


def test_a_fault_costs_its_row_and_a_cancel_of_it_later_nothing(engine, alone):
    def submit(run):
        constrained(engine, Constraint("call", ValueError("x")))(run)
        while "bad" not in run.refused:
            run.step()
        engine.cancel("bad")

    among_neighbours(engine, submit, alone)


def test_a_row_with_a_fault_is_in_no_prompt_cache(engine):
    nan = Constraint("call", change=lambda logits: logits * math.nan)
    prepared = dataclasses.replace(engine.prepare(request("fox", max_tokens=3)), constraint=nan)
    engine.submit("bad", prepared)
    run = Run(engine).finish()
    assert "bad" in run.refused
    engine._tidy(engine._model.generator)
    assert len(store_of(engine)) == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[METAL] Command buffer execution failed: Caused GPU Timeout Error"),
        RuntimeError("[metal::malloc] Attempting to allocate 9 bytes"),
        RuntimeError("[malloc] Unable to allocate 9 bytes."),
        RuntimeError("cudaMallocAsync(&data, size, stream) failed: out of memory"),
        RuntimeError("cuGraphLaunch failed: CUDA_ERROR_OUT_OF_MEMORY"),
        RuntimeError("cublasLtMatmul failed: CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("cudaStreamSynchronize(stream) failed: an illegal memory access was encountered"),
    ],
)
def test_what_poisons_the_device_ends_the_batch(engine, error):
    constrained(engine, Constraint("call", error))(None)
    with pytest.raises(type(error)):
        Run(engine).finish()


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("cudaMallocManaged failed: out of memory", True),
        ("cudaGraphInstantiate failed: cudaErrorMemoryAllocation", True),
        ("cudnnCreate failed: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cudaStreamSynchronize(stream) failed: an illegal memory access was encountered", False),
    ],
)
def test_what_cuda_says_of_memory_is_told_from_other_failures(text, lacks):
    assert is_out_of_memory(RuntimeError(text)) is lacks


def test_the_text_of_a_clients_error_is_no_sign_of_a_broken_device():
    guard = RowGuard()
    with guard(1):
        raise ValueError("out of memory [METAL]")
    assert isinstance(guard.take(1), ValueError)
    assert guard.take(1) is None


def test_the_first_error_of_a_row_counts_and_others_rows_have_their_own():
    guard = RowGuard()
    guard.note(1, NoFiniteScore())
    with guard(1):
        raise ValueError("later")
    with guard("a request"):
        raise KeyError("x")
    assert isinstance(guard.take(1), NoFiniteScore)
    assert 1 not in guard
    assert isinstance(guard.take("a request"), KeyError)


# ---- before a row


def test_messages_of_which_the_template_makes_nothing_are_refused(folder, tmp_path):
    """They came through to the batch, which raised: the worker died, and with it all answers of the model."""
    copied = Path(shutil.copytree(folder, tmp_path / "model"))
    settings = copied / "tokenizer_config.json"
    template = "{% for message in messages if message.content != 'nothing' %}{{ message.content }}{% endfor %}"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": template}))
    engine = open_engine(copied)
    for count_only in (False, True):
        with pytest.raises(BadRequest, match="The prompt is empty after the chat template") as caught:
            engine.prepare(request("nothing", count_only=count_only))
        assert caught.value.param == "messages"
    assert engine.prepare(request("something")).tokens
    engine.close()


def test_a_tokenizer_with_more_tokens_than_the_model_costs_only_who_uses_them(folder, tmp_path):
    whole = open_engine(folder)
    tokens = sorted(whole.prepare(ChatRequest([], prompt="船は海を行く")).tokens)
    whole.close()
    engine = open_engine(tiny_llama.build(tmp_path / "model", vocab_size=tokens[-1]))
    with pytest.raises(BadRequest, match=f"makes token {tokens[-1]} of this text, and the model's tokens are 0 to"):
        engine.prepare(ChatRequest([], prompt="船は海を行く"))
    engine.close()


# ---- padded vocabularies


@pytest.fixture(scope="module")
def padded(folder, tmp_path_factory):
    """The tiny model with 40 scores for no token, which its weights make likely."""
    return tiny_llama.build(tmp_path_factory.mktemp("padded"), vocab_size=real_size(folder) + 40)


def real_size(folder):
    return json.loads((folder / "config.json").read_text())["vocab_size"]


def favour(engine, wanted):
    """Logits of the model with 100 more for the ids in ``wanted``."""
    generator = engine._model.generator
    model = generator.model

    class Favouring:
        layers = model.layers

        def __call__(self, tokens, cache):
            logits = model(tokens, cache=cache)
            ids = mx.arange(logits.shape[-1])
            return mx.where((ids >= wanted.start) & (ids < wanted.stop), logits + 100, logits)

    for batch in (generator, generator.decoding, generator.reading):
        batch.model = Favouring()


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(temperature=2, seed=1), Sampling(repetition_penalty=1.5, top_k=5), Sampling(top_p=0.1, seed=2)],
)
def test_a_score_without_a_token_is_never_sampled(folder, padded, sampling):
    size, engine = real_size(folder), open_engine(padded)
    assert engine.info.vocab_size == size + 40
    favour(engine, range(size, size + 40))
    run = Run(engine).submit("a", request("hello", sampling, max_tokens=TOKENS, logprobs=5)).finish()
    assert max(run.tokens["a"]) < size
    assert all(len(one.top) == 5 for one in run.logprobs["a"])
    form = Run(engine).submit("b", request("hello", sampling, max_tokens=TOKENS, format=Format({"type": "integer"})))
    assert "b" in form.finish().reasons
    with pytest.raises(BadRequest, match=f"this model's tokens are 0 to {size - 1}"):
        engine.prepare(request("hello", Sampling(logit_bias={size: 1.0})))
    engine.close()


def test_a_hole_in_the_vocabulary_is_never_sampled():
    narrow = sampling.narrow_to({0, 1, 4}, 8)
    scores = narrow(mx.array([[1.0, 2.0, 9.0, 9.0, 3.0, 9.0, 9.0, 9.0]]))
    assert scores.tolist() == [[1.0, 2.0, -math.inf, -math.inf, 3.0]]


def test_a_vocabulary_without_padding_is_left_as_it_is():
    logits = mx.zeros((2, 8))
    assert sampling.narrow_to(range(8), 8)(logits) is logits
    assert sampling.narrow_to(range(5), 8)(logits).shape == (2, 5)
