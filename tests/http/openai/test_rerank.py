"""Reranking over HTTP: order, what is told of each document, limits, and models that can't."""

import json
import math
import struct

import pytest
from scripts import fails

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Finished, Vectors, Waiting
from plimsoll.engine.protocol import RerankRequest, Usage
from plimsoll.errors import BadRequest

LOGITS = (-1.0, 3.0, 0.0)
DOCUMENTS = ["one", {"text": "two"}, "three"]
BODY = {"model": "tiny", "query": "which?", "documents": DOCUMENTS}
BAD_VALUES = [
    ({"query": None}, "query", "non-empty string"),
    ({"query": ""}, "query", "non-empty string"),
    ({"query": {"text": "a"}}, "query", "non-empty string"),
    ({"documents": None}, "documents", "1 to 2048"),
    ({"documents": []}, "documents", "1 to 2048"),
    ({"documents": "a"}, "documents", "1 to 2048"),
    ({"documents": ["a", ""]}, "documents[1]", "non-empty string"),
    ({"documents": ["a", 5]}, "documents[1]", "non-empty string"),
    ({"documents": [{"image": "a"}]}, "documents[0]", "non-empty string"),
    ({"documents": [{"text": 1}]}, "documents[0]", "non-empty string"),
    ({"documents": ["a"] * 2049}, "documents", "2048 are the most"),
    ({"top_n": -1}, "top_n", "from 0"),
    ({"top_n": "2"}, "top_n", "from 0"),
    ({"return_documents": "yes"}, "return_documents", "true or false"),
    ({"model": ""}, "model", "a model's name"),
]


def scores(*logits):
    def script(chat):
        chat.reply.send(Waiting("prefill", 1, 2))
        chat.reply.send(Vectors(struct.pack(f"<{len(logits)}f", *logits), 1))
        chat.reply.send(Finished("stop", Usage(prompt_tokens=21)))

    return script


def ask(http, **more):
    response = http.post("/v1/rerank", json=BODY | more)
    assert response.status_code == 200, response.text
    return response.json()


def test_documents_come_back_in_the_order_of_their_scores(http, system):
    system.scripts[m.Chat] = scores(*LOGITS)
    answer = ask(http)
    assert [one["index"] for one in answer["results"]] == [1, 2, 0]
    expected = [1 / (1 + math.exp(-LOGITS[index])) for index in (1, 2, 0)]
    assert [one["relevance_score"] for one in answer["results"]] == pytest.approx(expected)
    assert all(set(one) == {"index", "relevance_score"} for one in answer["results"])
    assert answer["usage"] == {"prompt_tokens": 21, "total_tokens": 21}
    assert answer["model"] == "tiny"
    assert answer["id"].startswith("rerank-")
    assert system.hears(m.Chat).request == RerankRequest("which?", ["one", "two", "three"])


@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank"])
def test_the_other_paths_answer_the_same(http, system, path):
    system.scripts[m.Chat] = scores(*LOGITS)
    assert [one["index"] for one in http.post(path, json=BODY).json()["results"]] == [1, 2, 0]


@pytest.mark.parametrize(
    ("top_n", "indices"), [(1, [1]), (2, [1, 2]), (9, [1, 2, 0]), (0, [1, 2, 0]), (None, [1, 2, 0])]
)
def test_top_n_is_how_many_come_back(http, system, top_n, indices):
    system.scripts[m.Chat] = scores(*LOGITS)
    assert [one["index"] for one in ask(http, top_n=top_n)["results"]] == indices


def test_the_documents_come_back_where_that_is_asked_for(http, system):
    system.scripts[m.Chat] = scores(*LOGITS)
    texts = [one["document"] for one in ask(http, return_documents=True)["results"]]
    assert texts == [{"text": "two"}, {"text": "three"}, {"text": "one"}]


def test_scores_are_between_0_and_1_and_equal_ones_stay_in_order(http, system):
    system.scripts[m.Chat] = scores(-3e38, 3e38, 3e38)
    results = ask(http)["results"]
    assert [(one["index"], one["relevance_score"]) for one in results] == [(1, 1.0), (2, 1.0), (0, 0.0)]


@pytest.mark.parametrize(("changes", "param", "sentence"), BAD_VALUES, ids=[f"{n}" for n in range(len(BAD_VALUES))])
def test_a_bad_value_of_reranking_is_named_with_what_it_may_be(http, system, changes, param, sentence):
    response = http.post("/v1/rerank", json=BODY | changes)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["param"] == param
    assert sentence in error["message"]
    assert system.has_heard(m.Chat) == 0


@pytest.mark.parametrize("missing", ["query", "documents"])
def test_what_is_missing_is_named(http, missing):
    response = http.post("/v1/rerank", json={name: value for name, value in BODY.items() if name != missing})
    assert (response.status_code, response.json()["error"]["param"]) == (400, missing)


@pytest.mark.parametrize("script", [scores(1.0), scores(1.0, 2.0, 3.0, 4.0)])
def test_an_answer_without_a_score_for_each_document_is_an_error(http, system, script):
    system.scripts[m.Chat] = script
    response = http.post("/v1/rerank", json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")


def encoder(folder, **different):
    folder.mkdir()
    tensor = json.dumps({"a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_type": "bert",
                "architectures": ["BertForSequenceClassification"],
                "hidden_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "max_position_embeddings": 512,
                **different,
            }
        )
    )
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(len(tensor).to_bytes(8, "little") + tensor + bytes(8))
    return {"source": str(folder)}


@pytest.fixture
def server_config(tmp_path):
    """A chat model, and a cross encoder and a classifier whose files are here."""
    labels = {"id2label": {"0": "no", "1": "yes"}}
    encoders = {"ranker": encoder(tmp_path / "cross"), "classifier": encoder(tmp_path / "labels", **labels)}
    entries = {"tiny": {"source": "fake:"}, **encoders}
    return {"models": {"builtin": False, "entries": entries}, "limits": {"prompt": "20KiB"}}


def test_a_models_refusal_names_the_models_that_rerank(http, system):
    system.scripts[m.Chat] = fails(BadRequest("This model is a chat model; it can't rerank.", param="model"))
    response = http.post("/v1/rerank", json=BODY)
    assert response.status_code == 400
    assert "it can't rerank. The models that rerank here are: ranker." in response.json()["error"]["message"]


def test_a_cross_encoder_is_no_embedding_model_and_no_llm(http):
    known = {one["id"]: one for one in http.get("/v1/models").json()["data"]}
    assert known["ranker"]["capabilities"] == ["rerank"]
    assert http.post("/api/show", json={"model": "ranker"}).json()["capabilities"] == ["rerank"]
    kinds = {one["id"]: one["type"] for one in http.get("/api/v0/models").json()["data"]}
    assert (kinds["tiny"], kinds["ranker"]) == ("llm", "embeddings")


def test_a_classifier_of_several_labels_is_not_said_to_rerank(http):
    known = {one["id"]: one for one in http.get("/v1/models").json()["data"]}
    assert known["classifier"]["capabilities"] == []


def test_the_query_counts_once_for_each_document(http, system):
    system.scripts[m.Chat] = scores(*[0.0] * 20)
    response = http.post("/v1/rerank", json=BODY | {"query": "x" * 1000, "documents": ["a"] * 20})
    assert response.status_code == 200
    response = http.post("/v1/rerank", json=BODY | {"query": "x" * 1000, "documents": ["a"] * 21})
    assert (response.status_code, response.json()["error"]["param"]) == (413, "documents")
