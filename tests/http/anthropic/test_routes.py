"""Anthropic's messages, as their own client sees them."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest
from scripts import fails, sends

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Finished, ToolCallDelta, Waiting
from plimsoll.engine.protocol import Format, Tool, Usage
from plimsoll.errors import InternalError, LoadFailed, NeverFits, QueueFull, Unavailable

USER = [{"role": "user", "content": "hi"}]
WEATHER = {
    "name": "weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def claude(server: Any) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60) as made:
        yield made


def create(claude: anthropic.Anthropic, **changes: Any) -> Any:
    return claude.messages.create(**{"model": "tiny", "max_tokens": 16, "messages": USER} | changes)


def asked(system: Any, claude: anthropic.Anthropic, /, **changes: Any) -> Any:
    """The ``ChatRequest`` that a call becomes."""
    system.scripts[m.Chat] = sends(Delta("ok", 1))
    create(claude, **changes)
    return system.hears(m.Chat).request


# ---- answers


def test_an_answer_has_its_text_its_reason_and_its_usage(claude: anthropic.Anthropic, system: Any) -> None:
    system.scripts[m.Chat] = sends(Delta("Hel", 1), Delta("lo", 2))
    answer = create(claude)
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "tiny")
    assert answer.id.startswith("msg_")
    assert [block.text for block in answer.content] == ["Hello"]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    # What came out of the cache is counted apart.
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens, answer.usage.output_tokens) == (2, 1, 2)


@pytest.mark.parametrize(
    ("reason", "theirs"), [("stop", "end_turn"), ("length", "max_tokens"), ("tool_calls", "tool_use")]
)
def test_each_ending_has_anthropics_name(claude: anthropic.Anthropic, system: Any, reason: str, theirs: str) -> None:
    system.scripts[m.Chat] = sends(Delta("a", 1), reason=reason)
    assert create(claude).stop_reason == theirs
    with claude.messages.stream(model="tiny", max_tokens=1, messages=USER) as stream:
        assert stream.get_final_message().stop_reason == theirs


def test_the_stop_sequence_that_ended_an_answer_is_named(claude: anthropic.Anthropic, system: Any) -> None:
    def script(chat: m.Chat) -> None:
        chat.reply.send(Delta("a", 1))
        chat.reply.send(Finished("stop", Usage(3, 2), "END"))

    system.scripts[m.Chat] = script
    whole = create(claude, stop_sequences=["END"])
    with claude.messages.stream(model="tiny", max_tokens=1, messages=USER, stop_sequences=["END"]) as stream:
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "END")


def test_thinking_and_calls_are_blocks_of_their_own(claude: anthropic.Anthropic, system: Any) -> None:
    parts = [ToolCallDelta(0, "weather", '{"city"'), ToolCallDelta(0, "", ': "Rome"}'), ToolCallDelta(1, "now")]
    said = [Delta("hm", 1, reasoning=True), Delta("Look:", 2), *parts]
    system.scripts[m.Chat] = sends(*said, reason="tool_calls")
    whole = create(claude, tools=[WEATHER])
    with claude.messages.stream(model="tiny", max_tokens=9, messages=USER, tools=[WEATHER]) as stream:
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        assert [block.type for block in answer.content] == ["thinking", "text", "tool_use", "tool_use"]
        thinking, text, first, second = answer.content
        assert (thinking.thinking, text.text) == ("hm", "Look:")
        assert (first.name, first.input) == ("weather", {"city": "Rome"})
        assert (second.name, second.input) == ("now", {})
        assert first.id.startswith("toolu_")
        assert first.id != second.id


def test_an_answer_without_text_still_has_a_block(claude: anthropic.Anthropic, system: Any) -> None:
    system.scripts[m.Chat] = sends()
    assert [block.text for block in create(claude).content] == [""]
    with claude.messages.stream(model="tiny", max_tokens=1, messages=USER) as stream:
        assert stream.get_final_text() == ""


def test_a_call_that_was_cut_short_is_not_lost(claude: anthropic.Anthropic, system: Any) -> None:
    system.scripts[m.Chat] = sends(ToolCallDelta(0, "weather", '{"city": "Ro'), reason="length")
    assert create(claude).content[0].input == {"_raw": '{"city": "Ro'}


# ---- streams


def test_the_events_come_in_anthropics_order(http: httpx.Client, system: Any) -> None:
    said = [Delta("hm", 1, reasoning=True), Delta("a", 2), ToolCallDelta(0, "weather", "{}")]
    system.scripts[m.Chat] = sends(*said, reason="tool_calls")
    answer = http.post("/v1/messages", json={"model": "tiny", "max_tokens": 5, "messages": USER, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = re.findall(r"event: (\w+)\ndata: (.*)\n\n", answer.text)
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert [name for name, _ in events] == ["message_start", *block * 3, "message_delta", "message_stop"]
    bodies = [json.loads(data) for _, data in events]
    assert [body["type"] for body in bodies] == [name for name, _ in events]
    assert [body["index"] for body in bodies if "index" in body] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    kinds = [body["delta"]["type"] for body in bodies if body["type"] == "content_block_delta"]
    assert kinds == ["thinking_delta", "text_delta", "input_json_delta"]
    assert bodies[0]["message"]["stop_reason"] is None
    assert bodies[-2]["usage"]["output_tokens"] == 2


def test_the_stream_helper_gives_text_as_it_comes(claude: anthropic.Anthropic, system: Any) -> None:
    went_on = threading.Event()

    def script(chat: m.Chat) -> None:
        chat.reply.send(Delta("one", 1))
        assert went_on.wait(60)
        chat.reply.send(Delta(" two", 2))
        chat.reply.send(Finished("stop", Usage(3, 2)))

    system.scripts[m.Chat] = script
    texts = []
    with claude.messages.stream(model="tiny", max_tokens=9, messages=USER) as stream:
        for text in stream.text_stream:
            texts.append(text)
            went_on.set()
        usage = stream.get_final_message().usage
    assert texts == ["one", " two"]
    assert (usage.input_tokens, usage.output_tokens) == (3, 2)


def test_the_async_client_streams_and_completes(server: Any, system: Any) -> None:
    system.scripts[m.Chat] = sends(Delta("hi", 1))

    async def both() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", timeout=60) as claude:
            whole = await claude.messages.create(model="tiny", max_tokens=9, messages=USER)
            async with claude.messages.stream(model="tiny", max_tokens=9, messages=USER) as stream:
                return [whole.content[0].text, await stream.get_final_text()]

    assert asyncio.run(both()) == ["hi", "hi"]


def lines_of_a_pinged_stream(http: httpx.Client, system: Any, waiting: Waiting, *rest: Any) -> list[str]:
    """A stream that waits, as ``waiting`` says, until the first ping, and then gets the rest of its answer."""
    chats: list[m.Chat] = []
    system.scripts[m.Chat] = lambda chat: (chats.append(chat), chat.reply.send(waiting))
    body = {"model": "tiny", "max_tokens": 5, "messages": USER, "stream": True}
    seen = []
    with http.stream("POST", "/v1/messages", json=body) as answer:
        for line in answer.iter_lines():
            seen.append(line)
            if line == "event: ping" and chats:
                chat = chats.pop()
                for item in rest:
                    chat.reply.send(item)
    return seen


@pytest.mark.parametrize("server_config", [{"server": {"keepalive": "20ms"}}])
def test_a_waiting_stream_is_pinged(http: httpx.Client, system: Any) -> None:
    rest = (Delta("late", 1), Finished("stop", Usage(40, 1)))
    seen = lines_of_a_pinged_stream(http, system, Waiting("prefill", 5, 40), *rest)
    assert seen[0] == "event: message_start"
    assert json.loads(seen[1].removeprefix("data: "))["message"]["usage"]["input_tokens"] == 40
    assert seen.count("event: message_start") == 1
    assert seen[-3] == "event: message_stop"


@pytest.mark.parametrize("server_config", [{"server": {"keepalive": "20ms"}}])
def test_the_start_waits_for_the_prompts_tokens_however_long_the_load_takes(http: httpx.Client, system: Any) -> None:
    rest = (Waiting("prefill", 0, 40), Delta("late", 1), Finished("stop", Usage(40, 1)))
    seen = lines_of_a_pinged_stream(http, system, Waiting("read", 5, 40), *rest)
    assert seen[0] == "event: ping"
    start = seen[seen.index("event: message_start") + 1]
    assert json.loads(start.removeprefix("data: "))["message"]["usage"]["input_tokens"] == 40


@pytest.mark.parametrize("server_config", [{"server": {"keepalive": "20ms"}}])
def test_a_call_that_pauses_inside_its_arguments_is_one_message_and_one_block(http: httpx.Client, system: Any) -> None:
    begun = (Waiting("prefill", 40, 40), ToolCallDelta(0, "weather", '{"city": '), Waiting("resume"))
    rest = (Waiting("read", 1, 2), Waiting("prefill", 5, 43), ToolCallDelta(0, "", '"Oslo"}'))
    ending = Finished("tool_calls", Usage(40, 9))
    chats: list[m.Chat] = []

    def begin(chat: m.Chat) -> None:
        chats.append(chat)
        for item in begun:
            chat.reply.send(item)

    system.scripts[m.Chat] = begin
    body = {"model": "tiny", "max_tokens": 5, "messages": USER, "stream": True}
    seen = []
    with http.stream("POST", "/v1/messages", json=body) as answer:
        for line in answer.iter_lines():
            seen.append(line)
            if line == "event: ping" and chats:
                chat = chats.pop()
                for item in (*rest, ending):
                    chat.reply.send(item)
    counts = [seen.count(f"event: {kind}") for kind in ("message_start", "content_block_start", "message_stop")]
    assert counts == [1, 1, 1]
    events = [json.loads(line.removeprefix("data: ")) for line in seen if line.startswith("data: ")]
    assert "".join(one["delta"]["partial_json"] for one in events if one["type"] == "content_block_delta") == (
        '{"city": "Oslo"}'
    )
    assert events[0]["message"]["usage"]["input_tokens"] == 40


def test_blanks_between_thoughts_and_a_call_are_no_block(claude: anthropic.Anthropic, system: Any) -> None:
    said = (Delta("Hm.", 1, reasoning=True), Delta("\n\n", 2), ToolCallDelta(0, "weather", "{}"))
    system.scripts[m.Chat] = sends(*said, reason="tool_calls")
    whole = create(claude, tools=[WEATHER])
    with claude.messages.stream(model="tiny", max_tokens=9, messages=USER, tools=[WEATHER]) as stream:
        streamed = stream.get_final_message()
    assert [[block.type for block in one.content] for one in (whole, streamed)] == [["thinking", "tool_use"]] * 2
    system.scripts[m.Chat] = sends(Delta("\n", 1), Delta("\n a", 2))
    with claude.messages.stream(model="tiny", max_tokens=9, messages=USER) as stream:
        assert stream.get_final_text() == "\n\n a"


def test_a_failure_in_mid_stream_is_an_error_event(claude: anthropic.Anthropic, system: Any) -> None:
    system.scripts[m.Chat] = fails(Unavailable("the worker died"), Delta("so far", 1))
    texts: list[str] = []
    with (
        pytest.raises(anthropic.APIStatusError, match="the worker died") as caught,
        claude.messages.stream(model="tiny", max_tokens=9, messages=USER) as stream,
    ):
        texts.extend(stream.text_stream)
    assert texts == ["so far"]
    assert caught.value.body == {"type": "error", "error": {"type": "overloaded_error", "message": "the worker died"}}


def test_an_early_failure_of_a_stream_has_its_own_status(claude: anthropic.Anthropic, system: Any) -> None:
    system.scripts[m.Chat] = fails(LoadFailed("no files"), Waiting("fetch"))
    with pytest.raises(anthropic.APIStatusError) as caught:
        create(claude, stream=True)
    assert caught.value.status_code == 503


def test_a_client_that_leaves_cancels_its_answer(http: httpx.Client, system: Any) -> None:
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Delta("a", 1))
    body = {"model": "tiny", "max_tokens": 5, "messages": USER, "stream": True}
    with http.stream("POST", "/v1/messages", json=body) as answer:
        next(answer.iter_lines())
    assert system.hears(m.Cancel).model == "tiny"


# ---- requests


def test_what_is_asked_reaches_the_engine(claude: anthropic.Anthropic, system: Any) -> None:
    system_prompt = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}]
    extra = {"temperature": 0.5, "top_p": 0.9, "top_k": 7}
    request = asked(
        system,
        claude,
        system=system_prompt,
        stop_sequences=["\n\n", "END"],
        extra_body=extra,
        metadata={"user_id": "somebody"},
        thinking={"type": "disabled"},
    )
    assert request.messages == [
        {"role": "system", "content": "Be brief.\nBe kind."},
        {"role": "user", "content": "hi"},
    ]
    assert (request.max_tokens, request.stop) == (16, ("\n\n", "END"))
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0.5, 0.9, 7)
    assert request.thinking is False


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [({"type": "enabled", "budget_tokens": 1024}, True), ({"type": "adaptive"}, None), ({"type": "disabled"}, False)],
)
def test_thinking_is_asked_for(
    claude: anthropic.Anthropic, system: Any, thinking: dict[str, Any], expected: bool | None
) -> None:
    assert asked(system, claude, thinking=thinking).thinking is expected


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        ({"type": "auto"}, "auto", True),
        ({"type": "any"}, "required", True),
        ({"type": "none"}, "none", True),
        ({"type": "tool", "name": "weather"}, "weather", True),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", False),
    ],
)
def test_tools_and_their_choice_reach_the_engine(
    claude: anthropic.Anthropic, system: Any, choice: dict[str, Any], expected: str, parallel: bool
) -> None:
    request = asked(system, claude, tools=[WEATHER], tool_choice=choice)
    assert request.tools == (Tool("weather", "The weather of a city.", WEATHER["input_schema"]),)  # type: ignore[arg-type] # a plain dict
    assert (request.tool_choice, request.parallel_tool_calls) == (expected, parallel)


def test_an_output_format_reaches_the_engine(claude: anthropic.Anthropic, system: Any) -> None:
    schema = {"type": "object"}
    request = asked(system, claude, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert request.format == Format(schema)


def test_tool_calls_and_results_become_messages_that_templates_know(claude: anthropic.Anthropic, system: Any) -> None:
    calls = [
        {"type": "thinking", "thinking": "I should look.", "signature": ""},
        {"type": "text", "text": "Wait."},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}},
        {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {"city": "Oslo"}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sun"}]},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no such city", "is_error": True},
        {"type": "text", "text": "And now?"},
    ]
    talk = [*USER, {"role": "assistant", "content": calls}, {"role": "user", "content": results}]
    request = asked(system, claude, messages=talk, tools=[WEATHER])
    assistant, first, second, user = request.messages[1:]
    assert assistant["content"] == "Wait."
    assert assistant["reasoning_content"] == "I should look."
    assert assistant["tool_calls"][0] == {
        "id": "toolu_1",
        "type": "function",
        "function": {"name": "weather", "arguments": {"city": "Rome"}},
    }
    assert first == {"role": "tool", "tool_call_id": "toolu_1", "name": "weather", "content": "sun"}
    assert second["content"] == "Error: no such city"
    assert user == {"role": "user", "content": "And now?"}


def test_tokens_are_counted_without_an_answer(claude: anthropic.Anthropic, system: Any) -> None:
    system.scripts[m.Chat] = sends(usage=Usage(prompt_tokens=21))
    counted = claude.messages.count_tokens(model="tiny", messages=USER, system="Be brief.", tools=[WEATHER])
    assert counted.input_tokens == 21
    request = system.hears(m.Chat).request
    assert request.count_only
    assert len(request.tools) == 1
    assert request.messages[0] == {"role": "system", "content": "Be brief."}


# ---- errors

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}, *USER]},
            "messages[0].content[0].name",
        ),
        ({"system": 3}, "system"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"stop_sequences": ["x" * 1001]}, "stop_sequences[0]"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"temperature": 1.5}, "temperature is 1.5, but must be a number from 0 to 1"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"stream": "yes"}, "stream"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "b"}}, "tool_choice.name"),
        ({"thinking": {"type": "hard"}}, "thinking.type"),
        ({"thinking": True}, "thinking"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits[0].type"),
        (
            {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": 5}]}},
            "context_management.edits[0].keep",
        ),
    ],
)
def test_a_bad_value_is_refused_by_its_name(http: httpx.Client, changes: dict[str, Any], names: str) -> None:
    answer = http.post("/v1/messages", json={"model": "tiny", "max_tokens": 5, "messages": USER} | changes)
    assert answer.status_code == 400
    body = answer.json()
    assert body["type"] == "error"
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"].startswith(names)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"text"', b"\xff", b"[" * 5000])
def test_a_body_that_is_no_request_is_refused(http: httpx.Client, raw: bytes) -> None:
    answer = http.post("/v1/messages", content=raw)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_an_unknown_model_is_not_replaced_by_another(claude: anthropic.Anthropic, system: Any) -> None:
    for call in (create, lambda client, **changes: client.messages.count_tokens(messages=USER, **changes)):
        with pytest.raises(anthropic.NotFoundError, match="claude-sonnet-9") as caught:
            call(claude, model="claude-sonnet-9")
        assert caught.value.type == "not_found_error"
    assert not system.has_heard(m.Chat)


@pytest.mark.parametrize(
    ("error", "kind", "retry_after"),
    [
        (QueueFull("64 wait", retry_after_s=1.0), (429, "rate_limit_error"), "1"),
        (Unavailable("closed", retry_after_s=7.2), (503, "overloaded_error"), "8"),
        (NeverFits("too large"), (507, "api_error"), None),
        (InternalError("a bug"), (500, "api_error"), None),
    ],
)
def test_each_failure_has_anthropics_type(
    claude: anthropic.Anthropic, system: Any, error: Exception, kind: tuple[int, str], retry_after: str | None
) -> None:
    system.scripts[m.Chat] = fails(error)
    with pytest.raises(anthropic.APIStatusError) as caught:
        create(claude)
    assert (caught.value.status_code, caught.value.type) == kind
    assert caught.value.api_message == error.message  # type: ignore[attr-defined] # ours have one
    assert caught.value.response.headers.get("retry-after") == retry_after


@pytest.mark.parametrize("server_config", [{"server": {"max_body": 2048}}])
def test_a_body_that_is_too_large_has_anthropics_error(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.APIStatusError) as caught:
        create(claude, system="x" * 4096)
    assert (caught.value.status_code, caught.value.type) == (413, "request_too_large")


def test_another_method_has_anthropics_error(http: httpx.Client) -> None:
    answer = http.put("/v1/messages")
    assert answer.status_code == 405
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("error", [QueueFull("wait", retry_after_s=0.01), Unavailable("wait", retry_after_s=0.01)])
def test_the_client_tries_again_by_itself(server: Any, system: Any, error: Exception) -> None:
    scripts = [fails(error), sends(Delta("at last", 1))]

    def script(chat: m.Chat) -> None:
        scripts.pop(0)(chat)

    system.scripts[m.Chat] = script
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=1, timeout=60) as claude:
        assert create(claude).content[0].text == "at last"
