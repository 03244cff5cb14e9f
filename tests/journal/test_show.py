"""What the command prints."""

import io
import json
import time
from pathlib import Path

import pytest

from plimsoll.journal import events as e
from plimsoll.journal.blackbox import BlackBox
from plimsoll.journal.lines import local_time
from plimsoll.journal.show import parse_kind, parse_since, show
from plimsoll.journal.store import blackbox_file, log_file

DEADLINE_S = 60.0


@pytest.fixture
def filled(make_box, clock) -> BlackBox:
    box = make_box(now=clock)
    box.start()
    clock.at = time.time() - 7200
    box.event(e.ReadersRecovered())
    clock.at = time.time() - 60
    box.event(e.LevelChanged(e.LevelName.WARNING, e.LevelName.NORMAL, 87.5, "host"))
    box.event(e.LastRun(False, "", 1.5, 97.1))
    assert box.flush(DEADLINE_S)
    return box


def test_lines_have_the_local_time_the_kind_and_the_logs_text(filled: BlackBox, clock) -> None:
    out = io.StringIO()
    assert show(filled.path, 3600, language="ru", out=out) == 2
    assert out.getvalue().splitlines()[0] == (
        f"{local_time(clock.at)}  level_changed     ⚠️ Высокое использование памяти: 87.5% (память: host)"
    )


def test_json_is_an_object_per_line_with_its_time_in_utc(filled: BlackBox) -> None:
    out = io.StringIO()
    assert show(filled.path, 3600, as_json=True, out=out) == 2
    first, second = map(json.loads, out.getvalue().splitlines())
    assert first["time"].endswith("+00:00")
    assert (first["kind"], first["percent"], second["at"]) == ("level_changed", 87.5, 1.5)


def test_a_kind_can_be_chosen(filled: BlackBox) -> None:
    out = io.StringIO()
    assert show(filled.path, 1e6, kind=parse_kind("Readers-Recovered"), out=out) == 1
    assert out.getvalue().endswith("memory is read in full again\n")
    with pytest.raises(ValueError, match=r"'teleported' is no kind of event; there are answers_paused, "):
        parse_kind("teleported")


@pytest.mark.parametrize(("text", "seconds"), [("1h", 3600), ("30m", 1800), ("2d", 172800), ("90", 90)])
def test_since_is_written_as_times_are_in_the_configuration(text: str, seconds: float) -> None:
    assert parse_since(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1h", "1 fortnight"])
def test_a_since_that_is_no_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="expected a time like 30s or 5m"):
        parse_since(text)


def test_null_means_the_platforms_folder_and_none_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert blackbox_file(None).name == "blackbox.sqlite"
    assert log_file(None).name == "plimsoll.log"
    assert blackbox_file("none") is log_file("None") is None
    assert log_file("~/x.log") == Path.home() / "x.log"


def test_on_macos_the_log_lies_where_its_users_look(monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs
    from platformdirs.macos import MacOS

    monkeypatch.setattr(platformdirs, "PlatformDirs", MacOS)
    assert log_file(None) == Path.home() / "Library/Logs/plimsoll/plimsoll.log"
