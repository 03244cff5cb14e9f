"""A few cases of every fuzzer, and that a fuzzer finds what it is for. ``ops/fuzz`` says how to run more."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "ops" / "fuzz"


def run(*command):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, cwd=FUZZ)
    assert done.stdout, done.stderr
    return done


@pytest.mark.parametrize(
    ("name", "cases"), [("frames", 3000), ("headers", 1500), ("gguf", 1000), ("configs", 300), ("bodies", 5000)]
)
def test_broken_input_is_answered_as_documented(name, cases):
    done = run(f"{name}.py", "--cases", str(cases), "--seed", "20")
    assert done.returncode == 0, done.stdout
    assert f"{name}: 0 crashes" in done.stdout
    assert "refused" in done.stdout


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise KeyError('x')", "KeyError: 'x'"),
        ("while True: pass", "more than 1 s"),
        ("bytearray(b'1' * (300 << 20))", "memory grew by"),
        ("harness.refused('')", "no sentence"),
    ],
)
def test_a_case_that_goes_wrong_is_a_crash(body, told):
    code = f"import harness\ndef case(_):\n    {body}\n    return 'well'\nharness.main('own', case)"
    done = run("-c", f"import sys; sys.argv = ['x', '--cases', '1']\n{code}")
    assert done.returncode == 1
    assert told in done.stdout
    assert "own: 1 crashes" in done.stdout


def test_a_case_can_be_run_again():
    code = "import mutate; print(mutate.Mutator((1, 5)).structure({'a': [1, 'b', {'c': 2.5}]}))"
    assert run("-c", code).stdout == run("-c", code).stdout


def test_a_server_answers_what_its_document_says():
    done = run("api.py", "--cases", "200", "--seed", "20")
    assert done.returncode == 0, done.stdout
    assert "api: 0 kinds of failures" in done.stdout
    assert "200: " in done.stdout
