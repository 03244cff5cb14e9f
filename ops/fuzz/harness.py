"""Runs the cases of one fuzzer and counts: a crash is an exception that is not the documented one, more than a second
of processor time, half a minute of waiting, or 200 MB more memory.
"""

import argparse
import collections
import functools
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mutate import Mutator

_CPU_S, _WAIT_S, _GROWTH = 1.0, 30.0, 200 << 20
_ADDRESS_SPACE = 8 << 30  # a case that wants more gets a MemoryError, and the machine lives
_SHOWN = 5
_STATUS = Path("/proc/self/status")
_LONGEST = 4000

Case = Callable[[Mutator], str]
"""Raises for a crash; returns the outcome's name for the statistics."""


class Hang(BaseException):
    """A case was too slow. Not an Exception, so that what it interrupts does not take it for its own."""


def main(name: str, case: Case) -> None:
    """The command line of a fuzzer: ``--cases N --seed S``, or ``--only N`` for one of its cases again."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="run this one case, without a net")
    options = parser.parse_args()
    if options.only is not None:
        print(case(Mutator((options.seed, options.only))))
        return
    sys.exit(1 if run(name, case, options.cases, options.seed) else 0)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    shared = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)


def scratch() -> Path:
    """A folder for a case's files, in memory where there is one there; the same for all cases of a run."""
    return Path(_folder().name)


def refused(message: str) -> str:
    """The outcome of a case that was answered with ``message``."""
    assert 0 < len(message) < _LONGEST, f"an error of {len(message)} characters is no sentence"
    return "refused"


def run(name: str, case: Case, cases: int, seed: int) -> int:
    """Run them, print what happened, return the number of crashes."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, hard))
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, _too_slow)
    outcomes: collections.Counter[str] = collections.Counter()
    crashes: list[str] = []
    start, most = time.monotonic(), _peak()
    for number in range(cases):
        crash, outcome = _one(case, Mutator((seed, number)))
        outcomes[outcome] += 1
        if (now := _peak()) - most > _GROWTH:
            crash = f"memory grew by {(now - most) >> 20} MB"
        most = max(most, now)
        if crash:
            crashes.append(f"case {number}: {crash}")
            if len(crashes) <= _SHOWN:
                print(crashes[-1], flush=True)
    took = time.monotonic() - start
    told = ", ".join(f"{outcome} {count}" for outcome, count in outcomes.most_common())
    print(f"{name}: {cases} cases in {took:.1f} s ({cases / took:.0f} per s), seed {seed}: {told}")
    print(f"{name}: {len(crashes)} crashes, peak memory {most >> 20} MB", flush=True)
    return len(crashes)


def _one(case: Case, mutator: Mutator) -> tuple[str, str]:
    """The crash, or nothing, and the outcome."""
    signal.setitimer(signal.ITIMER_PROF, _CPU_S)
    signal.setitimer(signal.ITIMER_REAL, _WAIT_S)
    before = time.process_time()
    try:
        outcome = case(mutator)
    except Hang:
        return f"more than {_CPU_S:g} s:\n{traceback.format_exc(limit=-6)}", "hang"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:200]}\n{traceback.format_exc(limit=-4)[:3000]}", "crash"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    if (took := time.process_time() - before) > _CPU_S:
        return f"{took:.1f} s in one call", "hang"
    return "", outcome


def _too_slow(*_: Any) -> None:
    raise Hang


def _peak() -> int:
    """The most memory that this program ever had, in bytes."""
    # Not ru_maxrss on Linux: a new program inherits its parent's.
    if _STATUS.exists():
        return int(_STATUS.read_text().split("VmHWM:", 1)[1].split(None, 1)[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
