"""The command line, run as its users run it."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import httpx
import pytest
import yaml

from plimsoll import __version__, config

DEADLINE_S = 20


def plimsoll(*arguments, given="", **environment):
    return subprocess.run(
        [sys.executable, "-m", "plimsoll", *arguments],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
        env={**os.environ, **environment},
    )


def write(folder, data, name="config.yaml"):
    path = folder / name
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return str(path)


def fails(done, code, *words):
    """One line on stderr, nothing on stdout."""
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words), done.stderr


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server with a model that echoes, one that is slow and one that fails to load."""
    folder = tmp_path_factory.mktemp("server")
    entries = {
        "echo": {"source": "fake:"},
        "slow": {"source": "fake:tokens_per_s=5,answer=word,length=1000"},
        "broken": {"source": "fake:fail_load=the file is torn"},
    }
    models = {"builtin": False, "cache_dir": str(folder), "entries": entries}
    file = write(folder, {"server": {"port": 0, "keepalive": "100ms"}, "models": models})
    command = [sys.executable, "-m", "plimsoll", "serve", "--config", file]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        yield child.stdout.readline().split()[2].partition("/v1")[0]
        # Twice: an answer that a failed test left running must not be waited for.
        child.send_signal(signal.SIGTERM)
        child.send_signal(signal.SIGINT)
        child.wait(DEADLINE_S)


def test_version_is_the_package_s():
    assert plimsoll("version").stdout == f"{__version__}\n"


def test_wrong_usage_exits_with_2():
    assert plimsoll("serve", "--port", "70000").returncode == 2
    assert plimsoll("fly").returncode == 2


def test_check_prints_yaml_that_load_accepts(tmp_path):
    file = write(tmp_path, {"server": {"port": 4321}})
    done = plimsoll("check", "--config", file)
    assert done.returncode == 0
    assert file in done.stdout.splitlines()[0]
    again = write(tmp_path, yaml.safe_load(done.stdout), "again.yaml")
    assert config.load(again) == config.load(file)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"server": {"port": 99999}}, ["server.port", "99999"]),
        ({"nonsense": 1}, ["nonsense", "unknown key"]),
        ({"models": {"dir": "/no/such/folder"}}, ["models.dir"]),
    ],
)
def test_check_names_the_bad_key_in_one_line(tmp_path, data, words):
    fails(plimsoll("check", "--config", write(tmp_path, data)), 1, *words)


def test_a_config_file_that_is_not_there_is_said_so():
    fails(plimsoll("check", "--config", "/no/such.yaml"), 1, "/no/such.yaml")


def test_serve_with_its_port_in_use_fails_in_one_line(url, tmp_path):
    port = url.rpartition(":")[2]
    file = write(tmp_path, {"models": {"builtin": False}})
    fails(plimsoll("serve", "--config", file, "--port", port), 1, port, "in use", "--port")


@pytest.mark.parametrize("command", [["chat", "echo", "--once", "hi"], ["ps"]])
def test_without_a_server_the_exit_code_is_3_with_a_hint(command):
    fails(plimsoll(*command, "--url", "http://127.0.0.1:1"), 3, "http://127.0.0.1:1", "plimsoll serve")


def test_a_url_that_is_none_is_said_to_be_one():
    fails(plimsoll("ps", "--url", "ftp://x"), 3, "is not a URL")


def test_the_url_may_come_from_the_environment(url):
    assert plimsoll("ps", PLIMSOLL_URL=url).returncode == 0


def test_models_lists_kind_install_state_and_state(url, tmp_path):
    entries = {"echo": {"source": "fake:"}, "gone": {"source": "org/name"}}
    file = write(tmp_path, {"models": {"builtin": False, "cache_dir": str(tmp_path), "entries": entries}})
    plimsoll("chat", "echo", "--once", "hi", "--url", url)
    head, echo, gone = plimsoll("models", "--config", file, "--url", url).stdout.splitlines()
    assert head.split() == ["NAME", "KIND", "SIZE", "INSTALLED", "STATE"]
    assert echo.split() == ["echo", "fake", "-", "yes", "ready"]
    assert gone.split() == ["gone", "repo", "-", "no", "-"]


def test_models_works_without_a_server(tmp_path):
    file = write(tmp_path, {"models": {"builtin": False, "entries": {"echo": {"source": "fake:"}}}})
    done = plimsoll("models", "--config", file, "--url", "http://127.0.0.1:1")
    assert (done.returncode, "echo" in done.stdout) == (0, True)
    assert "no server" in done.stderr


def test_ps_shows_what_runs_for_people_and_for_programs(url):
    plimsoll("chat", "echo", "--once", "hi", "--url", url)
    table = plimsoll("ps", "--url", url).stdout
    (running,) = [one for one in json.loads(plimsoll("ps", "--json", "--url", url).stdout) if one["name"] == "echo"]
    assert running["state"] == "ready"
    assert str(running["pid"]) in table
    assert "broken" not in table
    assert "in 15 min" in table


def test_chat_answers_one_prompt_from_the_option_or_a_pipe(url):
    assert plimsoll("chat", "echo", "--once", "hello there", "--url", url).stdout == "hello there\n"
    assert plimsoll("chat", "echo", "--url", url, given="hello you\n").stdout == "hello you\n"


def test_chat_takes_the_first_model_when_none_is_named(url):
    assert plimsoll("chat", "--once", "hello", "--url", url).stdout == "hello\n"


def test_chat_tells_the_server_s_error_in_one_line(url):
    fails(plimsoll("chat", "nope", "--once", "hi", "--url", url), 1, "nope")
    fails(plimsoll("chat", "broken", "--once", "hi", "--url", url), 1, "the file is torn")


def test_chat_with_an_empty_pipe_is_wrong_usage(url):
    assert plimsoll("chat", "echo", "--url", url).returncode == 2


class Terminal:
    """``plimsoll chat`` on a pseudo-terminal."""

    def __init__(self, *arguments):
        # Its own session with the terminal as the controlling one, so that Ctrl-C arrives as for a person.
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [sys.executable, "-m", "plimsoll", "chat", *arguments])
        self.seen = ""

    def types(self, text):
        os.write(self._fd, text.encode())

    def shows(self, text):
        """Wait for ``text``; what came before it is dropped."""
        until = time.monotonic() + DEADLINE_S
        while text not in self.seen:
            ready, _, _ = select.select([self._fd], [], [], max(0, until - time.monotonic()))
            assert ready, f"{text!r} did not come; there is {self.seen!r}"
            self.seen += os.read(self._fd, 65536).decode("utf-8", "replace")
        self.seen = self.seen.partition(text)[2]

    def ends(self):
        _, status = os.waitpid(self._pid, 0)
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")  # pty.fork, then exec at once
def test_chat_at_a_terminal_keeps_going_through_errors_resets_and_ctrl_c(url):
    terminal = Terminal("slow", "--url", url)
    terminal.shows("/exit")
    terminal.shows("> ")
    terminal.types("tell me\n")
    terminal.shows("word word")
    terminal.types("\x03")
    terminal.shows("> ")
    terminal.types("/what\n")
    terminal.shows("/reset")
    terminal.shows("> ")
    terminal.types("/reset\n")
    terminal.shows("> ")
    terminal.types("\x03")
    terminal.shows("> ")
    terminal.types("/exit\n")
    assert terminal.ends() == 0
    assert _until_idle(url, "slow"), "Ctrl-C did not cancel the answer"


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")  # pty.fork, then exec at once
def test_chat_at_a_terminal_survives_a_failing_model_and_leaves_at_ctrl_d(url):
    terminal = Terminal("broken", "--url", url)
    terminal.shows("> ")
    terminal.types("hi\n")
    terminal.shows("the file is torn")
    terminal.shows("> ")
    terminal.types("\x04")
    assert terminal.ends() == 0


def _until_idle(url, name):
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        states = {one["name"]: one["state"] for one in httpx.get(f"{url}/admin/models").json()["models"]}
        if states[name] != "busy":
            return True
    return False
