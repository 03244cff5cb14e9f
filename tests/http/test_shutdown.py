"""The end: running answers finish, new ones are refused, nothing hangs."""

import json
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Finished
from plimsoll.engine.protocol import Usage
from plimsoll.errors import ConfigError, ShuttingDown
from plimsoll.http.server import bind

DEADLINE_S = 60
USAGE = Usage()


class Reader(threading.Thread):
    """Reads one streamed answer; ``first`` is set at its first line."""

    def __init__(self, url, body):
        super().__init__()
        self.url, self.body, self.lines, self.first = url, body, [], threading.Event()

    def run(self):
        try:
            self._read()
        except httpx.RemoteProtocolError as error:
            self.lines.append(str(error))

    def _read(self):
        with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=self.body, timeout=DEADLINE_S) as response:
            for line in response.iter_lines():
                self.lines.append(line)
                self.first.set()

    def text(self):
        self.join(DEADLINE_S)
        assert not self.is_alive()
        return "\n".join(self.lines)


def begin(server, system, body, **options):
    """A running stream with one delta sent: (its Chat, its Reader)."""
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Delta("Hel", 1))
    reader = Reader(server.url, body(stream=True, **options))
    reader.start()
    assert reader.first.wait(DEADLINE_S)
    return system.hears(m.Chat), reader


def stop_begun(server):
    """Tell the server to stop and wait until it has noticed."""
    server.stop()
    until = time.monotonic() + DEADLINE_S
    while not server.app.ctx.state.stopping:
        assert time.monotonic() < until


def test_a_running_stream_finishes_while_new_requests_are_refused(server, system, body):
    chat, reader = begin(server, system, body)
    stop_begun(server)
    refused = httpx.post(f"{server.url}/v1/chat/completions", json=body())
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"
    assert refused.headers["connection"] == "close"
    assert refused.headers["retry-after"]
    assert httpx.get(f"{server.url}/v1/nothing").status_code == 503
    health = httpx.get(f"{server.url}/health")
    assert (health.status_code, health.json()["stopping"]) == (200, True)
    assert httpx.get(f"{server.url}/health/ready").status_code == 503
    assert not system.stopped_with
    chat.reply.send(Delta("lo", 2))
    chat.reply.send(Finished("stop", USAGE))
    server.join()
    assert "[DONE]" in reader.text()
    assert system.stopped_with == [0.0]


@pytest.mark.parametrize("server_config", [{"server": {"shutdown_grace": "50ms"}}])
def test_an_answer_that_outlasts_the_grace_gets_its_error_event(server, system, body):
    chat, reader = begin(server, system, body)
    system.on_stop = lambda: chat.reply.send(Failed(ShuttingDown("the server is shutting down")))
    server.stop()
    server.join()
    assert "shutting_down" in reader.text()


@pytest.mark.parametrize("server_config", [{"server": {"shutdown_grace": "50ms"}}])
def test_an_answer_that_nobody_ends_is_cut(server, system, body):
    _, reader = begin(server, system, body)
    server.stop()
    server.join()
    assert "peer closed connection" in reader.text()


def test_a_whole_answer_that_was_running_arrives(server, system, body):
    answers = queue.Queue()

    def ask():
        answers.put(httpx.post(f"{server.url}/v1/chat/completions", json=body(), timeout=DEADLINE_S))

    threading.Thread(target=ask).start()
    chat = system.hears(m.Chat)
    stop_begun(server)
    chat.reply.send(Delta("Hello" * 100_000, 1))
    chat.reply.send(Finished("stop", USAGE))
    server.join()
    assert len(answers.get(timeout=DEADLINE_S).json()["choices"][0]["message"]["content"]) == 500_000


def test_idle_keep_alive_connections_do_not_hold_the_server(server):
    port = int(server.url.rpartition(":")[2])
    idle = [socket.create_connection(("127.0.0.1", port), DEADLINE_S) for _ in range(3)]
    for connection in idle[:2]:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    started = time.monotonic()
    server.stop()
    server.join()
    assert time.monotonic() - started < 10
    for connection in idle:
        assert connection.recv(65536) == b""
        connection.close()


def test_a_port_in_use_is_one_line_that_says_what_to_do():
    with bind("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match="in use; stop what listens there") as caught:
        bind("127.0.0.1", taken.getsockname()[1])
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1"])
def test_an_address_of_another_machine_is_said_to_be_one(host):
    with pytest.raises(ConfigError, match="not an address of this machine"):
        bind(host, 0)


# ---- whole processes, with the real actors and the fake engine


def test_the_printed_command_works_when_pasted(process):
    done = subprocess.run(process().try_line, shell=True, check=True, capture_output=True, text=True)
    chunks = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert text == "What is the capital of France?"  # the fake model says what it is told
    assert done.stdout.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_with_open_connections_exits_at_once_with_0(process, number):
    server = process()
    with httpx.Client() as client:
        client.get(f"{server.url}/health")
        code, seconds, stderr = server.end(number)
    assert code == 0
    assert seconds < 5
    assert "Traceback" not in stderr


def test_sigterm_lets_a_running_stream_finish(process, body):
    server = process(source="fake:tokens_per_s=20,answer=word,length=20")
    reader = Reader(server.url, body(stream=True))
    reader.start()
    assert reader.first.wait(DEADLINE_S)
    code, _, stderr = server.end()
    assert (code, "Traceback" in stderr) == (0, False)
    assert "[DONE]" in reader.text()
    assert reader.text().count("word") == 20


def test_a_second_sigterm_ends_the_server_and_its_workers(process, body):
    server = process(source="fake:tokens_per_s=1,answer=word,length=1000")
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body(stream=True)) as response:
        assert next(response.iter_lines())
        worker = httpx.get(f"{server.url}/admin/models").json()["models"][0]["pid"]
        server.child.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.url}/health/ready").status_code != 503:
            pass
        code, seconds, _ = server.end()
    assert code == 128 + signal.SIGTERM
    assert seconds < 5
    until = time.monotonic() + DEADLINE_S
    while _runs(worker):
        assert time.monotonic() < until, "the worker outlived the server"


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Reparented to an init that may not reap: a zombie does not run.
    return not any(state in _stat(pid) for state in (") Z", ") X"))


def _stat(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""


def test_a_port_in_use_names_the_process_that_has_it_where_that_is_known():
    with bind("127.0.0.1", 0) as taken, pytest.raises(ConfigError, match=r"in use by make \(pid 7\); stop that or"):
        bind("127.0.0.1", taken.getsockname()[1], lambda _port: "make (pid 7)")
