"""The brief's shell lines as its users type them, against a real server process and the real sampler."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads footprints in /proc")

DEADLINE_S = 60.0
MIB = 1024**2
LIMIT_MIB = 1024
PLIMSOLL = [sys.executable, "-m", "plimsoll"]
# As the brief has it.
GREP = "память|memory|Очистка|MemoryError"
SLOW = "tokens_per_s=50,answer=la,length=100000,context=1000000"


class Running:
    """One ``plimsoll serve`` process; its log and black box outlive it."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.log, self.file = folder / "plimsoll.log", folder / "config.yaml"
        logging = {"file": str(self.log), "blackbox": str(folder / "blackbox.sqlite"), **config.pop("logging", {})}
        self.file.write_text(yaml.safe_dump({"server": {"port": 0}, "logging": logging, **config}, allow_unicode=True))
        command = [*PLIMSOLL, "serve", "--config", str(self.file)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout
        found = re.search(r"http://[\d.]+:\d+", self.process.stdout.readline())
        assert found, "the server did not say where it listens"
        self.url = found[0]
        self.http = httpx.Client(base_url=self.url, timeout=DEADLINE_S)

    def shell(self, line: str) -> str:
        """The output of a shell line, with the default address in it replaced by this server's."""
        line = line.replace("http://localhost:11435", self.url).replace("LOG", shlex.quote(str(self.log)))
        return subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, timeout=DEADLINE_S, check=True
        ).stdout

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            [*PLIMSOLL, *arguments, "--config", str(self.file)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
            env={**os.environ, "PLIMSOLL_URL": self.url},
        )
        return done.stdout

    def chat(self, model: str, text: str = "one two three") -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        return self.http.post("/v1/chat/completions", json=body)

    def fill(self, model: str, percent: float) -> None:
        """Have a model with ``grow=4MiB`` hold so much that this share of the limit is used."""
        used = self.health()["memory"]["used_percent"]
        words = round((percent - used) / 100 * LIMIT_MIB / 4)
        assert self.chat(model, "x " * words).status_code == 200

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/health").json()
        return found

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            if value := condition():
                return value
            time.sleep(0.02)
        pytest.fail(f"not in {DEADLINE_S:.0f} s: {what}\n{self.log.read_text()}")

    def logged(self, text: str) -> str:
        """The first line of the log with ``text``; waited for."""

        def find() -> str | None:
            lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
            return next((line for line in lines if text in line), None)

        line: str = self.until(find, f"the log line {text!r}")
        return line

    def kill(self) -> None:
        """``kill -9``, as the kernel does it."""
        self.process.kill()
        self.process.wait(DEADLINE_S)

    def close(self) -> None:
        self.http.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.process.send_signal(number)
        try:
            self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            assert self.process.stdout
            self.process.stdout.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(entries: dict[str, str], patience: str = "1m", **config: Any) -> Running:
        enabled = {name: {"source": source, "enabled": True} for name, source in entries.items()}
        models = {"builtin": False, "entries": enabled}
        memory = {"limit": f"{LIMIT_MIB}MiB", "clear_after": "300ms", "critical_grace": "1s", "patience": patience}
        started.append(Running(tmp_path, {"models": models, "memory": memory, **config}))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_the_brief_s_health_lines_work_as_written(serve: Callable[..., Running]) -> None:
    server = serve({"a": "fake:"})
    memory = json.loads(server.shell("curl -s http://localhost:11435/health"))["memory"]
    wanted = {"used_percent", "available_gb", "total_gb", "warning_threshold", "critical_threshold"}
    assert wanted <= memory.keys()
    assert (memory["warning_threshold"], memory["critical_threshold"]) == (85.0, 95.0)
    if shutil.which("jq"):
        assert json.loads(server.shell("curl -s http://localhost:11435/health | jq '.memory'")).keys() == memory.keys()
        percent = server.shell("curl -s http://localhost:11435/health | jq '.memory.used_percent'")
        assert 0 < float(percent) < 100
    assert server.health()["sampler_lag_ms"] >= 0


def test_high_use_shows_in_the_log_in_russian_and_unloads_all_but_the_last_used_model(
    serve: Callable[..., Running],
) -> None:
    server = serve(
        {"qwen2.5-coder-32b": "fake:hold=100MiB", "big": "fake:grow=4MiB,context=10000"}, logging={"language": "ru"}
    )
    assert server.chat("qwen2.5-coder-32b").status_code == 200
    server.logged("qwen2.5-coder-32b загружена")  # its footprint was seen, so it is in the figure that fill reads
    server.fill("big", 90)
    assert re.search(r"⚠️ Высокое использование памяти: \d\d\.\d%", server.logged("Высокое использование"))
    assert "🗑️ Модель qwen2.5-coder-32b выгружена из памяти" in server.logged("выгружена")
    line = server.logged("выполнена")
    assert re.search(r"✅ Очистка памяти выполнена: освобождено \d+\.\d%, теперь \d\d\.\d%", line)
    assert [one["name"] for one in server.health()["models"]] == ["big"]
    found = server.shell(f"grep -E '{GREP}' LOG").splitlines()
    assert {line, server.logged("Высокое"), server.logged("выгружена")} <= set(found)


def test_critical_use_shows_in_the_log_in_russian_and_health_says_critical_with_503(
    serve: Callable[..., Running],
) -> None:
    # 150 MiB/s: between critical and emergency there is time for several samples.
    server = serve({"big": "fake:grow=3MiB,tokens_per_s=50,context=100000"}, "0s", logging={"language": "ru"})
    used = server.health()["memory"]["used_percent"]
    words = round((96.3 - used) / 100 * LIMIT_MIB / 3) + 100
    seen: list[int] = []
    stop = threading.Event()

    def probe() -> None:
        with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as client:
            while not stop.wait(0.03):
                response = client.get("/health")
                if response.json()["status"] == "critical":
                    seen.append(response.status_code)

    prober = threading.Thread(target=probe)
    prober.start()
    try:
        answer = server.chat("big", "x " * words)
        server.logged("выгружена из памяти")
    finally:
        stop.set()
        prober.join()
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (503, "insufficient_memory")
    assert error["memory"]["used_percent"] >= 95
    assert answer.headers["retry-after"]
    assert re.search(r"🚨 Критическая нехватка памяти: 9\d\.\d%", server.logged("Критическая"))
    assert set(seen) == {503}
    server.until(lambda: server.health()["admission"] == "open", "admission open")
    assert server.chat("big", "one").status_code == 200


def test_a_memory_error_at_work_is_answered_503_logged_and_the_server_goes_on(serve: Callable[..., Running]) -> None:
    server = serve({"a": "fake:raise_at=2"})
    answer = server.chat("a", "one two three")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "insufficient_memory")
    server.logged("MemoryError: model a ran out of memory at ")
    assert "MemoryError" in server.shell(f"grep -E '{GREP}' LOG")
    assert server.chat("a", "one").status_code == 200
    assert server.process.poll() is None


def test_plimsoll_cleanup_says_what_it_unloaded(serve: Callable[..., Running]) -> None:
    server = serve({"a": "fake:hold=50MiB", "b": "fake:"})
    for name in "ab":
        assert server.chat(name).status_code == 200
    assert re.match(r"unloaded a: freed \d+ MB of \d+ MB, memory \d", server.command("cleanup"))
    assert re.match(r"unloaded b: freed \d+ MB of \d+ MB, memory \d", server.command("cleanup", "--aggressive"))
    assert not server.health()["models"]


def test_after_kill_9_and_a_restart_plimsoll_events_says_how_the_last_run_ended(serve: Callable[..., Running]) -> None:
    first = serve({"a": "fake:hold=50MiB"})
    assert first.chat("a").status_code == 200
    first.until(lambda: "model_loaded" in first.command("events", "--since", "1h"), "the load in the black box")
    first.kill()
    second = serve({"a": "fake:hold=50MiB"})
    second.logged("the last run ended without a word")
    assert "the last run ended without a word" in second.command("events", "--since", "1h")
    kinds = [json.loads(line)["kind"] for line in second.command("events", "--since", "1h", "--json").splitlines()]
    assert kinds.index("model_loaded") < kinds.index("last_run")
    assert kinds.count("server_started") == 2
