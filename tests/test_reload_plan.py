"""What a new configuration changes at once, and what waits."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll import config
from plimsoll.config import Config
from plimsoll.http.process.reload import plan_reload

RUNNING = {
    "server": {"port": 1111, "keepalive": "5s"},
    "models": {"entries": {"a": {"source": "fake:"}, "b": {"source": "fake:"}}},
}
VALUES: dict[str, tuple[Any, Any]] = {
    "server.port": (1111, 2222),
    "server.keepalive": ("5s", "6s"),
    "memory.limit": (None, "1GiB"),
    "memory.warning_percent": (80, 84),
    "models.idle_ttl": ("15m", None),
    "models.cache_dir": (None, "/elsewhere"),
    "models.queue": (64, 2),
    "engine.max_batch": (16, 4),
    "logging.level": ("info", "debug"),
    "logging.file": (None, "none"),
}
LIVE = {"server.keepalive", "memory.limit", "memory.warning_percent", "models.idle_ttl", "models.queue"} | {
    "logging.level"
}


def of(picked: dict[str, int]) -> Config:
    sections: dict[str, dict[str, Any]] = {}
    for path, index in picked.items():
        section, key = path.split(".")
        sections.setdefault(section, {})[key] = VALUES[path][index]
    return config.parse(sections)


def value(settings: Config, path: str) -> Any:
    section, key = path.split(".")
    return getattr(getattr(settings, section), key)


def test_nothing_changes_where_the_file_says_the_same() -> None:
    running = config.parse(RUNNING)
    plan = plan_reload(running, config.parse(RUNNING))
    assert (plan.changed, plan.needs_restart, plan.config) == ([], [], running)


def test_entries_are_named_one_by_one() -> None:
    entries = {"b": {"source": "fake:hold=1MiB"}, "c": {"source": "fake:"}}
    plan = plan_reload(config.parse(RUNNING), config.parse(RUNNING | {"models": {"entries": entries}}))
    assert plan.changed == ["models.entries.a", "models.entries.b", "models.entries.c"]
    # The defaults' own entries are merged with the user's and stay.
    assert set(plan.config.models.entries) >= {"b", "c", "qwen2.5-coder-32b"}
    assert "a" not in plan.config.models.entries


indices = st.fixed_dictionaries({path: st.integers(0, 1) for path in VALUES})


@given(before=indices, after=indices)
def test_each_key_is_changed_or_kept_and_named(before: dict[str, int], after: dict[str, int]) -> None:
    running, read = of(before), of(after)
    plan = plan_reload(running, read)
    differ = {path for path in VALUES if before[path] != after[path]}
    assert set(plan.changed) == differ & LIVE
    assert set(plan.needs_restart) == differ - LIVE
    for path in VALUES:
        expected = running if path in plan.needs_restart else read
        assert value(plan.config, path) == value(expected, path)
    # A key that waits goes on being named until the restart; one that applied does not.
    again = plan_reload(plan.config, read)
    assert (again.changed, again.needs_restart) == ([], plan.needs_restart)


@pytest.mark.parametrize("section", Config.__struct_fields__)
def test_every_key_that_is_said_to_apply_at_once_exists(section: str) -> None:
    from plimsoll.http.process.reload import _LIVE

    there = {f"{section}.{key}" for key in getattr(config.parse({}), section).__struct_fields__}
    assert {path for path in _LIVE if path.startswith(f"{section}.")} <= there
