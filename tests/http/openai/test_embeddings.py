"""Embeddings, as the official client sees them."""

import struct

import pytest
from scripts import fails

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Finished, Vectors, Waiting
from plimsoll.engine.protocol import EmbedRequest, Usage
from plimsoll.errors import BadRequest

ROWS = [(1.0, -0.5, 0.25), (0.0, 2.0, -3.5)]
BAD_VALUES = [
    ({"input": None}, "input", "non-empty string"),
    ({"input": ""}, "input", "non-empty string"),
    ({"input": []}, "input", "non-empty string"),
    ({"input": {"a": 1}}, "input", "non-empty string"),
    ({"input": ["a", ""]}, "input[1]", "non-empty string"),
    ({"input": ["a", 5]}, "input[1]", "non-empty string"),
    ({"input": [1, "a"]}, "input", "token ids"),
    ({"input": [1, -1]}, "input", "token ids"),
    ({"input": [[1], []]}, "input[1]", "token ids"),
    ({"input": [True]}, "input", "token ids"),
    ({"input": ["a"] * 2049}, "input", "2048 are the most"),
    ({"encoding_format": "int8"}, "encoding_format", "float or base64"),
    ({"dimensions": 0}, "dimensions", "from 1"),
    ({"model": ""}, "model", "a model's name"),
]


def vectors(count):
    def script(chat):
        data = b"".join(struct.pack("<3f", *row) for row in ROWS[:count])
        chat.reply.send(Waiting("read", 1, 2))
        chat.reply.send(Vectors(data, 3))
        chat.reply.send(Finished("stop", Usage(prompt_tokens=5)))

    return script


# Unless told otherwise the client asks for base64 and decodes it itself.
@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}], ids=["base64", "float"])
def test_texts_become_vectors(client, system, options):
    system.scripts[m.Chat] = vectors(2)
    answer = client.embeddings.create(model="tiny", input=["one", "two"], dimensions=3, **options)
    assert [tuple(one.embedding) for one in answer.data] == ROWS
    assert [one.index for one in answer.data] == [0, 1]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (5, 5)
    assert answer.model == "tiny"
    assert system.hears(m.Chat).request == EmbedRequest(["one", "two"], dimensions=3, truncate=True)


@pytest.mark.parametrize(
    ("given", "reached"),
    [
        ("one", EmbedRequest(["one"], truncate=True)),
        ([1, 2], EmbedRequest(tokens=[[1, 2]], truncate=True)),
        ([[1, 2], [3]], EmbedRequest(tokens=[[1, 2], [3]], truncate=True)),
    ],
)
def test_each_form_of_input_reaches_the_engine(http, system, given, reached):
    system.scripts[m.Chat] = vectors(1)
    assert http.post("/v1/embeddings", json={"model": "tiny", "input": given}).status_code == 200
    assert system.hears(m.Chat).request == reached


@pytest.mark.parametrize(("changes", "param", "sentence"), BAD_VALUES, ids=[f"{n}" for n in range(len(BAD_VALUES))])
def test_a_bad_value_is_named_with_what_it_may_be(http, system, changes, param, sentence):
    response = http.post("/v1/embeddings", json={"model": "tiny", "input": "x"} | changes)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["param"] == param
    assert sentence in error["message"]
    assert system.has_heard(m.Chat) == 0


def test_an_answer_without_vectors_is_an_error(http, system, says):
    system.scripts[m.Chat] = says("no vectors")
    response = http.post("/v1/embeddings", json={"model": "tiny", "input": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")


def test_an_unknown_model_is_404(http):
    assert http.post("/v1/embeddings", json={"model": "nope", "input": "x"}).status_code == 404


_BOTH = {"builtin": False, "entries": {"tiny": {"source": "fake:"}, "e5": {"source": "fake:", "embeddings": True}}}


@pytest.mark.parametrize("server_config", [{"models": _BOTH}])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/embed", "/api/embeddings"])
def test_a_chat_models_refusal_names_the_models_that_give_embeddings(http, system, path):
    system.scripts[m.Chat] = fails(BadRequest("This model is a chat model.", param="model"))
    response = http.post(path, json={"model": "tiny", "input": "x", "prompt": "x"})
    assert response.status_code == 400
    assert "This model is a chat model. The embedding models here are: e5." in response.text
