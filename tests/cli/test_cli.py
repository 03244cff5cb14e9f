"""The command line as a whole: configuration, exit codes, pipes, Ctrl-C."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from plimsoll import __version__, config
from plimsoll.cli.app import COMMANDS


def test_version_is_the_package_s(plimsoll):
    assert plimsoll("version").stdout == f"{__version__}\n"


def test_wrong_usage_exits_with_2(plimsoll):
    assert plimsoll("serve", "--port", "70000").returncode == 2
    assert plimsoll("fly").returncode == 2


def test_check_prints_yaml_that_load_accepts(shell, plimsoll, tmp_path):
    file = shell.write(tmp_path, {"server": {"port": 4321}})
    done = plimsoll("check", "--config", file)
    assert done.returncode == 0
    assert file in done.stdout.splitlines()[0]
    again = shell.write(tmp_path, yaml.safe_load(done.stdout), "again.yaml")
    assert config.load(again) == config.load(file)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"server": {"port": 99999}}, ["server.port", "99999"]),
        ({"nonsense": 1}, ["nonsense", "unknown key"]),
        ({"models": {"dir": "/no/such/folder"}}, ["models.dir"]),
    ],
)
def test_check_names_the_bad_key_in_one_line(shell, plimsoll, tmp_path, data, words):
    shell.fails(plimsoll("check", "--config", shell.write(tmp_path, data)), 1, *words)


def test_a_config_file_that_is_not_there_is_said_so(shell, plimsoll):
    shell.fails(plimsoll("check", "--config", "/no/such.yaml"), 1, "/no/such.yaml")


def test_serve_with_its_port_in_use_fails_in_one_line(shell, plimsoll, url, tmp_path):
    port = url.rpartition(":")[2]
    file = shell.write(tmp_path, {"models": {"builtin": False}})
    shell.fails(plimsoll("serve", "--config", file, "--port", port), 1, port, "in use by ", "(pid ", "--port")


@pytest.mark.parametrize("command", [["chat", "echo", "--once", "hi"], ["ps"]])
def test_without_a_server_the_exit_code_is_3_with_a_hint(shell, plimsoll, command):
    shell.fails(plimsoll(*command, "--url", "http://127.0.0.1:1"), 3, "http://127.0.0.1:1", "plimsoll serve")


def test_a_url_that_is_none_is_said_to_be_one(shell, plimsoll):
    shell.fails(plimsoll("ps", "--url", "ftp://x"), 3, "is not a URL")


def test_the_url_may_come_from_the_environment(plimsoll, url):
    assert plimsoll("ps", PLIMSOLL_URL=url).returncode == 0


def test_check_for_programs_has_file_doubts_and_config(shell, plimsoll, tmp_path):
    entries = {"big": {"source": "fake:hold=90000000MiB"}}
    file = shell.write(tmp_path, {"models": {"builtin": False, "entries": entries}})
    told = json.loads(plimsoll("check", "--json", "--config", file).stdout)
    assert told["file"] == file
    assert "big" in told["doubts"][0]
    assert config.parse(told["config"]) == config.load(file)


def test_version_for_programs(plimsoll):
    assert json.loads(plimsoll("version", "--json").stdout) == {"version": __version__}


def test_options_before_the_command_hold_for_it_and_those_behind_it_win(plimsoll, url, no_server):
    assert plimsoll("--url", url, "ps").returncode == 0
    assert plimsoll("--url", no_server, "ps").returncode == 3
    assert plimsoll("--url", no_server, "ps", "--url", url).returncode == 0
    assert plimsoll("ps", "--url", url, PLIMSOLL_URL=no_server).returncode == 0


def test_the_config_names_the_server_where_nothing_else_does(shell, plimsoll, url, tmp_path):
    file = shell.write(tmp_path, {"server": {"port": int(url.rpartition(":")[2])}})
    assert plimsoll("ps", "--config", file).returncode == 0
    assert plimsoll("--config", file, "ps").returncode == 0
    assert plimsoll("ps", PLIMSOLL_CONFIG=file).returncode == 0


def test_a_server_that_is_not_plimsoll_is_one_line(shell, plimsoll):
    with shell.answering(lambda _: (200, b"<html>hello</html>")) as (url, _):
        shell.fails(plimsoll("ps", "--url", url), 3, url)


@pytest.mark.parametrize("command", [["events", "--json"], ["check"], ["--help"], ["models"]])
def test_a_reader_that_leaves_early_is_no_error(shell, tmp_path, command):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        environment = {**os.environ, "XDG_STATE_HOME": str(_black_box(tmp_path))}
        done = subprocess.run(
            [*shell.PLIMSOLL, *command], stdout=pipe, stderr=subprocess.PIPE, check=False, text=True, env=environment
        )
    assert done.returncode in (0, 1) if command == ["--help"] else done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def _black_box(folder):
    from plimsoll.journal import events
    from plimsoll.journal.blackbox import BlackBox

    box = BlackBox(folder / "plimsoll" / "blackbox.sqlite")
    box.start()
    for _ in range(2000):
        box.event(events.ServerStopped("asked to stop " * 10))
    box.close("stopped", 20)
    return folder


def test_a_full_disk_behind_stdout_is_one_line(shell):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*shell.PLIMSOLL, "version"], stdout=full, stderr=subprocess.PIPE, check=False, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "No space left" in done.stderr


def test_ctrl_c_ends_a_command_quietly_with_130(shell, url):
    command = [*shell.PLIMSOLL, "chat", "slow", "--once", "hi", "--url", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout.read(4) == "word"
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=shell.DEADLINE_S)
    assert (child.returncode, errors) == (130, "")


def completions(plimsoll, words, **environment):
    asked = {"_PLIMSOLL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    return plimsoll(**asked, **environment).stdout.split()


def test_the_shell_completes_commands_models_and_kinds_of_events(shell, plimsoll, url, no_server, tmp_path):
    assert completions(plimsoll, "plimsoll unp") == ["unpin"]
    assert completions(plimsoll, "plimsoll unload ec", PLIMSOLL_URL=url) == ["echo"]
    assert completions(plimsoll, f"plimsoll unload --url {url} sl") == ["slow"]
    assert completions(plimsoll, "plimsoll events --kind level") == ["level_changed"]
    file = shell.write(tmp_path, {"models": {"builtin": False, "entries": {"mine": {"source": "fake:"}}}})
    assert completions(plimsoll, "plimsoll plan m", PLIMSOLL_CONFIG=file) == ["mine"]
    assert completions(plimsoll, "plimsoll plan m", PLIMSOLL_CONFIG=file, PLIMSOLL_URL=no_server) == ["mine"]
    assert completions(plimsoll, "plimsoll plan m", PLIMSOLL_CONFIG="/no/such.yaml") == []


def test_the_documentation_has_every_command(plimsoll):
    listed = plimsoll("--help").stdout.partition("Commands:")[2].splitlines()
    table = (Path(config.__file__).parent / "docs" / "cli.md").read_text(encoding="utf-8")
    commands = [line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "]
    assert len(commands) > 15
    assert [name for name in commands if f"`{name}" not in table] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_says_of_each_command_what_the_command_says_of_itself(name):
    module, said = COMMANDS[name]
    command = getattr(importlib.import_module(f"plimsoll.cli.{module}"), name)
    text = command.info.help if name == "service" else command.__doc__
    assert text.startswith(said)


def test_no_client_command_imports_what_makes_it_slow():
    code = """
import sys
from pathlib import Path
from plimsoll.cli.link import Link
from plimsoll.cli import admin, app, client, complete, event_feed
heavy = {"mlx", "numpy", "sanic", "pykka", "rich.live", "huggingface_hub", "plimsoll.catalog"}
sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
