"""Entries that name hosts: which is this machine, what one rank holds, and what can't be split."""

import json
import socket
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import pytest

from plimsoll import config
from plimsoll.catalog.names import Catalog
from plimsoll.catalog.source import Group, GroupHost
from plimsoll.catalog.weigh import weigh
from plimsoll.errors import ConfigError

SETTINGS = {
    "model_type": "llama",
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
}


def group(count: int, split: Literal["tensor", "pipeline"] = "tensor") -> Group:
    return Group(tuple(GroupHost(f"h{n}", f"h{n}") for n in range(count)), "ring", split)


def find(hosts: list[Any], **more: Any) -> Group | None:
    entries = {"a": {"source": "fake:", "hosts": hosts, **more}}
    return Catalog(config.parse({"models": {"entries": entries}}).models).find("a").group


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {"model.embed_tokens.weight": mx.zeros((100, 64))}
    tensors |= {f"model.layers.{n}.mlp.up_proj.weight": mx.zeros((96, 64)) for n in range(3)}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    return tmp_path


@pytest.mark.parametrize("first", ["127.0.0.1", "localhost", socket.gethostname(), "somebody@localhost"])
def test_the_first_host_is_this_machine(first: str) -> None:
    found = find([first, "mac2.invalid"])
    assert found is not None
    assert [host.here for host in found.hosts] == [True, False]


def test_no_two_entries_use_the_same_ports() -> None:
    entries = {
        "a": {"source": "fake:", "hosts": ["localhost", "mac2"]},
        "b": {"source": "fake:"},
        "c": {"source": "fake:", "hosts": ["localhost", "mac2", "mac3"], "enabled": False},
        "d": {"source": "fake:", "hosts": ["localhost", "mac2"]},
    }
    catalog = Catalog(config.parse({"models": {"entries": entries, "group_port": 5000}}).models)
    assert [catalog.find(name).first_port for name in ("a", "d")] == [5000, 5005]


def test_a_host_may_have_another_address_for_the_others() -> None:
    found = find([{"host": "localhost", "address": "127.0.0.1"}, {"host": "me@mac2", "address": "10.9.8.7"}])
    assert found is not None
    assert [(host.name, host.address, host.here) for host in found.hosts] == [
        ("localhost", "127.0.0.1", True),
        ("me@mac2", "10.9.8.7", False),
    ]


def test_a_group_that_does_not_begin_here_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"entries\.a\.hosts: the first host has to be this machine.*mac1\.invalid"):
        find(["mac1.invalid", "localhost"])


def test_entries_without_hosts_have_no_group() -> None:
    assert find([]) is None


def test_an_entry_that_is_switched_off_may_belong_to_other_machines() -> None:
    entries = {"a": {"source": "fake:", "hosts": ["mac1.invalid", "mac2.invalid"], "enabled": False}}
    Catalog(config.parse({"models": {"entries": entries}}).models)


def test_every_rank_holds_its_part_of_the_layers_and_all_of_the_rest(folder: Path) -> None:
    whole, embeddings, layer = weigh(folder), 100 * 64 * 4, 96 * 64 * 4
    assert whole.stored_bytes == embeddings + 3 * layer
    half = weigh(folder, group=group(2))
    assert half.stored_bytes == half.float32_bytes == half.dense_bytes == embeddings + 3 * layer // 2
    assert half.kv_values_per_token == whole.kv_values_per_token // 2
    assert half.context == whole.context
    # Three layers over two hosts: the larger share counts.
    pipeline = weigh(folder, group=group(2, "pipeline"))
    assert pipeline.stored_bytes == embeddings + 2 * layer
    assert pipeline.kv_values_per_token == whole.kv_values_per_token * 2 // 3


@pytest.mark.parametrize(
    ("different", "count", "split", "sentence"),
    [
        ({"num_attention_heads": 9}, 2, "tensor", "it has 9 attention heads, which 2 hosts can't share evenly"),
        ({"num_key_value_heads": 1}, 2, "tensor", "it has 1 KV heads"),
        ({"intermediate_size": 97}, 2, "tensor", "it has 97 columns in its MLP"),
        ({}, 4, "pipeline", "it has 3 layers, too few for 4 hosts"),
    ],
)
def test_what_can_not_be_split_says_why_and_what_to_do(
    folder: Path, different: dict[str, Any], count: int, split: Literal["tensor", "pipeline"], sentence: str
) -> None:
    (folder / "config.json").write_text(json.dumps(SETTINGS | different))
    with pytest.raises(ValueError, match=sentence) as caught:
        weigh(folder, group=group(count, split))
    assert "name" in str(caught.value)
