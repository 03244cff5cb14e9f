"""What systemd is told, on the socket where it listens."""

import asyncio
import os
import re
import signal
import socket
import sys
import uuid

import httpx
import pytest

from plimsoll.actors import messages as m
from plimsoll.http.process.liveness import Notifier, notifier_from_environment, notify_forever, status_line
from plimsoll.memory.sample import Level

DEADLINE_S = 60


class Manager:
    """The service manager's end."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(DEADLINE_S)
        self.heard = []

    def hear(self):
        """The next datagram as {name: value}."""
        self.heard.append(dict(line.split("=", 1) for line in self.socket.recv(65536).decode().split("\n")))
        return self.heard[-1]

    def hear_of(self, name):
        """The next datagram that says ``name``."""
        while name not in (told := self.hear()):
            pass
        return told


# Abstract sockets are Linux's.
@pytest.fixture(params=["path", "abstract"] if sys.platform == "linux" else ["path"])
def address(request, tmp_path):
    return str(tmp_path / "notify") if request.param == "path" else f"@plimsoll-{uuid.uuid4().hex}"


@pytest.fixture
def manager(address):
    made = Manager(address)
    yield made
    made.socket.close()


def test_a_service_says_ready_pings_reloads_and_stops(serve_process, manager, address, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    models = {"entries": {"a": {"source": "fake:"}}}
    server = serve_process(models=models)
    assert manager.hear() == {"READY": "1"}
    while "not read yet" in (told := manager.hear_of("WATCHDOG"))["STATUS"]:
        pass
    assert re.fullmatch(r"\w+, memory \d+\.\d% of \d+\.\d GB \(\w+\), 0 models loaded", told["STATUS"])
    assert httpx.get(f"{server.url}/health/live").status_code == 200
    server.child.send_signal(signal.SIGHUP)
    told = manager.hear_of("RELOADING")
    assert int(told["MONOTONIC_USEC"]) > 0
    assert manager.hear_of("READY")
    server.write(models=models, memory={"limit": "no size"})
    server.child.send_signal(signal.SIGHUP)
    manager.hear_of("RELOADING")
    assert manager.hear_of("READY"), "also after a file that can't be used"
    server.child.send_signal(signal.SIGTERM)
    assert manager.hear_of("STOPPING")["STATUS"].startswith("stopping")
    assert server.child.wait(DEADLINE_S) == 0


def test_no_ping_while_the_supervisor_does_not_answer(server, system, manager, address, status):
    front, notifier = server.app.ctx.state, Notifier(address, watchdog_s=0.03)
    told = asyncio.run_coroutine_threadsafe(notify_forever(front, notifier), server.loop)
    manager.hear_of("WATCHDOG")
    system.scripts[m.GetStatus] = lambda _message: None
    while "did not answer" not in (heard := manager.hear())["STATUS"]:
        assert "WATCHDOG" in heard
    assert "WATCHDOG" not in heard
    system.scripts[m.GetStatus] = lambda message: message.reply.send(status(Level.WARNING, 90.0))
    assert manager.hear_of("WATCHDOG")["STATUS"] == "warning, memory 90.0% of 128.0 GB (host), 0 models loaded"
    told.cancel()
    notifier.close()


def test_without_a_watchdog_only_the_status_is_told(server, manager, address):
    notifier = Notifier(address)
    told = asyncio.run_coroutine_threadsafe(notify_forever(server.app.ctx.state, notifier), server.loop)
    assert manager.hear().keys() == {"STATUS"}
    told.cancel()
    notifier.close()


@pytest.mark.parametrize(
    ("environment", "listens", "watchdog_s"),
    [
        ({}, False, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "2000000"}, True, 2.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}, True, 2.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, True, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"}, True, None),
        ({"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "soon"}, False, None),
    ],
)
def test_the_environment_says_whom_to_tell_and_is_left_clean(environment, listens, watchdog_s):
    notifier = notifier_from_environment(environment)
    assert (notifier.listens, notifier.watchdog_s) == (listens, watchdog_s)
    assert not environment
    notifier.close()


def test_nobody_who_listens_is_no_reason_to_fail(tmp_path, caplog):
    notifier = Notifier(str(tmp_path / "none"))
    notifier.ready()
    assert "could not be told READY=1: No such file" in caplog.text
    notifier.close()
    Notifier().ready()


def test_a_status_before_the_first_sample_has_no_figures(status):
    assert status_line(status(sample=None)) == "normal, memory not read yet, 0 models loaded"
