"""Model files that lie: the front process reads their headers, and memory is granted by what they say."""

import json
import os
import struct

import pytest

from plimsoll import config
from plimsoll.catalog import files as strange
from plimsoll.catalog.files import read_tensors
from plimsoll.catalog.installed import size_bytes
from plimsoll.catalog.names import Catalog
from plimsoll.catalog.source import ModelSource
from plimsoll.catalog.weigh import weigh, weigh_source

PLAIN = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def tensor(shape=(2, 4), dtype="F32", offsets=(0, 32)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def safetensors(path, entries, data=32):
    head = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"\0" * data)
    return path


@pytest.fixture
def folder(tmp_path):
    """Makes a model's folder out of a config and the tensors of its one file."""

    def make(changes=None, entries=None):
        (tmp_path / "m").mkdir(exist_ok=True)
        content = changes if isinstance(changes, bytes) else json.dumps(PLAIN | (changes or {})).encode()
        (tmp_path / "m" / "config.json").write_bytes(content)
        safetensors(tmp_path / "m" / "model.safetensors", entries or {"a.weight": tensor()})
        return tmp_path / "m"

    return make


def test_an_honest_model_is_weighed(folder):
    weight = weigh(folder())
    assert (weight.stored_bytes, weight.dense_bytes, weight.kv_values_per_token, weight.context) == (32, 32, 16, 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\1\2", "not a safetensors file"),
        (struct.pack("<Q", 0), "not a safetensors file"),
        (struct.pack("<Q", 1 << 63) + b"{}", "is cut off"),
        (struct.pack("<Q", 3) + b"{}", "is cut off"),
        (struct.pack("<Q", 2) + b"[]", "not what it should be: Expected `object`"),
        (struct.pack("<Q", 2) + b"\xff\xfe", "malformed"),
        (struct.pack("<Q", 300_000) + b'{"a":' * 60_000, "nested too deeply|truncated"),
    ],
)
def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path, content, message):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_tensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (tensor(offsets=(0, 64)), "lies at 0 to 64 of 32 bytes"),
        (tensor(offsets=(32, 0)), "lies at 32 to 0"),
        (tensor(offsets=(-8, 24)), ">= 0"),
        (tensor(shape=(-2, -4)), ">= 0"),
        (tensor(shape=(1 << 60, 1 << 60)), "32 bytes, which is not what its shape takes"),
        (tensor(shape=[1] * 17), "length <= 16"),
        (tensor(shape=("2", 4)), "Expected `int`"),
        (tensor(dtype="PICKLE"), "of the unknown type 'PICKLE'"),
        ({"dtype": "F32"}, "missing required field"),
        ([], "Expected `object`"),
    ],
)
def test_a_tensor_that_can_not_be_in_the_file_is_refused(tmp_path, entry, message):
    file = safetensors(tmp_path / "model.safetensors", {"a": entry})
    with pytest.raises(ValueError, match=message):
        read_tensors(file)


def test_tensors_that_share_their_bytes_are_refused(tmp_path):
    """They would be granted memory many times over, or make a model look larger than the machine."""
    file = safetensors(tmp_path / "model.safetensors", {"a": tensor(), "b": tensor()})
    with pytest.raises(ValueError, match="announces tensors of 64 bytes and holds 32"):
        read_tensors(file)


def test_a_header_above_the_bound_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("plimsoll.catalog.files.MAX_BYTES", 10)
    with pytest.raises(ValueError, match=r"header of [0-9]+ bytes, above the bound of 10"):
        read_tensors(safetensors(tmp_path / "model.safetensors", {"a": tensor()}))


def test_more_tensors_than_any_model_has_are_refused(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("plimsoll.catalog.files.MOST_TENSORS", 1)
    file = safetensors(tmp_path / "model.safetensors", {"a": tensor(), "b": tensor((), "F32", (0, 4))})
    with pytest.raises(ValueError, match="announces 2 tensors"):
        read_tensors(file)
    monkeypatch.setattr("plimsoll.catalog.weigh.MOST_TENSORS", 1)
    safetensors(folder() / "model-2.safetensors", {"b": tensor()})
    with pytest.raises(ValueError, match="announces more than 1 tensors"):
        weigh(folder())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1_000_000_000}, "1000000000 layers and the files hold 1 tensors"),
        ({"text_config": {"num_hidden_layers": 1_000_000_000}}, "1000000000 layers"),
        ({"model_type": "bert", "num_hidden_layers": 1_000_000_000}, "1000000000 layers"),
        ({"head_dim": 1 << 200}, "asks for more KV cache"),
        ({"kv_lora_rank": 1 << 40}, "asks for more KV cache"),
        (b'{"a":' * 100_000, "config.json is nested too deeply"),
        (b"[]", "config.json is not what it should be"),
        (b"\x80\x04pickle", "config.json is not what it should be"),
    ],
)
def test_a_config_that_can_not_be_true_is_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        weigh(folder(changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": -5, "num_attention_heads": 0},
        {"num_hidden_layers": "1", "head_dim": [1], "hidden_size": None},
        {"quantization": "4bit"},
        {"quantization": [4]},
        {"quantization": {"a": 5, "group_size": "64"}},
        {"text_config": "none"},
        {"model_type": ["llama"]},
        {"model_type": {"a": 1}},
        {"max_position_embeddings": 10**200},
    ],
)
def test_odd_values_in_a_config_count_as_not_there(folder, changes):
    weight = weigh(folder(changes))
    assert weight.stored_bytes == 32
    assert weight.kv_values_per_token >= 0
    assert weight.context is None or weight.context < 1 << 32


@pytest.mark.parametrize("size", [0, -64, 1 << 40])
def test_quantization_in_impossible_groups_is_refused(folder, size):
    entries = {"a.weight": tensor((2, 2), "U32", (0, 16)), "a.scales": tensor((2, 1), "F16", (16, 20))}
    with pytest.raises(ValueError, match=f"in groups of {size}, expected 1 to"):
        weigh(folder({"quantization": {"group_size": size, "bits": 4}}, entries))


def test_a_file_above_the_bound_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(strange, "MAX_BYTES", 1 << 20)
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="has more than the 1 MiB"):
        strange.read_object(tmp_path / "config.json")


def test_a_pipe_is_not_waited_for(folder):
    place = folder()
    os.mkfifo(place / "model-2.safetensors")
    with pytest.raises(ValueError, match=r"model-2\.safetensors is not a regular file"):
        weigh(place)
    (place / "config.json").unlink()
    os.mkfifo(place / "config.json")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        weigh_source(ModelSource("m", "folder", str(place)), place)


def test_an_index_that_is_nested_too_deeply_is_a_problem_of_the_model_and_not_of_the_front(folder):
    place = folder()
    (place / "model.safetensors.index.json").write_bytes(b'{"weight_map":{},"a":' + b'{"a":' * 100_000)
    with pytest.raises(ValueError, match=r"index\.json that can't be read .*nested too deeply"):
        weigh_source(ModelSource("m", "folder", str(place)), place)
    assert size_bytes(ModelSource("m", "folder", str(place)), place) is None


def test_an_index_with_a_name_that_no_file_can_have_is_a_problem_of_the_model(folder):
    place = folder()
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "a" * 3000}}))
    with pytest.raises(ValueError, match=r"index\.json that can't be read .*File name too long"):
        weigh_source(ModelSource("m", "folder", str(place)), place)


def test_an_index_can_not_name_files_elsewhere(folder, tmp_path):
    place = folder()
    safetensors(tmp_path / "secret.safetensors", {"a": tensor()})
    index = {"weight_map": {"a": "../secret.safetensors", "b": "..", "c": "/etc/passwd", "d": "a\0b"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lacks 4 of 4 weight files"):
        weigh_source(ModelSource("m", "folder", str(place)), place)


def test_a_folder_whose_files_lead_out_of_the_models_folder_is_not_offered(tmp_path, folder):
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps(PLAIN))
    models = tmp_path / "models"
    for name, target in (("out", secret), ("in", models / "shared.json")):
        (models / name).mkdir(parents=True)
        (models / name / "config.json").write_text("{}")
        (models / name / "tokenizer.json").symlink_to(target)
    (models / "shared.json").write_text("{}")
    settings = config.parse({"models": {"dir": str(models), "builtin": False}}).models
    assert Catalog(settings).names() == ["in"]


def test_what_leads_out_is_served_where_an_entry_names_it(tmp_path, folder):
    (tmp_path / "link").symlink_to(folder())
    settings = config.parse({"models": {"entries": {"mine": {"source": str(tmp_path / "link")}}}}).models
    assert weigh_source(Catalog(settings).find("mine").source, tmp_path).stored_bytes == 32
