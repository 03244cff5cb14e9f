"""The user's file, changed with everything else in it kept."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.config_file import REMOVED, change, edited
from plimsoll.errors import ConfigError

FILE = """\
# mine
server:
  port: 4000  # not the default

models:
  # the large one
  entries:
    big:   # code
      source: "fake:"   # where it is
      # kept loaded
      pin: true

    flow: {source: 'fake:', pin: false}  # in one line
    last:
      source: "fake:"
      system_prefix: |
        Be brief.
        Be kind.
      profiles:
        cool:
          max_tokens: 5

logging:
  level: info   # loud enough
"""


def key(*path: str) -> tuple[str, ...]:
    return ("models", "entries", *path)


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (key("big", "pin"), False, "      pin: false\n"),
        (key("big", "context"), 4096, "      pin: true\n      context: 4096\n"),
        (key("flow", "pin"), True, "    flow: {source: 'fake:', pin: true}  # in one line\n"),
        (key("flow", "max_tokens"), 7, "    flow: {source: 'fake:', pin: false, max_tokens: 7}  # in one line\n"),
        (key("last", "system_prefix"), "No: never", "      system_prefix: 'No: never'\n      profiles:\n"),
        (key("last", "profiles", "cool", "thinking"), True, "          max_tokens: 5\n          thinking: true\n"),
        (key("last", "profiles", "hot", "max_tokens"), 9, "        hot:\n          max_tokens: 9\n"),
        (key("last", "aliases"), ["a", "b"], "          max_tokens: 5\n      aliases: [a, b]\n"),
        (key("new", "source"), "fake:", "          max_tokens: 5\n    new:\n      source: 'fake:'\n"),
        (("memory", "limit"), "2GiB", "  level: info   # loud enough\nmemory:\n  limit: 2GiB\n"),
        (("server", "port"), 5000, "  port: 5000  # not the default\n"),
        (key("last", "profiles"), {}, "      profiles: {}\n"),
    ],
)
def test_a_value_is_set_and_every_other_line_stays(path: tuple[str, ...], value: Any, line: str) -> None:
    after = edited(FILE, [(path, value)])
    assert line in after
    assert sum(old not in after.splitlines() for old in FILE.splitlines()) <= 4
    assert {part for part in FILE.split("#")[1:] if part.split("\n")[0] not in after} == set()


@pytest.mark.parametrize(
    ("path", "gone"),
    [
        (key("big", "pin"), "      pin: true\n"),
        (key("flow", "pin"), ", pin: false"),
        (key("last", "profiles", "cool", "max_tokens"), "      profiles:\n        cool:\n          max_tokens: 5\n"),
        (key("last", "system_prefix"), "      system_prefix: |\n        Be brief.\n        Be kind.\n"),
        (("server", "port"), "server:\n  port: 4000  # not the default\n"),
    ],
)
def test_a_key_is_taken_out_with_what_it_leaves_empty(path: tuple[str, ...], gone: str) -> None:
    assert edited(FILE, [(path, REMOVED)]) == FILE.replace(gone, "")


def test_a_key_that_is_not_there_is_taken_out_without_a_change() -> None:
    assert edited(FILE, [(key("big", "context"), REMOVED)]) == FILE


@pytest.mark.parametrize("text", ["", "# only a comment\n", "models:\n", "models:\n  entries:\n", "models: {}\n", "{}"])
def test_an_entry_is_made_wherever_the_file_ends(text: str) -> None:
    after = edited(text, [(key("a", "source"), "fake:"), (key("a", "pin"), True)])
    assert yaml.safe_load(after) == {"models": {"entries": {"a": {"source": "fake:", "pin": True}}}}
    assert after.startswith("# only a comment" if "#" in text else "")


def test_a_value_that_is_not_allowed_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(FILE)
    with pytest.raises(ConfigError, match=r"big\.sampling\.temperature: 9 is not allowed"):
        change(file, [(key("big", "pin"), False), (key("big", "sampling", "temperature"), 9)])
    assert file.read_text() == FILE
    assert [one.name for one in tmp_path.iterdir()] == ["c.yaml"]


def test_what_can_not_be_changed_exactly_is_refused() -> None:
    for text in (
        "models:\n  entries:\n    a: &it {source: 'fake:', pin: false}\n    b: *it\n",
        "{models: {entries: {b: {source: 'fake:'}}}}",
    ):
        with pytest.raises(ConfigError, match="change it by hand"):
            edited(text, [(key("b", "pin"), True), (("server", "port"), 4000)])


def test_a_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_text(FILE)
    real.chmod(0o640)
    link.symlink_to(real)
    change(link, [(key("big", "pin"), False)])
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert "pin: false" in real.read_text()


def test_a_file_that_is_not_there_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "plimsoll" / "config.yaml"
    change(file, [(("server", "port"), 4000)])
    assert yaml.safe_load(file.read_text()) == {"server": {"port": 4000}}
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"can't be (read|written)"):
        change(tmp_path / "file" / "config.yaml", [(("server", "port"), 4000)])
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


_names = st.sampled_from(["big", "flow", "last", "new-1", "new-2"])
_steps = st.lists(
    st.tuples(
        st.one_of(
            st.tuples(_names, st.just("max_tokens")),
            st.tuples(_names, st.just("profiles"), st.sampled_from(["cool", "p2"]), st.just("max_tokens")),
        ),
        st.one_of(st.just(REMOVED), st.integers(1, 999)),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(_steps)
def test_changes_one_after_the_other_keep_every_comment(steps: list[tuple[tuple[str, ...], Any]]) -> None:
    text = FILE
    for name in ("new-1", "new-2"):
        text = edited(text, [(key(name, "source"), "fake:")])
    for path, value in steps:
        text = edited(text, [(key(*path), value)])
    comments = [
        "# mine",
        "# the large one",
        "# code",
        "# where it is",
        "# kept loaded",
        "# in one line",
        "# loud enough",
    ]
    assert [one for one in comments if one not in text] == []
