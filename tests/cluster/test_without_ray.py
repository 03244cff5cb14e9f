"""What one machine, or a machine without Ray, has to do with a cluster: nothing, or a sentence."""

import importlib.util
import subprocess
import sys

import pytest

from plimsoll import config
from plimsoll.cluster.connect import connect
from plimsoll.errors import ConfigError

FRONT = """
import sys
import plimsoll.http.server, plimsoll.cli.app, plimsoll.actors.system, plimsoll.engine.worker
assert "ray" not in sys.modules
assert not [name for name in sys.modules if name.startswith("plimsoll.cluster")]
"""


def test_nothing_of_ray_or_of_the_cluster_is_loaded_on_one_machine() -> None:
    subprocess.run([sys.executable, "-c", FRONT], check=True)


def test_a_missing_extra_is_a_sentence_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs Ray, which is not installed: pip install 'mlx-plimsoll\[cluster\]'"):
        connect(config.parse({}))


def test_no_cluster_at_the_address_is_a_sentence_that_says_what_to_start() -> None:
    code = (
        "from plimsoll import config; from plimsoll.cluster.connect import connect;"
        " connect(config.parse({'cluster': {'address': '127.0.0.1:1'}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigError: cluster.address: Ray can't be reached at '127.0.0.1:1'" in done.stderr
    assert "ray start --head" in done.stderr
