"""What a start prints is a help for people: whether anybody can read it changes nothing for the server."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import httpx

DEADLINE_S = 60


def test_a_server_serves_on_when_nobody_reads_what_it_prints(tmp_path):
    log = tmp_path / "log"
    logging = {"file": str(log), "blackbox": "none"}
    (tmp_path / "config.yaml").write_text(
        json.dumps({"server": {"port": 0}, "models": {"builtin": False}, "logging": logging})
    )
    command = [sys.executable, "-m", "plimsoll", "serve", "--config", str(tmp_path / "config.yaml")]
    nobody, closed = os.pipe()
    os.close(nobody)
    with subprocess.Popen(command, stdout=closed, stderr=subprocess.DEVNULL) as server:
        os.close(closed)
        try:
            until = time.monotonic() + DEADLINE_S
            while not (found := re.search(r"listening on (http://\S+)", log.read_text() if log.exists() else "")):
                assert time.monotonic() < until, "the server never listened"
                time.sleep(0.02)
            assert httpx.get(f"{found[1]}/health/live").status_code == 200
            server.send_signal(signal.SIGTERM)
            assert server.wait(DEADLINE_S) == 0
        finally:
            server.kill()
