"""What one machine, or a machine without Ray, has to do with a cluster: nothing, or a sentence."""

import importlib.util
import subprocess
import sys

import pytest

from plimsoll import config
from plimsoll.cluster.system import connect
from plimsoll.errors import ConfigError

FRONT = """
import sys
import plimsoll.http.server, plimsoll.cli.app, plimsoll.cli.serve, plimsoll.actors.system, plimsoll.engine.worker
assert "ray" not in sys.modules
assert not [name for name in sys.modules if name.startswith("plimsoll.cluster")]
groups = {"group.rank", "group.leader", "group.follower", "group.splitting", "handle.worker_group"}
assert not [name for name in groups if "plimsoll.engine." + name in sys.modules]
"""
WORKER = """
import sys
import plimsoll.engine.worker, plimsoll.engine.chat.engine
groups = {"group.rank", "group.leader", "group.follower", "group.splitting", "handle.worker_group"}
assert not [name for name in groups if "plimsoll.engine." + name in sys.modules]
"""


@pytest.mark.parametrize("process", [FRONT, WORKER], ids=["front", "worker"])
def test_nothing_of_ray_of_the_cluster_or_of_groups_is_loaded_on_one_machine(process: str) -> None:
    subprocess.run([sys.executable, "-c", process], check=True)


def test_a_missing_extra_is_a_sentence_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs Ray, which is not installed: pip install 'mlx-plimsoll\[cluster\]'"):
        connect(config.parse({}))


def test_an_entry_with_hosts_is_refused_before_ray_is_joined() -> None:
    entries = {"a": {"source": "fake:", "hosts": ["localhost", "mac2"]}}
    with pytest.raises(ConfigError, match=r"models\.entries\.a\.hosts: .* without --cluster"):
        connect(config.parse({"models": {"entries": entries}}))


def test_no_cluster_at_the_address_is_a_sentence_that_says_what_to_start() -> None:
    code = (
        "from plimsoll import config; from plimsoll.cluster.system import connect;"
        " connect(config.parse({'cluster': {'address': '127.0.0.1:1'}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigError: cluster.address: Ray can't be reached at '127.0.0.1:1'" in done.stderr
    assert "ray start --head" in done.stderr
