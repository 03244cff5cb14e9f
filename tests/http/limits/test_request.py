"""What one request may hold: told with the parameter's name, the limit and what was given, and no actor hears of it."""

import json
import random
import time

import msgspec
import pytest

from plimsoll.actors import messages as m
from plimsoll.catalog.names import Catalog
from plimsoll.config import parse
from plimsoll.engine.protocol import ChatRequest, Tool
from plimsoll.http import body as request_body

USER = {"role": "user", "content": "hi"}
LIMITS = {"messages": 3, "prompt": "2KiB", "tools": 2}
CONFIG = {"limits": LIMITS, "models": {"builtin": False, "entries": {"tiny": {"source": "fake:"}}}}
CHAT, TEXT, RESPONSES, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"
ANTHROPIC, COUNT, OLLAMA, GENERATE = "/v1/messages", "/v1/messages/count_tokens", "/api/chat", "/api/generate"
HUGE, LONG = 10**30, "x" * 3000
DEEP = json.loads("[" * 150 + "]" * 150)
MANY = [0] * 100_001


def tools(*parameters, count=None):
    given = parameters or [{}] * count
    names = [f"f{index}" for index in range(len(given))]
    return [{"type": "function", "function": {"name": n, "parameters": p}} for n, p in zip(names, given, strict=True)]


def claude_tools(*schemas):
    return [{"name": f"f{index}", "input_schema": schema} for index, schema in enumerate(schemas)]


def claude(**more):
    return {"messages": [USER], "max_tokens": 5} | more


def called(arguments):
    return [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]


def used(given):
    block = {"type": "tool_use", "id": "1", "name": "f", "input": given}
    return claude(messages=[USER, {"role": "assistant", "content": [block]}, USER])


def formed(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


CASES = [
    # counts and sizes of the configuration
    (CHAT, {"messages": [USER] * 4}, 400, "messages", "holds 4 messages, but 3 are the most"),
    (RESPONSES, {"input": [USER] * 4}, 400, "input", "holds 4 messages, but 3"),
    (ANTHROPIC, claude(messages=[USER] * 4), 400, "messages", "holds 4 messages, but 3"),
    (COUNT, {"messages": [USER] * 4}, 400, "messages", "holds 4 messages, but 3"),
    (OLLAMA, {"messages": [USER] * 4}, 400, "messages", "holds 4 messages, but 3"),
    (CHAT, {"messages": [USER], "tools": tools(count=3)}, 400, "tools", "holds 3 tools, but 2 are the most"),
    (ANTHROPIC, claude(tools=claude_tools({}, {}, {})), 400, "tools", "holds 3 tools, but 2"),
    (OLLAMA, {"messages": [USER], "tools": tools(count=3)}, 400, "tools", "holds 3 tools, but 2"),
    (CHAT, {"messages": [USER | {"content": LONG}]}, 413, "messages", "but 2048 are the most"),
    (CHAT, {"messages": [USER], "tools": tools({"x": LONG})}, 413, "messages", "but 2048 are the most"),
    (CHAT, {"messages": [USER], "chat_template_kwargs": {"x": LONG}}, 413, "messages", "but 2048 are the most"),
    (TEXT, {"prompt": ["x", LONG]}, 413, "prompt", "3013 bytes"),
    (RESPONSES, {"input": LONG}, 413, "input", "but 2048 are the most"),
    (EMBED, {"input": ["x", LONG]}, 413, "input", "but 2048 are the most"),
    (ANTHROPIC, claude(system=LONG), 413, "messages", "but 2048 are the most"),
    (COUNT, {"messages": [USER], "system": LONG}, 413, "messages", "but 2048 are the most"),
    (OLLAMA, {"messages": [USER | {"content": LONG}]}, 413, "messages", "but 2048 are the most"),
    (GENERATE, {"prompt": LONG}, 413, "prompt", "but 2048 are the most"),
    (GENERATE, {"prompt": LONG, "raw": True}, 413, "prompt", "but 2048 are the most"),
    ("/api/embed", {"input": [LONG]}, 413, "input", "but 2048 are the most"),
    ("/api/embeddings", {"prompt": LONG}, 413, "prompt", "but 2048 are the most"),
    # bounds that never change
    (CHAT, {"messages": [USER], "stop": "x" * 1001}, 400, "stop", "has 1001 characters"),
    (CHAT, {"messages": [USER], "stop": ["x"] * 65}, 400, "stop", "has 65 entries, but must be a string"),
    (ANTHROPIC, claude(stop_sequences=["x"] * 65), 400, "stop_sequences", "has 65 entries, but must be"),
    (ANTHROPIC, claude(stop_sequences=["x" * 1001]), 400, "stop_sequences[0]", "has 1001 characters"),
    (OLLAMA, {"messages": [USER], "options": {"stop": ["x"] * 65}}, 400, "options.stop", "has 65 entries"),
    (CHAT, {"messages": [USER], "logit_bias": {str(n): 1 for n in range(1025)}}, 400, "logit_bias", "has 1025 entries"),
    (EMBED, {"input": ["x"] * 2049}, 400, "input", "has 2049 entries, but 2048"),
    (EMBED, {"input": [[1] * 500_001] * 2}, 400, "input", "has 1000002 token ids, but 1000000"),
    ("/api/embed", {"input": ["x"] * 2049}, 400, "input", "has 2049 entries"),
    ("/api/embed", {"input": "x", "dimensions": HUGE}, 400, "dimensions", "integer of 1 or more"),
    (OLLAMA, {"messages": [USER], "keep_alive": "1" * 100_000}, 400, "keep_alive", "has 100000 characters"),
    # free JSON: depth, numbers, values
    (CHAT, {"messages": [USER], "tools": tools({"a": DEEP})}, 400, "tools[0].function.parameters", "100 levels"),
    (CHAT, {"messages": [USER], "tools": tools({"a": HUGE})}, 400, "tools[0].function.parameters", "64 bits"),
    (CHAT, {"messages": [USER], "tools": tools({"a": MANY})}, 400, "tools[0].function.parameters", "100000 are"),
    (CHAT, {"messages": [USER]} | formed({"a": HUGE}), 400, "response_format.json_schema.schema", "64 bits"),
    (CHAT, {"messages": [USER], "chat_template_kwargs": {"a": -HUGE}}, 400, "chat_template_kwargs", "64 bits"),
    (CHAT, {"messages": [USER], "tool_choice": DEEP}, 400, "tool_choice", "must be auto"),
    (RESPONSES, {"input": "x", "tool_choice": {"a": DEEP}}, 400, "tool_choice", "100 levels"),
    (RESPONSES, {"input": "x", "text": {"format": {"type": "json_schema", "schema": {"a": DEEP}}}}, 400,
     "text.format.schema", "100 levels"),
    (ANTHROPIC, claude(tools=claude_tools({"a": DEEP})), 400, "tools[0].input_schema", "100 levels"),
    (ANTHROPIC, claude(tools=claude_tools({"a": HUGE})), 400, "tools[0].input_schema", "64 bits"),
    (ANTHROPIC, used({"a": HUGE}), 400, "messages[1].content[0].input", "64 bits"),
    (ANTHROPIC, claude(output_config={"format": {"type": "json_schema", "schema": {"a": DEEP}}}), 400,
     "output_config.format.schema", "100 levels"),
    (OLLAMA, {"messages": [USER], "tools": tools({"a": HUGE})}, 400, "tools[0].function.parameters", "64 bits"),
    (OLLAMA, {"messages": [USER], "format": {"a": HUGE}}, 400, "format", "64 bits"),
    (OLLAMA, {"messages": called({"a": DEEP})}, 400, "messages[1].tool_calls[0].function.arguments", "100 levels"),
]  # fmt: skip


@pytest.fixture
def server_config():
    return CONFIG


@pytest.fixture
def server(server):
    # Ollama's endpoints ask for more of a model than its name.
    server.app.ctx.state.catalog = Catalog(server.config.models)
    return server


def message(path, response):
    """The error's sentence, wherever the API has it."""
    error = response.json()["error"]
    return error if path.startswith("/api/") else error["message"]


@pytest.mark.parametrize(
    ("path", "asked", "status", "param", "sentence"), CASES, ids=[f"{c[0]}-{c[3]}-{n}" for n, c in enumerate(CASES)]
)
def test_too_much_is_refused_before_any_model_hears_of_it(http, system, path, asked, status, param, sentence):  # noqa: PLR0917 - fixtures and parameters
    response = http.post(path, json={"model": "tiny"} | asked)
    assert response.status_code == status, response.text
    said = message(path, response)
    assert sentence in said
    assert param in said
    assert len(said) < 400
    if path.startswith("/v1/") and not path.startswith(ANTHROPIC):
        assert response.json()["error"]["param"] == param
    assert system.has_heard(m.Chat) == 0


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        (ANTHROPIC, claude(context_management={"edits": [{"type": LONG}]})),
        (ANTHROPIC, claude(context_management={"edits": [{"type": "clear_thinking_1", "keep": LONG}]})),
        (ANTHROPIC, claude(tools=claude_tools({}), tool_choice={"type": "tool", "name": LONG})),
        (ANTHROPIC, claude(output_config={"format": {"type": LONG, "schema": {}}})),
        (CHAT, {"messages": [{"role": LONG, "content": "x"}]}),
        (OLLAMA, {"messages": [USER], "think": LONG}),
    ],
)
def test_a_bad_value_is_not_given_back_at_any_length(http, path, asked):
    """Two of these were, in full."""
    response = http.post(path, json={"model": "tiny"} | asked)
    assert response.status_code == 400
    assert len(message(path, response)) < 300


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b'{"model": "tiny", "input": ' + b"[[],[],[]]," * 60_000, "240001 lists and objects, but 200000 are the most"),
        (b'{"model": "tiny", "input": ' + b'{"a":{"b":' * 120_000, "240001 lists and objects"),
        (b'{"model": "tiny", "input": [' + b"1," * 1_300_000, "1300001 values, but 1200000 are the most"),
    ],
    ids=["lists", "objects", "values"],
)
def test_a_body_of_millions_of_values_is_refused_before_it_is_decoded(http, raw, sentence):
    """11 MB of them took 600 MB and four seconds, in which nobody else was answered."""
    response = http.post(EMBED, content=raw)
    assert response.status_code == 413
    assert sentence in response.json()["error"]["message"]


@pytest.mark.parametrize("end", [b'"}', b"", b"\\", b'\\"'])
def test_brackets_in_a_text_are_text(http, end):
    texts = b'{"model": "tiny", "input": "' + b'[{,\\"' * 250_000 + end
    response = http.post(EMBED, content=texts)
    assert response.status_code == (413 if end == b'"}' else 400)
    assert "lists and objects" not in response.json()["error"]["message"]


def test_what_is_just_within_the_limits_is_answered(http, system, says):
    system.scripts[m.Chat] = says("ok")
    biases = {str(token): 1 for token in range(1024)}
    asked = {"messages": [USER] * 3, "tools": tools(count=2), "stop": ["x" * 1000] * 4, "logit_bias": biases}
    asked["tools"][0]["function"]["parameters"] = {"a": 2**64 - 1, "b": -(2**63)}
    assert http.post(CHAT, json={"model": "tiny"} | asked).status_code == 200


@pytest.mark.parametrize("name", ["tiny" + ":latest" * 10_000, ":latest", "x" * 1_000_000])
def test_no_name_of_a_model_is_a_server_error(http, name):
    response = http.post(OLLAMA, json={"model": name, "messages": [USER]})
    assert response.status_code == 404
    assert len(response.text) < 500


def test_a_duration_that_is_no_duration_is_refused_at_once(http):
    started = time.monotonic()
    assert http.post(OLLAMA, json={"model": "tiny", "keep_alive": "1" * 60 + "x"}).status_code == 400
    # With the longest one that is looked at, the pattern's bad case is nothing; with a megabyte it would take hours.
    assert time.monotonic() - started < 5


def _anything(chance, depth=0):
    kind = chance.randrange(8 if depth < 4 else 6)
    if kind < 3:
        return "".join(chance.choices('a"\\\n\x01é日🙂', k=chance.randrange(12)))
    if kind < 6:
        return chance.choice([None, True, 2**63, -(2**63), 1e15, -1.2345678901234567e-300])
    inner = [_anything(chance, depth + 1) for _ in range(chance.randrange(5))]
    return inner if kind == 6 else {f"\x02{index}": one for index, one in enumerate(inner)}


def test_what_is_said_to_be_within_the_limit_without_writing_it_is():
    chance = random.Random(5)
    for _ in range(3000):
        value = [_anything(chance), Tool("f", "does it", {"x": _anything(chance)})]
        size = len(msgspec.json.encode(value))
        assert not request_body.surely_within(value, size - 1)
        assert request_body.surely_within(value, 40 * size)


def test_a_usual_conversation_is_not_written_as_json_to_be_measured(monkeypatch):
    written = []
    monkeypatch.setattr(request_body, "_encode", lambda value: written.append(value) or b"")
    asked = ChatRequest([{"role": "user", "content": "word " * 2000}] * 20)
    request_body.check_size(asked, parse({}).limits, "messages")
    assert written == []
