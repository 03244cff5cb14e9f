"""Cross encoders: the scores are right, long documents are cut, and what can't be done is said."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy_bert
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Failed, Vectors
from plimsoll.actors.status import State
from plimsoll.catalog.model_card import makes_embeddings, scores_documents
from plimsoll.engine.embed.engine import EmbeddingEngine
from plimsoll.engine.protocol import (
    MAX_INPUTS,
    ChatRequest,
    Embedded,
    EmbedRequest,
    EngineOptions,
    RequestError,
    RerankRequest,
    Step,
)
from plimsoll.engine.worker import choose_engine
from plimsoll.errors import BadRequest, ContextTooLong, LoadFailed

WORDS = [
    "ship",
    "sea",
    "boil",
    "egg",
    "how",
    "do",
    "i",
    "an",
    "the",
    "line",
    "tells",
    "much",
    "she",
    "may",
    "carry",
    "deep",
    "water",
]
SIZE, WIDE = 32, 64
CONFIG = {
    "hidden_size": SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": WIDE,
    "layer_norm_eps": 1e-5,
    "id2label": {"0": "LABEL_0"},
}
FAMILIES = {
    "bert": {
        "config": {"architectures": ["BertForSequenceClassification"], "max_position_embeddings": 24},
        "special": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        "template": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
        "head": {"bert.pooler.dense": (SIZE, SIZE), "classifier": (1, SIZE)},
        "prefix": "bert.",
        "types": 2,
    },
    # The padding token has the id 1, so the first token's position is 2.
    "xlm-roberta": {
        "config": {
            "architectures": ["XLMRobertaForSequenceClassification"],
            "max_position_embeddings": 26,
            "pad_token_id": 1,
        },
        "special": ["<s>", "<pad>", "</s>", "[UNK]"],
        "template": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        "head": {"classifier.dense": (SIZE, SIZE), "classifier.out_proj": (1, SIZE)},
        "prefix": "roberta.",
        "types": 1,
    },
}
QUERY = "how do i boil an egg"
DOCUMENTS = ["the line", "the sea may carry an egg deep", "ship she water how much do i boil tells"]
CONTEXT = 24


def build(folder, kind, change=lambda weights: None, **different):
    """A random cross encoder, with the names that Hugging Face's checkpoints have."""
    folder.mkdir()
    family = FAMILIES[kind]
    vocabulary = {word: number for number, word in enumerate([*family["special"], *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single, pair = family["template"]
    special = [(word, number) for word, number in vocabulary.items() if word in family["special"]]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {**CONFIG, "model_type": kind, "vocab_size": len(vocabulary), "type_vocab_size": family["types"]}
    config |= family["config"]
    (folder / "config.json").write_text(json.dumps(config | different))
    shapes = {
        "embeddings.word_embeddings": (len(vocabulary), SIZE),
        "embeddings.position_embeddings": (config["max_position_embeddings"], SIZE),
        "embeddings.token_type_embeddings": (family["types"], SIZE),
    }
    for index in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{index}"
        shapes |= {f"{layer}.attention.self.{part}": (SIZE, SIZE) for part in ("query", "key", "value")}
        shapes |= {f"{layer}.attention.output.dense": (SIZE, SIZE), f"{layer}.intermediate.dense": (WIDE, SIZE)}
        shapes[f"{layer}.output.dense"] = (SIZE, WIDE)
    norms = ["embeddings", *(f"encoder.layer.{n}.{part}output" for n in (0, 1) for part in ("attention.", ""))]
    shapes = {family["prefix"] + name: shape for name, shape in shapes.items()} | family["head"]
    random = np.random.default_rng(5)
    weights = {f"{name}.weight": random.normal(size=shape) * 0.4 for name, shape in shapes.items()}
    weights |= {
        f"{name}.bias": random.normal(size=shape[0]) * 0.4 for name, shape in shapes.items() if "embed" not in name
    }
    for norm in norms:
        weights[f"{family['prefix']}{norm}.LayerNorm.weight"] = 1 + random.normal(size=SIZE) * 0.2
        weights[f"{family['prefix']}{norm}.LayerNorm.bias"] = random.normal(size=SIZE) * 0.2
    change(weights)
    arrays = {name: mx.array(array.astype(np.float32)) for name, array in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    return folder


def opened(folder, **options):
    engine = EmbeddingEngine(EngineOptions(cache_dir="", **options))
    engine.info = engine.load(Path(folder), lambda *_: None)
    return engine


@pytest.fixture(params=FAMILIES)
def folder(request, tmp_path):
    return build(tmp_path / "cross", request.param)


@pytest.fixture
def engine(folder):
    engine = opened(folder)
    yield engine
    engine.close()


def finish(engine):
    events = []
    while engine.busy():
        events += engine.step()
    return events


def rank(engine, query, documents):
    """The logits of one request, and its usage."""
    engine.submit("only", engine.prepare(RerankRequest(query, documents)))
    (event,) = [event for event in finish(engine) if isinstance(event, Embedded)]
    assert event.dimensions == 1
    return np.frombuffer(event.vectors, "<f4"), event.usage


def test_every_pair_of_a_batch_gets_the_score_that_numpy_computes_for_it_alone(folder, engine):
    truth = numpy_bert.NumpyBert(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pairs = [tokenizer.encode(QUERY, document) for document in DOCUMENTS]
    assert len({len(pair.ids) for pair in pairs}) == 3
    expected = np.array([truth.score(pair.ids, pair.type_ids) for pair in pairs])
    engine.submit("batch", engine.prepare(RerankRequest(QUERY, DOCUMENTS)))
    (event,) = engine.step()
    scores = np.frombuffer(event.vectors, "<f4")
    assert np.ptp(expected) > 0.01
    assert np.abs(scores - expected).max() < 1e-4
    assert event.usage.prompt_tokens == sum(len(pair.ids) for pair in pairs)


def test_a_document_that_is_too_long_is_cut_and_the_query_is_not(folder, engine):
    (row,) = engine.prepare(RerankRequest(QUERY, ["deep water " * 40])).rows
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(CONTEXT, strategy="only_second")
    expected = tokenizer.encode(QUERY, "deep water " * 40)
    assert len(row) == engine.info.context == CONTEXT
    assert row.tokens == expected.ids
    assert (row.types or [0] * CONTEXT) == expected.type_ids
    assert np.isfinite(rank(engine, QUERY, ["deep water " * 40_000])[0]).all()


def test_a_query_that_leaves_no_room_is_refused(engine):
    for length in (CONTEXT, 20_000):
        with pytest.raises(ContextTooLong, match="leaves no room for a document") as caught:
            engine.prepare(RerankRequest("ship " * length, ["egg"]))
        assert caught.value.param == "query"


@pytest.mark.parametrize(
    ("request_", "message", "param"),
    [
        (ChatRequest([{"role": "user", "content": "hi"}]), "reranks documents and can't chat", "model"),
        (EmbedRequest(["egg"]), "reranks documents and makes no embeddings", "model"),
        (RerankRequest("egg", []), "has 0 documents", "documents"),
        (RerankRequest("egg", ["a"] * (MAX_INPUTS + 1)), "has 2049 documents", "documents"),
    ],
)
def test_what_a_cross_encoder_can_not_do_is_said(tmp_path, request_, message, param):
    engine = opened(build(tmp_path / "cross", "bert"))
    with pytest.raises(BadRequest, match=message) as caught:
        engine.prepare(request_)
    assert caught.value.param == param


def test_a_token_that_the_weights_do_not_know_is_refused(tmp_path):
    def shorten(weights):
        weights["bert.embeddings.word_embeddings.weight"] = weights["bert.embeddings.word_embeddings.weight"][:-1]

    engine = opened(build(tmp_path / "cross", "bert", shorten, vocab_size=len(WORDS) + 3))
    with pytest.raises(BadRequest, match="Document 2 or the query has a token"):
        engine.prepare(RerankRequest("egg", ["ship", WORDS[-1]]))


def test_a_score_that_is_not_finite_ends_its_request_and_no_other(engine, monkeypatch):
    bad = engine.prepare(RerankRequest(QUERY, [DOCUMENTS[0], "egg"]))
    read = engine._encoder.read

    def broken(rows):
        for scores in read(rows):
            odd = mx.array([one == bad.rows[1] for one in rows])
            yield mx.where(odd[:, None], mx.nan, scores)

    monkeypatch.setattr(engine._encoder, "read", broken)
    engine.submit("bad", bad)
    engine.submit("good", engine.prepare(RerankRequest(QUERY, DOCUMENTS)))
    events = finish(engine)
    (refused,) = [event for event in events if isinstance(event, RequestError)]
    assert (refused.id, refused.param) == ("bad", "documents")
    assert "no finite score for document 2" in refused.message
    assert [event.id for event in events if isinstance(event, Embedded)] == ["good"]


def test_it_can_be_cancelled_between_two_steps(engine):
    engine.submit("long", engine.prepare(RerankRequest(QUERY, ["water " * 30] * 200)))
    (progress,) = engine.step()
    assert 0 < progress.done <= 512
    engine.cancel("long")
    (step,) = [event for event in finish(engine) if isinstance(event, Step)]
    assert step.endings[0][:2] == ("long", "cancelled")


def test_the_files_say_that_a_model_is_a_cross_encoder(folder):
    assert scores_documents(folder)
    assert not makes_embeddings(folder)
    # As newer releases of sentence-transformers save cross encoders.
    (folder / "modules.json").write_text("[]")
    assert not makes_embeddings(folder)
    assert isinstance(choose_engine(folder, EngineOptions(cache_dir="")), EmbeddingEngine)


@pytest.mark.parametrize(
    ("different", "message"),
    [
        ({"id2label": {"0": "no", "1": "yes"}}, "gives 2 scores for each text, so it is a classifier"),
        ({"id2label": None, "num_labels": 3}, "gives 3 scores"),
        (
            {"architectures": ["DebertaV2ForSequenceClassification"], "model_type": "deberta-v2"},
            "cross encoder of type DebertaV2ForSequenceClassification is not supported; supported are BertFor",
        ),
        ({"id2label": "one"}, "is not that of a cross encoder"),
        ({"type_vocab_size": 3}, "are not those of a BERT encoder"),
        ({"hidden_act": "swish"}, "swish activations"),
    ],
)
def test_a_head_that_is_not_supported_says_why(tmp_path, different, message):
    with pytest.raises(LoadFailed, match=message):
        opened(build(tmp_path / "odd", "bert", **different))


def test_a_head_of_two_scores_is_refused_where_the_config_does_not_say_so(tmp_path):
    def widen(weights):
        weights["classifier.weight"] = np.repeat(weights["classifier.weight"], 2, axis=0)

    with pytest.raises(LoadFailed, match="are not those of a BERT encoder"):
        opened(build(tmp_path / "odd", "bert", widen, id2label=None))


def test_positions_that_the_padding_leaves_none_of_are_refused(tmp_path):
    with pytest.raises(LoadFailed, match="leave no room for a text"):
        opened(build(tmp_path / "odd", "xlm-roberta", max_position_embeddings=2))


def test_xlm_roberta_makes_embeddings_without_a_head(tmp_path):
    folder = build(tmp_path / "tower", "xlm-roberta", architectures=["XLMRobertaModel"])
    weights = {name: array for name, array in mx.load(str(folder / "model.safetensors")).items() if "class" not in name}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    engine = opened(folder)
    prepared = engine.prepare(EmbedRequest([QUERY, "ship"]))
    truth = numpy_bert.NumpyBert(folder)
    engine.submit("a", prepared)
    vectors = np.frombuffer(finish(engine)[-1].vectors, "<f4").reshape(2, SIZE)
    assert np.abs(vectors - np.array([truth.mean(row.tokens) for row in prepared.rows])).max() < 1e-5
    with pytest.raises(BadRequest, match="makes embeddings and can't rerank"):
        engine.prepare(RerankRequest("a", ["b"]))


def test_a_cross_encoder_lives_in_a_worker_as_any_other_model_and_refuses_chats(server, tmp_path):
    folder = build(tmp_path / "cross", "bert")
    live = server({"cross": str(folder)})
    reply = live.tell(lambda reply: m.Chat("r1", "cross", RerankRequest(QUERY, DOCUMENTS), reply))
    found = np.frombuffer(reply.next(Vectors).data, "<f4")
    assert np.abs(found - rank(opened(folder), QUERY, DOCUMENTS)[0]).max() < 1e-5
    assert reply.ending().reason == "stop"
    refused = live.chat("cross").ending()
    assert isinstance(refused, Failed)
    assert "can't chat" in refused.error.message
    assert live.model("cross").state == State.READY
