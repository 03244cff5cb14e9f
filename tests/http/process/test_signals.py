"""SIGHUP to a real server process: a reload, or the end of its terminal."""

import contextlib
import os
import pty
import re
import select
import signal
import sys
import time

import httpx
import pytest

DEADLINE_S = 60


def chat(server, model="a", **more):
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **more}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=DEADLINE_S)


def says(server, model="a"):
    return chat(server, model).json()["choices"][0]["message"]["content"]


def entries(**sources):
    return {"entries": {name: {"source": source} for name, source in sources.items()}}


def test_sighup_changes_one_model_under_the_running_stream_of_another(serve_process):
    slow = "fake:tokens_per_s=50,answer=la,length=100000,context=1000000"
    server = serve_process(models=entries(a="fake:answer=old,length=1", b=slow))
    assert says(server) == "old"
    body = {"model": "b", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=DEADLINE_S) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.write(models=entries(a="fake:answer=new,length=1", b=slow), server={"keepalive": "3s"})
        server.child.send_signal(signal.SIGHUP)
        line = server.logged("the configuration was read again")
        assert "changed server.keepalive, models.entries.a;" in line
        assert says(server) == "new"
        for _ in range(20):
            assert "error" not in next(lines)
    assert server.end() == 0
    assert "Traceback" not in server.stderr()


def test_a_bad_file_is_one_line_of_log_and_nothing_changes(serve_process):
    server = serve_process(models=entries(a="fake:answer=old,length=1"))
    assert says(server) == "old"
    server.write(models=entries(a="fake:answer=new,length=1"), memory={"warning_percent": 200})
    server.child.send_signal(signal.SIGHUP)
    line = server.logged("the configuration can't be used")
    assert "memory.warning_percent: 200 is not allowed" in line
    answer = httpx.post(f"{server.url}/admin/reload")
    assert answer.status_code == 400
    assert "memory.warning_percent: 200 is not allowed" in answer.json()["error"]["message"]
    server.file.unlink()
    assert "can't be read" in httpx.post(f"{server.url}/admin/reload").json()["error"]["message"]
    assert says(server) == "old"
    assert server.end() == 0
    assert "Traceback" not in server.stderr()


def test_options_of_the_command_line_outlast_a_reload_and_the_log_changes_its_level(serve_process):
    server = serve_process(models=entries(a="fake:"))
    server.write(models=entries(a="fake:"), logging={"level": "error", "language": "ru"})
    assert httpx.post(f"{server.url}/admin/reload").json() == {
        "changed": ["logging.level", "logging.language"],
        "needs_restart": [],
    }
    assert httpx.post(f"{server.url}/admin/reload").json() == {"changed": [], "needs_restart": []}
    server.write(models=entries(a="fake:"), memory={"limit": "no size"}, logging={"level": "error", "language": "ru"})
    assert httpx.post(f"{server.url}/admin/reload").status_code == 400
    assert "Конфигурация не годится" in server.logged("memory.limit")


@pytest.mark.parametrize("nohup", [False, True])
def test_a_server_ends_with_its_terminal_unless_it_was_told_not_to(tmp_path, nohup):
    file = tmp_path / "config.yaml"
    # The log is quiet, for its lines would fall into the one that is read.
    logging = "{level: error, file: none, blackbox: none}"
    file.write_text(f"{{server: {{port: 0}}, models: {{builtin: false}}, logging: {logging}}}")
    command = [sys.executable, "-m", "plimsoll", "serve", "--config", str(file)]
    pid, terminal = pty.fork()
    if pid == 0:
        if nohup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.execv(sys.executable, command)
    try:
        url = _url(terminal)
        os.close(terminal)
        if nohup:
            assert httpx.get(f"{url}/health/live").status_code == 200
            os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + DEADLINE_S
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < until:
            time.sleep(0.02)
        assert ended == (pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _url(terminal):
    """What the server prints on its terminal."""
    text, until = "", time.monotonic() + DEADLINE_S
    while not (found := re.search(r"curl (http://[\d.:]+)/health\s*\n", text)):
        assert time.monotonic() < until, text
        if select.select([terminal], [], [], 0.5)[0]:
            text += os.read(terminal, 4096).decode()
    return found[1]
