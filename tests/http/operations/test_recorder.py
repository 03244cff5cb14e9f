"""What is counted of one request, batch by batch."""

import pytest

from plimsoll.actors import messages as m
from plimsoll.engine.protocol import Usage
from plimsoll.errors import QueueFull
from plimsoll.http.operations.recorder import Distribution, Recorder


@pytest.fixture
def recorder(clock):
    return Recorder(clock)


@pytest.fixture
def play(recorder, clock):
    """Batches of one request, each after so many seconds; what is left at the end was the client's going."""

    def play(*batches):
        record = recorder.begin("openai", "tiny")
        for after_s, *items in batches:
            clock.at += after_s
            record.batch(items)
        record.left()

    return play


def test_a_request_is_counted_with_its_tokens_and_times(play, recorder):
    play(
        (1, m.Waiting("queue")),
        (0.5, m.Waiting("prefill"), m.Delta("a", 1)),
        (0.032, m.Delta("b", 2), m.Delta("c", 3), m.Delta("d", 5)),
        (0.16, m.Delta("e", 6), m.Finished("stop", Usage(10, 7, 4))),
    )
    assert recorder.requests == {("openai", "tiny", "stop"): 1}
    tiny = recorder.models["tiny"]
    assert (tiny.prompt_tokens, tiny.cached_tokens, tiny.completion_tokens) == (10, 4, 7)
    first, gap = tiny.first_token, tiny.gap
    assert (first.sum, dict(first.buckets())["+Inf"]) == (pytest.approx(1.5), 1)
    assert gap.sum == pytest.approx(0.192)
    buckets = dict(gap.buckets())
    assert (buckets["0.005"], buckets["0.01"], buckets["0.1"], buckets["+Inf"]) == (0, 4, 6, 6), "4 x 8 ms, 2 x 80 ms"


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [
        (m.Finished("length", Usage(1, 1)), "length"),
        (m.Finished("cancelled", Usage()), "cancelled"),
        (m.Failed(QueueFull("full")), "failed"),
        (m.Waiting("queue"), "cancelled"),
        (m.Delta("a", 1), "cancelled"),
    ],
)
def test_every_request_has_one_outcome(play, recorder, ending, outcome):
    play((0.1, ending), (0.1, m.Finished("stop", Usage(5, 5))) if outcome != "cancelled" else (0.1,))
    assert recorder.requests == {("openai", "tiny", outcome): 1}


def test_text_that_comes_after_the_ending_is_not_counted(play, recorder):
    play((1, m.Finished("stop", Usage(1, 2))), (1, m.Delta("a", 9)))
    assert recorder.models["tiny"].completion_tokens == 2


def test_a_tool_call_without_text_has_a_first_token_too(play, recorder):
    play((2, m.ToolCallDelta(0, "f", "{}")), (1, m.Finished("tool_calls", Usage(5, 10))))
    tiny = recorder.models["tiny"]
    assert (tiny.first_token.sum, tiny.gap.sum, tiny.completion_tokens) == (2, pytest.approx(1), 10)


def test_vectors_have_no_first_token(play, recorder):
    play((2, m.Vectors(b"", 4), m.Finished("stop", Usage(5, 0))))
    tiny = recorder.models["tiny"]
    assert (tiny.first_token.buckets()[-1], tiny.prompt_tokens) == (("+Inf", 0), 5)


def test_a_distribution_counts_up_to_each_bound():
    distribution = Distribution((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 99.0):
        distribution.observe(value)
    assert distribution.buckets() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert distribution.sum == 102
