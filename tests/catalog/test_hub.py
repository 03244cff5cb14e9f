"""Fetching a Hugging Face repo by a child process; the hub itself is played by a stand-in."""

import contextlib
import io
import subprocess
import sys

import pytest

from plimsoll.catalog import child_process, download
from plimsoll.catalog.source import ModelSource
from plimsoll.errors import LoadFailed

REPO = ModelSource("m", "repo", "org/name")


def mlx_folder(path):
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"12345678")
    return path


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub, in this process: what ``local`` and ``remote`` return or raise; yields the calls."""
    calls = []
    answers = {"local": FileNotFoundError("not cached"), "remote": None}

    def snapshot_download(repo, *, revision, allow_patterns, local_files_only=False, tqdm_class=None):
        calls.append((repo, local_files_only))
        assert not any(pattern.endswith(".py") for pattern in allow_patterns)
        answer = answers["local" if local_files_only else "remote"]
        if isinstance(answer, Exception):
            raise answer
        if tqdm_class:
            bar = tqdm_class(desc="Downloading", total=0, initial=0, unit="B", unit_scale=True)
            bar.total = 100
            for _ in range(2):
                bar.update(50)
            for _ in tqdm_class([1, 2], desc="Fetching 2 files"):
                pass
            bar.refresh()
            bar.close()
        return str(answer)

    def run(module, *arguments, tick):
        assert module == "plimsoll.catalog.download"
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            code = download.main(list(arguments))
        tick()
        return stderr.getvalue().strip().removeprefix("ERROR: ") if code else None

    monkeypatch.setattr(child_process, "run", run)
    monkeypatch.setattr(download, "snapshot_download", snapshot_download)
    monkeypatch.setattr(download, "fetch_weights", lambda *_: 0)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return calls, answers


def test_a_repo_in_the_cache_is_used_without_the_network(tmp_path, loads, hub):
    calls, answers = hub
    answers["local"] = mlx_folder(tmp_path / "snapshot")
    assert loads(REPO) == tmp_path / "snapshot"
    assert calls == [("org/name", True)]


def test_a_repo_is_fetched_and_reports_its_bytes(tmp_path, loads, hub, steps, capfd):
    hub[1]["remote"] = mlx_folder(tmp_path / "snapshot")
    assert loads(REPO) == tmp_path / "snapshot"
    assert steps[-1] == ("fetch", 100, 100)
    assert capfd.readouterr() == ("", "")


def test_a_repo_without_mlx_weights_says_so(tmp_path, loads, hub):
    hub[1]["remote"] = tmp_path
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LoadFailed, match=r"has no model\*\.safetensors \(fetch or convert the model in MLX format\)"):
        loads(REPO)


def hub_error(name, text="boom"):
    from huggingface_hub import errors

    kind = getattr(errors, name)
    return kind.__new__(kind, text)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GatedRepoError", "accept its terms"),
        ("RepositoryNotFoundError", "there is no public repo org/name"),
        ("LocalEntryNotFoundError", "check the network and the free disk space"),
        ("HfHubHTTPError", "check the network"),
    ],
)
def test_each_failure_of_the_hub_says_what_to_do(loads, hub, name, message):
    hub[1]["remote"] = hub_error(name)
    with pytest.raises(LoadFailed, match=message):
        loads(REPO)


def test_offline_a_repo_is_never_asked_for(loads, hub, monkeypatch):
    with pytest.raises(LoadFailed, match=r"not complete in the Hugging Face cache and models\.offline is on"):
        loads(REPO, offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LoadFailed, match=r"\$HF_HUB_OFFLINE is on"):
        loads(REPO)
    assert hub[0] == [("org/name", True)] * 2


def test_huggingface_hub_itself_finds_nothing_offline(tmp_path, loads, monkeypatch):
    """By a real child."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(LoadFailed, match="hf download nobody/has-this"):
        loads(ModelSource("m", "repo", "nobody/has-this"), offline=True)


def test_an_impossible_repo_id_is_a_clear_error(loads):
    with pytest.raises(LoadFailed, match="is no usable repo id"):
        loads(ModelSource("m", "repo", "org/--"), offline=True)


def test_a_fetch_leaves_no_http_client_in_the_process_that_asks(tmp_path):
    """The front process asks, for Ollama's pull."""
    code = (
        "import sys; from pathlib import Path; from plimsoll.catalog.fetch import resolve\n"
        "from plimsoll.engine.protocol import ModelSource; from plimsoll.errors import LoadFailed\n"
        "try: resolve(ModelSource('m', 'repo', 'no/such'), cache_dir=Path('/none'), offline=True, progress=print)\n"
        "except LoadFailed as error: print(error)\n"
        "print([m for m in ('huggingface_hub', 'httpx', 'httpx2', 'requests', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no/such is not complete in the Hugging Face cache and models.offline is on" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
