"""Whole processes: what they bind, what they print, what they write, and Ollama's client."""

import os
import signal
import subprocess
import sys

import httpx
import ollama
import psutil
import pytest
import yaml

ADMIN, USER = "the-key-of-the-admin", "the-key-of-a-user"
KEYS = [{"name": "boss", "role": "admin", "key": ADMIN}, {"name": "ada", "role": "user", "env": "KEY_OF_ADA"}]
DEADLINE_S = 60


def run(*arguments, folder, **config):
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "plimsoll", *arguments, "--config", str(folder / "config.yaml")]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, cwd=folder, check=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_another_address_than_loopback_is_not_bound_without_a_key(tmp_path, host):
    done = run("serve", "--port", "0", "--host", host, folder=tmp_path, models={"builtin": False})
    assert done.returncode == 1
    assert "no API key is configured: add one under access.keys, or start with --insecure" in done.stderr
    assert "Traceback" not in done.stderr


def test_ollamas_client_works_with_a_key_and_tells_a_wrong_one(process, monkeypatch):
    monkeypatch.setenv("KEY_OF_ADA", USER)
    server = process(access={"keys": KEYS}, server={"port": 0, "host": "0.0.0.0"})
    hello = [{"role": "user", "content": "hello"}]
    with ollama.Client(server.url, headers={"Authorization": f"Bearer {USER}"}) as client:
        assert [one.model for one in client.list().models] == ["tiny"]
        assert client.show("tiny")
        assert client.chat("tiny", hello).message.content == "hello"
        with pytest.raises(ollama.ResponseError) as caught:
            client.pull("tiny")
        assert caught.value.status_code == 403
    wrong = ollama.Client(server.url, headers={"Authorization": "Bearer wrong-key"})
    with wrong, pytest.raises(ollama.ResponseError, match="none of this server's") as caught:
        wrong.list()
    assert caught.value.status_code == 401
    assert httpx.get(f"{server.url}/health", headers={"Host": "10.1.2.3"}).status_code == 200
    assert httpx.get(f"{server.url}/health", headers={"Host": "evil.example"}).status_code == 403


def test_a_worker_does_not_inherit_the_variables_that_hold_keys(process, monkeypatch):
    monkeypatch.setenv("KEY_OF_ADA", USER)
    monkeypatch.setenv("ANOTHER", "is inherited")
    server = process(access={"keys": KEYS})
    with httpx.Client(base_url=server.url, headers={"x-api-key": ADMIN}, timeout=DEADLINE_S) as client:
        client.post("/admin/models/tiny/load")
        (model,) = client.get("/admin/models").json()["models"]
        inherited = psutil.Process(model["pid"]).environ()
        assert inherited["ANOTHER"] == "is inherited"
        assert "KEY_OF_ADA" not in inherited
        assert USER not in inherited.values()
        # A reload finds the key again.
        assert client.post("/admin/reload").status_code == 200
        assert client.get("/admin/models", headers={"x-api-key": USER}).status_code == 200


@pytest.fixture
def _umask_of_most_people():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("_umask_of_most_people")
def test_what_a_server_writes_is_for_its_owner_alone_and_holds_no_key(process, tmp_path, monkeypatch):
    monkeypatch.setenv("KEY_OF_ADA", USER)
    log = tmp_path / "log" / "plimsoll.log"
    files = {"level": "debug", "file": str(log), "blackbox": str(tmp_path / "box" / "blackbox.db")}
    server = process(access={"keys": KEYS}, logging=files)
    for key in (ADMIN, USER, "wrong-key"):
        headers = {"Authorization": f"Bearer {key}", "x-api-key": key}
        httpx.post(f"{server.url}/v1/chat/completions", headers=headers, json={"model": key, "messages": key})
        httpx.post(f"{server.url}/api/chat", headers=headers, json={"model": "tiny", "messages": []})
    code, _, stderr = server.end(signal.SIGTERM)
    assert code == 0
    written = [path for folder in (log.parent, tmp_path / "box") for path in (folder, *folder.rglob("*"))]
    assert {path.name for path in written} >= {"plimsoll.log", "blackbox.db"}
    assert [(path, oct(path.stat().st_mode)) for path in written if path.stat().st_mode & 0o077] == []
    told = stderr + "".join(path.read_bytes().decode("latin-1") for path in written if path.is_file())
    assert "listening on" in told
    assert not [key for key in (ADMIN, USER) if key in told]


def test_check_shows_no_key_and_says_which_can_not_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("KEY_OF_ADA", USER)
    done = run("check", folder=tmp_path, access={"keys": KEYS})
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["access"]["keys"][0]["key"] == "***"
    assert ADMIN not in done.stdout + done.stderr
    assert USER not in done.stdout + done.stderr
    monkeypatch.delenv("KEY_OF_ADA")
    done = run("check", folder=tmp_path, access={"keys": KEYS})
    assert done.returncode == 1
    assert "access.keys[1].env: the environment variable KEY_OF_ADA is not set" in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        f"access:\n  keys: [name: a\n   key: {ADMIN}\n",
        f"access: {{keys: [{{name: a, role: {ADMIN}, key: x}}]}}",
        f"access: {{keys: {ADMIN}}}",
        f"access: {{keys: [{ADMIN}]}}",
        f"access: {ADMIN}",
        f"access: {{keys: [{{name: a, role: user, key: *{ADMIN}}}]}}",
        f"access: {{keys: [{{name: a, role: user, key: !{ADMIN} x}}]}}",
        f"access: {{keys: [{{name: a, role: user, key: ['{ADMIN}']}}]}}",
        f"access: {{keys: [{{name: a, role: user, key: '{ADMIN} '}}]}}",
        f"access: {{keys: [{{name: a, role: user, key: {ADMIN}, env: B}}]}}",
        f"access: {{hosts: ['{ADMIN}/']}}",
    ],
)
def test_no_mistake_in_the_file_prints_a_key(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    command = [sys.executable, "-m", "plimsoll", "check", "--config", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 1
    assert "config.yaml: " in done.stderr
    assert ADMIN not in done.stdout + done.stderr
