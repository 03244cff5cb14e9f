"""``plimsoll search``, ``show`` and ``rm``."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

MIB = 1024**2


@pytest.fixture
def bare(shell, tmp_path):
    """A configuration without entries, and an environment with caches of its own."""
    file = shell.write(tmp_path, {"server": {"port": 1}, "models": {"builtin": False, "cache_dir": str(tmp_path)}})
    return SimpleNamespace(file=file, env={"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": ""}, home=tmp_path / "hf")


def found(name, downloads, **parameters):
    told = {"id": name, "modelId": name, "downloads": downloads, "gated": False}
    return told | ({"safetensors": {"parameters": parameters, "total": 1}} if parameters else {})


def test_what_fits_comes_first_and_the_hub_is_asked_for_mlx_s_format(hubs, plimsoll, bare):
    with hubs.hub({}) as (hub, address):
        hub.found = [found("org/huge", 900, U32=10**15), found("org/unsaid", 5), found("org/small", 7, BF16=10**6)]
        done = plimsoll("search", "tiny", "llama", "--config", bare.file, HF_ENDPOINT=address, **bare.env)
        told = plimsoll("search", "x", "--json", "--config", bare.file, HF_ENDPOINT=address, **bare.env).stdout
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["NAME", "org/small", "org/unsaid", "org/huge"]
    assert [row["fits"] for row in json.loads(told)["models"]] == [True, None, False]
    assert json.loads(told)["models"][0]["size_bytes"] == 2 * 10**6
    assert hub.searched[0]["search"] == ["tiny llama"]
    assert hub.searched[0]["filter"] == ["mlx"]


def test_without_a_network_search_says_so_in_one_line(shell, plimsoll, bare):
    done = plimsoll("search", "x", "--config", bare.file, HF_ENDPOINT="http://127.0.0.1:9", **bare.env)
    shell.fails(done, 1, "the hub can't be reached", "plimsoll models")


def test_offline_by_choice_search_names_the_switch(shell, plimsoll, bare):
    done = plimsoll("search", "x", "--config", bare.file, HF_HUB_OFFLINE="1", **bare.env)
    shell.fails(done, 1, "$HF_HUB_OFFLINE is on")


def test_a_pulled_model_is_shown_and_deleted_and_then_gone(hubs, shell, plimsoll, bare):
    with hubs.hub(hubs.model_files(2 * MIB)) as (_, address):
        assert plimsoll("pull", "org/tiny", "--config", bare.file, HF_ENDPOINT=address, **bare.env).returncode == 0
    shown = json.loads(plimsoll("show", "tiny", "--json", "--config", bare.file, **bare.env).stdout)
    assert (shown["name"], shown["family"], shown["installed"], shown["fits"]) == ("org/tiny", "llama", True, True)
    assert "on the disk" in plimsoll("show", "org/tiny", "--config", bare.file, **bare.env).stdout
    shell.fails(plimsoll("rm", "org/tiny", "--config", bare.file, **bare.env), 1, "would be deleted", "--yes")
    done = plimsoll("rm", "tiny", "--yes", "--config", bare.file, **bare.env)
    assert (done.returncode, "org/tiny is deleted: 2" in done.stdout) == (0, True), done.stderr
    assert not (bare.home / "hub" / "models--org--tiny").exists()
    shell.fails(plimsoll("show", "org/tiny", "--config", bare.file, **bare.env), 1, "no model 'org/tiny'")
    shell.fails(plimsoll("rm", "org/tiny", "--yes", "--config", bare.file, **bare.env), 1, "has no files")


def test_a_folder_of_the_user_s_own_is_never_deleted(shell, plimsoll, tmp_path):
    folder = tmp_path / "mine" / "model"
    folder.mkdir(parents=True)
    Path(folder, "config.json").write_text("{}")
    file = shell.write(tmp_path, {"server": {"port": 1}, "models": {"builtin": False, "dir": str(folder.parent)}})
    shell.fails(plimsoll("rm", "model", "--yes", "--config", file), 1, "was not put there by Plimsoll")
    assert folder.is_dir()


def test_a_running_server_unloads_what_is_deleted_and_keeps_what_is_pinned(hubs, shell, bare, tmp_path, monkeypatch):
    from plimsoll.cli import remove

    said = []
    client = SimpleNamespace(
        host="127.0.0.1",
        get=lambda *_, **__: {"models": [{"name": "m", "state": "ready", "pinned": bool(said)}]},
        post=lambda path, *_, **__: said.append(path),
    )
    link = SimpleNamespace(client=client, url="http://127.0.0.1:1")
    remove._unload(link, "m")
    assert said == ["/admin/models/m/unload"]
    with pytest.raises(remove.Refused, match="pinned"):
        remove._unload(link, "m")
