"""What a configuration can't mean on this machine."""

import json
import struct
from pathlib import Path

import pytest

from plimsoll import config
from plimsoll.catalog.names import Catalog
from plimsoll.cli import config_checks
from plimsoll.errors import ConfigError

GIB = 1024**3


def test_a_limit_above_physical_memory_is_refused_by_its_key() -> None:
    settings = config.parse({"memory": {"limit": "32GiB"}})
    config_checks.refuse_nonsense(settings, total_bytes=64 * GIB)
    with pytest.raises(ConfigError, match=r"memory\.limit: 32\.0 GiB .* 16\.0 GiB"):
        config_checks.refuse_nonsense(settings, total_bytes=16 * GIB)


def test_a_limit_below_one_model_is_a_warning_that_names_both(tmp_path: Path) -> None:
    settings = config.parse(
        {
            "memory": {"limit": "1GiB"},
            "models": {
                "builtin": False,
                "cache_dir": str(tmp_path),
                "entries": {"big": {"source": "fake:hold=2000MiB"}, "small": {"source": "fake:hold=10MiB"}},
            },
        }
    )
    (doubt,) = config_checks.doubts(settings, Catalog(settings.models))
    assert doubt.startswith("memory.limit: big needs")


def test_a_folder_that_is_no_model_is_a_warning(tmp_path: Path) -> None:
    entry = {"source": str(tmp_path)}
    settings = config.parse({"models": {"builtin": False, "entries": {"empty": entry}}})
    (doubt,) = config_checks.doubts(settings, Catalog(settings.models))
    assert "config.json" in doubt


@pytest.mark.parametrize(
    ("limit", "total", "budget", "key"),
    [
        ("8GiB", 16 * GIB, 8 * GIB, "memory.limit"),
        ("8GiB", 8 * GIB, 8 * GIB, "memory.limit"),
        ("8GiB", 4 * GIB, 4 * GIB, "this machine's memory"),
        (None, 4 * GIB, 4 * GIB, "this machine's memory"),
    ],
)
def test_the_smallest_of_limit_machine_and_container_is_what_models_may_take(
    limit: str | None, total: int, budget: int, key: str
) -> None:
    settings = config.parse({"memory": {"limit": limit, "critical_percent": 95}})
    assert config_checks.budget_bytes(settings, total) == int(budget * 0.95)
    assert config_checks.budget_key(settings, total) == key


def test_what_holds_where_a_request_says_nothing_is_told_with_where_it_is_from(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m")
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "top_k": 7}))
    entry = {"source": str(folder), "sampling": {"top_k": 9}}
    settings = config.parse({"models": {"builtin": False, "entries": {"m": entry}}})
    told = config_checks.sampling(config_checks.facts_of(settings, Catalog(settings.models)))["m"]
    assert told["temperature"] == {"value": 0.3, "from": "generation_config.json"}
    assert told["top_k"] == {"value": 9, "from": "entry"}
    assert told["top_p"] == {"value": 1.0, "from": "neutral"}


def test_a_model_without_a_template_is_told_to_be_a_base_model(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m")
    settings = config.parse({"models": {"builtin": False, "entries": {"m": {"source": str(folder)}}}})
    (doubt,) = config_checks.doubts(settings, Catalog(settings.models))
    assert "base model" in doubt
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "T"}))
    assert not config_checks.doubts(settings, Catalog(settings.models))


def tiny(folder: Path) -> Path:
    """A model of one tensor, without a template."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"norm.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return folder
