"""Ollama's endpoints about models, embeddings, and what is not there."""

import json
import re
import struct
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import ollama
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Finished, Vectors
from plimsoll.actors.status import ModelStatus, State
from plimsoll.engine.protocol import EmbedRequest, ModelInfo, Usage
from plimsoll.errors import LoadFailed
from plimsoll.http import downloads
from plimsoll.memory.ledger import Decision, Need, Plan
from plimsoll.memory.load_options import longest_context

CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "quantization": {"bits": 4, "group_size": 32},
}


def mlx_folder(path: Path) -> Path:
    """Two tensors: 6 quantised weights in groups of 32, i.e. 192 parameters, and 8 more."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ enable_thinking }}"}))
    tensors = {
        "a.weight": {"dtype": "U32", "shape": [6, 4], "data_offsets": [0, 96]},
        "a.scales": {"dtype": "F16", "shape": [6, 1], "data_offsets": [96, 108]},
        "norm.weight": {"dtype": "F32", "shape": [2], "data_offsets": [108, 116]},
    }
    header = json.dumps(tensors).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(116))
    return path


@pytest.fixture
def server_config(tmp_path: Path) -> dict[str, Any]:
    gguf = tmp_path / "weights.gguf"
    gguf.write_bytes(b"GGUF" + bytes(96))
    entries = {
        "tiny": {"source": str(mlx_folder(tmp_path / "tiny"))},
        "file": {"source": str(gguf)},
        "far": {"source": "org/far"},
        "bert": {"source": "fake:", "embeddings": True},
    }
    return {"models": {"builtin": False, "cache_dir": str(tmp_path / "cache"), "entries": entries}}


# ---- lists


def test_tags_tell_what_the_files_say(llama: ollama.Client, http: httpx.Client, tmp_path: Path) -> None:
    models = {one.model: one for one in llama.list().models}
    assert list(models) == ["tiny", "file", "far", "bert"]
    tiny = models["tiny"]
    assert tiny.size == (tmp_path / "tiny" / "model.safetensors").stat().st_size
    assert tiny.details is not None
    assert (tiny.details.format, tiny.details.family, tiny.details.families) == ("mlx", "llama", ["llama"])
    assert tiny.details.quantization_level == "Q4"
    assert tiny.modified_at is not None
    assert abs(datetime.now(UTC) - tiny.modified_at) < timedelta(minutes=5)
    file = models["file"]
    assert (file.size, file.details.format if file.details else None) == (100, "gguf")
    assert models["far"].size == 0
    assert [body["name"] for body in http.get("/api/tags").json()["models"]] == list(models)


def test_a_digest_is_stable_and_changes_with_the_files(llama: ollama.Client, tmp_path: Path) -> None:
    first = [one.digest for one in llama.list().models]
    assert all(digest and re.fullmatch("[0-9a-f]{64}", digest) for digest in first)
    assert [one.digest for one in llama.list().models] == first
    with (tmp_path / "tiny" / "model.safetensors").open("ab") as weights:
        weights.write(b"more")
    second = [one.digest for one in llama.list().models]
    assert second[0] != first[0]
    assert second[1:] == first[1:]


def test_broken_files_say_nothing_and_break_nothing(llama: ollama.Client, tmp_path: Path) -> None:
    (tmp_path / "tiny" / "config.json").write_text("[")
    (tmp_path / "weights.gguf").unlink()
    models = {one.model: one for one in llama.list().models}
    assert (models["tiny"].size, models["file"].size) == (0, 0)


def test_ps_lists_what_is_loaded_and_until_when(llama: ollama.Client, system: Any, status: Any) -> None:
    used = time.monotonic() - 60
    gpu = ModelInfo(512, 100, 1000, "gpu", "float16")
    cpu = ModelInfo(256, 100, 1000, "cpu", "float32")
    models = [
        ModelStatus("tiny", State.READY, last_used=used, idle_ttl_s=300.0, info=gpu),
        ModelStatus("file", State.BUSY, last_used=used, idle_ttl_s=None, info=cpu),
        ModelStatus("far", State.LOADING),
    ]
    now = status(models=models, footprints={"tiny": 2000, "file": 3000}, contexts={"tiny": 400, "file": 4096})
    system.scripts[m.GetStatus] = lambda ask: ask.reply.send(now)
    tiny, file = llama.ps().models
    assert (tiny.model, tiny.size, tiny.size_vram, tiny.context_length) == ("tiny", 2000, 2000, 400)
    assert tiny.expires_at is not None
    assert abs(tiny.expires_at - datetime.now(UTC) - timedelta(seconds=240)) < timedelta(seconds=10)
    assert (file.size, file.size_vram, file.context_length) == (3000, 0, 256)
    assert file.expires_at is not None
    assert file.expires_at.year > 2300
    assert tiny.digest == llama.list().models[0].digest


def test_ps_passes_over_a_model_that_left_the_catalog(llama: ollama.Client, system: Any, status: Any) -> None:
    now = status(models=[ModelStatus("gone", State.READY), ModelStatus("tiny", State.READY)])
    system.scripts[m.GetStatus] = lambda ask: ask.reply.send(now)
    assert [one.model for one in llama.ps().models] == ["tiny"]


def test_show_tells_the_figures_and_what_it_can_do(llama: ollama.Client) -> None:
    shown = llama.show("tiny:latest")
    assert shown.details is not None
    assert (shown.details.parameter_size, shown.details.quantization_level) == ("0M", "Q4")
    assert shown.modelinfo == {
        "general.architecture": "llama",
        "general.parameter_count": 194,
        "llama.context_length": 512,
        "llama.block_count": 2,
        "llama.embedding_length": 8,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
    }
    assert shown.capabilities == ["completion", "tools", "thinking"]
    assert shown.template == "{{ enable_thinking }}"
    assert llama.show("bert").capabilities == ["embedding"]


def test_show_says_that_a_model_without_a_template_is_a_base_model(llama: ollama.Client, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    assert ask_show(llama)["base_model"] is False
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "any"}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "top_k": 20}))
    shown = llama.show("tiny")
    assert ask_show(llama)["base_model"] is True
    assert shown.capabilities == ["completion"]
    assert shown.parameters == "temperature 0.5\ntop_k 20"


@pytest.mark.parametrize(("granted_tokens", "told"), [(100, 100), (4096, 512), (None, 512)])
def test_show_tells_the_context_that_a_worker_would_be_granted(
    llama: ollama.Client, system: Any, granted_tokens: int | None, told: int
) -> None:
    need = Need(weights_bytes=1000, kv_token_bytes=1, context=512)
    system.needs = {"tiny": (need,)}
    granted = granted_tokens and msgspec.structs.replace(need, kv_bytes=granted_tokens + 256)
    plan = Plan("load" if granted else "refuse", 1, 1, 1, 50.0)
    system.scripts[m.PlanLoad] = lambda ask: ask.reply.send(Decision(need, plan, granted or None))
    assert llama.show("tiny").modelinfo["llama.context_length"] == told


def test_every_place_tells_the_same_longest_conversation_of_a_loaded_model(
    llama: ollama.Client, http: Any, system: Any, status: Any
) -> None:
    need = Need(weights_bytes=1000, kv_bytes=656, kv_token_bytes=1, context=512)
    now = status(
        models=[ModelStatus("tiny", State.READY, info=ModelInfo(512, 100, 1000, "cpu", "float32"))],
        contexts={"tiny": longest_context(need)},
    )
    system.needs = {"tiny": (need,)}
    system.scripts[m.GetStatus] = lambda ask: ask.reply.send(now)
    system.scripts[m.PlanLoad] = lambda ask: ask.reply.send(Decision(need, Plan("load", 1, 1, 1, 50.0), need))
    (listed,) = [one for one in http.get("/v1/models").json()["data"] if one["id"] == "tiny"]
    (loaded,) = [one for one in http.get("/admin/models").json()["models"] if one["name"] == "tiny"]
    assert {
        listed["context_length"],
        loaded["longest_context"],
        http.get("/admin/plan?model=tiny").json()["longest_context"],
        llama.show("tiny").modelinfo["llama.context_length"],
        llama.ps().models[0].context_length,
    } == {400}


def test_show_of_an_unknown_model_is_not_found(llama: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'none' not found") as caught:
        llama.show("none")
    assert caught.value.status_code == 404


def test_the_old_name_for_model_is_taken(http: httpx.Client) -> None:
    assert http.post("/api/show", json={"name": "tiny"}).status_code == 200
    assert http.post("/api/show", json={"model": 3}).json()["error"].startswith("model is 3")


def test_the_version_is_one_that_clients_compare(http: httpx.Client) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", http.get("/api/version").json()["version"])


# ---- embeddings


def vectors(chat: m.Chat) -> None:
    rows = [(float(index), 0.5) for index in range(len(chat.request.texts))]  # type: ignore[union-attr] # asserted below
    data = b"".join(struct.pack("<2f", *row) for row in rows)
    chat.reply.send(Vectors(data, 2))
    chat.reply.send(Finished("stop", Usage(prompt_tokens=7)))


def test_texts_become_vectors(llama: ollama.Client, system: Any) -> None:
    system.scripts[m.Chat] = vectors
    answer = llama.embed("bert", ["a", "b"], dimensions=2, truncate=True)
    assert answer.embeddings == [[0.0, 0.5], [1.0, 0.5]]
    assert answer.prompt_eval_count == 7
    assert system.hears(m.Chat).request == EmbedRequest(["a", "b"], dimensions=2, truncate=True)
    assert llama.embed("bert", "a", keep_alive=60).embeddings == [[0.0, 0.5]]
    assert system.hears(m.KeepAlive) == m.KeepAlive("bert", 60.0)


def test_the_old_embeddings_have_one_vector(llama: ollama.Client, system: Any) -> None:
    system.scripts[m.Chat] = vectors
    assert llama.embeddings("bert", "a").embedding == [0.0, 0.5]
    assert llama.embeddings("bert").embedding == []
    assert llama.embed("bert", []).embeddings == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"input": 3}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"dimensions": 0}, "dimensions"),
        ({"keep_alive": "x"}, "keep_alive"),
    ],
)
def test_bad_values_of_embed_are_refused_by_name(http: httpx.Client, changes: dict[str, Any], names: str) -> None:
    answer = http.post("/api/embed", json={"model": "bert", "input": "a"} | changes)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(names)


# ---- pull


def test_a_model_that_is_here_is_pulled_at_once(llama: ollama.Client) -> None:
    assert llama.pull("tiny").status == "success"
    assert [step.status for step in llama.pull("tiny", stream=True)] == ["pulling manifest", "success"]


def test_a_model_that_is_not_here_is_fetched_with_progress(
    llama: ollama.Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = threading.Event()
    asked: list[Any] = []

    def resolve(source: Any, *, cache_dir: Path, offline: bool, progress: Any) -> None:
        asked.append((source.location, cache_dir, offline))
        progress("fetch", 10, 0)
        progress("fetch", 50, 100)
        assert seen.wait(60)
        progress("convert", 100, 100)

    monkeypatch.setattr(downloads, "resolve", resolve)
    steps = []
    for step in llama.pull("far", stream=True):
        steps.append((step.status, step.completed, step.total))
        if step.completed == 50:
            seen.set()
    assert steps == [
        ("pulling manifest", None, None),
        ("pulling model files", 10, None),
        ("pulling model files", 50, 100),
        ("converting to MLX", 100, 100),
        ("success", None, None),
    ]
    assert asked == [("org/far", tmp_path / "cache", False)]
    assert llama.pull("far").status == "success"


def test_all_who_pull_one_model_share_one_fetch(
    llama: ollama.Client, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    fetches: list[Any] = []

    def resolve(source: Any, *, progress: Any, **_: Any) -> None:
        fetches.append(source)
        for _try in range(1000):
            progress("fetch", 1, 2)
            if go_on.wait(0.01):
                return

    monkeypatch.setattr(downloads, "resolve", resolve)
    with ollama.Client(server.url, timeout=60) as other:
        streams = [client.pull("far", stream=True) for client in (llama, other)]
        for stream in streams:
            assert [next(stream).completed for _ in range(2)] == [None, 1]
        go_on.set()
        assert [list(stream)[-1].status for stream in streams] == ["success", "success"]
    assert len(fetches) == 1


@pytest.mark.parametrize("error", [LoadFailed("no network"), RuntimeError("a bug")])
def test_a_pull_that_fails_says_why(llama: ollama.Client, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def resolve(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(downloads, "resolve", resolve)
    text = "no network" if isinstance(error, LoadFailed) else "internal error"
    for stream, status in ((True, -1), (False, getattr(error, "status", 500))):
        with pytest.raises(ollama.ResponseError, match=text) as caught:
            list(llama.pull("far", stream=stream))
        assert caught.value.status_code == status


def test_an_unknown_model_can_not_be_pulled(llama: ollama.Client) -> None:
    for stream in (True, False):
        with pytest.raises(ollama.ResponseError, match="model 'llama3' not found") as caught:
            list(llama.pull("llama3", stream=stream))
        assert caught.value.status_code == 404


# ---- the rest


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_root_says_ollama_to_those_who_ask_as_ollama_does(http: httpx.Client, method: str) -> None:
    for headers in ({"user-agent": "ollama-python/0.6"}, {"accept": "*/*"}, {"accept": "application/json"}):
        answer = http.request(method, "/", headers=headers)
        assert answer.status_code == 200
        assert answer.text == ("Ollama is running" if method == "GET" else "")
    browser = {"user-agent": "Mozilla/5.0", "accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    answer = http.request(method, "/", headers=browser)
    assert answer.status_code == 200
    assert ("/health" in answer.text) == (method == "GET")


def test_what_changes_models_is_not_supported(llama: ollama.Client, http: httpx.Client) -> None:
    calls = [
        lambda: llama.delete("tiny"),
        lambda: llama.copy("tiny", "other"),
        lambda: llama.push("tiny"),
    ]
    for call in calls:
        with pytest.raises(ollama.ResponseError, match="is not supported; ") as caught:
            call()
        assert caught.value.status_code == 501
    assert http.post("/api/blobs/sha256:0").status_code == 501
    assert http.head("/api/blobs/sha256:0").status_code == 501


def ask_show(llama: ollama.Client) -> dict[str, Any]:
    """The body, of which Ollama's library passes on what it knows."""
    body: dict[str, Any] = llama._client.post("/api/show", json={"model": "tiny"}).json()
    return body
