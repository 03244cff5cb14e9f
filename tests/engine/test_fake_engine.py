"""The fake engine answers every kind of request in the shape that the real one does."""

import pytest

from plimsoll.engine.fake_engine import FakeEngine
from plimsoll.engine.protocol import ChatRequest, EmbedRequest, RerankRequest, Step, Tool, ToolCallPart, Usage
from plimsoll.errors import BadRequest

TOOLS = (Tool("get_weather"),)


def steps(text, switches="", **rest):
    """All steps of one request called a."""
    engine = FakeEngine(switches)
    chat = ChatRequest([{"role": "user", "content": text}], **rest)
    engine.submit("a", engine.prepare(chat))
    found = []
    while engine.busy():
        found += [event for event in engine.step() if isinstance(event, Step)]
    return found


def text(found, where="texts"):
    return "".join(text for step in found for _, text, _ in getattr(step, where))


def test_it_echoes_the_last_message():
    found = steps("one two three")
    assert text(found) == "one two three"
    assert found[-1].endings == [("a", "stop", Usage(3, 3))]


def test_it_scores_a_prompt_and_says_nothing_more_where_no_token_is_wanted():
    (step,) = steps("", prompt="one two", logprobs=1, score_prompt=True, max_tokens=0)
    ((name, scored),) = step.prompts
    assert (name, [one.text for one in scored], scored[1].top) == ("a", ["one", " two"], [(" two", -0.5)])
    assert (step.texts, step.endings) == ([], [("a", "length", Usage(2, 0))])
    found = steps("", prompt="one two", logprobs=1, score_prompt=True)
    assert [len(one.prompts) for one in found] == [1, 0]
    assert text(found) == "one two"


def test_it_calls_a_tool_when_told_to():
    found = steps('call get_weather {"city": "New York"}', tools=TOOLS)
    assert text(found) == ""
    assert found[-1].calls == [ToolCallPart("a", 0, "get_weather"), ToolCallPart("a", 0, "", '{"city": "New York"}')]
    assert found[-1].endings == [("a", "tool_calls", Usage(5, 1))]


@pytest.mark.parametrize("rest", [{}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": (Tool("other"),)}])
def test_it_calls_no_tool_that_may_not_be_called(rest):
    found = steps("call get_weather", **rest)
    assert text(found) == "call get_weather"
    assert found[-1].endings[0][1] == "stop"


def test_what_stands_before_a_bar_is_reasoning():
    found = steps("let me see | one two")
    assert (text(found, "reasoning"), text(found)) == ("let me see", "one two")
    assert found[-1].endings == [("a", "stop", Usage(6, 5))]
    assert text(steps("let me see | one", thinking=False), "reasoning") == ""


def test_every_token_has_a_log_probability_where_they_are_asked_for():
    found = steps("one two", logprobs=2)
    said = [one for step in found for _, logprobs in step.logprobs for one in logprobs]
    assert [one.text for one in said] == ["one", " two"]
    assert said[0].top == [("one", -0.5), ("other0", -2.0)]
    assert not any(step.logprobs for step in steps("one two"))


def test_counting_generates_nothing():
    (step,) = steps("one two", count_only=True)
    assert (step.texts, step.endings) == ([], [("a", "stop", Usage(2, 0))])


def test_a_raw_prompt_is_echoed():
    assert text(steps("ignored", prompt="as it is")) == "as it is"


def test_it_gives_no_embeddings_and_does_not_rerank():
    with pytest.raises(BadRequest, match="gives no embeddings"):
        FakeEngine("").prepare(EmbedRequest(["x"]))
    with pytest.raises(BadRequest, match="can't rerank"):
        FakeEngine("").prepare(RerankRequest("x", ["y"]))


def test_it_runs_out_of_memory_after_a_token_when_told_to():
    engine = FakeEngine("")
    engine.submit("a", engine.prepare(ChatRequest([{"role": "user", "content": "raise MemoryError"}])))
    assert engine.step()[0].texts == [("a", "raise", 1)]
    with pytest.raises(MemoryError):
        engine.step()
