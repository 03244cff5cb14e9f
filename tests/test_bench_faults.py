"""The short forms of the runs with faults; the long ones are started by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "ops" / "bench" / "faults.py"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads footprints in /proc")
@pytest.mark.parametrize("seed", [7])
def test_random_faults_under_load_break_no_promise(seed: int) -> None:
    done = subprocess.run(
        # A crowded machine may need longer than a quiet one to serve again.
        [
            sys.executable,
            BENCH,
            *["--faults", "12", "--minutes", "0.3", "--streams", "6", "--again", "40", "--seed"],
            str(seed),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every promise was kept" in done.stdout


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads footprints in /proc")
def test_a_crash_and_a_refusal_cost_nobody_else_anything() -> None:
    done = subprocess.run(
        [sys.executable, BENCH.with_name("crashes.py"), "--crashes", "3", "--refusals", "150"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every promise was kept" in done.stdout
