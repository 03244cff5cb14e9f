"""The line of requests that wait for a place in the batch."""

import pytest

from plimsoll.engine.chat.prompts import Prompt
from plimsoll.engine.chat.running import Answer
from plimsoll.engine.chat.waiting_line import WaitingLine
from plimsoll.engine.protocol import Sampling

PROMPT = Prompt([1, 2], 5, Sampling(), ())


def answer(name, arrived):
    return Answer(name, PROMPT, None, None, [], arrived)


@pytest.fixture
def line():
    line = WaitingLine()
    for number, name in enumerate("abc", 10):
        line.add(answer(name, number))
    return line


def ids(waiting):
    return [one.id for one in waiting]


def test_first_come_first_served(line):
    assert ids(line) == ["a", "b", "c"]
    assert len(line) == 3


def test_one_in_the_middle_can_leave(line):
    assert line.remove("b").id == "b"
    assert line.remove("b") is None
    assert ids(line) == ["a", "c"]


def test_requests_may_leave_while_the_line_is_looked_through(line):
    assert [line.remove(waiting.id).id for waiting in line] == ["a", "b", "c"]
    assert not line


def test_answers_that_pause_go_first_in_the_order_in_which_they_came(line):
    for number in (7, 3, 5):
        line.add(answer(str(number), number))
    assert ids(line) == ["3", "5", "7", "a", "b", "c"]


def test_a_paused_answer_reads_the_prompt_and_what_was_said():
    paused = answer("a", 1)
    paused.chosen += [8, 9]
    paused.pause()
    assert paused.tokens == [1, 2, 8, 9]
    assert (paused.said_before, paused.generated) == (2, 2)
    assert paused.usage().completion_tokens == 2
