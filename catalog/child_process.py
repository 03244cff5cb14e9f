"""Child processes that end with their parent: they hold its end of a pipe, and a thread in them ends them with it."""

import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import IO

import psutil

_TICK_S = 0.25


def run(
    module: str,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    tick: Callable[[], None],
    most_bytes: int | None = None,
) -> str | None:
    """Run ``python -m module arguments``; ``tick`` is called every quarter second meanwhile.

    Returns ``None``, or where it failed the last line it wrote to stderr. It is ended where it takes more than
    ``most_bytes`` of memory. Raises ``OSError`` where it can't be started.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments, no shell
            _command(module, *arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **(env or {})},
        )
        try:
            while process.poll() is None:
                tick()
                if most_bytes and (taken := _resident_bytes(process.pid)) > most_bytes:
                    return f"it took {taken / 2**30:.1f} GiB of memory, more than its bound of {most_bytes / 2**30:.1f}"
                try:
                    process.wait(_TICK_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            process.wait()
            if process.stdin:
                process.stdin.close()
        return _failure(process.returncode, errors)


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0


def lines(module: str, *arguments: str) -> Iterator[str]:
    """What ``python -m module arguments`` writes to stdout; closing the iterator kills it.

    Raises ``OSError`` where it can't be started or fails, with the last line that it wrote to stderr.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # noqa: S603 - as above
            _command(module, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        with process:
            try:
                yield from process.stdout or ()
                process.wait()
            finally:
                process.kill()
        if failure := _failure(process.returncode, errors):
            raise OSError(failure)


def _command(module: str, *arguments: str) -> list[str]:
    # Not -m: the package imports this module, and runpy warns on stderr where a module to be run was imported already.
    return [sys.executable, "-P", "-c", f"from {__name__} import main; main()", module, *arguments]


def _failure(code: int, errors: IO[bytes]) -> str | None:
    if code == 0:
        return None
    errors.seek(0)
    return _last_line(errors.read().decode("utf-8", "replace")) or f"it ended with exit code {code}"


def _last_line(text: str) -> str:
    """The last line, but pip's ERROR line where there is one: hints follow it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    marked = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (marked or lines or [""])[-1]


def main() -> None:
    """In the child: watch stdin, which ends with the parent, and run the module that ``sys.argv`` names."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)
