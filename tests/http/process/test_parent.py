"""A server that was told to end with its parent does not keep the port when make is killed."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEADLINE_S = 60
ROOT = Path(__file__).parents[3]


def listens(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_killed_make_takes_the_server_with_it(tmp_path):
    settings = {
        "server": {"port": 0},
        "models": {"builtin": False},
        "logging": {"file": str(tmp_path / "log"), "blackbox": "none"},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    # The recipe is the Makefile's own, with an environment that is made already.
    recipe = re.search(r"^serve:.*\n\t(.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (tmp_path / "Makefile").write_text(f"serve:\n\t{recipe[1]}\n")
    command = ["make", "serve", f"BIN={Path(sys.executable).parent}", f"ARGS=--config {tmp_path / 'config.yaml'}"]
    # A make that runs these tests would make this one say which folder it enters.
    env = {name: value for name, value in os.environ.items() if name not in ("MAKELEVEL", "MAKEFLAGS", "MFLAGS")}
    options = {"cwd": tmp_path, "env": env, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **options) as make:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", make.stdout.readline())
        assert found
        port = int(found[1])
        assert listens(port)
        os.kill(make.pid, signal.SIGKILL)
        make.wait()
        try:
            until = time.monotonic() + DEADLINE_S
            while listens(port):
                assert time.monotonic() < until, "the server goes on without make"
                time.sleep(0.05)
            make.stdout.read()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(make.pid, signal.SIGKILL)
    assert f"(pid {make.pid}) has ended: the server stops" in (tmp_path / "log").read_text()
