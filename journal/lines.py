"""Events to log lines: one line each, in English or Russian, with its figures.

Users find the memory actions with ``grep 'память|memory|Очистка|MemoryError'``, so each text holds one of these as it
is written there. Where a language's line was promised word for word, figures only follow it.
"""

import re
import string
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Literal

from plimsoll.journal import events as e
from plimsoll.journal.lines_en import ENGLISH
from plimsoll.journal.lines_ru import RUSSIAN

Language = Literal["en", "ru"]

_TEXTS: dict[Language, Mapping[str, str]] = {"en": ENGLISH, "ru": RUSSIAN}
# What would begin a new line or drive a terminal.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def line(event: e.Event, language: Language = "en") -> str:
    """One line of text; control characters in names and reasons are shown as escapes."""
    variant = _VARIANTS.get(type(event))
    key = f"{event.kind}.{variant(event)}" if variant else event.kind
    text = _formatter.format(_TEXTS[language][key], e=event)
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def texts(language: Language) -> Mapping[str, str]:
    """Every text of a language by its key: the kind, or the kind and the variant."""
    return _TEXTS[language]


def size(count: float) -> str:
    """Bytes as people read them: ``18.2 GB``, ``340 MB``; powers of 1024, as in ``/health``."""
    return f"{count / 1024**3:.1f} GB" if abs(count) >= 1024**3 else f"{count / 1024**2:.0f} MB"


def local_time(at: float) -> str:
    """Seconds since the epoch as ``2025-03-01 03:12:44`` in the local time zone."""
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _processes(others: tuple[e.OtherProcess, ...]) -> str:
    return ", ".join(f"{one.name} ({one.pid}) {size(one.bytes)}" for one in others) or "-"


_SPECS: dict[str, Callable[[Any], str]] = {
    "size": size,
    "time": local_time,
    "names": lambda names: ", ".join(names) or "-",
    "processes": _processes,
    "percent": lambda value: "?" if value is None else f"{value:.1f}%",
}


class _Formatter(string.Formatter):
    """``str.format`` with the specs above."""

    def format_field(self, value: Any, format_spec: str) -> str:
        spec = _SPECS.get(format_spec)
        return spec(value) if spec else str(super().format_field(value, format_spec))


_formatter = _Formatter()


def _level_variant(event: e.LevelChanged) -> str:
    return f"fallen_to_{event.level}" if event.falls and event.level != e.LevelName.NORMAL else event.level


_VARIANTS: dict[type[e.Event], Callable[[Any], str]] = {
    e.LevelChanged: _level_variant,
    e.CleanupStarted: lambda event: "aggressive" if event.aggressive else "normal",
    e.CleanupDone: lambda event: "some" if event.unloaded else "none",
    e.ReadersFailed: lambda event: "some" if event.names else "all",
    e.ConfigReloaded: lambda event: "some" if event.changed or event.needs_restart else "none",
    e.WatchdogRestarted: lambda event: "dead" if event.dead else "silent",
    e.LastRun: lambda event: "clean" if event.clean else "killed",
}
