"""The long run ends what it started, however it is ended itself."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

SOAK = Path(__file__).parents[2] / "ops" / "bench" / "soak.py"
DEADLINE_S = 60


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_ended_by_a_signal_leaves_no_server_behind(number):
    command = [sys.executable, SOAK, "--minutes", "10", "--no-builtin"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as soak:
        rows = [soak.stdout.readline() for _ in range(2)]
        started = psutil.Process(soak.pid).children(recursive=True)
        soak.send_signal(number)
        code = soak.wait(DEADLINE_S)
    assert rows[1].split()[0].isdigit()
    assert started
    assert code != 0
    _, alive = psutil.wait_procs(started, DEADLINE_S)
    assert not alive
