"""The switches of a fake model, as its source names them after ``fake:``."""

import signal

import msgspec


class Switches(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the fake engine does. ``*_at`` counts generated tokens over all requests; 0 is never.

    ``hold`` bytes are really allocated and touched; ``grow`` bytes more with every token. ``crash_at`` kills the
    process with ``crash_signal``, ``raise_at`` raises MemoryError, ``hang_at`` stops stepping. ``answer`` is repeated
    word by word up to ``length`` tokens; without it the last message is echoed.
    """

    load_s: float = 0.0
    hold: int = 0
    grow: int = 0
    prefill_s: float = 0.0
    tokens_per_s: float = 0.0
    context: int = 4096
    length: int = 8
    answer: str = ""
    crash_at: int = 0
    crash_signal: int = signal.SIGKILL
    raise_at: int = 0
    hang_at: int = 0
    fail_load: str = ""
    load_memory_error: bool = False
    crash_in_load: bool = False
    ignore_sigterm: bool = False
    slow_close_s: float = 0.0


def parse(text: str) -> Switches:
    """Switches from ``key=value,key=value``. Raises ``ValueError`` for a bad one."""
    pairs = dict(part.split("=", 1) for part in text.split(",") if part)
    for key in ("hold", "grow"):
        if pairs.get(key, "").endswith("MiB"):
            pairs[key] = str(int(pairs[key].removesuffix("MiB")) << 20)
    try:
        return msgspec.convert(pairs, Switches, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"fake:{text}: {error}") from None
