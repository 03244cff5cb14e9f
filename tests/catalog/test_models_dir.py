"""``models.dir`` as it is kept known: what a look costs nobody, and what a disk that hangs costs."""

import gc
import os
import re
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plimsoll import config
from plimsoll.catalog import models_dir
from plimsoll.catalog.models_dir import ModelsDir
from plimsoll.catalog.names import Catalog
from plimsoll.errors import ConfigError, UnknownModel

DEADLINE_S = 60.0


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def catalog(path: Path, before: Catalog | None = None) -> Catalog:
    section = config.parse({"models": {"dir": str(path), "builtin": False}}).models
    return Catalog(msgspec.structs.replace(section, entries={}), before)


@pytest.fixture
def dies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], threading.Event]]:
    """``dies(path)`` has all that looks there wait until the event is set; the folder's list for the folder itself."""
    comes_back = threading.Event()
    real_list, real_look = models_dir._list, models_dir.look_at

    def start(dead: Path) -> threading.Event:
        def listing(path: Path) -> Any:
            if path == dead:
                comes_back.wait(60.0)
            return real_list(path)

        def look(path: str, root: Path) -> Any:
            if Path(path).is_relative_to(dead):
                comes_back.wait(60.0)
            return real_look(path, root)

        monkeypatch.setattr(models_dir, "_list", listing)
        monkeypatch.setattr(models_dir, "look_at", look)
        return comes_back

    yield start
    comes_back.set()


@pytest.fixture(autouse=True)
def _soon_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_dir, "_ANSWER_S", 0.2)
    monkeypatch.setattr(models_dir, "LATE_S", 0.3)


def until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value


def test_a_lookup_among_a_hundred_models_takes_less_than_a_tenth_of_a_millisecond(tmp_path: Path) -> None:
    for number in range(100):
        folder(tmp_path / f"m{number:02}")
    found = catalog(tmp_path)
    assert len(found.names()) == 100
    best_s = 1.0
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(100):
            found.find("m50")
        best_s = min(best_s, (time.perf_counter() - began) / 100)
    assert best_s < 100e-6


def test_no_question_touches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "a")
    found = catalog(tmp_path)

    def touched(*_: Any, **__: Any) -> Any:
        raise AssertionError("the disk was touched")

    for name in ("stat", "lstat", "scandir", "listdir", "open", "readlink", "access"):
        monkeypatch.setattr(os, name, touched)
    assert found.find("a").source.kind == "folder"
    assert (found.names(), found.pinned(), found.problems(), found.unsure("b")) == (["a"], [], [], "")
    with pytest.raises(UnknownModel):
        found.find("b")


def test_what_is_new_and_what_is_gone_is_seen_without_being_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_dir, "EVERY_S", 0.05)
    folder(tmp_path / "old")
    found = catalog(tmp_path)
    found.look_again()
    folder(tmp_path / "new")
    until(lambda: found.names() == ["new", "old"])
    shutil.rmtree(tmp_path / "old")
    until(lambda: found.names() == ["new"])


def test_a_folder_that_hangs_costs_only_what_is_in_it(tmp_path: Path, dies: Any) -> None:
    for name in ("a", "b"):
        folder(tmp_path / name)
    found = ModelsDir(tmp_path)
    comes_back = dies(tmp_path / "a")
    folder(tmp_path / "c")
    found.look()
    assert list(found.sources) == ["a", "b", "c"]
    time.sleep(0.4)
    found.look()
    (problem,) = found.problems()
    said = rf"{re.escape(str(tmp_path / 'a'))} has not answered for \d+ s: what it holds is known as of "
    assert re.match(said, problem)
    assert found.unsure("a") == ""  # it is known from before
    comes_back.set()
    until(lambda: found.look() or found.problems() == [])


def test_a_folder_that_hangs_from_the_start_is_not_waited_for_and_not_known(tmp_path: Path, dies: Any) -> None:
    for name in ("a", "b"):
        folder(tmp_path / name)
    comes_back = dies(tmp_path / "a")
    began = time.monotonic()
    found = ModelsDir(tmp_path)
    assert time.monotonic() - began < 30.0
    assert list(found.sources) == ["b"]
    time.sleep(0.4)
    assert "a has not answered for" in found.unsure("a")
    assert found.unsure("c") == ""
    comes_back.set()
    until(lambda: found.look() or list(found.sources) == ["a", "b"])


def test_all_of_it_that_hangs_keeps_its_models_and_holds_one_thread(tmp_path: Path, dies: Any) -> None:
    folder(tmp_path / "a")
    found = ModelsDir(tmp_path)
    comes_back = dies(tmp_path)
    before = threading.active_count()
    time.sleep(0.05)
    for _ in range(5):
        found.look()
    assert list(found.sources) == ["a"]
    assert threading.active_count() <= before + 1
    assert found.problems()[0].startswith(f"models.dir {tmp_path} has not answered for ")
    assert found.unsure("whatever")
    comes_back.set()
    until(lambda: found.look() or found.problems() == [])


def test_a_reload_keeps_what_is_known_of_a_folder_that_hangs(tmp_path: Path, dies: Any) -> None:
    folder(tmp_path / "a")
    first = catalog(tmp_path)
    dies(tmp_path)
    assert catalog(tmp_path, first).names() == ["a"]


def test_a_reload_sees_what_is_new_and_refuses_a_folder_that_is_gone(tmp_path: Path) -> None:
    folder(tmp_path / "models" / "a")
    first = catalog(tmp_path / "models")
    folder(tmp_path / "models" / "b")
    assert catalog(tmp_path / "models", first).names() == ["a", "b"]
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(ConfigError, match="is not a folder"):
        catalog(tmp_path / "models", first)


def test_a_share_that_breaks_off_keeps_its_models_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "a")
    found = ModelsDir(tmp_path)

    def broken(_: Path) -> Any:
        raise OSError(107, "Transport endpoint is not connected")

    monkeypatch.setattr(models_dir, "_list", broken)
    found.look()
    assert list(found.sources) == ["a"]
    assert "can't be read (Transport endpoint is not connected): what it holds is known as of" in found.problems()[0]


def test_unknown_names_by_the_thousand_are_few_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ModelsDir(tmp_path)
    looks = []
    monkeypatch.setattr(found, "_look", lambda: looks.append(1))
    began = time.monotonic()
    for future in [found.refresh() for _ in range(1000)]:
        future.result(DEADLINE_S)
    assert len(looks) <= 2 + (time.monotonic() - began) / models_dir._APART_S


def test_the_thread_ends_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_dir, "EVERY_S", 0.05)
    found = ModelsDir(tmp_path)
    found.refresh().result(DEADLINE_S)
    thread, gone = found._thread, weakref.ref(found)
    assert thread
    del found
    gc.collect()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert gone() is None


def test_a_closed_catalog_looks_no_more_and_nobody_waits_for_it(tmp_path: Path) -> None:
    folder(tmp_path / "early")
    found = catalog(tmp_path)
    found.look_again().result(DEADLINE_S)
    threads = [one._thread for one in found.folders]
    found.close()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    folder(tmp_path / "late")
    if look := found.look_again():
        look.result(DEADLINE_S)
    assert "early" in found.names()
    assert "late" not in found.names()
