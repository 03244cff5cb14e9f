"""Models that other programs or people left in folders: the whole ones are offered, each other one is named."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from plimsoll import config
from plimsoll.catalog import facts, layouts
from plimsoll.catalog.installed import size_bytes
from plimsoll.catalog.names import Catalog
from plimsoll.errors import ConfigError, UnknownModel

REVISION = "0123456789abcdef0123456789abcdef01234567"
LLAMA = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def weights(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return path


def whole(folder: Path, **keys: object) -> Path:
    weights(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**LLAMA, **keys}))
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Callable[..., Path]:
    """``hub(repo, *files)`` lays a repo out as huggingface_hub does: a snapshot of links to blobs."""

    def make(repo: str, *files: str, of: Path | None = None) -> Path:
        storage = tmp_path / "home" / ".cache" / "huggingface" / "hub" / f"models--{repo.replace('/', '--')}"
        snapshot = storage / "snapshots" / REVISION
        snapshot.mkdir(parents=True)
        (storage / "refs").mkdir()
        (storage / "refs" / "main").write_text(REVISION)
        (storage / "blobs").mkdir()
        source = of or whole(tmp_path / "made" / repo)
        for name in files or ("config.json", "model.safetensors"):
            blob = storage / "blobs" / f"blob-{name}"
            blob.write_bytes((source / name).read_bytes() if (source / name).exists() else b"GGUF")
            (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
        return storage

    return make


def catalog(**keys: object) -> Catalog:
    return Catalog(config.parse({"models": {"builtin": False, **keys}}).models)


def reasons(found: Catalog) -> dict[str, str]:
    return {Path(path).name: reason for path, reason in found.passed_over()}


def test_a_repo_in_the_hub_s_cache_is_offered_by_its_name_and_by_its_short_name(hub: Callable[..., Path]) -> None:
    hub("mlx-community/Tiny-1B-4bit")
    found = catalog()
    assert "mlx-community/Tiny-1B-4bit" in found.names()
    model = found.find("Tiny-1B-4bit")
    assert model is found.find("mlx-community/Tiny-1B-4bit")
    assert (model.source.kind, model.source.location) == ("repo", "mlx-community/Tiny-1B-4bit")
    assert found.passed_over() == []


def test_a_short_name_that_could_mean_two_models_means_none(hub: Callable[..., Path]) -> None:
    hub("one/Tiny")
    hub("two/Tiny")
    with pytest.raises(UnknownModel):
        catalog().find("Tiny")


def test_what_is_not_whole_in_the_hub_s_cache_is_named_with_its_reason(
    hub: Callable[..., Path], tmp_path: Path
) -> None:
    hub("a/half", "config.json")
    (hub("a/no-ref") / "refs" / "main").unlink()
    (hub("a/bad-ref") / "refs" / "main").write_text("../../../../etc")
    (hub("a/gone") / "refs" / "main").write_text("f" * 40)
    hub("a/whisper", of=whole(tmp_path / "made" / "w", model_type="whisper"))
    labels = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}}
    hub("a/classifier", of=whole(tmp_path / "made" / "c", model_type="bert", **labels))
    blob = next((hub("a/broken") / "blobs").glob("*model.safetensors"))
    blob.unlink()
    stranger = hub("a/stranger")
    link = stranger / "snapshots" / REVISION / "extra.json"
    link.symlink_to(weights(tmp_path / "elsewhere" / "secret"))
    hub("a/whole")
    found = catalog()
    assert [name for name in found.names() if name.startswith("a/")] == ["a/whole"]
    told = reasons(found)
    assert "no model*.safetensors" in told["models--a--half"]
    assert "none of its revisions" in told["models--a--no-ref"]
    assert "names no revision" in told["models--a--bad-ref"]
    assert "revision ffffffffffff are not there" in told["models--a--gone"]
    assert "type 'whisper'" in told["models--a--whisper"]
    assert "classifier of 2 labels" in told["models--a--classifier"]
    assert "extra.json is a link out of" in told["models--a--stranger"]
    assert "lacks 1 of 1 weight files" in told["models--a--broken"]


def test_a_repo_of_one_gguf_file_has_the_repo_s_name_and_of_several_the_files(hub: Callable[..., Path]) -> None:
    hub("org/One-GGUF", "one-Q4_K_M.gguf")
    hub("org/Two-GGUF", "two-Q4_0.gguf", "two-Q8_0.gguf", "mmproj-two.gguf", "big-00001-of-00002.gguf")
    found = catalog()
    assert set(found.names()) >= {"org/One-GGUF", "org/Two-GGUF/two-Q4_0", "org/Two-GGUF/two-Q8_0"}
    assert found.find("org/One-GGUF").source.kind == "gguf"
    assert "projector" in reasons(found)["mmproj-two.gguf"]
    assert "its part big-00002-of-00002.gguf is not there" in reasons(found)["big-00001-of-00002.gguf"]


def test_a_gguf_model_in_parts_is_one_model_where_all_are_there(hub: Callable[..., Path], tmp_path: Path) -> None:
    parts = [f"big-Q4_K_M-0000{number}-of-00002.gguf" for number in (1, 2)]
    hub("org/Big-GGUF", *parts)
    folder = tmp_path / "models"
    folder.mkdir()
    for part in (*parts, "half-00002-of-00002.gguf"):
        (folder / part).write_bytes(b"GGUF")
    found = catalog(dir=str(folder))
    assert {"org/Big-GGUF", "big-Q4_K_M"} <= set(found.names())
    model = found.find("big-Q4_K_M")
    assert model.source.location == str(folder / parts[0])
    assert size_bytes(model.source, tmp_path) == 8
    told = facts.facts(model, tmp_path)
    assert (told.quantization, told.size_bytes) == ("Q4_K_M", 8)
    assert [name for name in reasons(found) if "big" in name] == []
    assert "half-00001-of-00002.gguf is not there" in reasons(found)["half-00002-of-00002.gguf"]
    (folder / parts[1]).unlink()
    (folder / parts[1]).symlink_to("/etc/hosts")
    assert "a link out of" in reasons(catalog(dir=str(folder)))[parts[0]]


def test_a_repo_that_an_entry_names_is_that_entry_s_also_while_it_is_switched_off(hub: Callable[..., Path]) -> None:
    hub("org/name")
    assert "org/name" not in catalog(entries={"mine": {"source": "org/name"}}).names()
    assert "org/name" not in catalog(entries={"mine": {"source": "org/name", "enabled": False}}).names()


def test_lm_studio_s_folders_are_found(tmp_path: Path) -> None:
    models = tmp_path / "home" / ".lmstudio" / "models"
    whole(models / "mlx-community" / "Tiny")
    (models / "bartowski" / "Tiny-GGUF").mkdir(parents=True)
    (models / "bartowski" / "Tiny-GGUF" / "Tiny-Q4_0.gguf").write_bytes(b"GGUF")
    weights(models / "lost" / "half" / "model-00001-of-00002.safetensors")
    (models / "notes" / "drafts").mkdir(parents=True)
    found = catalog()
    assert found.find("Tiny").source.location == str(models / "mlx-community" / "Tiny")
    assert found.find("bartowski/Tiny-GGUF").source.kind == "gguf"
    assert reasons(found) == {"half": "it has weights and no config.json"}


def test_other_programs_folders_are_left_alone_where_the_configuration_says_so(hub: Callable[..., Path]) -> None:
    hub("org/name")
    assert "org/name" not in catalog(programs=["lm-studio"]).names()


def test_several_folders_are_one_list_in_which_the_first_one_goes_first(tmp_path: Path) -> None:
    one, two = whole(tmp_path / "one" / "same"), whole(tmp_path / "two" / "same")
    whole(tmp_path / "two" / "org" / "other")
    found = catalog(dir=str(one.parent), dirs=[str(two.parent)])
    assert found.find("same").source.location == str(one)
    assert found.find("org/other").source.location == str(tmp_path / "two" / "org" / "other")


def test_a_link_may_lead_into_another_folder_of_models_and_not_out_of_all(tmp_path: Path) -> None:
    real = whole(tmp_path / "big-disk" / "real")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "linked").symlink_to(real)
    alone = catalog(dir=str(tmp_path / "one"))
    assert "linked" not in alone.names()
    assert "name the folder that it leads to in models.dirs" in reasons(alone)["linked"]
    assert "linked" in catalog(dirs=[str(real.parent), str(tmp_path / "one")]).names()


def test_a_folder_of_the_configuration_that_is_missing_is_refused_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"models\.dirs: .* is not a folder"):
        catalog(dirs=[str(tmp_path / "nowhere")])


def test_a_cache_that_comes_later_is_found_and_says_nothing_while_it_is_missing(hub: Callable[..., Path]) -> None:
    found = catalog()
    assert found.problems() == []
    hub("org/late")
    look = found.look_again()
    assert look
    look.result(5.0)
    assert "org/late" in found.names()


def test_a_reload_keeps_the_folders_that_stay(hub: Callable[..., Path]) -> None:
    hub("org/name")
    before = catalog()
    after = Catalog(before.config, before)
    assert after.folders == before.folders
    assert "org/name" in after.names()


def test_the_types_that_mlx_lm_serves_are_known_without_importing_it() -> None:
    types = layouts.served_types()
    assert {"llama", "qwen3", "mistral", "bert"} <= types
    assert "whisper" not in types
