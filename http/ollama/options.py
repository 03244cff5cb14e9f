"""Ollama's ``options`` and ``keep_alive``."""

import math
import re
from typing import Annotated

import msgspec
from msgspec import Meta

from plimsoll.engine.protocol import Sampling
from plimsoll.http.body import MAX_STOP_CHARS, MAX_STOPS, refuse, shown

_INT32, _INT64 = 2**31, 2**63
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(rf"(\d+\.?\d*|\.\d+)({'|'.join(sorted(_UNITS_S, key=len, reverse=True))})")
_DURATION = re.compile(rf"([+-]?)((?:{_PART.pattern})+)")
# No sensible duration is longer, and the pattern would take very long to refuse a long text.
Duration = Annotated[str, Meta(max_length=64)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Stop = Annotated[str, Meta(max_length=MAX_STOP_CHARS)]
# Values that both sides call the same.
_SAMPLING = ("temperature", "top_p", "min_p", "seed", "presence_penalty", "frequency_penalty", "top_k")


class Options(msgspec.Struct, kw_only=True):
    """Options that change an answer; ``num_ctx`` and options of llama.cpp are ignored, as unknown ones are."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=_INT32)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-_INT64, le=_INT64 - 1)] | None = None
    num_predict: Annotated[int, Meta(ge=-2, lt=_INT32)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


ALLOWED = {
    "options": "an object",
    "options.temperature": "a number from 0 to 2",
    "options.top_p": "a number from 0 to 1",
    "options.top_k": "an integer, 0 or -1 for off",
    "options.min_p": "a number from 0 to 1",
    "options.seed": "an integer of 64 bits",
    "options.num_predict": "an integer, -1 or -2 for up to the end of the context",
    "options.stop": f"a string of up to {MAX_STOP_CHARS} characters or a list of up to {MAX_STOPS} of them",
    "options.stop[]": f"a string of up to {MAX_STOP_CHARS} characters",
    "options.repeat_penalty": "a number above 0, up to 10",
    "options.presence_penalty": "a number from -2 to 2",
    "options.frequency_penalty": "a number from -2 to 2",
    "keep_alive": 'a number of seconds or a duration like "5m"',
}


def sampling(options: Options) -> Sampling:
    """The options as the engine's ``Sampling``."""
    values = {name: getattr(options, name) for name in _SAMPLING} | {"repetition_penalty": options.repeat_penalty}
    return Sampling(**{name: value for name, value in values.items() if value is not None})


def given(options: Options) -> tuple[str, ...]:
    """The values that the client set, by the engine's names."""
    found = [name for name in _SAMPLING if getattr(options, name) is not None]
    return (*found, "repetition_penalty") if options.repeat_penalty is not None else tuple(found)


def limits(options: Options) -> tuple[int | None, tuple[str, ...]]:
    """The most tokens (None: up to the end of the context), and the stop strings."""
    most = options.num_predict
    stop = [options.stop] if isinstance(options.stop, str) else options.stop or []
    return (most if most and most > 0 else None), tuple(text for text in stop if text)


def keep_alive_s(value: float | str | None) -> float | None:
    """Seconds, ``inf`` for anything negative, None for None. Raises ``BadRequest``.

    Strings are durations as Go writes them ("1h30m", "-1s"), or plain numbers of seconds.
    """
    if value is None:
        return None
    seconds = value if isinstance(value, int | float) else _duration_s(value)
    if seconds is None or math.isnan(seconds):
        raise refuse("keep_alive", f"is {shown(value)}, but must be {ALLOWED['keep_alive']}")
    return math.inf if seconds < 0 else float(seconds)


def _duration_s(text: str) -> float | None:
    if found := _DURATION.fullmatch(text.strip()):
        total = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(found[2]))
        return -total if found[1] == "-" else total
    try:
        return float(text)
    except ValueError:
        return None
