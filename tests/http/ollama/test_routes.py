"""Ollama's chat and generate, as its own client sees them."""

import asyncio
import json
from typing import Any

import httpx
import ollama
import pytest
from scripts import fails, sends

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Logprobs, ToolCallDelta, Waiting
from plimsoll.actors.status import ModelStatus, State
from plimsoll.engine.protocol import Format, TokenLogprob, Tool
from plimsoll.errors import InternalError, LoadFailed, NeverFits, QueueFull, Unavailable

USER = [{"role": "user", "content": "hi"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": PARAMETERS}}
FOREVER = None


@pytest.fixture
def server_config() -> dict[str, Any]:
    entries = {
        "tiny": {"source": "fake:", "idle_ttl": None},
        "org/big": {"source": "fake:", "idle_ttl": "10m"},
        "pinned": {"source": "fake:", "pin": True},
    }
    return {"models": {"builtin": False, "entries": entries}}


def lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


# ---- answers


def test_a_chat_answers_with_its_figures(llama: ollama.Client, system: Any) -> None:
    system.scripts[m.Chat] = sends(Waiting("read", 1, 2), Delta("Hel", 1), Delta("lo", 2))
    answer = llama.chat("tiny", USER)
    assert (answer.message.role, answer.message.content) == ("assistant", "Hello")
    assert (answer.model, answer.done, answer.done_reason) == ("tiny", True, "stop")
    assert (answer.prompt_eval_count, answer.eval_count) == (3, 2)
    parts = [answer.load_duration, answer.prompt_eval_duration, answer.eval_duration]
    assert all(part is not None and part >= 0 for part in parts)
    assert sum(part or 0 for part in parts) <= (answer.total_duration or 0) + 1_000_000


def test_generate_answers_with_a_response(llama: ollama.Client, system: Any) -> None:
    system.scripts[m.Chat] = sends(Delta("hm", 1, reasoning=True), Delta("Hello", 2), reason="length")
    answer = llama.generate("tiny", "hi")
    assert (answer.response, answer.thinking, answer.done_reason) == ("Hello", "hm", "length")


def test_chats_stream_lines_unless_told_not_to(http: httpx.Client, system: Any) -> None:
    system.scripts[m.Chat] = sends(Delta("hi", 1))
    answer = http.post("/api/chat", json={"model": "tiny", "messages": USER})
    assert answer.headers["content-type"] == "application/x-ndjson"
    *parts, last = lines(answer)
    assert "".join(part["message"]["content"] for part in parts) == "hi"
    assert not any(part["done"] for part in parts)
    assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "stop", "")
    assert http.post("/api/chat", json={"model": "tiny", "messages": USER, "stream": False}).json()["done"]


def test_both_clients_read_the_stream(server: Any, llama: ollama.Client, system: Any) -> None:
    system.scripts[m.Chat] = sends(Delta("one", 1), Delta(" two", 2))
    assert "".join(part.message.content or "" for part in llama.chat("tiny", USER, stream=True)) == "one two"
    assert "".join(part.response or "" for part in llama.generate("tiny", "hi", stream=True)) == "one two"

    async def streamed() -> str:
        async with ollama.AsyncClient(server.url, timeout=60) as client:
            parts = await client.chat("tiny", USER, stream=True)
            return "".join([part.message.content or "" async for part in parts])

    assert asyncio.run(streamed()) == "one two"


def test_thinking_is_a_field_of_its_own(llama: ollama.Client, system: Any) -> None:
    system.scripts[m.Chat] = sends(Delta("hm", 1, reasoning=True), Delta("yes", 2))
    answer = llama.chat("tiny", USER, think=True)
    assert (answer.message.thinking, answer.message.content) == ("hm", "yes")
    streamed = list(llama.chat("tiny", USER, think=True, stream=True))
    assert "".join(part.message.thinking or "" for part in streamed) == "hm"


def test_calls_come_whole_with_arguments_as_an_object(llama: ollama.Client, system: Any) -> None:
    parts = [ToolCallDelta(0, "weather", '{"city"'), ToolCallDelta(0, "", ': "Rome"}'), ToolCallDelta(1, "now")]
    system.scripts[m.Chat] = sends(*parts, reason="tool_calls")
    whole = llama.chat("tiny", USER, tools=[WEATHER])
    streamed = list(llama.chat("tiny", USER, tools=[WEATHER], stream=True))
    for message in (whole.message, streamed[0].message):
        assert message.tool_calls is not None
        calls = [(call.function.name, call.function.arguments) for call in message.tool_calls]
        assert calls == [("weather", {"city": "Rome"}), ("now", {})]
    assert (whole.done_reason, streamed[-1].done_reason) == ("stop", "stop")


def test_logprobs_come_with_their_tokens(llama: ollama.Client, system: Any) -> None:
    chosen = TokenLogprob("yes", -0.1, [("yes", -0.1), ("no", -2.5)])
    system.scripts[m.Chat] = sends(Delta("yes", 1), Logprobs([chosen]))
    whole = llama.chat("tiny", USER, logprobs=True, top_logprobs=2)
    streamed = list(llama.chat("tiny", USER, logprobs=True, top_logprobs=2, stream=True))
    for said in (whole.logprobs, [one for part in streamed for one in part.logprobs or ()]):
        assert said is not None
        (token,) = said
        assert (token.token, token.logprob) == ("yes", -0.1)
        assert [(one.token, one.logprob) for one in token.top_logprobs or ()] == [("yes", -0.1), ("no", -2.5)]
    assert system.hears(m.Chat).request.logprobs == 2


@pytest.mark.parametrize(
    "server_config",
    [{"server": {"keepalive": "20ms"}, "models": {"builtin": False, "entries": {"tiny": {"source": "fake:"}}}}],
)
def test_a_waiting_stream_gets_lines_that_clients_can_read(llama: ollama.Client, system: Any) -> None:
    chats: list[m.Chat] = []
    system.scripts[m.Chat] = chats.append
    texts = []
    for part in llama.chat("tiny", USER, stream=True):
        texts.append(part.message.content)
        if len(texts) == 2:
            sends(Delta("late", 1))(chats[0])
    assert texts[:2] == ["", ""]
    assert "".join(text or "" for text in texts) == "late"


def test_a_client_that_leaves_cancels_its_answer(http: httpx.Client, system: Any) -> None:
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Delta("a", 1))
    with http.stream("POST", "/api/chat", json={"model": "tiny", "messages": USER}) as answer:
        next(answer.iter_lines())
    assert system.hears(m.Cancel).model == "tiny"


# ---- requests


def test_options_reach_the_engine(llama: ollama.Client, system: Any) -> None:
    system.scripts[m.Chat] = sends(Delta("ok", 1))
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 42,
        "num_predict": 5,
        "num_ctx": 4096,
        "num_gpu": 99,
        "stop": ["END"],
        "repeat_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
    }
    llama.chat("tiny", USER, options=options)
    request = system.hears(m.Chat).request
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.1)
    assert (sampling.seed, sampling.repetition_penalty) == (42, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.2, 0.3)
    assert (request.max_tokens, request.stop, request.messages) == (5, ("END",), USER)


@pytest.mark.parametrize("most", [-1, -2, 0])
def test_an_answer_without_a_limit_goes_to_the_end_of_the_context(llama: ollama.Client, system: Any, most: int) -> None:
    system.scripts[m.Chat] = sends(Delta("ok", 1))
    llama.chat("tiny", USER, options={"num_predict": most, "top_k": -1, "stop": "END"})
    request = system.hears(m.Chat).request
    assert (request.max_tokens, request.sampling.top_k, request.stop) == (None, 0, ("END",))


@pytest.mark.parametrize(
    ("form", "expected"), [("json", Format()), (PARAMETERS, Format(PARAMETERS)), ("", None), (None, None)]
)
def test_a_format_reaches_the_engine(llama: ollama.Client, system: Any, form: Any, expected: Format | None) -> None:
    system.scripts[m.Chat] = sends(Delta("{}", 1))
    llama.generate("tiny", "hi", format=form)
    assert system.hears(m.Chat).request.format == expected


@pytest.mark.parametrize(
    ("think", "expected", "kwargs"),
    [(True, True, {}), (False, False, {}), (None, None, {}), ("low", True, {"reasoning_effort": "low"})],
)
def test_thinking_is_asked_for(
    llama: ollama.Client, system: Any, think: Any, expected: bool | None, kwargs: dict[str, str]
) -> None:
    system.scripts[m.Chat] = sends(Delta("ok", 1))
    llama.chat("tiny", USER, think=think)
    request = system.hears(m.Chat).request
    assert (request.thinking, request.template_kwargs) == (expected, kwargs)


def test_tools_and_their_results_reach_the_engine(llama: ollama.Client, system: Any) -> None:
    system.scripts[m.Chat] = sends(Delta("ok", 1))
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    talk = [
        *USER,
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_name": "weather", "content": "sun"},
    ]
    llama.chat("tiny", talk, tools=[WEATHER])
    request = system.hears(m.Chat).request
    assert request.tools == (Tool("weather", "Of a city.", PARAMETERS),)
    assistant, result = request.messages[1:]
    assert assistant["tool_calls"] == [{"id": "call_0", "type": "function", **call}]
    assert assistant["reasoning_content"] == "hm"
    assert result == {"role": "tool", "name": "weather", "content": "sun"}


def test_a_prompt_is_read_through_the_template_unless_it_is_raw(llama: ollama.Client, system: Any) -> None:
    system.scripts[m.Chat] = sends(Delta("ok", 1))
    llama.generate("tiny", "hi", system="Be brief.", context=[1, 2], template="{{ .Prompt }}")
    request = system.hears(m.Chat).request
    assert request.messages == [{"role": "system", "content": "Be brief."}, *USER]
    assert request.prompt is None
    llama.generate("tiny", "hi", raw=True)
    request = system.hears(m.Chat).request
    assert (request.messages, request.prompt) == ([], "hi")


def test_latest_is_the_model_itself(llama: ollama.Client, system: Any) -> None:
    system.scripts[m.Chat] = sends(Delta("ok", 1))
    assert llama.chat("tiny:latest", USER).model == "tiny:latest"
    assert system.hears(m.Chat).model == "tiny"
    with pytest.raises(ollama.ResponseError):
        llama.chat("tiny:7b", USER)


# ---- keep_alive


@pytest.mark.parametrize(
    ("model", "keep_alive", "seconds"),
    [
        ("tiny", 90, 90.0),
        ("tiny", 0, 0.0),
        ("tiny", "0", 0.0),
        ("tiny", "1h30m", 5400.0),
        ("tiny", "1.5s", 1.5),
        ("tiny", "300", 300.0),
        ("tiny", -1, FOREVER),
        ("tiny", "-1s", FOREVER),
        ("org/big", "5m", 300.0),
        ("org/big", "1h", 600.0),
        ("org/big", -1, 600.0),
    ],
)
def test_a_lease_is_told_behind_the_chat_and_capped_by_the_config(
    llama: ollama.Client, system: Any, model: str, keep_alive: Any, seconds: float | None
) -> None:
    system.scripts[m.Chat] = sends(Delta("ok", 1))
    llama.chat(model, USER, keep_alive=keep_alive)
    assert isinstance(system.heard.get(timeout=60), m.Chat)
    assert system.heard.get(timeout=60) == m.KeepAlive(model, seconds)


@pytest.mark.parametrize(("model", "keep_alive"), [("pinned", 0), ("pinned", "5m"), ("tiny", None)])
def test_no_lease_is_told_for_pinned_models_or_without_one(
    llama: ollama.Client, system: Any, model: str, keep_alive: Any
) -> None:
    system.scripts[m.Chat] = sends(Delta("ok", 1))
    llama.chat(model, USER, keep_alive=keep_alive)
    assert not system.has_heard(m.KeepAlive)


def test_no_messages_load_the_model(llama: ollama.Client, system: Any) -> None:
    system.scripts[m.LoadModel] = lambda load: load.reply.send(ModelStatus(load.model, State.READY))
    for answer in (llama.chat("tiny", [], keep_alive="5m"), llama.generate("tiny", keep_alive="5m")):
        assert (answer.done, answer.done_reason) == (True, "load")
        assert system.hears(m.LoadModel).model == "tiny"
        assert system.hears(m.KeepAlive) == m.KeepAlive("tiny", 300.0)
    assert not system.has_heard(m.Chat)


def test_a_load_that_fails_says_why(llama: ollama.Client, system: Any) -> None:
    system.scripts[m.LoadModel] = lambda load: load.reply.send(Failed(LoadFailed("the files are broken")))
    with pytest.raises(ollama.ResponseError, match="the files are broken") as caught:
        llama.generate("tiny")
    assert caught.value.status_code == 503


def test_no_messages_and_no_time_unload_an_idle_model(llama: ollama.Client, system: Any) -> None:
    system.scripts[m.UnloadModel] = lambda unload: unload.reply.send(ModelStatus(unload.model, State.STOPPED))
    assert llama.chat("tiny", [], keep_alive=0).done_reason == "unload"
    assert system.hears(m.UnloadModel).model == "tiny"


def test_a_busy_model_is_unloaded_after_its_answers(llama: ollama.Client, system: Any, status: Any) -> None:
    busy = status(models=[ModelStatus("tiny", State.BUSY, active=1)])
    system.scripts[m.GetStatus] = lambda ask: ask.reply.send(busy)
    assert llama.generate("tiny", keep_alive=0).done_reason == "unload"
    assert system.hears(m.KeepAlive) == m.KeepAlive("tiny", 0.0)
    assert not system.has_heard(m.UnloadModel)


def test_a_pinned_model_is_not_unloaded(llama: ollama.Client, system: Any, status: Any) -> None:
    told = status(pinned=frozenset({"pinned"}))
    system.scripts[m.GetStatus] = lambda message: message.reply.send(told)
    with pytest.raises(ollama.ResponseError, match="pin") as caught:
        llama.chat("pinned", [], keep_alive=0)
    assert caught.value.status_code == 400
    assert not system.has_heard(m.UnloadModel)


# ---- errors


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model": ""}, "model"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a", "images": ["aGk="]}]}, "messages[0].images"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": 5}}]}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"stream": "no"}, "stream"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"function": {"name": "a", "parameters": []}}]}, "tools[0].function.parameters"),
        ({"format": "xml"}, 'format is "xml", but must be "json" or a JSON schema'),
        ({"format": 3}, "format"),
        ({"think": "hard"}, "think"),
        ({"think": 3}, "think"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"keep_alive": "soon"}, 'keep_alive is "soon", but must be a number of seconds'),
        ({"keep_alive": "5 minutes"}, "keep_alive"),
        ({"keep_alive": "nan"}, "keep_alive"),
        ({"keep_alive": []}, "keep_alive"),
        ({"options": []}, "options"),
        ({"options": {"temperature": 3}}, "options.temperature is 3, but must be a number from 0 to 2"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"top_p": -1}}, "options.top_p"),
        ({"options": {"top_k": -2}}, "options.top_k"),
        ({"options": {"min_p": 2}}, "options.min_p"),
        ({"options": {"seed": 1.5}}, "options.seed"),
        ({"options": {"num_predict": -3}}, "options.num_predict"),
        ({"options": {"stop": ["x" * 1001]}}, "options.stop[0]"),
        ({"options": {"stop": 3}}, "options.stop"),
        ({"options": {"repeat_penalty": 0}}, "options.repeat_penalty"),
        ({"options": {"presence_penalty": 3}}, "options.presence_penalty"),
        ({"options": {"frequency_penalty": -3}}, "options.frequency_penalty"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(
    http: httpx.Client, system: Any, changes: dict[str, Any], names: str
) -> None:
    answer = http.post("/api/chat", json={"model": "tiny", "messages": USER} | changes)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(names)
    assert not system.has_heard(m.Chat)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"prompt": ["hi"]}, "prompt"),
        ({"system": 3}, "system"),
        ({"raw": "yes"}, "raw"),
        ({"suffix": 5}, "suffix"),
        ({"images": ["aGk="]}, "images"),
    ],
)
def test_generates_own_parameters_are_refused_by_name(http: httpx.Client, changes: dict[str, Any], names: str) -> None:
    answer = http.post("/api/generate", json={"model": "tiny", "prompt": "hi"} | changes)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(names)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff"])
def test_a_body_that_is_no_request_is_refused(http: httpx.Client, raw: bytes) -> None:
    answer = http.post("/api/chat", content=raw)
    assert answer.status_code == 400
    assert isinstance(answer.json()["error"], str)


def test_an_unknown_model_is_not_found(llama: ollama.Client) -> None:
    for call in (lambda: llama.chat("none", USER), lambda: llama.generate("none", "hi"), lambda: llama.chat("none")):
        with pytest.raises(ollama.ResponseError, match="model 'none' not found") as caught:
            call()
        assert caught.value.status_code == 404


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (QueueFull("64 wait"), 503, "server busy, please try again: 64 wait"),
        (Unavailable("closed"), 503, "server busy, please try again: closed"),
        (LoadFailed("no files"), 503, "no files"),
        (NeverFits("too large"), 507, "too large"),
        (InternalError("a bug"), 500, "a bug"),
    ],
)
def test_each_failure_has_its_status(
    llama: ollama.Client, system: Any, error: Exception, status: int, text: str
) -> None:
    system.scripts[m.Chat] = fails(error)
    for stream in (False, True):
        with pytest.raises(ollama.ResponseError) as caught:
            list(llama.chat("tiny", USER, stream=stream))
        assert (caught.value.status_code, caught.value.error) == (status, text)


def test_a_failure_in_mid_stream_is_a_line(llama: ollama.Client, system: Any) -> None:
    system.scripts[m.Chat] = fails(InternalError("it broke"), Delta("so far", 1))
    texts = []
    with pytest.raises(ollama.ResponseError, match="it broke"):
        texts.extend(part.message.content for part in llama.chat("tiny", USER, stream=True))
    assert not texts or texts == ["so far"]


def test_a_path_that_is_not_there_has_ollamas_error(http: httpx.Client) -> None:
    assert http.get("/api/nothing").json() == {"error": "there is no /api/nothing here"}
