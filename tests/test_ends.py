"""Ends at bad moments, and two servers beside each other: whole processes, real signals."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from plimsoll.journal import read

DEADLINE_S = 60.0


def body(model: str, text: str = "one two three") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}]}


class Asker(threading.Thread):
    """One request; ``answer`` is the response, or what became of the connection."""

    def __init__(self, url: str, model: str, text: str = "one") -> None:
        super().__init__()
        self.url, self.body, self.answer = url, body(model, text), None
        self.start()

    def run(self) -> None:
        try:
            self.answer = httpx.post(f"{self.url}/v1/chat/completions", json=self.body, timeout=DEADLINE_S)
        except httpx.HTTPError as error:
            self.answer = error

    def ending(self) -> Any:
        self.join(DEADLINE_S)
        assert not self.is_alive()
        return self.answer


def until(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.01)
    pytest.fail(f"not in {DEADLINE_S:.0f} s: {what}")


def workers(server: Any) -> list[psutil.Process]:
    return psutil.Process(server.child.pid).children()


def test_sigterm_during_a_load_ends_the_load_its_waiters_and_the_server(serve_process: Callable[..., Any]) -> None:
    server = serve_process(
        server={"shutdown_grace": "200ms"}, models={"entries": {"a": {"source": "fake:load_s=600,ignore_sigterm=true"}}}
    )
    asker = Asker(server.url, "a")
    children = until(lambda: workers(server), "a worker that loads")
    assert server.end() == 0
    assert asker.ending().status_code == 503
    assert asker.ending().json()["error"]["code"] == "shutting_down"
    assert not psutil.wait_procs(children, DEADLINE_S)[1]
    assert "Traceback" not in server.stderr()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads footprints in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_an_emergency_ends_the_server_in_order(
    serve_process: Callable[..., Any], number: signal.Signals
) -> None:
    # With patience the answer would go on with another worker, and might be whole before the server has ended.
    server = serve_process(
        memory={"limit": "600MiB", "patience": 0},
        models={"entries": {"a": {"source": "fake:grow=8MiB,tokens_per_s=100,context=10000,ignore_sigterm=true"}}},
    )
    asker = Asker(server.url, "a", "x " * 100)
    server.logged("memory emergency")
    children = workers(server)
    assert server.end(number) == 0
    assert asker.ending().status_code == 503
    assert not psutil.wait_procs(children, DEADLINE_S)[1]
    assert "Traceback" not in server.stderr()


def test_two_servers_share_a_log_a_black_box_and_a_cache(tmp_path: Path, serve_process: Callable[..., Any]) -> None:
    box = tmp_path / "blackbox.sqlite"
    entries = {name: {"source": "fake:"} for name in "ab"}
    first = serve_process(logging={"blackbox": str(box)}, models={"entries": entries})
    second = serve_process(logging={"blackbox": str(box)}, models={"entries": entries})
    assert first.url != second.url
    for server, model in ((first, "a"), (second, "b")):
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body(model)).status_code == 200
        server.logged(f"model {model} loaded")
    assert first.end() == 0
    assert httpx.post(f"{second.url}/v1/chat/completions", json=body("a")).status_code == 200
    assert second.end() == 0
    told = read.events(box, 3600)
    kinds = [entry.event.kind for entry in told]
    assert (kinds.count("server_started"), kinds.count("server_stopped")) == (2, 2)
    assert {entry.event.model for entry in told if entry.event.kind == "model_loaded"} == {"a", "b"}
    lines = first.log.read_text(encoding="utf-8")
    assert lines.count("the memory journal begins") == 2
    assert lines.count("the memory journal ends") == 2


def test_a_log_folder_and_a_black_box_on_a_full_disk_cost_no_answer(tmp_path: Path) -> None:
    # To a writer a bound on its files is what a full disk is: a write that fails.
    file = tmp_path / "config.yaml"
    file.write_text(
        f"server: {{port: 0}}\nmodels: {{builtin: false, cache_dir: {tmp_path}, entries: {{a: {{source: 'fake:'}}}}}}\n"
        f"logging: {{file: {tmp_path}/log/plimsoll.log, blackbox: {tmp_path}/state/blackbox.sqlite}}\n"
    )
    command = f"ulimit -f 0; exec {sys.executable} -m plimsoll serve --config {file}"
    child = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout
    try:
        url = child.stdout.readline().split()[2].partition("/v1")[0]
        for _ in range(3):
            assert httpx.post(f"{url}/v1/chat/completions", json=body("a")).status_code == 200
        health = until(
            lambda: (found := httpx.get(f"{url}/health").json())["problems"] and found, "the problem in the health"
        )
        assert health["status"] == "degraded"
        assert "black box of memory can't be written" in health["problems"][0]
        child.terminate()
        _, said = child.communicate(timeout=DEADLINE_S)
        assert child.returncode == 0
        assert said.count("can't be written") == 2
        assert "Traceback" not in said
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        child.communicate()
