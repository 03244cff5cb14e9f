"""Commands of a server that wants a key."""

import json
import os

import pytest

ADMIN, READER = "admin-key-of-the-tests", "reader-key-of-the-tests"


@pytest.fixture(scope="module")
def guarded(shell, tmp_path_factory):
    keys = [{"name": "boss", "role": "admin", "key": ADMIN}, {"name": "guest", "role": "read", "key": READER}]
    entries = {"echo": {"source": "fake:"}}
    with shell.serving(tmp_path_factory.mktemp("guarded"), entries, access={"keys": keys}) as url:
        yield url


COMMANDS = [
    ["ps", "--json"],
    ["models", "--json"],
    ["load", "echo"],
    ["plan", "echo"],
    ["pin", "echo"],
    ["unpin", "echo"],
    ["chat", "echo", "--once", "hi"],
    ["bench", "echo", "--streams", "1", "--tokens", "4"],
    ["top", "--json"],
    ["events"],
    ["cleanup"],
    ["reload", "--json"],
    ["pull", "echo"],
    ["unload", "echo"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_every_command_sends_its_key(shell, plimsoll, guarded, tmp_path, command):
    file = shell.write(tmp_path, {"models": {"builtin": False, "entries": {"echo": {"source": "fake:"}}}})
    done = plimsoll(*command, "--url", guarded, "--config", file, PLIMSOLL_API_KEY=ADMIN)
    assert (done.returncode, "key" in done.stderr) == (0, False), done.stderr


def test_the_key_may_come_from_an_option_a_file_or_the_environment(plimsoll, guarded, tmp_path):
    (tmp_path / "key").write_text(f"{ADMIN}\n")
    file = ["--api-key-file", str(tmp_path / "key")]
    assert plimsoll("ps", "--url", guarded, "--api-key", ADMIN).returncode == 0
    assert plimsoll("ps", "--url", guarded, *file).returncode == 0
    assert plimsoll("--api-key", ADMIN, "ps", "--url", guarded).returncode == 0
    assert plimsoll(*file, "ps", "--url", guarded).returncode == 0
    # What is given on the command line counts more than the environment.
    assert plimsoll("ps", "--url", guarded, *file, PLIMSOLL_API_KEY="another").returncode == 0


def test_without_a_key_or_with_a_wrong_one_the_exit_code_is_4_with_a_hint(shell, plimsoll, guarded):
    shell.fails(plimsoll("ps", "--url", guarded), 4, "--api-key-file", "PLIMSOLL_API_KEY")
    shell.fails(plimsoll("top", "--url", guarded, PLIMSOLL_API_KEY="wrong"), 4)
    shell.fails(plimsoll("events", "--follow", "--url", guarded), 4)


def test_a_key_that_may_only_read_is_told_so(shell, plimsoll, guarded):
    assert plimsoll("ps", "--url", guarded, PLIMSOLL_API_KEY=READER).returncode == 0
    shell.fails(plimsoll("unload", "echo", "--url", guarded, PLIMSOLL_API_KEY=READER), 4)


def test_doctor_says_that_a_key_is_missing_and_goes_on(plimsoll, guarded):
    told = json.loads(plimsoll("doctor", "--json", "--url", guarded).stdout)
    (server,) = [one for one in told["findings"] if one["subject"] == "server"]
    assert server["level"] == "warning"
    assert "key" in server["text"]


@pytest.mark.parametrize("key", ["two words", "schlüssel", "a\nb"])
def test_a_key_that_can_t_be_sent_is_one_line(shell, plimsoll, no_server, key):
    shell.fails(plimsoll("ps", "--url", no_server, "--api-key", key), 1, "printable ASCII")


def test_a_key_file_that_is_empty_or_not_there_is_one_line(shell, plimsoll, no_server, tmp_path):
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "gone"):
        shell.fails(plimsoll("ps", "--url", no_server, "--api-key-file", str(tmp_path / name)), 1, name)


def test_the_shell_completes_the_models_of_a_guarded_server(plimsoll, guarded):
    words = "plimsoll unload e"
    asked = {"_PLIMSOLL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "2", "PLIMSOLL_URL": guarded}
    assert plimsoll(**asked, PLIMSOLL_API_KEY=ADMIN).stdout.split() == ["echo"]
    assert "PLIMSOLL_API_KEY" not in os.environ
