"""Every event has one line in every language, and the lines that were promised stand as they were."""

import re
import string
import subprocess

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plimsoll.journal import events as e
from plimsoll.journal.lines import line, texts

NORMAL, WARNING, CRITICAL, EMERGENCY = e.LevelName
FINITE = st.floats(-1e6, 1e6)
EPOCH = st.floats(0, 4e9)
st.register_type_strategy(float, FINITE)
EVENTS = st.one_of(
    [st.builds(cls, **({"at": EPOCH} if "at" in cls.__struct_fields__ else {})) for cls in e.KINDS.values()]
)
LANGUAGES = ("en", "ru")
GREP = "память|memory|Очистка|MemoryError"

PROMISED = {
    "⚠️ Высокое использование памяти: 87.5%": e.LevelChanged(WARNING, NORMAL, 87.5, "host"),
    "🚨 Критическая нехватка памяти: 96.2%": e.LevelChanged(CRITICAL, WARNING, 96.2, "host"),
    "🗑️ Модель qwen2.5-coder-32b выгружена из памяти": e.ModelUnloaded(
        "qwen2.5-coder-32b", "idle", 19_542_101_197, 19_542_101_197, 340.4
    ),
    "✅ Очистка памяти выполнена: освобождено 12.3%, теперь 84.2%": e.CleanupDone(
        False, ("phi3.5-mini-4k",), 4 * 1024**3, 4 * 1024**3, 96.5, 84.2
    ),
}


@pytest.mark.parametrize("promised", PROMISED)
def test_the_promised_russian_lines_stand_word_for_word_at_the_begin(promised: str) -> None:
    text = line(PROMISED[promised], "ru")
    assert text.startswith(promised)
    found = subprocess.run(["grep", "-F", "-e", promised], input=text, capture_output=True, text=True, check=True)
    assert found.stdout == f"{text}\n"


def test_figures_follow_the_promised_words() -> None:
    texts_ = [line(event, "ru") for event in PROMISED.values()]
    assert texts_[2].endswith(" (память: возвращено 18.2 GB из 18.2 GB за 340 мс; idle)")
    assert texts_[3].endswith(" (возвращено 4.0 GB из 4.0 GB; выгружены: phi3.5-mini-4k)")


@pytest.mark.parametrize("language", LANGUAGES)
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(event=EVENTS)
def test_every_event_is_one_line_that_the_users_grep_finds(language: str, event: e.Event) -> None:
    text = line(event, language)
    assert len(text.splitlines()) == 1
    assert text.strip()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_holds_a_word_of_the_users_grep_as_it_is_written_there(language: str) -> None:
    for key, text in texts(language).items():
        found = subprocess.run(["grep", "-E", GREP], input=text, capture_output=True, text=True, check=False)
        assert found.returncode == 0, key


def test_the_languages_have_the_same_texts_and_figures() -> None:
    def figures(text: str) -> set[tuple[str | None, str | None]]:
        return {(name, spec) for _, name, spec, _ in string.Formatter().parse(text) if name}

    english, russian = texts("en"), texts("ru")
    assert english.keys() == russian.keys()
    assert {text.partition(".")[0] for text in english} == e.KINDS.keys()
    for key, text in english.items():
        assert figures(text) == figures(russian[key]), key


@pytest.mark.parametrize(
    ("event", "english"),
    [
        (e.LevelChanged(WARNING, NORMAL, 87.5, "host"), "⚠️ high memory use: 87.5% (host)"),
        (e.LevelChanged(WARNING, CRITICAL, 87.5, "host"), "memory use has fallen to 87.5% (host): still high"),
        (
            e.LevelChanged(EMERGENCY, NORMAL, 98.61, "cgroup"),
            "🚨 memory emergency: 98.6% (cgroup), all models are stopped now",
        ),
        (e.LevelChanged(NORMAL, EMERGENCY, 50, "host"), "✅ memory use is normal again: 50.0% (host)"),
        (
            e.ModelUnloaded("m", "idle", 1024**3, 500 * 1024**2, 12),
            "🗑️ model m unloaded from memory (500 MB of 1.0 GB back in 12 ms; idle)",
        ),
        (
            e.CleanupDone(False, (), 0, 0, 90.0, 91.0),
            "✅ memory clean-up done: 0.0% freed, now 91.0% (there was no model to unload)",
        ),
        (
            e.ExternalPressure(96.0, 0, (e.OtherProcess("chrome", 7, 3 * 1024**3),)),
            (
                "⚠️ memory is at 96.0% because of other processes: ours hold 0 MB,"
                " the largest others are chrome (7) 3.0 GB"
            ),
        ),
    ],
)
def test_the_english_lines_read_so(event: e.Event, english: str) -> None:
    assert line(event) == english


def test_a_level_is_left_and_entered_at_different_severities() -> None:
    assert [
        e.LevelChanged(CRITICAL, WARNING, 96, "host").severity,
        e.LevelChanged(NORMAL, WARNING, 70, "host").severity,
    ] == [
        40,
        20,
    ]
    assert e.LastRun(clean=False, how="", at=0, percent=None).severity == 30


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_name_from_outside_can_neither_forge_a_line_nor_drive_the_terminal(language: str) -> None:
    text = line(e.LoadFailed("m", "\x1b[2J bad\n2025-01-01 ERROR {e.model} forged\u2028"), language)
    assert "\\x1b[2J bad\\n2025-01-01 ERROR {e.model} forged\\u2028" in text
    assert re.search(r"[\x00-\x1f]", text) is None


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(event=EVENTS)
def test_an_event_comes_back_from_json_as_it_was(event: e.Event) -> None:
    assert e.from_json(e.to_json(event)) == event


def test_json_names_the_kind_and_the_levels() -> None:
    assert msgspec.json.decode(e.to_json(PROMISED["⚠️ Высокое использование памяти: 87.5%"])) == {
        "kind": "level_changed",
        "level": "warning",
        "before": "normal",
        "percent": 87.5,
        "source": "host",
    }


def test_an_event_of_another_version_is_left_out_when_it_cant_be_read() -> None:
    assert e.from_json('{"kind": "readers_recovered", "new_field": 1}') == e.ReadersRecovered()
    assert e.from_json('{"kind": "teleported"}') is None
    assert e.from_json('{"kind": "forecast"}') is None
    assert e.from_json("") is None


def test_a_process_name_that_is_not_text_still_gives_json() -> None:
    event = e.ExternalPressure(96.0, 1, (e.OtherProcess("caf\udce9", 7, 1),))
    assert e.from_json(e.to_json(event)) == e.ExternalPressure(96.0, 1, (e.OtherProcess("caf?", 7, 1),))


def test_no_events_field_hides_the_time_that_the_command_prints() -> None:
    assert not any("time" in cls.__struct_fields__ for cls in e.KINDS.values())
