"""Ollama's create: another name for a model, written into the configuration file."""

import json

import pytest
import yaml

from plimsoll import config, config_file
from plimsoll.actors import messages as m

FILE = """\
models:
  builtin: false
  programs: []
  entries:
    mine:
      source: 'fake:'  # my own
    other:
      source: 'fake:'
      aliases: [taken]
      profiles: {old: {max_tokens: 5}}
"""


@pytest.fixture
def file(http, server, system, tmp_path):
    """The server's configuration file."""
    path = tmp_path / "c.yaml"
    path.write_text(FILE)
    server.read = lambda: config.load(path)
    server.change = lambda changes: config_file.change(path, changes)
    system.scripts[m.Reconfigure] = lambda message: message.reply.send(None)
    assert http.post("/admin/reload").status_code == 200
    return path


def entry(file, name="mine"):
    return yaml.safe_load(file.read_text())["models"]["entries"][name]


def test_a_name_with_parameters_is_a_profile_and_asks_the_same_worker(llama, file, system, says):
    options = {"temperature": 0.3, "top_k": -1, "num_predict": 7, "num_ctx": 4096}
    told = llama.create("mario", from_="mine", parameters=options, system="You are Mario.", stream=False)
    assert told.status == "success"
    kept = {"sampling": {"temperature": 0.3, "top_k": 0}, "max_tokens": 7, "system_prefix": "You are Mario."}
    assert entry(file)["profiles"] == {"mario": {**kept, "aliases": ["mario"]}}
    assert "# my own" in file.read_text()
    system.scripts[m.Chat] = says("hello")
    llama.chat("mario:latest", [{"role": "user", "content": "hi"}])
    asked = system.hears(m.Chat)
    assert (asked.model, asked.request.max_tokens, asked.request.sampling.temperature) == ("mine", 7, 0.3)
    assert asked.request.messages[0]["content"] == "You are Mario."
    assert "mario" in {one.model for one in llama.list().models}


def test_a_name_without_parameters_is_an_alias_and_may_be_made_anew(http, file):
    lines = http.post("/api/create", json={"model": "short", "from": "mine"}).text.splitlines()
    assert [json.loads(line) for line in lines] == [{"status": "success"}]
    assert entry(file) == {"source": "fake:", "aliases": ["short"]}
    for parameters in ({"temperature": 0}, {"top_p": 0.5}):
        body = {"model": "short", "from": "mine", "parameters": parameters}
        assert http.post("/api/create", json=body).status_code == 200
        assert entry(file)["profiles"] == {"short": {"sampling": parameters, "aliases": ["short"]}}
        assert not entry(file).get("aliases")
    assert http.post("/api/create", json={"name": "short:latest", "from": "mine"}).status_code == 200
    assert entry(file) == {"source": "fake:", "aliases": ["short"]}


def test_a_name_behind_the_models_own_is_that_profile(http, file):
    body = {"model": "mine:cold", "from": "mine", "parameters": {"temperature": 0}}
    assert http.post("/api/create", json=body).status_code == 200
    assert entry(file)["profiles"] == {"cold": {"sampling": {"temperature": 0}}}
    assert "mine:cold" in {one["name"] for one in http.get("/api/tags").json()["models"]}


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"from": None}, 400, "from is"),
        ({"model": ""}, 400, "model is missing"),
        ({"from": "none"}, 404, "model 'none' not found"),
        ({"from": "other:old"}, 400, "from is a profile of other"),
        ({"model": "other"}, 400, "another model's name"),
        ({"model": "taken"}, 400, "another model's name"),
        ({"model": "mine"}, 400, "another model's name"),
        ({"model": "mine:cold"}, 400, "parameters or system is needed"),
        ({"model": "../x"}, 400, "models.entries.mine.aliases"),
        ({"from": "other", "model": "old", "system": "x"}, 400, "the profile old is there already"),
        ({"template": "{{ .Prompt }}"}, 400, "template is not supported"),
        ({"files": {"a.gguf": "sha256:0"}}, 400, "files is not supported"),
        ({"adapters": {"a": "b"}}, 400, "adapters is not supported"),
        ({"quantize": "q4_K_M"}, 400, "quantize is not supported"),
        ({"modelfile": "FROM mine"}, 400, "modelfile is not supported"),
        ({"messages": [{"role": "user", "content": "x"}]}, 400, "messages is not supported"),
        ({"parameters": {"stop": ["a"]}}, 400, "parameters.stop can't be kept"),
        ({"parameters": {"temperature": 9}}, 400, "parameters.temperature is 9, but must be a number from 0 to 2"),
        ({"parameters": {"top_p": 0}}, 400, "top_p"),
    ],
)
def test_what_is_refused_leaves_the_file_alone(http, file, change, status, words):
    answer = http.post("/api/create", json={"model": "new", "from": "mine", **change})
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert file.read_text() == FILE
