"""Every bad request gets 400 with the parameter's name and a sentence, and reaches no actor."""

import json

import pytest

from plimsoll.actors import messages as m

USER = {"role": "user", "content": "hi"}
FUNCTION = {"type": "function", "function": {"name": "f"}}
DEEP = json.loads("[" * 200 + "]" * 200)
BAD_VALUES = [
    ({"model": None}, "model", "a model's name"),
    ({"model": ""}, "model", "a model's name"),
    ({"model": 5}, "model", "a model's name"),
    ({"messages": []}, "messages", "one or more"),
    ({"messages": "hi"}, "messages", "a list"),
    ({"messages": [USER, "hi"]}, "messages[1]", "object"),
    ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role", "developer, user"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role", "is missing"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "is 5"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "read text only",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "string"),
    ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content[0]", "object"),
    ({"stream_options": {"include_usage": "x"}}, "stream_options.include_usage", "must be a boolean or null"),
    ({"temperature": 2.1}, "temperature", "is 2.1, but must be a number from 0 to 2"),
    ({"temperature": -0.1}, "temperature", "from 0 to 2"),
    ({"temperature": "hot"}, "temperature", 'is "hot"'),
    ({"temperature": True}, "temperature", "from 0 to 2"),
    ({"top_p": -0.1}, "top_p", "from 0 to 1"),
    ({"top_p": 1.5}, "top_p", "from 0 to 1"),
    ({"top_k": -2}, "top_k", "from 0"),
    ({"min_p": 2}, "min_p", "from 0 to 1"),
    ({"max_tokens": -2}, "max_tokens", "from 1"),
    ({"max_tokens": 10**30}, "max_tokens", "from 1"),
    ({"max_tokens": 1.5}, "max_tokens", "integer"),
    ({"max_completion_tokens": -2}, "max_completion_tokens", "from 1"),
    ({"seed": 2**63}, "seed", "64 bits"),
    ({"seed": "x"}, "seed", "64 bits"),
    ({"stop": "a" * 1001}, "stop", "up to 1000 characters"),
    ({"stop": ["a", "b" * 1001]}, "stop[1]", "up to 1000 characters"),
    ({"stop": ["a"] * 65}, "stop", "up to 64"),
    ({"stop": 5}, "stop", "up to 64"),
    ({"presence_penalty": 3}, "presence_penalty", "from -2 to 2"),
    ({"frequency_penalty": -3}, "frequency_penalty", "from -2 to 2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
    ({"stream": "yes"}, "stream", "true or false"),
    ({"stream_options": 1}, "stream_options", "include_usage"),
    ({"stream_options": {"include_usage": "no"}}, "stream_options.include_usage", "bool"),
    ({"n": 0}, "n", "from 1 to 8"),
    ({"n": 9}, "n", "from 1 to 8"),
    ({"logprobs": 3}, "logprobs", "true or false"),
    ({"top_logprobs": 3}, "top_logprobs", "logprobs is not true"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "from -100 to 100"),
    ({"logit_bias": {"word": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": [1]}, "logit_bias", "token ids"),
    ({"tools": [{"type": "function"}]}, "tools[0].function", "is missing"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "is missing"),
    ({"tools": [FUNCTION, {"type": "function", "function": {"name": "a b"}}]}, "tools[1].function.name", "letters"),
    ({"tools": [FUNCTION, FUNCTION]}, "tools[1].function.name", "another tool"),
    ({"tools": [{"type": "custom"}]}, "tools[0].custom", "is missing"),
    ({"guided_choice": ["a"]}, "guided_choice", "only JSON schemas"),
    ({"guided_regex": "a+"}, "guided_regex", "only JSON schemas"),
    ({"guided_grammar": "x"}, "guided_grammar", "only JSON schemas"),
    ({"grammar": "x"}, "grammar", "only JSON schemas"),
    ({"guided_json": "{"}, "guided_json", "JSON schema"),
    ({"guided_json": 5}, "guided_json", "JSON schema"),
    ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs.choice", "only JSON schemas"),
    ({"structured_outputs": 5}, "structured_outputs", "object"),
    ({"add_generation_prompt": False}, "add_generation_prompt", "assistant's last message"),
    ({"continue_final_message": True}, "continue_final_message", "not the assistant's"),
    ({"tools": "f"}, "tools", "a list of tools"),
    ({"tool_choice": "maybe", "tools": [FUNCTION]}, "tool_choice", "auto, none, required or a function"),
    ({"tool_choice": "required"}, "tool_choice", "no tools"),
    ({"tool_choice": 5}, "tool_choice", "is 5"),
    (
        {"tool_choice": {"type": "function", "function": {"name": "g"}}, "tools": [FUNCTION]},
        "tool_choice.function.name",
        "the tools are: f",
    ),
    ({"tool_choice": {"type": "function"}, "tools": [FUNCTION]}, "tool_choice.function.name", "is missing"),
    ({"tool_choice": {"type": "mcp"}, "tools": [FUNCTION]}, "tool_choice.type", "must be function"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls", "true or false"),
    ({"functions": [{"name": "f"}]}, "functions", "use tools"),
    ({"function_call": "auto"}, "function_call", "use tool_choice"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0].function", "miss"),
    ({"response_format": "json"}, "response_format", "object"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
        "is missing",
    ),
    ({"chat_template_kwargs": {"a": DEEP}}, "chat_template_kwargs", "nested too deeply"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": DEEP}}}]},
        "tools[0].function.parameters",
        "nested too deeply",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": DEEP}}}},
        "response_format.json_schema.schema",
        "nested too deeply",
    ),
    ({"reasoning_effort": "huge"}, "reasoning_effort", "minimal"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages", "set by the server"),
]
BAD_BODIES = {
    "nothing": (b"", "is empty"),
    "blanks": (b" \n", "is empty"),
    "half": (b'{"model": "tiny"', "not valid JSON"),
    "not json": (b"model=tiny", "not valid JSON"),
    "two": (b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}]}{}', "not valid JSON"),
    "array": (b"[]", "must be a JSON object"),
    "string": (b'"hi"', "must be a JSON object"),
    "null": (b"null", "must be a JSON object"),
    "nan": (b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "not valid JSON"),
    "utf-8": (b'{"model": "\xff\xfe", "messages": []}', "not valid UTF-8"),
    "utf-8 behind a bad value": (b'{"messages": [{"role": "uSer", "content": "\x80"}], "model": "tiny"}', "role"),
    "surrogate": (b'{"model": "\\ud800", "messages": []}', "not valid JSON"),
    "deep": (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
    "infinite": (b'{"model": "tiny", "temperature": 1e999, "messages": []}', "temperature"),
    "long int": (b'{"model": "tiny", "seed": ' + b"9" * 5000 + b', "messages": []}', "seed"),
}


@pytest.mark.parametrize(
    ("changes", "param", "sentence"), BAD_VALUES, ids=[f"{p}-{n}" for n, (_, p, _) in enumerate(BAD_VALUES)]
)
def test_a_bad_value_is_named_with_what_it_may_be(http, system, body, changes, param, sentence):  # noqa: PLR0917 - fixtures and parameters
    response = http.post("/v1/chat/completions", json=body(**changes))
    error = response.json()["error"]
    assert response.status_code == 400, error
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert sentence in error["message"]
    assert param in error["message"]
    assert system.has_heard(m.Chat) == 0


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_parameter_is_named(http, body, missing):
    asked = body()
    del asked[missing]
    error = http.post("/v1/chat/completions", json=asked).json()["error"]
    assert error["param"] == missing
    assert "is missing" in error["message"]


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_body_that_is_no_request_is_told_why(http, case):
    raw, sentence = BAD_BODIES[case]
    response = http.post("/v1/chat/completions", content=raw)
    assert response.status_code == 400
    assert sentence in response.json()["error"]["message"]


def test_a_long_bad_value_is_not_echoed_whole(http, body):
    message = http.post("/v1/chat/completions", json=body(temperature="x" * 10_000)).json()["error"]["message"]
    assert len(message) < 200


def test_an_unknown_model_is_404_and_reaches_no_actor(http, system, body):
    response = http.post("/v1/chat/completions", json=body(model="nope"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert response.json()["error"]["param"] == "model"
    assert system.has_heard(m.Chat) == 0


def test_a_form_is_415(http):
    response = http.post("/v1/chat/completions", files={"file": b"x"})
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


def test_the_connection_goes_on_after_bad_requests(http, system, says, body):
    system.scripts[m.Chat] = says("ok")
    for raw, _ in BAD_BODIES.values():
        http.post("/v1/chat/completions", content=raw)
    assert http.post("/v1/chat/completions", content=json.dumps(body())).status_code == 200
