"""``plimsoll launch``: what a coding agent is told of the server, how it is started, and what its own file holds."""

import json
import tomllib

import pytest


def launch(plimsoll, url, home, *arguments, **environment):
    return plimsoll("launch", "--url", url, *arguments, HOME=str(home), **environment)


@pytest.fixture
def program(tmp_path):
    """A client that prints its options and a variable; the folder that it lies in."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("codex", "claude", "cline"):
        file = folder / name
        file.write_text('#!/bin/sh\necho "$ANTHROPIC_BASE_URL|$ANTHROPIC_MODEL|$*"\nexit 7\n')
        file.chmod(0o755)
    return str(folder)


def test_the_clients_are_listed_with_where_they_are(plimsoll, tmp_path, program):
    done = plimsoll("launch", PATH=program)
    assert f"{program}/codex" in done.stdout
    assert "npm install -g opencode-ai" in done.stdout
    listed = json.loads(plimsoll("launch", "--json", PATH=program).stdout)["clients"]
    assert {one["name"]: bool(one["path"]) for one in listed}["codex"]


def test_a_client_is_started_for_the_server_and_its_exit_code_passed_on(plimsoll, url, tmp_path, program):
    done = launch(plimsoll, url, tmp_path, "claude", "--model", "other", "--", "-p", "hi", PATH=program)
    assert (done.stdout.strip(), done.returncode) == (f"{url}|other|-p hi", 7)


def test_cline_gets_a_folder_of_its_own_with_the_server_in_it(plimsoll, url, tmp_path, program):
    done = launch(plimsoll, url, tmp_path, "cline", "--", "hi", PATH=program)
    own = tmp_path / ".cline" / "plimsoll"
    assert (done.stdout.strip(), done.returncode) == (f"||--data-dir {own} hi", 7)
    file = own / "settings" / "providers.json"
    settings = json.loads(file.read_text())["providers"]["openai-compatible"]["settings"]
    assert (settings["baseUrl"], settings["model"]) == (f"{url}/v1", "echo")
    assert file.stat().st_mode & 0o077 == 0
    assert str(file) in launch(plimsoll, url, tmp_path, "cline", "--print").stdout


def test_what_would_be_set_is_shown(plimsoll, url, tmp_path):
    done = launch(plimsoll, url, tmp_path, "codex", "--print")
    assert f'model_providers.plimsoll.base_url="{url}/v1"' in done.stdout
    assert 'model="echo"' in done.stdout
    assert "export PLIMSOLL_API_KEY=none" in done.stdout


@pytest.mark.parametrize(
    ("client", "file"),
    [
        ("claude", ".claude/settings.json"),
        ("opencode", ".config/opencode/opencode.json"),
        ("qwen", ".qwen/settings.json"),
        ("cline", ".cline/data/settings/providers.json"),
    ],
)
def test_the_clients_own_file_keeps_what_it_held(plimsoll, url, tmp_path, client, file):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text('{"theme": "dark"}')
    done = launch(plimsoll, url, tmp_path, client, "--write")
    assert done.returncode == 0, done.stderr
    written = json.loads(path.read_text())
    assert written["theme"] == "dark"
    assert url in json.dumps(written)
    assert "echo" in json.dumps(written)
    assert path.with_name(f"{path.name}.before-plimsoll").read_text() == '{"theme": "dark"}'


def test_codexs_file_gets_a_profile_once(plimsoll, url, tmp_path):
    path = tmp_path / ".codex" / "config.toml"
    path.parent.mkdir()
    path.write_text('model = "o9"\n')
    assert launch(plimsoll, url, tmp_path, "codex", "--write").returncode == 0
    written = tomllib.loads(path.read_text())
    assert written["model"] == "o9"
    assert written["profiles"]["plimsoll"]["model_provider"] == "plimsoll"
    assert written["model_providers"]["plimsoll"]["base_url"] == f"{url}/v1"
    again = launch(plimsoll, url, tmp_path, "codex", "--write")
    assert again.returncode == 1
    assert "already" in again.stderr


def test_what_can_not_be_done_is_said(plimsoll, url, tmp_path, shell):
    shell.fails(launch(plimsoll, url, tmp_path, "codex", PATH=str(tmp_path)), 1, "not installed", "npm install")
    shell.fails(launch(plimsoll, url, tmp_path, "claude", "--model", "none"), 1, "none")
    assert "there are claude, codex" in launch(plimsoll, url, tmp_path, "emacs").stderr
    broken = tmp_path / ".claude" / "settings.json"
    broken.parent.mkdir()
    broken.write_text("// mine\n{}")
    shell.fails(launch(plimsoll, url, tmp_path, "claude", "--write"), 1, "no plain JSON")
