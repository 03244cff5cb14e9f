"""What a configuration can't mean on this machine."""

from pathlib import Path

import pytest

from plimsoll import config
from plimsoll.catalog import Catalog
from plimsoll.cli import sense
from plimsoll.errors import ConfigError

GIB = 1024**3


def test_a_limit_above_physical_memory_is_refused_by_its_key() -> None:
    settings = config.parse({"memory": {"limit": "32GiB"}})
    sense.refuse_nonsense(settings, total_bytes=64 * GIB)
    with pytest.raises(ConfigError, match=r"memory\.limit: 32\.0 GiB .* 16\.0 GiB"):
        sense.refuse_nonsense(settings, total_bytes=16 * GIB)


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
    (doubt,) = sense.doubts(settings, Catalog(settings.models))
    assert doubt.startswith("memory.limit: big needs")


def test_a_folder_that_is_no_model_is_a_warning(tmp_path: Path) -> None:
    entry = {"source": str(tmp_path)}
    settings = config.parse({"models": {"builtin": False, "entries": {"empty": entry}}})
    (doubt,) = sense.doubts(settings, Catalog(settings.models))
    assert "config.json" in doubt
