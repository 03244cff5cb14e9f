"""Logging as it is set up for the server."""

import io
import logging
from collections.abc import Iterator

import pytest

from plimsoll import logs


@pytest.fixture(autouse=True)
def _root_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("plimsoll")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    # basicConfig(force=True) would close pytest's own handlers.
    root.handlers[:] = []
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


def test_a_record_is_one_line_with_its_time_level_and_source():
    stream = io.StringIO()
    logs.configure("info", stream)
    logging.getLogger("plimsoll.memory").info("memory at %s", "87.5%\nERROR forged: line")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("INFO    plimsoll.memory: memory at 87.5%\\nERROR forged: line")
    assert line[:4].isdigit()


def test_the_level_is_ours_and_libraries_speak_from_warning_on():
    stream = io.StringIO()
    logs.configure("debug", stream)
    logging.getLogger("plimsoll.http").debug("ours")
    logging.getLogger("sanic.server").info("chatter")
    logging.getLogger("other").info("chatter")
    logging.getLogger("sanic.error").warning("heard")
    assert [line.rpartition(": ")[2] for line in stream.getvalue().splitlines()] == ["ours", "heard"]


def test_configuring_twice_does_not_double_the_lines():
    stream = io.StringIO()
    logs.configure("info", io.StringIO())
    logs.configure("warning", stream)
    logging.getLogger("plimsoll").warning("once")
    logging.getLogger("plimsoll").info("not at all")
    assert len(stream.getvalue().splitlines()) == 1
