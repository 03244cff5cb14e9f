"""``plimsoll convert``: what it makes and where, and what it refuses in one line."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BUILD = Path(__file__).parent.parent / "tiny_llama.py"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "tiny"
    subprocess.run([sys.executable, str(BUILD), str(folder)], check=True, timeout=60)
    return str(folder)


@pytest.fixture
def place(shell, tmp_path):
    """A configuration with an empty folder of models."""
    folder = tmp_path / "models"
    folder.mkdir()
    models = {"builtin": False, "dir": str(folder), "programs": [], "cache_dir": str(tmp_path / "cache")}
    models["entries"] = {"fake": {"source": "fake:"}, "far": {"source": "org/far"}}
    file = shell.write(tmp_path, {"server": {"port": 1}, "models": models})
    return SimpleNamespace(folder=folder, file=file, models=models)


def test_the_result_lies_in_the_folder_of_models_and_is_offered(shell, plimsoll, place, tiny):
    done = plimsoll("convert", tiny, "--q-bits", "8", "--json", "--config", place.file)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["model"], told["path"]) == ("tiny-8bit", str(place.folder / "tiny-8bit"))
    shown = json.loads(plimsoll("show", "tiny-8bit", "--json", "--config", place.file).stdout)
    assert (shown["quantization"], shown["installed"], shown["fits"]) == ("Q8", True, True)
    assert shown["size_bytes"] == told["size_bytes"]
    shell.fails(plimsoll("convert", tiny, "--q-bits", "8", "--config", place.file), 1, "there is a model 'tiny-8bit'")
    again = plimsoll("convert", "tiny-8bit", "--name", "other", "--config", place.file)
    shell.fails(again, 1, "tiny-8bit is quantised already", "--dequantize")
    assert [path.name for path in place.folder.iterdir() if path.name[0] != "."] == ["tiny-8bit"]
    done = plimsoll("rm", "tiny-8bit", "--yes", "--config", place.file)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in place.folder.iterdir() if path.name[0] != "."] == []


def test_what_can_not_be_converted_is_refused_in_one_line(shell, plimsoll, place, tiny):
    for arguments, words in (
        (["nobody"], ["no model 'nobody'"]),
        (["fake"], ["is a fake"]),
        (["far"], ["are not here", "plimsoll pull far"]),
        ([tiny, "--q-bits", "7"], ["--q-bits is 7"]),
        ([tiny, "--name", "a/b"], ["can't be the name"]),
        ([tiny, "--name", "far"], ["there is a model 'far' already"]),
    ):
        shell.fails(plimsoll("convert", *arguments, "--config", place.file), 1, *words)
    assert not list(place.folder.iterdir())


def test_a_result_that_never_fits_and_one_without_a_place_are_refused(shell, plimsoll, place, tiny, tmp_path):
    small = {"server": {"port": 1}, "models": place.models, "memory": {"limit": "64MiB"}}
    file = shell.write(tmp_path, small, "small.yaml")
    shell.fails(plimsoll("convert", tiny, "--config", file), 1, "can never be loaded here", "memory.limit", "--force")
    nowhere = {"server": {"port": 1}, "models": place.models | {"dir": None}}
    file = shell.write(tmp_path, nowhere, "nowhere.yaml")
    shell.fails(plimsoll("convert", tiny, "--config", file), 1, "models.dir names no folder")
