"""Broken configuration files: a ``Config``, or ``ConfigError`` that names the file."""

from typing import Any

import harness
import yaml
from mutate import Mutator

from plimsoll import config
from plimsoll.catalog.names import Catalog
from plimsoll.errors import ConfigError

USER: list[dict[str, Any]] = [
    {"server": {"host": "127.0.0.1", "port": 11435, "max_body": "16MiB", "keepalive": "5s"}},
    {"memory": {"limit": "16GiB", "warning_percent": 80, "critical_percent": 92.5, "clear_after": "10s"}},
    {"models": {"idle_ttl": None, "queue": 4, "entries": {"m": {"source": "org/name", "pin": True, "idle_ttl": "5m"}}}},
    {"models": {"builtin": False, "entries": {"a/b": {"source": "./x.gguf", "context": 4096, "adapter": "~/lora"}}}},
    {"engine": {"max_batch": 8, "kv_budget": "1GiB", "dequantize": "never"}, "logging": {"language": "ru"}},
]
_TEXTS = (
    "a: &a [*a]\n",
    "server: &s {port: 1}\nmemory: *s\n",
    "<<: {server: 1}\n",
    "server: {port: 2026-13-99}\n",
    "server: {port: !!int x}\n",
    "? [a]\n: b\n",
    "--- 1\n--- 2\n",
    "%YAML 9.9\n---\n",
    "server: !!python/object:os.system {}\n",
    "models: {entries: {a: {source: 0x1_0}}}\n",
)


def case(mutator: Mutator) -> str:
    """One file, loaded as the server does."""
    rnd = mutator.random
    user = rnd.choice(USER)
    text = yaml.safe_dump(user).encode()
    match rnd.randrange(10):
        case 0:
            text = rnd.choice(_TEXTS).encode() + text
            text = mutator.bytes(text) if rnd.random() < 0.5 else text
        case 1 if rnd.random() < 0.02:  # PyYAML takes half a second for a thousand levels
            text = mutator.nested_text().encode()
        case 1 | 2 | 3 | 4:
            text = mutator.bytes(text)
        case _:
            try:
                text = yaml.safe_dump(mutator.structure(user), allow_unicode=True).encode("utf-8", "surrogatepass")
            except RecursionError:  # of the writer
                text = mutator.bytes(text)
    file = harness.scratch() / "config.yaml"
    file.write_bytes(text)
    try:
        found = config.load(file)
        Catalog(found.models)
    except ConfigError as error:
        return harness.refused(error.message)
    config.to_yaml(found)
    return "accepted"


if __name__ == "__main__":
    harness.main("configs", case)
