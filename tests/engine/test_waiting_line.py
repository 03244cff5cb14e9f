"""The line of requests that wait for a place in the batch."""

import pytest

from plimsoll.engine.prompts import Prompt
from plimsoll.engine.protocol import Sampling
from plimsoll.engine.waiting_line import PATIENCE_S, WaitingLine

PROMPT = Prompt([1, 2], 5, Sampling(), (), open_ended=False)


@pytest.fixture
def line():
    line = WaitingLine()
    for name in "abc":
        line.add(name, PROMPT)
    return line


def ids(waiting):
    return [one.id for one in waiting]


def test_first_come_first_served(line):
    assert line.first.id == "a"
    assert [line.pop().id for _ in range(3)] == ["a", "b", "c"]
    assert not line


def test_one_in_the_middle_can_leave(line):
    assert line.remove("b").id == "b"
    assert line.remove("b") is None
    assert [line.pop().id for _ in range(2)] == ["a", "c"]


def test_who_is_held_up_too_long_leaves(line):
    assert line.hold(100.0) == []
    line.add("d", PROMPT)
    assert line.hold(101.0) == []
    assert line.hold(100.0 + PATIENCE_S - 0.1) == []
    assert ids(line.hold(100.0 + PATIENCE_S)) == ["a", "b", "c"]
    assert ids(line.hold(101.0 + PATIENCE_S)) == ["d"]


def test_time_counts_only_while_memory_holds_the_line_up(line):
    line.hold(100.0)
    line.flow()
    assert line.hold(100.0 + PATIENCE_S) == []
    assert len(line.hold(100.0 + 2 * PATIENCE_S)) == 3
