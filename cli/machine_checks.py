"""What ``plimsoll doctor`` says of the machine: Python, MLX and its device, memory, swap, disk."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil

from plimsoll.catalog.installed import default_cache_dir
from plimsoll.config import Config
from plimsoll.engine.handle.environment import worker_environment
from plimsoll.journal.lines import size
from plimsoll.memory.sources import SystemSampler

Degree = Literal["ok", "warning", "problem"]
OK: Degree = "ok"
WARNING: Degree = "warning"
PROBLEM: Degree = "problem"

_SIGNS = {OK: ("ok", "green"), WARNING: ("warning", "yellow"), PROBLEM: ("PROBLEM", "bold red")}


class Finding(NamedTuple):
    """One thing that was looked at; ``hint`` says what to do about it."""

    level: Degree
    subject: str
    text: str
    hint: str = ""

    def as_json(self) -> dict[str, Any]:
        return self._asdict()


def count(findings: Sequence[Finding], level: str) -> int:
    """How many of them are of this level."""
    return sum(one.level == level for one in findings)


def print_report(findings: Sequence[Finding]) -> None:
    """One line for each, with its hint below, and what they come to."""
    from rich.console import Console  # noqa: PLC0415 - not for --json
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for one in findings:
        sign, style = _SIGNS[one.level]
        text = Text(one.text)
        if one.hint:
            text.append(f"\n-> {one.hint}", "italic")
        table.add_row(Text(sign, style), one.subject, text)
    problems, warnings = count(findings, PROBLEM), count(findings, WARNING)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\n{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}")


_MLX_TIMEOUT_S = 60.0
_LITTLE_DISK_BYTES = 5 * 1024**3
_MUCH_SWAP_PERCENT = 50
# Asked in a process with a worker's environment: this one never imports MLX.
_ASK_MLX = """
import mlx.core as mx
from plimsoll.engine.load.weights import blas_in_use
metal = mx.metal.is_available()
print("metal" if metal else mx.default_device().type.name, blas_in_use())
"""


def examine_machine(config: Config) -> Iterator[Finding]:
    """Look at it as a server of this configuration would use it."""
    yield _python()
    yield from _mlx(config)
    yield from _memory(config)
    yield _swap()
    yield from _disks(config)


def _python() -> Finding:
    return Finding(OK, "python", f"{platform.python_version()} on {platform.platform(terse=True)} ({sys.executable})")


def _mlx(config: Config) -> Iterator[Finding]:
    versions = []
    for name in ("mlx", "mlx-lm"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            yield Finding(PROBLEM, "mlx", f"{name} is not installed", f"{sys.executable} -m pip install {name}")
            return
    text = ", ".join(versions)
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and code
            [sys.executable, "-P", "-c", _ASK_MLX],
            env={**os.environ, **worker_environment(config.engine.blas, default_cache_dir(config))},
            capture_output=True,
            text=True,
            timeout=_MLX_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Finding(PROBLEM, "mlx", f"{text}: it did not start within {_MLX_TIMEOUT_S:g} s")
        return
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Finding(PROBLEM, "mlx", f"{text}: it can't be used: {reason}", "install it anew, for this machine")
        return
    device, blas = done.stdout.split()[-2:]
    yield Finding(OK, "mlx", f"{text}, computes on {'the GPU by Metal' if device == 'metal' else f'the {device}'}")
    if device != "cpu":
        return
    if sys.platform == "darwin":
        yield Finding(WARNING, "mlx", "Metal was not found", "use a native arm64 Python on Apple silicon")
    elif blas == "reference":
        text = "matrices are multiplied by the reference BLAS, on one thread"
        yield Finding(WARNING, "blas", text, "install OpenBLAS (apt-get install libopenblas0-pthread): 8 times as fast")
    else:
        yield Finding(OK, "blas", blas)


def _memory(config: Config) -> Iterator[Finding]:
    limit = config.memory.limit
    sampler = SystemSampler(limit_bytes=None if limit is None else int(limit))
    try:
        sample = sampler()
    except OSError as error:
        yield Finding(PROBLEM, "memory", str(error), "no model would be loaded")
        return
    levels = [
        (config.memory.emergency_percent, PROBLEM),
        (config.memory.critical_percent, PROBLEM),
        (config.memory.warning_percent, WARNING),
    ]
    for one in sample.readings:
        level = next((found for percent, found in levels if one.percent >= percent), OK)
        text = f"{one.source}: {one.percent:.1f}% of {size(one.total)} used"
        yield Finding(level, "memory", text, "close other programs, or see plimsoll top" * (level != OK))
    if sys.platform == "linux" and not any(one.source.startswith("cgroup") for one in sample.readings):
        yield Finding(OK, "memory", "no control group limits it")
    for name in sample.failed:
        text = f"the reader {name} fails: {sampler.errors.get(name, '')}"
        yield Finding(WARNING, "memory", text, "memory is judged without it")


def _swap() -> Finding:
    swap = psutil.swap_memory()
    if not swap.total:
        return Finding(OK, "swap", "none")
    text = f"{size(swap.used)} of {size(swap.total)} used"
    if swap.percent >= _MUCH_SWAP_PERCENT:
        return Finding(WARNING, "swap", text, "models that swap are slow: close other programs")
    return Finding(OK, "swap", text)


def _disks(config: Config) -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE  # noqa: PLC0415 - only its constants, which is fast

    folders = {"models": default_cache_dir(config), "hub cache": Path(HF_HUB_CACHE)}
    for subject, folder in folders.items():
        free = shutil.disk_usage(existing(folder)).free
        text = f"{size(free)} free for {subject} in {folder}"
        if free < _LITTLE_DISK_BYTES:
            yield Finding(WARNING, "disk", text, "free some, or change models.cache_dir or $HF_HUB_CACHE")
        else:
            yield Finding(OK, "disk", text)


def existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that is there."""
    return next(one for one in (path, *path.parents) if one.exists())
