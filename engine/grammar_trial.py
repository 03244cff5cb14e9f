"""A child process that compiles a grammar to see what it costs: ``python -I grammar_trial.py < GRAMMAR``.

llguidance's own limits don't hold everywhere: some schemas take gigabytes or hours to compile ({"multipleOf": 999983}
took 10 s and 360 MB, two primes in an allOf never ended). A child can be ended, and its memory comes back.
"""

import contextlib
import resource
import subprocess
import sys

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# Fuel is llguidance's measure of work: about 50,000 units per ms while compiling, 14,000 per ms in a step. A state is
# 1 to 2 kB, so one grammar stays below 20 MB.
_COMPILE_FUEL, _STEP_FUEL, _MOST_STATES = 5_000_000, 200_000, 10_000
CPU_S = 2
# On a machine that is busy otherwise, two seconds of work may take longer than that.
_PATIENCE_S = 15.0
_MOST_BYTES = 1 << 30


def limits() -> LLParserLimits:
    """What one grammar may take."""
    return LLParserLimits(
        initial_lexer_fuel=_COMPILE_FUEL,
        step_lexer_fuel=_STEP_FUEL,
        max_lexer_states=_MOST_STATES,
        verbose_errors=False,
    )


def affordable(grammar: str) -> bool:
    """Whether the grammar compiles (or is refused) in ``CPU_S`` seconds and 1 GiB; takes 0.1 s for a plain one."""
    # Without the environment: a matrix library that is loaded first is of no use there.
    command = [sys.executable, "-I", __file__]
    try:
        child = subprocess.run(  # noqa: S603 - our own file
            command, input=grammar.encode(), env={}, capture_output=True, timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return child.returncode == 0


def main() -> None:
    """Compile what stands on stdin, with the smallest vocabulary there is; exit 0 when that came to an end."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    with contextlib.suppress(OSError, ValueError):  # macOS may refuse it; there time bounds the memory, too
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    grammar = LLMatcher.grammar_from_lark(sys.stdin.read())
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()


if __name__ == "__main__":
    main()
