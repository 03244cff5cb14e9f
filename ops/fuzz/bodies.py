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
from plimsoll.engine.dialect.conversation import Conversation
from plimsoll.engine.dialect.needs import LAST_RESORT
from plimsoll.engine.dialect.plain_messages import plain
from plimsoll.errors import PlimsollError
from plimsoll.http.anthropic.routes import COUNT_TOKENS, MESSAGES
from plimsoll.http.body import check_size, decode, read
from plimsoll.http.endpoint import Endpoint, variants
from plimsoll.http.ollama import routes as ollama
from plimsoll.http.ollama.models import parse_name
from plimsoll.http.openai.completions import COMPLETIONS
from plimsoll.http.openai.embeddings import EMBEDDINGS
from plimsoll.http.openai.rerank import RERANK
from plimsoll.http.openai.responses.routes import RESPONSES, started_body
from plimsoll.http.openai.routes import CHAT_COMPLETIONS
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

    def let_go(self, kept: int) -> None:
        """The raw body is not needed any more."""


def _requests(endpoint: Endpoint, request: Any) -> list[p.Request]:
    body = read(request, endpoint.decoder, endpoint.allowed)
    assert getattr(body, "keep_alive_s", None) is None or body.keep_alive_s >= 0
    if endpoint is RESPONSES:
        msgspec.json.encode(started_body(body, "id"))  # what the client is told of its own request
    prompts = endpoint.prompts(body)
    for prompt in prompts:
        check_size(prompt, _LIMITS, endpoint.text)
    return [one for prompt in prompts for one in variants(prompt, endpoint.copies(body))]


def _nothing(parse: Callable[[Any], Any], request: Any) -> list[p.Request]:
    parse(request)
    return []


def _to(endpoint: Endpoint, *bodies: dict[str, Any]) -> tuple[Callable[[Any], list[p.Request]], list[dict[str, Any]]]:
    return functools.partial(_requests, endpoint), list(bodies)


ENDPOINTS = [
    _to(CHAT_COMPLETIONS, _CHAT | _SAMPLING, {"messages": [{"role": "user", "content": "hi"}]}),
    _to(COMPLETIONS, {"prompt": ["a", "b"], "echo": True, "n": 2, "best_of": 2, "max_tokens": 3} | _SAMPLING),
    _to(COMPLETIONS, {"prompt": "a", "logprobs": 5, "suffix": "", "stream_options": {"include_usage": True}}),
    _to(RESPONSES, _RESPONSES | _SAMPLING, {"input": "hi"}),
    _to(EMBEDDINGS, *({"input": one, "encoding_format": "base64"} for one in ("a", ["a", "b"], [[1, 2]], [1]))),
    _to(RERANK, {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1, "return_documents": True}),
    _to(MESSAGES, _CLAUDE),
    _to(COUNT_TOKENS, _CLAUDE),
    _to(ollama.CHAT, _LLAMA, {"messages": [], "keep_alive": 0}),
    _to(ollama.GENERATE, {"prompt": "hi", "system": "x", "images": []} | _ANSWER, {"prompt": "x", "raw": True}),
    _to(ollama.EMBED, {"input": ["a", "b"], "truncate": False, "dimensions": 5, "keep_alive": -1}),
    _to(ollama.EMBEDDINGS, {"prompt": "a"}),
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
            Conversation(plain(got.request.messages), got.request.tools, LAST_RESORT)


if __name__ == "__main__":
    harness.main("bodies", case)
