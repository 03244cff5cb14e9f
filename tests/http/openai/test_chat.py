"""What chat completions can be asked for beyond text: several answers, log-probabilities, tools, formats, thoughts."""

import json

import pydantic
import pytest
from scripts import USAGE, sends

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Finished, Logprobs, ToolCallDelta
from plimsoll.engine.protocol import Format, TokenLogprob, Tool
from plimsoll.errors import ModelUnloaded, QueueFull
from plimsoll.http.openai import answers, completions
from plimsoll.http.openai.responses.answers import ResponseEncoder
from plimsoll.http.openai.responses.items import How

HI = [{"role": "user", "content": "hi"}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}


def in_order(system, count, script):
    """Answer only when ``count`` chats are there, the last one first."""
    chats = []

    def collect(chat):
        chats.append(chat)
        if len(chats) == count:
            for index, one in reversed(list(enumerate(chats))):
                script(index, one)

    system.scripts[m.Chat] = collect
    return chats


CALLS = [
    Delta("Let me see. ", 3),
    ToolCallDelta(0, "weather", ""),
    ToolCallDelta(0, "", '{"city": '),
    ToolCallDelta(0, "", '"Oslo"}'),
    ToolCallDelta(1, "weather", '{"city": "Rome"}'),
]


@pytest.mark.parametrize("stream", [False, True])
def test_several_answers_keep_their_index_and_share_the_prompt(client, system, stream):
    chats = in_order(system, 3, lambda index, chat: sends(Delta(f"answer {index}", 2))(chat))
    options = {"stream_options": {"include_usage": True}} if stream else {}
    got = client.chat.completions.create(model="tiny", messages=HI, n=3, seed=2**63 - 2, stream=stream, **options)
    if stream:
        chunks = list(got)
        texts = dict.fromkeys(range(3), "")
        for choice in (choice for chunk in chunks for choice in chunk.choices):
            texts[choice.index] += choice.delta.content or ""
        usage = chunks[-1].usage
        assert sum(bool(choice.finish_reason) for chunk in chunks for choice in chunk.choices) == 3
        assert len({chunk.id for chunk in chunks}) == 1
    else:
        texts = {choice.index: choice.message.content for choice in got.choices}
        usage = got.usage
    assert texts == {index: f"answer {index}" for index in range(3)}
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 6, 9)
    seeds = [chat.request.sampling.seed for chat in chats]
    assert sorted(seeds) == [-(2**63), 2**63 - 2, 2**63 - 1]


@pytest.mark.parametrize("stream", [False, True])
def test_one_failure_of_several_answers_fails_all_and_cancels_the_others(http, system, body, stream):
    chats = []

    def script(chat):
        chats.append(chat)
        if len(chats) == 2:
            chat.reply.send(Failed(QueueFull("64 are waiting", retry_after_s=1)))

    system.scripts[m.Chat] = script
    response = http.post("/v1/chat/completions", json=body(n=2, stream=stream))
    assert response.status_code == 429
    assert system.hears(m.Cancel).id == chats[0].id


def test_one_failure_in_mid_stream_ends_all_the_answers_of_the_stream(http, system, body):
    chats = []

    def script(chat):
        chats.append(chat)
        chat.reply.send(Delta("Hel", 1))
        if len(chats) == 2:
            chat.reply.send(Failed(ModelUnloaded("memory is at 96 %")))

    system.scripts[m.Chat] = script
    text = http.post("/v1/chat/completions", json=body(n=2, stream=True)).text
    assert json.loads(text.split("\n\n")[-2].removeprefix("data: "))["error"]["code"] == "model_unloaded"
    assert "[DONE]" not in text
    assert system.hears(m.Cancel).id == chats[0].id
    assert system.has_heard(m.Cancel) == 0


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_several_answers_cancels_each(http, system, body, stream):
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Delta("Hel", 1))
    if stream:
        with http.stream("POST", "/v1/chat/completions", json=body(n=2, stream=True)) as response:
            assert next(response.iter_lines())
    else:
        with pytest.raises(Exception, match="timed out"):
            http.post("/v1/chat/completions", json=body(n=2), timeout=0.2)
    chats = {system.hears(m.Chat).id, system.hears(m.Chat).id}
    assert {system.hears(m.Cancel).id, system.hears(m.Cancel).id} == chats


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_openai_s_shape(client, system, stream):
    first = TokenLogprob("Hé", -0.25, [("Hé", -0.25), ("\ufffd", float("-inf"))], top_parts={1: b"\xf0"})
    system.scripts[m.Chat] = sends(
        Delta("Hé", 1), Logprobs([first]), Delta("llo", 2), Logprobs([TokenLogprob("llo", -1.5)])
    )
    asked = {"model": "tiny", "messages": HI, "logprobs": True, "top_logprobs": 2}
    if stream:
        choices = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
        told = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
        for choice in choices:
            if choice.delta.content:
                assert "".join(token.token for token in choice.logprobs.content) == choice.delta.content
    else:
        told = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert [(token.token, token.logprob) for token in told] == [("Hé", -0.25), ("llo", -1.5)]
    assert told[0].bytes == [72, 195, 169]
    assert [(other.token, other.logprob) for other in told[0].top_logprobs] == [("Hé", -0.25), ("\ufffd", -9999.0)]
    assert [other.bytes for other in told[0].top_logprobs] == [[72, 195, 169], [0xF0]]
    assert system.hears(m.Chat).request.logprobs == 2


@pytest.mark.parametrize(
    "form",
    [
        lambda: answers.ChatEncoder(answers.Head("x", "tiny", 1, scored=True)),
        lambda: completions.CompletionEncoder(answers.Head("x", "tiny", 1, scored=True), [""]),
        lambda: ResponseEncoder({"id": "x"}, How(), scored=True, keep=lambda _ended: None),
    ],
    ids=["chat", "completions", "responses"],
)
def test_streamed_text_waits_for_its_log_probabilities(form):
    made = form()
    assert b"Hey" not in made.events(0, [Delta("Hey", 1)])
    assert b"Hey" in made.events(0, [Logprobs([TokenLogprob("Hey", -0.5)])])
    assert b" you" in made.events(0, [Delta(" you", 2), Finished("stop", USAGE)])


@pytest.mark.parametrize(("asked", "reached"), [({"logprobs": True}, 0), ({"logprobs": False}, None), ({}, None)])
def test_log_probabilities_reach_the_engine_only_when_asked_for(http, system, says, body, asked, reached):  # noqa: PLR0917 - fixtures and parameters
    system.scripts[m.Chat] = says("ok")
    assert http.post("/v1/chat/completions", json=body(**asked)).json()["choices"][0]["logprobs"] is None
    assert system.hears(m.Chat).request.logprobs == reached


def test_a_logit_bias_reaches_the_engine_by_token_id(http, system, says, body):
    system.scripts[m.Chat] = says("ok")
    http.post("/v1/chat/completions", json=body(logit_bias={"17": -100, "4": 0.5}))
    assert system.hears(m.Chat).request.sampling.logit_bias == {17: -100, 4: 0.5}


@pytest.mark.parametrize("stream", [False, True])
def test_a_custom_tool_is_called_with_its_text(http, system, body, stream):
    system.scripts[m.Chat] = sends(
        ToolCallDelta(0, "patch", '{"input": "*** '), ToolCallDelta(0, "", 'Begin"}'), ToolCallDelta(1, "weather", "{}")
    )
    tools = [{"type": "custom", "custom": {"name": "patch"}}, WEATHER]
    answer = http.post("/v1/chat/completions", json=body(tools=tools, stream=stream))
    if stream:
        lines = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        deltas = [choice["delta"] for line in lines for choice in line["choices"]]
        patch, weather = (call for delta in deltas for call in delta.get("tool_calls", ()))
    else:
        patch, weather = answer.json()["choices"][0]["message"]["tool_calls"]
    assert (patch["type"], patch["custom"]) == ("custom", {"name": "patch", "input": "*** Begin"})
    assert (weather["type"], weather["function"]["name"]) == ("function", "weather")


def test_tool_calls_come_whole(client, system):
    system.scripts[m.Chat] = sends(*CALLS, reason="tool_calls")
    choice = client.chat.completions.create(model="tiny", messages=HI, tools=[WEATHER]).choices[0]
    one, two = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see. "
    assert (one.function.name, json.loads(one.function.arguments)) == ("weather", {"city": "Oslo"})
    assert json.loads(two.function.arguments) == {"city": "Rome"}
    assert one.type == "function"
    assert one.id.startswith("call_")
    assert one.id != two.id
    assert system.hears(m.Chat).request.tools == (Tool("weather", "of a city", CITY),)


def test_content_is_null_where_there_are_only_calls(http, system, body):
    system.scripts[m.Chat] = sends(*CALLS[1:], reason="tool_calls")
    message = http.post("/v1/chat/completions", json=body(tools=[WEATHER])).json()["choices"][0]["message"]
    assert message["content"] is None
    assert len(message["tool_calls"]) == 2


def test_tool_calls_stream_as_they_come(http, system, body):
    system.scripts[m.Chat] = sends(*CALLS, reason="tool_calls")
    text = http.post("/v1/chat/completions", json=body(tools=[WEATHER], stream=True)).text
    *lines, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    deltas = [json.loads(line)["choices"][0] for line in lines]
    parts = [part for choice in deltas for part in choice["delta"].get("tool_calls", [])]
    assert done == "[DONE]"
    assert [sorted(part) for part in parts] == [
        ["function", "id", "index", "type"],
        ["function", "index"],
        ["function", "index"],
        ["function", "id", "index", "type"],
    ]
    assert parts[1]["function"] == {"arguments": '{"city": '}
    assert deltas[-1]["finish_reason"] == "tool_calls"


def test_the_openai_client_puts_streamed_tool_calls_together(client, system):
    system.scripts[m.Chat] = sends(*CALLS, reason="tool_calls")
    with client.chat.completions.stream(model="tiny", messages=HI, tools=[WEATHER]) as stream:
        events = [event.type for event in stream]
        choice = stream.get_final_completion().choices[0]
    assert [call.function.arguments for call in choice.message.tool_calls] == ['{"city": "Oslo"}', '{"city": "Rome"}']
    assert events.count("tool_calls.function.arguments.done") == 2


@pytest.mark.parametrize(
    ("choice", "tools", "reached"),
    [
        (None, ["f", "g"], ("auto", ["f", "g"])),
        ("none", ["f"], ("none", ["f"])),
        ("required", ["f"], ("required", ["f"])),
        ({"type": "function", "function": {"name": "g"}}, ["f", "g"], ("g", ["f", "g"])),
        ({"type": "function", "function": {"name": "none"}}, ["f", "none"], ("required", ["none"])),
    ],
)
def test_the_choice_among_tools_reaches_the_engine(http, system, says, body, choice, tools, reached):  # noqa: PLR0917 - fixtures and parameters
    system.scripts[m.Chat] = says("ok")
    given = [{"type": "function", "function": {"name": name}} for name in tools]
    http.post("/v1/chat/completions", json=body(tools=given, tool_choice=choice, parallel_tool_calls=False))
    request = system.hears(m.Chat).request
    assert (request.tool_choice, [tool.name for tool in request.tools]) == reached
    assert request.parallel_tool_calls is False


@pytest.mark.parametrize(
    ("given", "reached"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Format()),
        ({"type": "json_schema", "json_schema": {"name": "c", "schema": CITY, "strict": True}}, Format(CITY)),
    ],
)
def test_a_response_format_reaches_the_engine(http, system, says, body, given, reached):  # noqa: PLR0917 - fixtures and parameters
    system.scripts[m.Chat] = says("{}")
    http.post("/v1/chat/completions", json=body(response_format=given))
    assert system.hears(m.Chat).request.format == reached


def test_the_openai_client_parses_structured_output(client, system, says):
    class City(pydantic.BaseModel):
        city: str

    system.scripts[m.Chat] = says('{"city": ', '"Oslo"}')
    parsed = client.chat.completions.parse(model="tiny", messages=HI, response_format=City)
    assert parsed.choices[0].message.parsed == City(city="Oslo")
    assert system.hears(m.Chat).request.format.schema["required"] == ["city"]


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_stand_apart_and_are_counted(http, system, body, stream):
    system.scripts[m.Chat] = sends(Delta("Hm, ", 1, reasoning=True), Delta("yes.", 2, True), Delta("Yes", 3))
    options = {"stream_options": {"include_usage": True}} if stream else {}
    response = http.post("/v1/chat/completions", json=body(stream=stream, **options))
    if stream:
        chunks = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        reasoning = "".join(delta.get("reasoning_content", "") for delta in deltas)
        text = "".join(delta.get("content", "") for delta in deltas)
        usage = chunks[-1]["usage"]
    else:
        message = response.json()["choices"][0]["message"]
        reasoning, text, usage = message["reasoning_content"], message["content"], response.json()["usage"]
    assert (reasoning, text) == ("Hm, yes.", "Yes")
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 2}


@pytest.mark.parametrize(
    ("asked", "thinking", "kwargs"),
    [
        ({}, None, {}),
        ({"reasoning_effort": "none"}, False, {"reasoning_effort": "none"}),
        ({"reasoning_effort": "high"}, True, {"reasoning_effort": "high"}),
        ({"chat_template_kwargs": {"enable_thinking": False}}, None, {"enable_thinking": False}),
    ],
)
def test_effort_and_template_arguments_reach_the_engine(http, system, says, body, asked, thinking, kwargs):  # noqa: PLR0917 - fixtures and parameters
    system.scripts[m.Chat] = says("ok")
    http.post("/v1/chat/completions", json=body(**asked))
    request = system.hears(m.Chat).request
    assert (request.thinking, request.template_kwargs) == (thinking, kwargs)


def test_what_the_server_cancels_is_an_error_after_the_text_so_far(http, system, body):
    system.scripts[m.Chat] = sends(Delta("Hel", 1), reason="cancelled")
    text = http.post("/v1/chat/completions", json=body(stream=True)).text
    assert '"content":"Hel"' in text
    assert "cancelled by the server" in text
    assert "[DONE]" not in text
    assert http.post("/v1/chat/completions", json=body()).status_code == 503
