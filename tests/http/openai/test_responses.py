"""Responses, as the official client sees them."""

import json

import openai
import pydantic
import pytest
from scripts import sends

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Logprobs, ToolCallDelta, Waiting
from plimsoll.engine.protocol import Format, Sampling, TokenLogprob, Tool, Usage
from plimsoll.errors import ContextTooLong, ModelUnloaded, QueueFull

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "name": "weather", "description": "of a city", "parameters": CITY, "strict": True}
USAGE = Usage(prompt_tokens=3, completion_tokens=9, cached_tokens=1)
TURN = [
    Delta("Hm.", 2, reasoning=True),
    Delta("Let me ", 3),
    Delta("see.", 4),
    ToolCallDelta(0, "weather", '{"city": '),
    ToolCallDelta(0, "", '"Oslo"}'),
    ToolCallDelta(1, "weather", "{}"),
]
BAD_VALUES = [
    ({"input": None}, "input", "a string or a list"),
    ({"input": []}, "input", "one or more items"),
    ({"input": [{"type": "reasoning"}]}, "input", "no message"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "system, developer"),
    ({"input": [{"content": "x"}]}, "input[0].role", "must be system"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type", "text only"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text", "is missing"),
    ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id", "is missing"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "no message"),
    ({"input": [{"type": "function_call_output", "output": "1"}]}, "input[0].call_id", "is missing"),
    ({"conversation": {"id": 5}}, "conversation", "an object like"),
    ({"prompt": {"id": "p"}}, "prompt", "no prompts are stored"),
    ({"background": True}, "background", "can't be true"),
    ({"tools": [{"type": "custom"}]}, "tools[0].name", "is missing"),
    (
        {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]},
        "tools[0].tools[0].name",
        "miss",
    ),
    ({"tool_choice": {"type": "web_search"}, "tools": [WEATHER]}, "tool_choice.type", "function, custom"),
    ({"tools": [{"type": "function"}]}, "tools[0].name", "is missing"),
    ({"tools": [WEATHER, WEATHER]}, "tools[1].name", "another tool"),
    ({"tool_choice": {"type": "function", "name": "g"}, "tools": [WEATHER]}, "tool_choice.name", "are: weather"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "is missing"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "json_schema"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "minimal"),
    ({"max_output_tokens": -2}, "max_output_tokens", "from 1"),
    ({"temperature": 3}, "temperature", "from 0 to 2"),
    ({"metadata": [1]}, "metadata", "an object of strings"),
]


def events(text):
    """Of each event its name and its data."""
    blocks = [block.split("\n") for block in text.split("\n\n") if block and not block.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_a_response_has_its_text_and_usage(client, system):
    system.scripts[m.Chat] = sends(Delta("Hel", 1), Delta("lo", 2), usage=USAGE)
    answer = client.responses.create(
        model="tiny",
        input="hi",
        instructions="be brief",
        metadata={"a": "b"},
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=50,
        store=True,
    )
    request = system.hears(m.Chat).request
    assert answer.output_text == "Hello"
    assert (answer.status, answer.object, answer.error) == ("completed", "response", None)
    assert answer.id.startswith("resp_")
    assert answer.metadata == {"a": "b"}
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (3, 9, 12)
    assert answer.usage.input_tokens_details.cached_tokens == 1
    assert request.messages == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert (request.sampling, request.max_tokens) == (Sampling(temperature=0.5, top_p=0.9), 50)


def test_an_answer_that_pauses_between_its_parts_is_the_same_sequence_of_events(http, system):
    def kinds(*items):
        system.scripts[m.Chat] = sends(*items, reason="tool_calls")
        answer = http.post("/v1/responses", json={"model": "tiny", "input": "hi", "tools": [WEATHER], "stream": True})
        found = events(answer.text)
        assert [data["sequence_number"] for _, data in found] == list(range(len(found)))
        return [kind for kind, _ in found]

    pause = (Waiting("resume"), Waiting("read", 1, 2), Waiting("prefill", 5, 43))
    assert kinds(*(part for item in TURN for part in (item, *pause))) == kinds(*TURN)


def test_thoughts_text_and_calls_are_items(client, system):
    system.scripts[m.Chat] = sends(*TURN, reason="tool_calls")
    answer = client.responses.create(
        model="tiny", input="hi", tools=[WEATHER], tool_choice={"type": "function", "name": "weather"}
    )
    thought, message, call, _ = answer.output
    request = system.hears(m.Chat).request
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
    assert thought.content[0].text == "Hm."
    assert message.content[0].text == "Let me see."
    assert (call.name, json.loads(call.arguments), call.status) == ("weather", {"city": "Oslo"}, "completed")
    assert call.call_id.startswith("call_")
    assert answer.usage.output_tokens_details.reasoning_tokens == 2
    assert answer.status == "completed"
    assert (request.tools, request.tool_choice) == ((Tool("weather", "of a city", CITY, strict=True),), "weather")


def test_a_whole_conversation_becomes_messages(http, system):
    system.scripts[m.Chat] = sends(Delta("ok", 1))
    items = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "g", "arguments": '{"x": 1}'},
        {"type": "function_call_output", "call_id": "a", "output": "4"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "5"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    ]
    assert http.post("/v1/responses", json={"model": "tiny", "input": items}).status_code == 200

    def call(number, name, arguments):
        return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}

    assert system.hears(m.Chat).request.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm.",
            "tool_calls": [call("a", "f", "{}"), call("b", "g", '{"x": 1}')],
        },
        {"role": "tool", "content": "4", "tool_call_id": "a"},
        {"role": "tool", "content": "5", "tool_call_id": "b"},
        {"role": "assistant", "content": "", "tool_calls": [call("c", "f", "{}")]},
    ]


def test_what_was_answered_can_be_sent_back(client, system):
    system.scripts[m.Chat] = sends(*TURN, reason="tool_calls")
    answer = client.responses.create(model="tiny", input="hi", tools=[WEATHER])
    system.hears(m.Chat)
    outputs = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "sun"}
        for item in answer.output
        if item.type == "function_call"
    ]
    client.responses.create(model="tiny", input=[{"role": "user", "content": "hi"}, *answer.output, *outputs])
    messages = system.hears(m.Chat).request.messages
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in messages[1]["tool_calls"]] == [m["tool_call_id"] for m in messages[2:]]


def test_a_stream_s_events_come_in_openai_s_order(http, system):
    system.scripts[m.Chat] = sends(*TURN, reason="tool_calls", usage=USAGE)
    response = http.post("/v1/responses", json={"model": "tiny", "input": "hi", "stream": True})
    told = events(response.text)
    item = ["response.output_item.added", "response.content_part.added"]
    done = ["response.content_part.done", "response.output_item.done"]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    names = [name for index, (name, _) in enumerate(told) if not name.endswith(".delta") or name != told[index - 1][0]]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert names == [
        "response.created",
        "response.in_progress",
        *item,
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        *done,
        *item,
        "response.output_text.delta",
        "response.output_text.done",
        *done,
        *[f"response.{name}" for name in call * 2],
        "response.completed",
    ]
    assert [data["sequence_number"] for _, data in told] == list(range(len(told)))
    assert all(data["type"] == name for name, data in told)
    final = told[-1][1]["response"]
    assert final["output"] == [data["item"] for name, data in told if name == "response.output_item.done"]
    assert final["usage"]["total_tokens"] == 12


def test_the_openai_client_follows_a_stream(client, system):
    system.scripts[m.Chat] = sends(*TURN, reason="tool_calls")
    with client.responses.stream(model="tiny", input="hi", tools=[WEATHER]) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == "Let me see."
    assert final.output_text == "Let me see."
    assert [item.parsed_arguments for item in final.output if item.type == "function_call"] == [{"city": "Oslo"}, {}]


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_cut_short_is_incomplete(client, system, stream):
    system.scripts[m.Chat] = sends(Delta("Hel", 1), reason="length")
    answer = client.responses.create(model="tiny", input="hi", stream=stream)
    if stream:
        *_, last = answer
        assert last.type == "response.incomplete"
        answer = last.response
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output[0].status == "incomplete"
    assert answer.output_text == "Hel"


def test_an_empty_response_has_an_empty_message(client, system):
    system.scripts[m.Chat] = sends()
    assert client.responses.create(model="tiny", input="hi").output[0].content[0].text == ""
    with client.responses.stream(model="tiny", input="hi") as stream:
        assert stream.get_final_response().output_text == ""


def test_a_failure_in_mid_stream_is_a_failed_response(client, system):
    def fail(chat):
        chat.reply.send(Delta("Hel", 1))
        chat.reply.send(Failed(ModelUnloaded("memory is at 96 %")))

    system.scripts[m.Chat] = fail
    *_, last = client.responses.create(model="tiny", input="hi", stream=True)
    assert last.type == "response.failed"
    assert (last.response.status, last.response.error.code) == ("failed", "server_error")
    assert last.response.error.message == "memory is at 96 %"
    assert last.response.output_text == "Hel"


@pytest.mark.parametrize("server_config", [{"server": {"keepalive": "20ms"}}], ids=[""])
def test_a_failure_after_a_comment_is_a_failed_response_too(http, system):
    chats = []
    system.scripts[m.Chat] = chats.append
    with http.stream("POST", "/v1/responses", json={"model": "tiny", "input": "hi", "stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines) == ": waiting"
        chats[0].reply.send(Failed(ModelUnloaded("gone")))
        names = [line.removeprefix("event: ") for line in lines if line.startswith("event:")]
    assert names == ["response.created", "response.in_progress", "response.failed"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_text_has_its_own_status(client, system, stream):
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Failed(QueueFull("64 are waiting", retry_after_s=1)))
    with pytest.raises(openai.RateLimitError, match="64 are waiting"):
        client.responses.create(model="tiny", input="hi", stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_come_with_the_text(client, system, stream):
    system.scripts[m.Chat] = sends(
        Delta("", 1), Logprobs([TokenLogprob("H", -0.5)]), Delta("Hi", 2), Logprobs([TokenLogprob("i", -1.0)])
    )
    asked = {"model": "tiny", "input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    answer = client.responses.create(**asked, stream=stream)
    if stream:
        told = list(answer)
        deltas = [one for event in told if event.type == "response.output_text.delta" for one in event.logprobs]
        assert [one.token for one in deltas] == ["H", "i"]
        answer = told[-1].response
    assert [one.token for one in answer.output[0].content[0].logprobs] == ["H", "i"]
    assert system.hears(m.Chat).request.logprobs == 1


@pytest.mark.parametrize(
    ("given", "reached"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Format()),
        ({"type": "json_schema", "name": "c", "schema": CITY, "strict": True}, Format(CITY)),
    ],
)
def test_a_text_format_reaches_the_engine(client, system, given, reached):
    system.scripts[m.Chat] = sends(Delta("{}", 1))
    answer = client.responses.create(model="tiny", input="hi", text={"format": given})
    assert system.hears(m.Chat).request.format == reached
    assert answer.text.format.type == given["type"]


def test_the_openai_client_parses_structured_output(client, system):
    class City(pydantic.BaseModel):
        city: str

    system.scripts[m.Chat] = sends(Delta('{"city": "Oslo"}', 1))
    assert client.responses.parse(model="tiny", input="hi", text_format=City).output_parsed == City(city="Oslo")


@pytest.mark.parametrize(("effort", "thinking"), [("none", False), ("minimal", False), ("high", True), (None, None)])
def test_an_effort_reaches_the_engine(http, system, effort, thinking):
    system.scripts[m.Chat] = sends(Delta("ok", 1))
    http.post("/v1/responses", json={"model": "tiny", "input": "hi", "reasoning": {"effort": effort}})
    assert system.hears(m.Chat).request.thinking is thinking


@pytest.mark.parametrize(("changes", "param", "sentence"), BAD_VALUES, ids=[f"{n}" for n in range(len(BAD_VALUES))])
def test_a_bad_value_is_named_with_what_it_may_be(http, system, changes, param, sentence):
    response = http.post("/v1/responses", json={"model": "tiny", "input": "hi"} | changes)
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["param"] == param
    assert sentence in error["message"]
    assert system.has_heard(m.Chat) == 0


def test_an_unknown_model_is_404(http):
    assert http.post("/v1/responses", json={"model": "nope", "input": "x"}).status_code == 404


def test_a_stream_left_by_its_client_is_cancelled(client, system):
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Delta("Hel", 1))
    stream = client.responses.create(model="tiny", input="hi", stream=True)
    next(iter(stream))
    stream.close()
    assert system.hears(m.Chat).id == system.hears(m.Cancel).id


def test_a_namespaces_function_is_called_by_the_clients_own_name(client, system):
    system.scripts[m.Chat] = sends(ToolCallDelta(0, "agents__weather", "{}"), reason="tool_calls")
    space = {"type": "namespace", "name": "agents", "tools": [WEATHER]}
    answer = client.responses.create(model="tiny", input="hi", tools=[WEATHER, space])
    (call,) = answer.output
    assert (call.name, call.model_extra.get("namespace") or call.namespace) == ("weather", "agents")


def test_a_custom_tool_is_called_with_its_text_in_the_events_that_clients_check(client, system):
    system.scripts[m.Chat] = sends(
        ToolCallDelta(0, "patch", '{"input": "*** '), ToolCallDelta(0, "", 'Begin"}'), reason="tool_calls"
    )
    tools = [{"type": "custom", "name": "patch", "description": "Patches."}]
    with client.responses.stream(model="tiny", input="hi", tools=tools) as stream:
        kinds = [event.type for event in stream]
        (call,) = stream.get_final_response().output
    assert (call.type, call.name, call.input) == ("custom_tool_call", "patch", "*** Begin")
    assert kinds[2:-1] == [
        "response.output_item.added",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.output_item.done",
    ]
    system.scripts[m.Chat] = sends(ToolCallDelta(0, "patch", '{"input": "x"}'), reason="tool_calls")
    assert client.responses.create(model="tiny", input="hi", tools=tools).output[0].input == "x"


@pytest.mark.parametrize(
    ("arguments", "action"),
    [
        ('{"command": ["ls", "-l"], "timeout_ms": 5}', {"command": ["ls", "-l"], "timeout_ms": 5}),
        ('{"command": "ls | wc"}', {"command": ["bash", "-lc", "ls | wc"]}),
        ("ls", {"command": ["ls"]}),
        ('{"command": 5}', {"command": ['{"command": 5}']}),
    ],
)
def test_the_clients_shell_is_called_with_its_command(client, system, arguments, action):
    first, rest = arguments[:1], arguments[1:]
    system.scripts[m.Chat] = sends(
        ToolCallDelta(0, "local_shell", first), ToolCallDelta(0, "", rest), reason="tool_calls"
    )
    with client.responses.stream(model="tiny", input="hi", tools=[{"type": "local_shell"}]) as stream:
        kinds = [event.type for event in stream]
        (call,) = stream.get_final_response().output
    assert call.type == "local_shell_call"
    assert call.action.to_dict() == {"type": "exec", "env": {}} | action
    assert kinds[2:-1] == ["response.output_item.added", "response.output_item.done"]


def test_thoughts_are_the_summary_where_one_is_asked_for(client, system):
    system.scripts[m.Chat] = sends(Delta("Hm", 1, reasoning=True), Delta(".", 2, reasoning=True), Delta("Yes", 3))
    with client.responses.stream(model="tiny", input="hi", reasoning={"summary": "auto"}) as stream:
        kinds = [event.type.removeprefix("response.") for event in stream]
        thought, _ = stream.get_final_response().output
    assert [part.text for part in thought.summary] == ["Hm."]
    assert not thought.content
    assert kinds[2:7] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
    ]


def test_a_context_that_is_full_is_told_in_the_form_that_agents_compact_at(http, system):
    full = ContextTooLong("prompt is too long: 9 tokens > 5 maximum", param="messages")
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Failed(full))
    answer = http.post("/v1/responses", json={"model": "tiny", "input": "hi", "stream": True})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    answer = http.post("/v1/messages", json={"model": "tiny", "max_tokens": 5, "messages": [{"role": "user"}]})
    told = answer.json()["error"]
    assert (answer.status_code, told["type"]) == (400, "invalid_request_error")
    assert told["message"] == "prompt is too long: 9 tokens > 5 maximum"

    def late(chat):
        chat.reply.send(Delta("so far", 1))
        chat.reply.send(Failed(full))

    system.scripts[m.Chat] = late
    *_, (kind, last) = events(http.post("/v1/responses", json={"model": "tiny", "input": "hi", "stream": True}).text)
    assert (kind, last["response"]["error"]["code"]) == ("response.failed", "context_length_exceeded")
