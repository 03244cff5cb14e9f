"""Embedding models: the vectors are right, the work is bounded, and what can't be done is said."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx_helpers as helpers
import numpy as np
import numpy_bert
import pytest
import tiny_llama
from mlx import nn
from mlx.utils import tree_flatten

from plimsoll import config
from plimsoll.actors import messages as m
from plimsoll.actors.replies import Failed, Vectors
from plimsoll.actors.status import State
from plimsoll.catalog.fetch import resolve
from plimsoll.catalog.installed import default_cache_dir
from plimsoll.catalog.model_card import makes_embeddings
from plimsoll.catalog.source import BUILTIN_EMBEDDING
from plimsoll.engine.embed.bert import Bert, BertConfig
from plimsoll.engine.embed.engine import EmbeddingEngine
from plimsoll.engine.embed.pooling import Recipe, read_recipe
from plimsoll.engine.protocol import (
    MAX_INPUTS,
    ChatRequest,
    Embedded,
    EmbedRequest,
    EngineOptions,
    PrefillProgress,
    RequestError,
    Step,
)
from plimsoll.engine.worker import choose_engine
from plimsoll.errors import BadRequest, ContextTooLong, InternalError, LoadFailed

TEXTS = [
    "ship",
    "The line on her side tells how much more she may carry.",
    "Съешь ещё этих мягких французских булок, naïve café 船 🚢",
    "How do I boil an egg? " * 4,
]
# The first numbers that the model's authors' library gives for these two sentences.
PUBLISHED = {
    "This is an example sentence": [0.0676569, 0.0634959, 0.0487131, 0.0793049, 0.0374480, 0.0026528],
    "Each sentence is converted": [0.0864386, 0.1027626, 0.0053946, 0.0020444, -0.0099633, 0.0253854],
}
CAN_NOT = {
    "nothing": (EmbedRequest(), BadRequest, "has 0 inputs"),
    "too many": (EmbedRequest(["a"] * (MAX_INPUTS + 1)), BadRequest, "has 2049 inputs"),
    "too long": (EmbedRequest(["fox", "word " * 300]), ContextTooLong, "Input 2 has 302 tokens, .* at most 256"),
    "too wide": (EmbedRequest(["a"], dimensions=385), BadRequest, "385 dimensions are not allowed: .* have 384"),
    "no dimensions": (EmbedRequest(["a"], dimensions=0), BadRequest, "0 dimensions"),
    "no tokens": (EmbedRequest(tokens=[[101], []]), BadRequest, "Input 2 is empty"),
    "unknown token": (EmbedRequest(tokens=[[101, 30522]]), BadRequest, "token id outside of 0 to 30521"),
    "negative token": (EmbedRequest(tokens=[[-1]]), BadRequest, "token id outside"),
    "a chat": (ChatRequest([{"role": "user", "content": "hi"}]), BadRequest, "can't chat"),
}


@pytest.fixture(scope="session")
def minilm_folder():
    try:
        cache_dir = default_cache_dir(config.parse({}))
        return resolve(BUILTIN_EMBEDDING, cache_dir=cache_dir, offline=False, progress=lambda *_: None)
    except LoadFailed as error:
        pytest.skip(f"the built-in embedding model is not to be had here: {error}")


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    return tiny_llama.build(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def minilm(minilm_folder):
    engine = opened(minilm_folder)
    yield engine
    engine.close()


TINY = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 30522,
    "max_position_embeddings": 64,
}


def tiny_bert(folder, minilm_folder, rename=lambda name: name, change=lambda model: None, **different):
    """A random BERT with the real tokenizer."""
    folder.mkdir()
    shutil.copy(minilm_folder / "tokenizer.json", folder)
    (folder / "config.json").write_text(json.dumps({**TINY, **different}))
    mx.random.seed(3)
    model = Bert(BertConfig(64, 2, 4, 128, 30522, 64))
    change(model)
    weights = {rename(name): array for name, array in tree_flatten(model.parameters())}
    mx.save_safetensors(str(folder / "model.safetensors"), {**weights, "bert.pooler.dense.bias": mx.zeros(64)})
    return folder


@pytest.fixture
def tiny(tmp_path, minilm_folder):
    engine = opened(tiny_bert(tmp_path / "tiny", minilm_folder))
    yield engine
    engine.close()


def opened(folder, **options):
    engine = EmbeddingEngine(EngineOptions(cache_dir="", **options))
    engine.info = engine.load(Path(folder), lambda *_: None)
    return engine


def finish(engine):
    """Everything that comes out, by kind."""
    events = []
    while engine.busy():
        events += engine.step()
    return events


def embed(engine, *texts, **more):
    """Vectors of one request that runs alone, and its usage."""
    engine.submit("only", engine.prepare(EmbedRequest(list(texts), **more)))
    (event,) = [event for event in finish(engine) if isinstance(event, Embedded)]
    return rows(event), event.usage


def rows(event):
    return np.frombuffer(event.vectors, "<f4").reshape(-1, event.dimensions)


def cosines(one, other):
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


# ---- the truth of the vectors


def test_the_vectors_are_the_published_ones(minilm):
    vectors, _ = embed(minilm, *PUBLISHED)
    assert vectors.shape == (2, 384)
    assert np.abs(vectors[:, :6] - np.array(list(PUBLISHED.values()))).max() < 2e-6
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)


def test_every_text_of_a_batch_gets_the_vector_that_numpy_computes_for_it_alone(minilm, minilm_folder):
    truth = numpy_bert.NumpyBert(minilm_folder)
    expected = np.array([truth.mean(row.tokens) for row in minilm.prepare(EmbedRequest(TEXTS)).rows])
    vectors, _ = embed(minilm, *TEXTS)
    assert cosines(vectors, expected).min() > 0.999999


def test_like_meanings_are_near_and_others_far(minilm):
    vectors, _ = embed(
        minilm,
        "How do I reset my password?",
        "I forgot my login credentials and need new ones.",
        "The ship left the harbour at dawn.",
        "A vessel sailed out of port early in the morning.",
    )
    near, far = vectors @ vectors.T, vectors[:2] @ vectors[2:].T
    assert min(near[0, 1], near[2, 3]) > 0.5
    assert far.max() < 0.2


def test_token_ids_are_read_as_they_are(minilm):
    vectors, usage = embed(minilm, "A ship lies deep")
    prepared = minilm.prepare(EmbedRequest(["A ship lies deep"]))
    assert (prepared.rows[0].tokens[0], prepared.rows[0].tokens[-1]) == (101, 102)
    again, _ = embed(minilm, tokens=[row.tokens for row in prepared.rows])
    assert np.array_equal(vectors, again)
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(prepared.rows[0]), 0)


def test_cut_vectors_are_of_unit_length_again(tiny):
    whole, _ = embed(tiny, *TEXTS)
    short, _ = embed(tiny, *TEXTS, dimensions=8)
    assert short.shape == (4, 8)
    assert np.allclose(np.linalg.norm(short, axis=1), 1)
    assert np.allclose(short, whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True), atol=1e-6)


# ---- what is refused


@pytest.mark.parametrize("case", CAN_NOT)
def test_what_can_not_be_embedded_is_refused_by_name(minilm, case):
    request, error, message = CAN_NOT[case]
    with pytest.raises(error, match=message) as caught:
        minilm.prepare(request)
    assert caught.value.param in ("input", "dimensions", "model")
    assert not minilm.busy()


def test_the_context_may_be_set_lower_and_not_higher(minilm_folder):
    assert opened(minilm_folder, context=9999).info.context == 256
    engine = opened(minilm_folder, context=16)
    assert engine.info.context == 16
    with pytest.raises(ContextTooLong, match="at most 16"):
        engine.prepare(EmbedRequest(["word " * 15]))


def test_a_text_that_is_too_long_is_cut_where_that_is_asked_for(minilm, llama_folder):
    (row,) = minilm.prepare(EmbedRequest(["word " * 300], truncate=True)).rows
    assert (len(row), row.tokens[0], row.tokens[-1]) == (256, 101, 102)
    (row,) = minilm.prepare(EmbedRequest(["word"], truncate=True)).rows
    assert len(row) == 3
    decoder = opened(llama_folder, context=16)
    (row,) = decoder.prepare(EmbedRequest(["dog " * 60], truncate=True)).rows
    assert row.tokens == opened(llama_folder).prepare(EmbedRequest(["dog " * 60])).rows[0].tokens[:16]


def test_an_adapter_for_an_encoder_is_refused(minilm_folder):
    with pytest.raises(LoadFailed, match="take the key `adapter` away"):
        opened(minilm_folder, adapter="/any")


def test_without_a_model_nothing_is_prepared():
    with pytest.raises(InternalError):
        EmbeddingEngine(EngineOptions(cache_dir="")).prepare(EmbedRequest(["a"]))


# ---- steps


def test_requests_of_like_length_share_a_batch_and_each_gets_its_own_vectors(tiny):
    expected = [embed(tiny, text)[0] for text in TEXTS[:3]]
    for number, text in enumerate(TEXTS[:3]):
        tiny.submit(str(number), tiny.prepare(EmbedRequest([text, TEXTS[3]])))
    events = finish(tiny)
    found = {event.id: event for event in events if isinstance(event, Embedded)}
    assert sorted(found) == ["0", "1", "2"]
    for number, vectors in enumerate(expected):
        assert cosines(rows(found[str(number)])[:1], vectors)[0] > 0.999999
    done = [event.done for event in events if isinstance(event, PrefillProgress) and event.id == "0"]
    assert done == sorted(done)
    assert len(events) < 12


def among_others(engine, monkeypatch, change):
    """Three requests of one text each, in one batch; ``change`` breaks the second one's. What became of it."""
    expected = [embed(engine, text)[0] for text in TEXTS[:3]]
    bad = engine.prepare(EmbedRequest([TEXTS[1]]))
    change(bad.rows[0])
    for name, prepared in (("0", None), ("bad", bad), ("2", None)):
        engine.submit(name, prepared or engine.prepare(EmbedRequest([TEXTS[int(name)]])))
    events = finish(engine)
    found = {event.id: event for event in events if isinstance(event, Embedded)}
    assert sorted(found) == ["0", "2"]
    for name, one in found.items():
        assert cosines(rows(one), expected[int(name)])[0] > 0.999999
    (refused,) = [event for event in events if isinstance(event, RequestError)]
    assert refused.id == "bad"
    assert not engine.busy()
    return refused


class Panic(BaseException):
    """What a library in Rust raises."""


@pytest.mark.parametrize("error", [ValueError("odd shape"), Panic("panicked")])
def test_a_text_that_can_not_be_read_ends_its_request_and_no_other(tiny, monkeypatch, error):
    read = tiny._encoder.read

    def change(row):
        def broken(rows):
            if row in rows:
                raise error
            yield from read(rows)

        monkeypatch.setattr(tiny._encoder, "read", broken)

    refused = among_others(tiny, monkeypatch, change)
    assert type(error).__name__ in refused.message
    assert refused.code == "internal_error"


def test_a_vector_that_is_not_finite_ends_its_request_and_no_other(tiny, monkeypatch):
    read = tiny._encoder.read

    def change(row):
        def broken(rows):
            for vectors in read(rows):
                odd = mx.array([one == row for one in rows])
                yield mx.where(odd[:, None], mx.nan, vectors)

        monkeypatch.setattr(tiny._encoder, "read", broken)

    refused = among_others(tiny, monkeypatch, change)
    assert "no finite vector for input 1" in refused.message
    assert refused.param == "input"


def test_a_device_that_fails_ends_the_embedding_worker(tiny, monkeypatch):
    def broken(_rows):
        raise MemoryError
        yield

    monkeypatch.setattr(tiny._encoder, "read", broken)
    tiny.submit("a", tiny.prepare(EmbedRequest([TEXTS[0]])))
    with pytest.raises(MemoryError):
        tiny.step()
    tiny.cancel("a")


def test_a_long_request_takes_many_bounded_steps_and_can_be_cancelled_between_them(tiny):
    tiny.submit("long", tiny.prepare(EmbedRequest(["word " * 50] * 20)))
    tiny.submit("short", tiny.prepare(EmbedRequest(["ship"])))
    (progress,) = tiny.step()
    assert 0 < progress.done <= 512
    assert progress.total == 20 * 52
    tiny.cancel("long")
    tiny.cancel("nobody")
    events = finish(tiny)
    (step,) = [event for event in events if isinstance(event, Step)]
    assert [(one, reason) for one, reason, _ in step.endings] == [("long", "cancelled")]
    assert step.endings[0][2].prompt_tokens == progress.done
    assert [event.id for event in events if isinstance(event, Embedded)] == ["short"]


def test_the_working_memory_stays_below_what_was_granted(minilm_folder):
    engine = opened(minilm_folder, kv_bytes=32 << 20)
    engine.submit("a", engine.prepare(EmbedRequest(["word " * length for length in (250, 120, 110, 100, 8, 7)])))
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    finish(engine)
    assert mx.get_peak_memory() - before < 32 << 20
    assert mx.get_cache_memory() < 1 << 20
    engine.close()
    assert not engine.busy()


# ---- decoders


def states(folder, text):
    model, tokenizer = helpers.reference_model(str(folder))
    return np.array(model.model(mx.array([tokenizer.encode(text)]))[0])


@pytest.mark.parametrize("chunk", [5, 64])
def test_a_decoder_gives_the_state_of_the_last_token(llama_folder, chunk):
    engine = opened(llama_folder, prefill_chunk=chunk)
    texts = ["fox", "the line on her side " * 3, "船 🚢", "dog " * 40]
    vectors, usage = embed(engine, *texts)
    expected = np.array([states(llama_folder, text)[-1] for text in texts])
    assert np.allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    assert usage.prompt_tokens == sum(len(states(llama_folder, text)) for text in texts)


def sentence_files(folder, mode, *, normalize=True, extra=()):
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else []), *extra]
    folder.mkdir(exist_ok=True)
    modules = [
        {"idx": i, "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(mode))
    return folder


def test_a_decoder_with_sentence_files_is_known_and_pooled_as_they_say(llama_folder, tmp_path):
    folder = tmp_path / "mean"
    shutil.copytree(llama_folder, folder)
    assert not makes_embeddings(folder)
    sentence_files(folder, {"pooling_mode_mean_tokens": True}, normalize=False)
    engine = choose_engine(folder, EngineOptions(cache_dir="", prefill_chunk=4))
    assert isinstance(engine, EmbeddingEngine)
    engine.load(folder, lambda *_: None)
    vectors, _ = embed(engine, "who are you?", "fox")
    assert np.allclose(vectors[0], states(folder, "who are you?").mean(axis=0), atol=1e-4)
    assert np.allclose(embed(engine, "fox", dimensions=8)[0][0], vectors[1][:8], atol=1e-5)


def test_a_text_that_never_fits_is_refused_and_a_decoder_can_be_cancelled_in_mid_text(llama_folder):
    engine = opened(llama_folder, prefill_chunk=4, kv_bytes=200_000)
    engine.submit("a", engine.prepare(EmbedRequest(["dog " * 60])))
    assert engine.step() == []
    engine.cancel("a")
    (step,) = finish(engine)
    assert step.endings[0][:2] == ("a", "cancelled")
    tight = opened(llama_folder, kv_bytes=100_000)
    tight.submit("b", tight.prepare(EmbedRequest(["dog " * 60])))
    (refusal,) = finish(tight)
    assert isinstance(refusal, RequestError)
    assert (refusal.code, refusal.param) == ("never_fits", "input")


# ---- recipes and checkpoints


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_the_pooling_is_the_one_the_files_name(tmp_path, mode, expected):
    assert read_recipe(sentence_files(tmp_path, mode), "mean") == Recipe(expected)
    assert not read_recipe(sentence_files(tmp_path, mode, normalize=False), "mean").normalize


@pytest.mark.parametrize(
    ("mode", "extra", "message"),
    [
        ({"pooling_mode_max_tokens": True}, (), "asks for pooling_mode_max_tokens; supported"),
        ({"pooling_mode": "weightedmean"}, (), "asks for weightedmean"),
        ({}, (), "asks for no pooling"),
        ({"pooling_mode_mean_tokens": True}, ("Dense",), "has a step 'Dense', which is not supported"),
    ],
)
def test_steps_that_are_not_known_are_refused_and_not_skipped(tmp_path, mode, extra, message):
    with pytest.raises(LoadFailed, match=message):
        read_recipe(sentence_files(tmp_path, mode, extra=extra), "mean")


def test_a_step_can_not_name_a_folder_outside_of_the_model(tmp_path):
    folder = sentence_files(tmp_path / "model", {"pooling_mode_mean_tokens": True})
    (tmp_path / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (folder / "modules.json").write_text(json.dumps([{"path": "..", "type": "Pooling"}]))
    with pytest.raises(LoadFailed, match="asks for no pooling"):
        read_recipe(folder, "mean")


def test_without_files_the_default_counts_and_broken_ones_are_named(tmp_path):
    assert read_recipe(tmp_path, "last") == Recipe("last")
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(LoadFailed, match=r"modules\.json can't be read"):
        read_recipe(tmp_path, "last")


def test_old_names_prefixes_16_bits_and_packed_weights_are_read(tmp_path, minilm_folder):
    plain = embed(opened(tiny_bert(tmp_path / "plain", minilm_folder)), *TEXTS[:3])[0]

    def old(name):
        return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    half = tiny_bert(tmp_path / "old", minilm_folder, old, lambda model: model.set_dtype(mx.float16))
    assert cosines(embed(opened(half), *TEXTS[:3])[0], plain).min() > 0.9999
    packing = {"group_size": 32, "bits": 8}
    packed = tiny_bert(
        tmp_path / "packed", minilm_folder, change=lambda model: nn.quantize(model, **packing), quantization=packing
    )
    for dequantize in (False, True):
        engine = opened(packed, dequantize=dequantize)
        assert engine.info.dtype == ("float32" if dequantize else "8-bit, float32")
        assert cosines(embed(engine, *TEXTS[:3])[0], plain).min() > 0.999


@pytest.mark.parametrize(
    ("different", "message"),
    [
        (
            {"architectures": ["BertForTokenClassification"]},
            "BertForTokenClassification does not make embeddings",
        ),
        ({"hidden_act": "swish"}, "swish activations"),
        ({"position_embedding_type": "relative_key"}, "relative_key positions"),
        ({"num_attention_heads": 5}, "5 heads do not divide 64"),
        ({"hidden_size": "wide"}, "is not that of a BERT model"),
        ({"num_hidden_layers": 3}, "are not those of a BERT encoder"),
    ],
)
def test_an_encoder_that_is_not_supported_says_why(tmp_path, minilm_folder, different, message):
    with pytest.raises(LoadFailed, match=message):
        opened(tiny_bert(tmp_path / "odd", minilm_folder, **different))


def test_an_encoder_without_tokenizer_says_so(tmp_path, minilm_folder):
    folder = tiny_bert(tmp_path / "mute", minilm_folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(LoadFailed, match=r"has no tokenizer\.json"):
        opened(folder)


# ---- in a worker


def test_an_embedding_model_lives_as_any_other_and_refuses_chats(server, minilm_folder):
    live = server({"mini": str(minilm_folder)})
    reply = live.tell(lambda reply: m.Chat("e1", "mini", EmbedRequest(list(PUBLISHED)), reply))
    vectors = reply.next(Vectors)
    assert vectors.dimensions == 384
    found = np.frombuffer(vectors.data, "<f4").reshape(2, 384)
    assert np.abs(found[:, :6] - np.array(list(PUBLISHED.values()))).max() < 2e-6
    ending = reply.ending()
    assert (ending.reason, ending.usage.prompt_tokens) == ("stop", 13)
    refused = live.chat("mini").ending()
    assert isinstance(refused, Failed)
    assert "can't chat" in refused.error.message
    assert live.model("mini").state == State.READY


def test_an_entry_may_make_a_decoder_an_embedding_model(server, llama_folder):
    live = server({"vectors": {"source": str(llama_folder), "embeddings": True}})
    reply = live.tell(lambda reply: m.Chat("e2", "vectors", EmbedRequest(["fox"]), reply))
    assert reply.next(Vectors).dimensions == 64
