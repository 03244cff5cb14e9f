"""Model files that want to run code, or never to end: they cost a request, or the load, and nothing else."""

import json
import pickle
import queue
import shutil
import struct
import time
from pathlib import Path
from threading import Event, Thread

import pytest
import tiny_llama
from mlx_helpers import Run, open_engine, request
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from plimsoll.catalog.source import ModelSource
from plimsoll.engine import protocol as p
from plimsoll.engine.chat import prompts
from plimsoll.engine.dialect import dialect
from plimsoll.engine.handle.process import WorkerProcess
from plimsoll.engine.prompt_bounds import TookTooLong, time_limit
from plimsoll.errors import BadRequest, LoadFailed

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}\
{% endfor %}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_llama.build(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def proof(folder):
    """A file that code of the model's own would leave behind."""
    proof = folder.parent / "was-run"
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')")
    return proof


def change(file, **keys):
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


# ---- code


def test_a_model_that_brings_its_own_code_is_refused_and_the_code_not_run(folder, proof):
    change(folder / "config.json", model_file="evil.py")
    with pytest.raises(LoadFailed, match=r"asks to run the Python file 'evil\.py'. A model's own code is never run"):
        open_engine(folder)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("config.json", "model_type"),
        ("tokenizer_config.json", "chat_template_type"),
        ("tokenizer_config.json", "tool_parser_type"),
    ],
)
@pytest.mark.parametrize("value", ["../../evil", "{folder}/evil", "..server", "os.path", "", 7, ["llama"], "llama\n"])
def test_names_of_modules_can_not_lead_anywhere(folder, proof, file, key, value):
    change(folder / file, **{key: value.format(folder=folder) if isinstance(value, str) else value})
    with pytest.raises(LoadFailed, match=f"{key} is .* which is no name of a known kind"):
        open_engine(folder)
    assert not proof.exists()


def test_classes_of_the_models_own_are_never_imported(folder, proof):
    own = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    change(folder / "config.json", auto_map=own)
    change(folder / "tokenizer_config.json", auto_map=own)
    open_engine(folder).close()  # a class of transformers' own is named beside them
    change(folder / "tokenizer_config.json", tokenizer_class="Evil")
    with pytest.raises(LoadFailed, match="wants code of its own to be run, which is never done here"):
        open_engine(folder)
    assert not proof.exists()


class _Bomb:
    def __init__(self, proof):
        self.proof = str(proof)

    def __reduce__(self):
        return open, (self.proof, "w")


def test_pickled_weights_are_not_looked_at(folder, proof):
    for name in ("pytorch_model.bin", "model.pt", "weights.npz", "adapters.npz", "model-2.safetensors"):
        (folder / name).write_bytes(pickle.dumps(_Bomb(proof)))
    with pytest.raises(RuntimeError, match="safetensors"):
        open_engine(folder)
    (folder / "model-2.safetensors").unlink()
    open_engine(folder).close()
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadFailed, match="has no weights"):
        open_engine(folder)
    assert not proof.exists()


# ---- chat templates


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['jinja2'].os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ messages.clear() }}",
        "{% include 'config.json' %}",
        "{% import 'os' as os %}",
        "{{ range(1000000000) | list }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 1 / 0 }}",
        "{{ 2 | unknown }}",
        "{% endfor %}",
    ],
)
def test_a_template_that_leaves_its_sandbox_costs_its_request(folder, template):
    change(folder / "tokenizer_config.json", chat_template=template)
    engine = open_engine(folder)
    with pytest.raises(BadRequest, match="The model's chat template refuses these messages"):
        engine.prepare(request("hello"))
    assert engine.prepare(p.ChatRequest([], prompt="hello")).tokens
    engine.close()


def test_a_template_that_never_ends_is_stopped_and_other_requests_go_on(folder, monkeypatch):
    monkeypatch.setattr(dialect, "_TEMPLATE_S", 0.5)
    monkeypatch.setattr(dialect, "_PROBE_S", 0.5)
    change(folder / "tokenizer_config.json", chat_template=ENDLESS)
    engine = open_engine(folder)
    run = Run(engine)
    run.submit("runs", p.ChatRequest([], prompt="hello", max_tokens=20))
    refused = queue.Queue()

    def prepare():
        try:
            engine.prepare(request("hello"))
        except BadRequest as error:
            refused.put(error)

    reader = Thread(target=prepare)
    reader.start()
    run.finish()
    assert run.reasons["runs"] in {"stop", "length"}
    assert "chat template took more than" in refused.get(timeout=60).message
    reader.join()
    engine.close()


def test_a_template_that_makes_too_much_text_is_refused_before_it_is_tokenised(folder, monkeypatch):
    monkeypatch.setattr(prompts, "_MOST_CHARACTERS", 1000)
    change(folder / "tokenizer_config.json", chat_template="{{ 'a' * 1001 }}")
    engine = open_engine(folder)
    with pytest.raises(BadRequest, match="makes 1001 characters of these messages; at most 1000 are read"):
        engine.prepare(request("hello"))
    engine.close()


def test_what_is_within_its_time_is_left_alone():
    with time_limit(60):
        done = sum(range(1000))
    assert done == 499500


def test_an_interruption_does_not_reach_beyond_its_block():
    for _ in range(50):
        ended = Event()
        try:
            with time_limit(0.001):
                while not ended.is_set():
                    pass
        except TookTooLong:
            ended.set()
        assert ended.is_set()
    until = time.monotonic() + 0.05
    while time.monotonic() < until:  # a late one would hit here
        pass


# ---- tokenizers


def test_a_tokenizer_that_panics_costs_its_request_and_not_the_worker(folder):
    """Its exception is a BaseException: it ended the reader thread, and the worker heard nothing any more."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"(a|a)*$"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    events = queue.Queue()
    worker = WorkerProcess(events.put, events.put)
    try:
        worker.send(p.LoadModel(ModelSource("m", "folder", str(folder)), p.EngineOptions(cache_dir="")))
        assert isinstance(last(events, p.Ready, int), p.Ready)
        worker.send(p.Generate("bad", p.ChatRequest([], prompt="a" * 60 + "b", max_tokens=2)))
        refused = last(events, p.RequestError, int)
        assert (refused.id, refused.code) == ("bad", "internal_error")
        worker.send(p.Generate("good", p.ChatRequest([], prompt="b", max_tokens=2)))
        while not (step := last(events, p.Step, int)).endings:
            pass
        assert step.endings[0][0] == "good"
        worker.send(p.Shutdown())
        assert last(events, int) == 0
    finally:
        worker.kill()


def last(events, *kinds):
    while not isinstance(event := events.get(timeout=60), kinds):
        pass
    return event


@pytest.mark.parametrize("content", [b"{}", b"[" * 100_000, b"{", b'{"model": 1, "added_tokens": 2}'])
def test_a_broken_tokenizer_fails_the_load_in_the_worker(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    assert isinstance(told(folder), p.LoadError)


def test_a_worker_that_is_killed_by_a_models_weights_is_only_a_worker(folder):
    head = b'{"model.norm.weight":{"dtype":"F32","shape":[64],"data_offsets":[0,9999999999]}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head)
    assert isinstance(told(folder), p.LoadError | int)


def told(folder):
    """What a worker says of a load in the end, or its exit code."""
    events = queue.Queue()
    worker = WorkerProcess(events.put, events.put)
    try:
        worker.send(p.LoadModel(ModelSource("m", "folder", str(folder)), p.EngineOptions(cache_dir="")))
        return last(events, p.LoadError, p.Ready, int)
    finally:
        worker.kill()


def test_a_tokenizer_file_can_hold_no_model_of_a_kind_that_reads_other_files(tmp_path):
    """tokenizer.json is data of the library's own; a vocabulary by path is not among it."""
    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"] = "/etc/passwd"
    with pytest.raises(Exception, match=r"expected a map|invalid type|did not match"):
        Tokenizer.from_str(json.dumps(content))
