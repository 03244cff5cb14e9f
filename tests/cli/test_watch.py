"""``plimsoll events`` and ``top``."""

import contextlib
import json
import os
import pty
import signal
import subprocess

import pytest
from lasting_port import lasting_port

from plimsoll.journal import events
from plimsoll.journal.blackbox import BlackBox

FORKS = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")  # pty.fork, then exec


@contextlib.contextmanager
def following(shell, *arguments):
    """The lines that ``plimsoll events --follow`` prints, until Ctrl-C."""
    command = [*shell.PLIMSOLL, "events", "--follow", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        yield child
        child.send_signal(signal.SIGINT)
        assert child.wait(shell.DEADLINE_S) == 130


def test_events_reads_the_black_box_without_a_server(plimsoll, tmp_path):
    box = BlackBox(tmp_path / "plimsoll" / "blackbox.sqlite")
    box.start()
    box.event(events.ServerStopped("asked to stop"))
    box.close("stopped")
    state = {"XDG_STATE_HOME": str(tmp_path)}
    assert "asked to stop" in plimsoll("events", **state).stdout
    told = json.loads(plimsoll("events", "--json", **state).stdout)
    assert (told["kind"], told["reason"]) == ("server_stopped", "asked to stop")
    nothing = plimsoll("events", "--kind", "forecast", **state)
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "no events" in nothing.stderr


def test_events_with_a_wrong_time_or_kind_is_wrong_usage(plimsoll):
    assert plimsoll("events", "--since", "soon").returncode == 2
    assert plimsoll("events", "--kind", "nonsense").returncode == 2


def test_events_of_a_named_server_are_asked_for_there(shell, plimsoll, url, no_server):
    plimsoll("load", "other", "--url", url)
    lines = plimsoll("events", "--url", url, "--since", "30d").stdout.splitlines()
    assert any("model_loaded" in line and "other" in line for line in lines)
    done = plimsoll("events", "--url", url, "--kind", "model_loaded", "--json")
    assert {json.loads(line)["kind"] for line in done.stdout.splitlines()} == {"model_loaded"}
    shell.fails(plimsoll("events", "--url", no_server), 3, no_server)


def test_follow_shows_events_as_they_come_after_those_before(shell, plimsoll, url):
    plimsoll("load", "other", "--url", url)
    with following(shell, "--url", url, "--json", "--since", "1h", "--kind", "model-unloaded") as child:
        plimsoll("unload", "other", "--url", url)
        told = json.loads(child.stdout.readline())
        while told["model"] != "other":
            told = json.loads(child.stdout.readline())
        assert set(told) >= {"time", "kind", "model", "reason", "freed_bytes"}


def test_follow_goes_on_when_the_server_is_back(shell, tmp_path):
    port = lasting_port()
    with contextlib.ExitStack() as stack:
        with shell.serving(tmp_path, {"echo": {"source": "fake:"}}, port) as url:
            child = stack.enter_context(following(shell, "--kind", "server_started", "--since", "1h", "--url", url))
            assert "server_started" in child.stdout.readline()
        assert "waiting for it" in child.stderr.readline()
        stack.enter_context(shell.serving(tmp_path, {"echo": {"source": "fake:"}}, port))
        assert "server_started" in child.stdout.readline()


def test_top_without_a_terminal_is_one_look(plimsoll, url):
    plimsoll("load", "other", "--url", url)
    done = plimsoll("top", "--url", url, COLUMNS="80")
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("memory", "host", "other", "healthy"))
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    told = json.loads(plimsoll("top", "--json", "--url", url).stdout)
    assert set(told) == {"url", "server", "sample", "models", "events"}
    assert "other" in {one["name"] for one in told["models"]}


def test_top_without_a_server_is_one_line(shell, plimsoll, no_server):
    shell.fails(plimsoll("top", "--url", no_server), 3, no_server)


@FORKS
@pytest.mark.parametrize(("key", "code"), [("q", 0), ("\x03", 130)])
def test_top_at_a_terminal_is_left_by_q_and_by_ctrl_c(shell, url, key, code):
    terminal = shell.Terminal("top", "--url", url, term="xterm")
    terminal.shows("q leaves")
    terminal.types(key)
    assert terminal.ends() == code


@FORKS
def test_top_at_a_terminal_outlives_the_server(shell, tmp_path):
    port = lasting_port()
    with contextlib.ExitStack() as stack:
        with shell.serving(tmp_path, {"echo": {"source": "fake:"}}, port) as url:
            terminal = shell.Terminal("top", "--url", url, term="xterm")
            terminal.shows("healthy")
        terminal.shows("gone, waiting for it")
        stack.enter_context(shell.serving(tmp_path, {"echo": {"source": "fake:"}}, port))
        terminal.shows("healthy")
        terminal.types("q")
        assert terminal.ends() == 0


@pytest.mark.parametrize("given", ["its keys", "no keys"])
def test_top_ends_with_its_terminal_though_nobody_tells_it(shell, url, given):
    ours, theirs = pty.openpty()
    # A session without a controlling terminal: no SIGHUP comes.
    with subprocess.Popen(
        [*shell.PLIMSOLL, "top", "--url", url],
        stdin=theirs if given == "its keys" else subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
    ) as child:
        os.close(theirs)
        seen = b""
        while b"q leaves" not in seen:
            seen += os.read(ours, 65536)
        os.close(ours)
        try:
            assert child.wait(shell.DEADLINE_S) == 1
        finally:
            child.kill()
        assert len(child.stderr.read().splitlines()) == 1
