"""What the nodes are told of the head's configuration."""

import msgspec
import yaml

from plimsoll import config
from plimsoll.catalog.names import Catalog
from plimsoll.cluster.node_server import models_section, node_settings
from plimsoll.config import ModelsConfig
from plimsoll.units import from_yaml

GIVEN = config.parse(
    {
        "access": {"keys": [{"name": "me", "role": "admin", "key": "not-for-the-nodes"}]},
        "memory": {"warning_percent": 70},
        "models": {"entries": {"a": {"source": "fake:", "pin": True, "idle_ttl": "5m"}, "b": {"source": "fake:x=1"}}},
    }
)


def test_nodes_get_everything_but_keys_and_pins() -> None:
    text = node_settings(GIVEN)
    assert "not-for-the-nodes" not in text
    told = config.parse(yaml.safe_load(text))
    assert told.access.keys == []
    assert told.memory == GIVEN.memory
    assert not told.models.entries["a"].pin
    assert told.models.entries["a"].idle_ttl == 300.0
    assert told.engine == GIVEN.engine


def test_a_new_section_of_models_comes_back_as_it_was_but_for_pins() -> None:
    section = msgspec.msgpack.decode(msgspec.msgpack.encode(models_section(Catalog(GIVEN.models))))
    told = msgspec.convert(section, ModelsConfig, dec_hook=from_yaml)
    assert told == config.parse(yaml.safe_load(node_settings(GIVEN))).models
