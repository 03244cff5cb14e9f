"""What a configuration that was read again changes at once, and what only at the next start: pure decisions."""

import msgspec

from plimsoll.config import Config, ModelsConfig

# Everything else is held by sockets, open files, caches or running workers, and waits for a restart.
_LIVE = frozenset(
    {
        *("server.max_body", "server.keepalive", "server.shutdown_grace"),
        *("access.keys", "access.hosts", "access.origins"),
        *("limits.messages", "limits.prompt", "limits.tools", "limits.headers"),
        *("limits.requests_per_minute", "limits.burst"),
        *("memory.limit", "memory.warning_percent", "memory.critical_percent", "memory.emergency_percent"),
        *("memory.hysteresis_percent", "memory.clear_after", "memory.critical_grace"),
        *("models.builtin", "models.dir", "models.idle_ttl", "models.queue", "models.entries"),
        *("logging.level", "logging.language"),
    }
)


class ReloadPlan(msgspec.Struct, frozen=True):
    """``changed`` are the key paths that apply at once, ``needs_restart`` those that do not.

    ``config`` is what is in force then: keys that need a restart have their old values in it.
    """

    changed: list[str]
    needs_restart: list[str]
    config: Config


def plan_reload(running: Config, read: Config) -> ReloadPlan:
    """Compare what is in force with what the file says now. Model entries are compared one by one."""
    changed: list[str] = []
    needs_restart: list[str] = []
    sections = {}
    for section in Config.__struct_fields__:
        old, new = getattr(running, section), getattr(read, section)
        kept = {}
        for key in new.__struct_fields__:
            path = f"{section}.{key}"
            if getattr(old, key) == getattr(new, key):
                continue
            if path == "models.entries":
                changed += _entries(old, new)
            elif path in _LIVE:
                changed.append(path)
            else:
                needs_restart.append(path)
                kept[key] = getattr(old, key)
        sections[section] = msgspec.structs.replace(new, **kept)
    return ReloadPlan(changed, needs_restart, Config(**sections))


def _entries(old: ModelsConfig, new: ModelsConfig) -> list[str]:
    names = dict.fromkeys([*old.entries, *new.entries])
    return [f"models.entries.{name}" for name in names if old.entries.get(name) != new.entries.get(name)]
