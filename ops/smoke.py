"""A fast end-to-end check of an installed Plimsoll: serve on a free port, stream one real answer, stop cleanly.

Stdlib only. Exit code 0 means that the server started, the built-in model answered and SIGTERM ended it with 0.
"""

import json
import re
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
from pathlib import Path

QUESTION = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 24,
    "temperature": 0,
    "stream": True,
}


def main() -> None:
    command = Path(sysconfig.get_path("scripts")) / "plimsoll"
    server = subprocess.Popen([command, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        url = _url(server)
        health = json.load(urllib.request.urlopen(f"{url}/health", timeout=10))
        print("health:", health["status"], health["memory"])
        print("answer:", answer := _answer(url))
        assert "Paris" in answer, answer
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=30)
    assert code == 0, f"the server ended with {code}"
    print("smoke test passed")


def _url(server: subprocess.Popen[str]) -> str:
    assert server.stdout
    for line in server.stdout:
        if found := re.search(r"http://[\d.]+:\d+", line):
            return found[0]
    sys.exit("the server ended before it said where it listens")


def _answer(url: str) -> str:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(QUESTION).encode(), {"Content-Type": "application/json"}
    )
    started, text = time.monotonic(), ""
    with urllib.request.urlopen(request, timeout=300) as response:
        for raw in response:
            line = raw.decode().strip()
            if line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: "))["choices"]
                text += choices[0]["delta"].get("content") or "" if choices else ""
    print(f"streamed in {time.monotonic() - started:.1f} s")
    return text


if __name__ == "__main__":
    main()
