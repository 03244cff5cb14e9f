"""``plimsoll pull``, with a hub that is a process of the test's own; by a server and without one."""

import json
import signal
import subprocess
from types import SimpleNamespace

import pytest

from plimsoll.cli.output import Speed

MIB = 1024**2


@pytest.fixture
def settings(shell, tmp_path):
    """A configuration whose one model is the hub's repo, and an environment with caches of its own."""
    models = {"builtin": False, "cache_dir": str(tmp_path), "entries": {"tiny": {"source": "org/tiny"}}}
    file = shell.write(tmp_path, {"server": {"port": 1}, "models": models})
    return SimpleNamespace(file=file, models=models, env={"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""})


def pull(plimsoll, settings, address, *arguments):
    return plimsoll("pull", "tiny", "--config", settings.file, *arguments, HF_ENDPOINT=address, **settings.env)


def test_without_a_server_the_files_are_fetched_directly(hubs, plimsoll, settings):
    with hubs.hub(hubs.model_files(3 * MIB)) as (_, address):
        done = pull(plimsoll, settings, address)
        assert (done.returncode, done.stdout) == (0, "tiny is here\n"), done.stderr
        assert "3 MB to fetch" in done.stderr
        assert "needs" in done.stderr
    models = json.loads(plimsoll("models", "--json", "--config", settings.file, **settings.env).stdout)["models"]
    assert models[0]["installed"]


def test_what_is_here_is_not_fetched_again(hubs, plimsoll, settings):
    with hubs.hub(hubs.model_files(MIB)) as (_, address):
        assert pull(plimsoll, settings, address).returncode == 0
    assert pull(plimsoll, settings, address).stdout == "tiny is here\n"


def test_for_programs_there_is_a_line_for_each_step(hubs, plimsoll, settings):
    with hubs.hub(hubs.model_files(3 * MIB)) as (_, address):
        lines = [json.loads(line) for line in pull(plimsoll, settings, address, "--json").stdout.splitlines()]
    assert lines[-1] == {"status": "success"}
    assert all(set(line) == {"status", "completed", "total"} for line in lines[:-1])
    assert lines[-2]["completed"] == lines[-2]["total"]


def test_what_ctrl_c_left_is_gone_on_with(hubs, shell, plimsoll, settings):
    # The library writes pieces of 10 MiB.
    with hubs.hub(hubs.model_files(32 * MIB)) as (hub, address):
        hub.cut_at = 25 * MIB
        environment = {**shell.os.environ, "HF_ENDPOINT": address, **settings.env}
        command = [*shell.PLIMSOLL, "pull", "tiny", "--json", "--config", settings.file]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            part = hubs.part(settings.env["HF_HOME"])
            shell.until(lambda: part() >= 20 * MIB, "20 MiB are on the disk")
            child.send_signal(signal.SIGINT)
            assert child.wait(shell.DEADLINE_S) == 130
        assert pull(plimsoll, settings, address).returncode == 0
        assert hub.ranges[-1] == f"bytes={20 * MIB}-"


def test_a_file_that_is_not_what_its_hash_says_is_dropped(hubs, plimsoll, settings):
    with hubs.hub(hubs.model_files(2 * MIB)) as (hub, address):
        hub.hashes["model.safetensors"] = "0" * 64
        done = pull(plimsoll, settings, address)
    assert done.returncode == 1
    assert "not what the hub says" in done.stderr
    assert hubs.part(settings.env["HF_HOME"])() == 0


def test_what_can_never_fit_is_refused_with_the_figures_unless_forced(hubs, shell, plimsoll, settings):
    with hubs.hub(hubs.model_files(MIB, announced_bytes=10**15)) as (hub, address):
        done = pull(plimsoll, settings, address)
        shell.fails(done, 1, "can never be loaded here: it needs", "nothing was fetched", "--force")
        # Only the header was looked at.
        assert hub.ranges == ["bytes=0-100000"]
        assert pull(plimsoll, settings, address, "--force").returncode == 0


def test_what_the_disk_can_t_hold_is_refused_with_the_figures(hubs, shell, plimsoll, settings):
    with hubs.hub(hubs.model_files(MIB)) as (hub, address):
        hub.claims["model.safetensors"] = 10**15
        shell.fails(pull(plimsoll, settings, address), 1, "disk space", "are free", "--force")


def test_a_repo_that_is_not_there_is_one_line(hubs, shell, plimsoll, settings):
    files = {}
    with hubs.hub(files) as (hub, address):
        hub.missing = True
        shell.fails(pull(plimsoll, settings, address), 1, "there is no public repo org/tiny")


def test_a_name_that_is_no_model_is_one_line(shell, plimsoll, settings):
    shell.fails(plimsoll("pull", "nope", "--config", settings.file), 1, "no model 'nope'", "tiny")


def test_a_running_server_fetches_it_and_what_it_says_is_passed_on(hubs, shell, settings, tmp_path, monkeypatch):
    plimsoll = shell.plimsoll
    with hubs.hub(hubs.model_files(3 * MIB)) as (_, address):
        for name, value in {**settings.env, "HF_ENDPOINT": address}.items():
            monkeypatch.setenv(name, value)
        with shell.serving(tmp_path, settings.models["entries"]) as url:
            lines = plimsoll("pull", "tiny", "--json", "--url", url, "--config", settings.file).stdout.splitlines()
            assert json.loads(lines[0]) == {"status": "pulling manifest"}
            assert json.loads(lines[-1]) == {"status": "success"}
            shell.fails(plimsoll("pull", "nope", "--url", url, "--config", settings.file), 1, "nope")


def test_a_named_server_that_does_not_answer_is_not_replaced(shell, plimsoll, settings, no_server):
    shell.fails(plimsoll("pull", "tiny", "--url", no_server, "--config", settings.file), 3, no_server)


def test_the_speed_is_that_of_the_last_ten_seconds_and_what_was_there_before_cost_no_time():
    speed = Speed()
    assert speed.figures("fetch", 500 * MIB, 1000 * MIB, 0.0) == "500 MB of 1000 MB"
    assert speed.figures("fetch", 600 * MIB, 1000 * MIB, 2.0) == "600 MB of 1000 MB, 50 MB/s, 8 s left"
    # At 20 s the first two are too old to count.
    speed.figures("fetch", 600 * MIB, 1000 * MIB, 15.0)
    assert speed.figures("fetch", 650 * MIB, 1000 * MIB, 20.0) == "650 MB of 1000 MB, 10 MB/s, 35 s left"
    assert speed.figures("convert", 10 * MIB, 0, 21.0) == "10 MB"


@pytest.fixture
def bare(shell, tmp_path):
    """A configuration without entries."""
    file = shell.write(tmp_path, {"server": {"port": 1}, "models": {"builtin": False, "cache_dir": str(tmp_path)}})
    return SimpleNamespace(file=file, env={"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""})


def offered(plimsoll, settings):
    done = plimsoll("models", "--json", "--config", settings.file, **settings.env)
    return {row["name"]: row for row in json.loads(done.stdout)["models"]}


def test_a_repo_that_is_not_configured_is_fetched_checked_and_offered(hubs, plimsoll, bare):
    with hubs.hub(hubs.model_files(2 * MIB)) as (_, address):
        done = plimsoll("pull", "org/tiny", "--config", bare.file, HF_ENDPOINT=address, **bare.env)
    assert (done.returncode, done.stdout) == (0, "org/tiny is here\n"), done.stderr
    row = offered(plimsoll, bare)["org/tiny"]
    assert (row["kind"], row["installed"], row["fits"]) == ("repo", True, True)


@pytest.mark.parametrize("revision", ["v1", "0123456789abcdef0123456789abcdef01234567"])
def test_a_revision_is_fetched_and_offered_under_its_own_name(hubs, plimsoll, bare, revision):
    with hubs.hub(hubs.model_files(MIB)) as (_, address):
        done = plimsoll("pull", f"org/tiny@{revision}", "--config", bare.file, HF_ENDPOINT=address, **bare.env)
    assert done.returncode == 0, done.stderr
    assert offered(plimsoll, bare)[f"org/tiny@{revision}"]["installed"]


def test_a_repo_that_an_entry_switches_off_is_not_fetched(shell, plimsoll, tmp_path):
    entries = {"mine": {"source": "org/tiny", "enabled": False}}
    file = shell.write(tmp_path, {"server": {"port": 1}, "models": {"builtin": False, "entries": entries}})
    shell.fails(plimsoll("pull", "org/tiny", "--config", file), 1, "'mine' is switched off")


def test_a_running_server_offers_at_once_what_it_fetched(hubs, shell, bare, tmp_path, monkeypatch):
    with hubs.hub(hubs.model_files(2 * MIB)) as (_, address):
        for name, value in {**bare.env, "HF_ENDPOINT": address}.items():
            monkeypatch.setenv(name, value)
        with shell.serving(tmp_path, {"echo": {"source": "fake:"}}) as url:
            done = shell.plimsoll("pull", "org/tiny", "--url", url, "--config", bare.file)
            assert done.returncode == 0, done.stderr
            assert "org/tiny" in shell.states(url)
