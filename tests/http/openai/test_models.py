"""The list of models, as OpenAI's, LM Studio's and other clients read it."""

import json

import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Finished
from plimsoll.actors.status import ModelStatus, State
from plimsoll.engine.protocol import ModelInfo, Usage

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
}
TENSOR = json.dumps({"a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()


@pytest.fixture
def server_config(tmp_path):
    """Two entries with the same files, and an embedding model."""
    for name, config in {"chat": LLAMA, "bert": LLAMA | {"model_type": "bert"}}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer_config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(len(TENSOR).to_bytes(8, "little") + TENSOR + bytes(8))
    entries = {"a": {"source": str(tmp_path / "chat")}, "b": {"source": str(tmp_path / "chat")}}
    return {"models": {"builtin": False, "entries": entries | {"e": {"source": str(tmp_path / "bert")}}}}


def test_the_list_says_how_long_a_conversation_may_be_and_what_each_can_do(http):
    first, _, embeds = http.get("/v1/models").json()["data"]
    assert (first["context_length"], first["max_model_len"], first["meta"]["n_ctx_train"]) == (2048, 2048, 2048)
    assert first["capabilities"] == ["completion", "tools"]
    assert embeds["capabilities"] == ["embedding"]


def test_a_loaded_model_has_the_context_that_it_accepts(http, system, status):
    info = ModelInfo(512, 100, 1, "cpu", "float32")
    loaded = ModelStatus("a", State.READY, info=info)
    system.scripts[m.GetStatus] = lambda message: message.reply.send(status(models=[loaded]))
    assert http.get("/v1/models").json()["data"][0]["context_length"] == 512
    first, second, _ = http.get("/api/v0/models").json()["data"]
    assert (first["state"], first["loaded_context_length"], second["state"]) == ("loaded", 512, "not-loaded")
    first, second, embeds = http.get("/api/v1/models").json()["models"]
    assert first["loaded_instances"] == [{"id": "a", "config": {"context_length": 512}}]
    assert (second["loaded_instances"], second["max_context_length"], embeds["type"]) == ([], 2048, "embedding")


def test_entries_of_the_same_files_have_digests_of_their_own(http):
    digests = {one["digest"] for one in http.get("/api/tags").json()["models"]}
    assert len(digests) == 3


def test_a_name_may_have_latest_behind_it_on_every_api(http, system):
    def answer(chat):
        chat.reply.send(Delta("ok", 1))
        chat.reply.send(Finished("stop", Usage()))

    system.scripts[m.Chat] = answer
    user = [{"role": "user", "content": "hi"}]
    for path, body in (
        ("/v1/chat/completions", {"messages": user}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"messages": user, "max_tokens": 5}),
        ("/api/chat", {"messages": user, "stream": False}),
    ):
        assert http.post(path, json={"model": "a:latest"} | body).status_code == 200, path
        assert system.hears(m.Chat).model == "a"
    assert http.get("/v1/models/a:latest").json()["id"] == "a:latest"


def test_a_model_that_is_null_is_told_the_names(http):
    answer = http.post("/v1/chat/completions", json={"model": None, "messages": []})
    assert answer.status_code == 400
    assert "the models are: a, b, e" in answer.json()["error"]["message"]


def test_a_text_that_is_too_long_is_cut_for_embeddings_as_for_ollamas_clients(http, system):
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Finished("stop", Usage()))
    http.post("/v1/embeddings", json={"model": "e", "input": "long"})
    assert system.hears(m.Chat).request.truncate
