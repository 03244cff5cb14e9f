"""A child process that compiles a grammar to see what it costs: ``python -I grammar_trial.py SECONDS < GRAMMAR``.

llguidance's own limits don't hold everywhere: some schemas take gigabytes or hours to compile ({"multipleOf": 999983}
took 10 s and 360 MB, two primes in an allOf never ended). A child can be ended, and its memory comes back.
"""

import contextlib
import math
import os
import resource
import signal
import subprocess
import sys
import threading

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# Fuel is llguidance's measure of work: about 50,000 units per ms while compiling, 14,000 per ms in a step. A state is
# 1 to 2 kB, so one grammar stays below 20 MB.
_COMPILE_FUEL, _STEP_FUEL, _MOST_STATES = 5_000_000, 200_000, 10_000
# A plain schema takes 1 to 20 ms. What takes more than the first turn gets a second one, behind others of its kind.
FIRST_CPU_S = 0.06
CPU_S = 2.0
# On a machine that is busy otherwise, two seconds of work may take longer than that.
_PATIENCE_S = {FIRST_CPU_S: 5.0, CPU_S: 15.0}
_FREE_STEP_FUEL = 1_000_000
_MOST_BYTES = 1 << 30
# The long turn leaves the processor to answers that are running.
_NICE = 5


def limits(*, free: bool = False) -> LLParserLimits:
    """What one grammar may take; the step in which a ``free`` text turns into a call took up to 30 ms with 40 tools."""
    return LLParserLimits(
        initial_lexer_fuel=_COMPILE_FUEL,
        step_lexer_fuel=_FREE_STEP_FUEL if free else _STEP_FUEL,
        max_lexer_states=_MOST_STATES,
        verbose_errors=False,
    )


class Trial:
    """The turns of one grammar; ``stop`` may be called from any thread, for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self.stopped = False

    def affordable(self, grammar: str, cpu_s: float) -> bool:
        """Whether the grammar compiles (or is refused) in ``cpu_s`` and 1 GiB; takes 0.1 s for a plain one."""
        with self._lock:
            if self.stopped:
                return False
            # Without the environment: a matrix library that is loaded first is of no use there.
            child = self._child = subprocess.Popen(  # noqa: S603 - our own file
                [sys.executable, "-I", __file__, str(cpu_s)],
                env={}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            child.communicate(grammar.encode(), timeout=_PATIENCE_S[cpu_s])
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
        with self._lock:
            self._child = None
        return child.returncode == 0

    def stop(self) -> None:
        with self._lock:
            self.stopped = True
            if self._child:
                self._child.kill()


def main() -> None:
    """Compile what stands on stdin, with the smallest vocabulary there is; exit 0 when that came to an end."""
    cpu_s = float(sys.argv[1])
    if cpu_s > FIRST_CPU_S:
        os.nice(_NICE)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF ends the process; what it took to start does not count
    hard = math.ceil(cpu_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
    with contextlib.suppress(OSError, ValueError):  # macOS may refuse it; there time bounds the memory, too
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    grammar = LLMatcher.grammar_from_lark(sys.stdin.read())
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()


if __name__ == "__main__":
    main()
