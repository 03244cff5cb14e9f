"""Broken request bodies of all APIs: what the worker can be told, or a ``PlimsollError`` that the caller can mend."""

import copy
import functools
import json
from collections.abc import Callable, Iterable
from typing import Any

import harness
import msgspec
from mutate import Mutator

from plimsoll import config
from plimsoll.engine import protocol as p
from plimsoll.engine.messages import plain, with_tools_described
from plimsoll.errors import PlimsollError
from plimsoll.http.anthropic import request as claude
from plimsoll.http.body import decode, read
from plimsoll.http.limits.request import check_chat, check_embed
from plimsoll.http.ollama import request as ollama
from plimsoll.http.ollama.models import parse_name
from plimsoll.http.openai import completions, embeddings
from plimsoll.http.openai import request as openai
from plimsoll.http.openai.params import variants
from plimsoll.http.openai.responses import routes as responses
from plimsoll.http.operations import admin

_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}
_FUNCTION = {"name": "f", "description": "does", "parameters": _SCHEMA, "strict": True}
_TOOL = {"type": "function", "function": _FUNCTION}
_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
_SAMPLING = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.1,
    "seed": 7,
    "stop": ["a", "b"],
    "user": "me",
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "logit_bias": {"5": -100, "6": 1},
    "stream": True,
}
_CHAT = {
    "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "What is the weather?", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [_CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ],
    "tools": [_TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": False,
    "n": 2,
    "max_completion_tokens": 5,
    "max_tokens": 6,
    "logprobs": True,
    "top_logprobs": 3,
    "stream_options": {"include_usage": True},
    "reasoning_effort": "low",
    "chat_template_kwargs": {"x": [1, {"y": 2}]},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA, "strict": True}},
}
_RESPONSES = {
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "text", "text": "1"}]},
        {"type": "reasoning", "content": []},
    ],
    "instructions": "Be brief.",
    "max_output_tokens": 5,
    "tools": [{"type": "function", **_FUNCTION}],
    "tool_choice": {"type": "function", "name": "f"},
    "text": {"format": {"type": "json_schema", "schema": _SCHEMA}},
    "reasoning": {"effort": "low"},
    "include": ["message.output_text.logprobs"],
    "metadata": {"a": "b"},
}
_CLAUDE = {
    "max_tokens": 5,
    "system": [{"type": "text", "text": "Be brief."}],
    "messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "1"}], "is_error": True},
            {"type": "text", "text": "and?"},
        ]},
    ],
    "tools": [{"name": "f", "input_schema": _SCHEMA}], "tool_choice": {"type": "tool", "name": "f"},
    "thinking": {"type": "enabled"}, "stop_sequences": ["x"], "temperature": 1, "top_p": 0.5, "top_k": 5,
    "output_config": {"format": {"type": "json_schema", "schema": _SCHEMA}},
}  # fmt: skip
_OPTIONS = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": -1,
    "min_p": 0.1,
    "seed": -1,
    "num_predict": -2,
    "stop": "x",
    "repeat_penalty": 1.1,
    "presence_penalty": 1,
    "frequency_penalty": 1,
    "num_ctx": 4096,
}
_ANSWER = {"options": _OPTIONS, "format": _SCHEMA, "think": "low", "logprobs": True, "top_logprobs": 2}
_LLAMA_CALL = {"function": {"name": "f", "arguments": {"a": 1}}}
_LLAMA = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [_LLAMA_CALL]},
        {"role": "tool", "content": "1", "tool_name": "f"},
    ],
    "tools": [_TOOL],
    "stream": False,
    "keep_alive": "1h30m",
    **_ANSWER,
}

_LIMITS = config.parse({}).limits


class _Request:
    """As much of Sanic's as the parsers read."""

    def __init__(self, raw: bytes) -> None:
        self.body, self.headers, self.transport = raw, {}, None


def _openai(request: Any) -> list[p.Request]:
    body: openai.Body = read(request, openai.decoder, openai.ALLOWED)
    return [*variants(check_chat(openai.chat_request(body), _LIMITS), body.n or 1)]


def _completions(request: Any) -> list[p.Request]:
    body = read(request, completions.decoder, completions.ALLOWED)
    return [check_chat(one, _LIMITS, "prompt") for one in completions.chat_requests(body)]


def _responses(request: Any) -> list[p.Request]:
    body = read(request, responses.decoder, responses.ALLOWED)
    asked = check_chat(responses.chat_request(body), _LIMITS, "input")
    msgspec.json.encode(responses.started_body(body, "id"))  # what the client is told of its own request
    return [asked]


def _embeddings(request: Any) -> list[p.Request]:
    body = read(request, embeddings.decoder, embeddings.ALLOWED)
    return [check_embed(embeddings.embed_request(body), _LIMITS)]


def _anthropic(request: Any) -> list[p.Request]:
    return [check_chat(claude.chat_request(claude.parse(request)), _LIMITS)]


def _count(request: Any) -> list[p.Request]:
    return [check_chat(claude.count_request(claude.parse(request)), _LIMITS)]


def _ollama_chat(request: Any) -> list[p.Request]:
    body = ollama.parse_chat(request)
    assert body.keep_alive_s is None or body.keep_alive_s >= 0
    return [check_chat(ollama.chat_request(body), _LIMITS)] if body.messages else []


def _ollama_generate(request: Any) -> list[p.Request]:
    body = ollama.parse_generate(request)
    assert body.keep_alive_s is None or body.keep_alive_s >= 0
    return [check_chat(ollama.generate_request(body), _LIMITS, "prompt")]


def _ollama_embed(request: Any) -> list[p.Request]:
    return [check_embed(ollama.embed_request(ollama.parse_embed(request)), _LIMITS)]


def _nothing(parse: Callable[[Any], Any], request: Any) -> list[p.Request]:
    parse(request)
    return []


Endpoint = tuple[Callable[[Any], list[p.Request]], list[dict[str, Any]]]
ENDPOINTS: list[Endpoint] = [
    (_openai, [_CHAT | _SAMPLING, {"messages": [{"role": "user", "content": "hi"}]}]),
    (_completions, [{"prompt": ["a", "b"], "echo": True, "n": 2, "best_of": 2, "max_tokens": 3} | _SAMPLING]),
    (_completions, [{"prompt": "a", "logprobs": 5, "suffix": "", "stream_options": {"include_usage": True}}]),
    (_responses, [_RESPONSES | _SAMPLING, {"input": "hi"}]),
    (_embeddings, [{"input": one, "encoding_format": "base64"} for one in ("a", ["a", "b"], [[1, 2]], [1])]),
    (_anthropic, [_CLAUDE]),
    (_count, [_CLAUDE]),
    (_ollama_chat, [_LLAMA, {"messages": [], "keep_alive": 0}]),
    (_ollama_generate, [{"prompt": "hi", "system": "x", "images": []} | _ANSWER, {"prompt": "x", "raw": True}]),
    (_ollama_embed, [{"input": ["a", "b"], "truncate": False, "dimensions": 5, "keep_alive": -1}]),
    (functools.partial(_nothing, ollama.parse_embeddings), [{"prompt": "a"}]),
    (functools.partial(_nothing, parse_name), [{"name": "m", "stream": False}]),
    (functools.partial(_nothing, lambda request: decode(request.body, msgspec.json.Decoder(admin.UnloadBody))),
     [{"grace_s": 1.5}]),
]  # fmt: skip
_commands = msgspec.msgpack.Decoder(p.Command)


def case(mutator: Mutator) -> str:
    """One valid body with something broken."""
    rnd = mutator.random
    translate, bodies = rnd.choice(ENDPOINTS)
    body = {"model": "m"} | rnd.choice(bodies)
    if rnd.random() < 0.2:  # a part of another endpoint's, where it may mean something else
        _, others = rnd.choice(ENDPOINTS)
        body |= copy.deepcopy(dict(rnd.sample(sorted(rnd.choice(others).items()), 1)))
    raw = _written(mutator, body)
    try:
        asked = translate(_Request(raw))
        _pass_on(asked)
    except PlimsollError as error:
        if not 400 <= error.status < 500:
            raise
        return harness.refused(error.message)
    return "taken"


def _written(mutator: Mutator, body: dict[str, Any]) -> bytes:
    kind = mutator.random.randrange(10)
    if kind == 0:
        text = json.dumps(body)
        at = mutator.random.randrange(len(text))
        return (text[:at] + mutator.nested_text() + text[at:]).encode()
    if kind == 1:
        return mutator.bytes(json.dumps(body).encode())
    return json.dumps(mutator.structure(body)).encode()  # with NaN and Infinity where they were put


def _pass_on(asked: Iterable[p.Request]) -> None:
    """To the worker, whose decoder takes no frame for a broken one, and there up to the template."""
    for one in asked:
        got = _commands.decode(p.encode(p.Generate("id", one))[4:])
        if isinstance(got.request, p.ChatRequest) and got.request.prompt is None:
            with_tools_described(plain(got.request.messages), got.request.tools)


if __name__ == "__main__":
    harness.main("bodies", case)
