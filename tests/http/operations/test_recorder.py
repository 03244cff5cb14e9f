"""What is counted of one request, batch by batch."""

import pytest

from plimsoll.actors.replies import Delta, Failed, Finished, ToolCallDelta, Vectors, Waiting
from plimsoll.engine.protocol import Usage
from plimsoll.errors import QueueFull
from plimsoll.http.recorder import Distribution, Recorder
from plimsoll.http.request_log import MOST_SPANS, NEWEST, RequestLog, Texts, row_of


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
        record.abandoned()

    return play


def test_a_request_is_counted_with_its_tokens_and_times(play, recorder):
    play(
        (1, Waiting("queue")),
        (0.5, Waiting("prefill"), Delta("a", 1)),
        (0.032, Delta("b", 2), Delta("c", 3), Delta("d", 5)),
        (0.16, Delta("e", 6), Finished("stop", Usage(10, 7, 4))),
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
        (Finished("length", Usage(1, 1)), "length"),
        (Finished("cancelled", Usage()), "cancelled"),
        (Failed(QueueFull("full")), "failed"),
        (Waiting("queue"), "cancelled"),
        (Delta("a", 1), "cancelled"),
    ],
)
def test_every_request_has_one_outcome(play, recorder, ending, outcome):
    play((0.1, ending), (0.1, Finished("stop", Usage(5, 5))) if outcome != "cancelled" else (0.1,))
    assert recorder.requests == {("openai", "tiny", outcome): 1}


def test_text_that_comes_after_the_ending_is_not_counted(play, recorder):
    play((1, Finished("stop", Usage(1, 2))), (1, Delta("a", 9)))
    assert recorder.models["tiny"].completion_tokens == 2


def test_a_tool_call_without_text_has_a_first_token_too(play, recorder):
    play((2, ToolCallDelta(0, "f", "{}")), (1, Finished("tool_calls", Usage(5, 10))))
    tiny = recorder.models["tiny"]
    assert (tiny.first_token.sum, tiny.gap.sum, tiny.completion_tokens) == (2, pytest.approx(1), 10)


def test_a_pause_is_counted_until_the_next_token_and_is_no_time_between_tokens(play, recorder):
    play((1, Delta("a", 1)), (1, Waiting("resume")), (4, Waiting("read", 1, 2)), (1, Delta("b", 2)))
    tiny = recorder.models["tiny"]
    assert (tiny.pause.sum, tiny.gap.sum) == (5, 1)
    play((0, Finished("stop", Usage(1, 2))))
    assert recorder.log.newest[-1][0].resumed == 0  # that was another request


def test_a_request_that_was_paused_says_so_when_it_has_ended(play, recorder):
    play((1, Delta("a", 1)), (1, Waiting("resume")), (5, Delta("b", 2)), (0, Finished("stop", Usage(1, 2))))
    assert (recorder.log.newest[-1][0].resumed, recorder.log.newest[-1][0].paused_s) == (1, 5)


def test_vectors_have_no_first_token(play, recorder):
    play((2, Vectors(b"", 4), Finished("stop", Usage(5, 0))))
    tiny = recorder.models["tiny"]
    assert (tiny.first_token.buckets()[-1], tiny.prompt_tokens) == (("+Inf", 0), 5)


def test_a_distribution_counts_up_to_each_bound():
    distribution = Distribution((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 99.0):
        distribution.observe(value)
    assert distribution.buckets() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert distribution.sum == 102


def test_the_newest_requests_say_what_they_could_reuse(recorder, caplog):
    caplog.set_level("DEBUG", "plimsoll")
    for number in range(NEWEST + 1):
        usage = Usage(100, 5, number, "memory" if number else "", 90, "the mark on her side")
        recorder.begin("openai", "tiny").batch([Finished("stop", usage)])
    assert len(recorder.log.newest) == NEWEST
    newest = row_of(recorder.log.newest[-1][0])
    assert (newest["model"], newest["api"], newest["outcome"]) == ("tiny", "openai", "stop")
    assert (newest["prompt_tokens"], newest["reused_tokens"], newest["reused_from"]) == (100, NEWEST, "memory")
    assert newest["left_at"] == 90
    assert "the mark" not in str(newest)
    told = [record for record in caplog.records if "reused" in record.message]
    assert told[-1].levelname == "INFO"
    assert told[-1].message.startswith(f"tiny: {NEWEST} of 100 prompt tokens reused from memory; ")
    assert [record.levelname for record in caplog.records if "the mark" in record.message][-1] == "DEBUG"


def test_the_time_of_a_request_is_told_by_its_stages(play, recorder):
    play(
        (1, Waiting("queue")),
        (2, Waiting("read", 1, 2)),
        (3, Waiting("prefill", 5, 10)),
        (4, Delta("a", 1)),
        (5, Waiting("resume")),
        (6, Delta("b", 2)),
        (7, Finished("stop", Usage(10, 2))),
    )
    ended, texts = recorder.log.newest[-1]
    spans = [(span.stage, span.start_s, span.length_s) for span in ended.spans]
    assert spans == [
        ("read", 0, 1),
        ("queue", 1, 2),
        ("load", 3, 3),
        ("read", 6, 4),
        ("decode", 10, 5),
        ("pause", 15, 6),
        ("decode", 21, 7),
    ]
    assert row_of(ended)["stages_s"] == {"queue": 2, "load": 3, "read": 5, "decode": 12, "pause": 6}
    assert (ended.seconds, ended.first_token_s, ended.why, texts) == (28, 10, "", None)


@pytest.mark.parametrize(
    ("items", "outcome", "why"),
    [
        ([Delta("a", 1), Failed(QueueFull("63 wait"))], "failed", "queue_full: 63 wait"),
        ([Delta("a", 1)], "cancelled", "the client did not wait for the answer"),
    ],
)
def test_a_request_that_did_not_finish_says_why_and_what_it_had(play, recorder, items, outcome, why):
    play((1, *items))
    ended, _ = recorder.log.newest[-1]
    assert (ended.outcome, ended.why, ended.completion_tokens) == (outcome, why, 1)


def test_spans_and_texts_have_bounds(play, recorder, clock):
    play(*((1, Waiting("queue" if number % 2 else "memory")) for number in range(99)))
    assert len(recorder.log.newest[-1][0].spans) == MOST_SPANS
    record = recorder.begin("openai", "tiny", texts=(texts := Texts("hi")))
    for number in range(40):
        record.batch([Delta("x" * 1000, number)])
    assert len(texts.answer) == 16_384
    record.batch([Finished("stop", Usage(1, 40))])
    assert recorder.log.newest[-1][1] is texts


def test_requests_are_found_by_what_they_are(clock):
    counted = []
    recorder = Recorder(clock, RequestLog(counted.append))
    for number, (model, key) in enumerate([("a", "x"), ("b", "x"), ("a", "y")]):
        record = recorder.begin("openai", model, key=key, request_id=f"id{number}")
        record.batch([Finished("stop", Usage(1, 1))])
    log = recorder.log
    assert [one.id for one in log.select(model="a", key=None)] == ["id2", "id0"]
    assert [one.id for one in log.select(model="a", key="x")] == ["id0"]
    assert log.find("id1")[0].model == "b"
    assert log.find("id")[0].id == "id2"
    assert log.find("no") is None
    assert len(counted) == 3
