"""Chat completions as the clients see them."""

import json
import socket
import threading
import time

import httpx
import openai
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Waiting
from plimsoll.actors.status import ModelStatus, State
from plimsoll.engine.protocol import Sampling
from plimsoll.errors import ContextTooLong, InsufficientMemory, LoadFailed, ModelUnloaded, QueueFull, Unavailable
from plimsoll.http import endpoint

DEADLINE_S = 60
HI = [{"role": "user", "content": "hi"}]
quick_keepalive = pytest.mark.parametrize("server_config", [{"server": {"keepalive": "20ms"}}], ids=[""])


def events(text):
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]


def test_an_answer_has_openai_s_shape(http, system, says, body):
    system.scripts[m.Chat] = says("Hel", "lo")
    response = http.post("/v1/chat/completions", json=body())
    answer = response.json()
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert "alt-svc" not in response.headers
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert answer["system_fingerprint"].startswith("plimsoll-")
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
    }


def test_a_stream_has_role_text_ending_usage_and_done_in_this_order(http, system, says, body):
    system.scripts[m.Chat] = says("Hello", reason="length")
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = http.post("/v1/chat/completions", json=body(**options))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response.text)
    role, text, ending, usage = (json.loads(chunk) for chunk in chunks)
    assert done == "[DONE]"
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text["choices"][0]["delta"] == {"content": "Hello"}
    assert text["usage"] is None
    assert ending["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 5
    assert len({chunk["id"] for chunk in (role, text, ending, usage)}) == 1


def test_a_stream_without_include_usage_has_no_usage(http, system, says, body):
    system.scripts[m.Chat] = says("Hello")
    assert "usage" not in http.post("/v1/chat/completions", json=body(stream=True)).text


def test_empty_deltas_are_not_sent(http, system, says, body):
    system.scripts[m.Chat] = says("", "", "Hi", "")
    response = http.post("/v1/chat/completions", json=body(stream=True))
    assert len(events(response.text)) == len(["role", "text", "ending", "done"])


@pytest.mark.parametrize("text", ['"\\\n\t\x00\u2028', "日本語 🚢", "</script>", "\x7f\ud7ff\ue000"])
def test_any_text_survives_the_template(client, system, says, text):
    system.scripts[m.Chat] = says(text)
    stream = client.chat.completions.create(model="tiny", messages=HI, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text


def test_the_openai_client_reads_answers_streams_and_models(client, system, says):
    system.scripts[m.Chat] = says("Hel", "lo")
    whole = client.chat.completions.create(model="tiny", messages=HI)
    assert whole.choices[0].message.content == "Hello"
    stream = client.chat.completions.create(
        model="tiny", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello"
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == 1
    assert [model.id for model in client.models.list()] == ["tiny", "org/big"]
    assert client.models.retrieve("org/big").id == "org/big"
    with pytest.raises(openai.NotFoundError, match="nope"):
        client.chat.completions.create(model="nope", messages=HI)


def test_a_model_s_name_may_come_with_its_slash_encoded(http):
    assert http.get("/v1/models/org%2Fbig").json()["id"] == "org/big"


def test_parameters_reach_the_engine(http, system, says, body):
    system.scripts[m.Chat] = says("ok")
    http.post(
        "/v1/chat/completions",
        json=body(
            temperature=0,
            top_p=0.5,
            top_k=7,
            min_p=0.1,
            seed=-5,
            stop="END",
            max_tokens=9,
            max_completion_tokens=4,
            presence_penalty=1,
            frequency_penalty=-1,
            repetition_penalty=1.1,
        ),
    )
    request = system.hears(m.Chat).request
    assert request.sampling == Sampling(0.0, 0.5, 7, 0.1, 1.0, -1.0, 1.1, -5)
    assert request.max_tokens == 4
    assert request.stop == ("END",)


def test_null_and_unknown_parameters_mean_the_defaults(http, system, says, body):
    system.scripts[m.Chat] = says("ok")
    nulls = dict.fromkeys(["temperature", "stop", "max_tokens", "seed", "stream", "n", "tools", "response_format"])
    response = http.post("/v1/chat/completions", json=body(**nulls, metadata={"a": 1}, store=True))
    request = system.hears(m.Chat).request
    assert response.status_code == 200
    assert request.sampling == Sampling()
    assert (request.max_tokens, request.stop) == (None, ())


def test_harmless_values_of_unsupported_parameters_pass(http, system, says, body):
    system.scripts[m.Chat] = says("ok")
    harmless = {"n": 1, "logprobs": False, "tools": [], "response_format": {"type": "text"}, "logit_bias": {}}
    assert http.post("/v1/chat/completions", json=body(**harmless)).status_code == 200


def test_messages_reach_the_engine_as_plain_text(http, system, says, body):
    system.scripts[m.Chat] = says("ok")
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    given = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
    ]
    http.post("/v1/chat/completions", json=body(messages=given))
    assert system.hears(m.Chat).request.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo", "name": "ann"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "1"},
    ]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_the_content_type_is_not_insisted_on(http, system, says, body, kind):
    system.scripts[m.Chat] = says("ok")
    response = http.post("/v1/chat/completions", content=json.dumps(body()), headers={"content-type": kind})
    assert response.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (QueueFull("64 are waiting", retry_after_s=0.2), 429, "1"),
        (LoadFailed("no such file", retry_after_s=9.1), 503, "10"),
        (ContextTooLong("5000 tokens are more than 4096", param="messages"), 400, None),
        (InsufficientMemory("96 % used", details={"used_percent": 96.0}), 503, None),
    ],
)
def test_a_failure_before_the_first_text_has_its_own_status(http, system, body, stream, error, status, retry_after):  # noqa: PLR0917 - fixtures and parameters
    def fail(chat):
        chat.reply.send(Waiting("read", 1, 2))
        chat.reply.send(Failed(error))

    system.scripts[m.Chat] = fail
    response = http.post("/v1/chat/completions", json=body(stream=stream))
    told = response.json()["error"]
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after
    assert (told["code"], told["message"], told["param"]) == (error.code, error.message, error.param)
    assert told.get("memory", {}) == error.details
    assert system.has_heard(m.Cancel) == 0


def test_a_failure_in_mid_stream_is_an_event_and_raises_in_the_openai_client(client, system):
    def fail(chat):
        chat.reply.send(Delta("Hel", 1))
        chat.reply.send(Failed(ModelUnloaded("memory is at 96 %")))

    system.scripts[m.Chat] = fail
    got = []

    def read():
        for chunk in client.chat.completions.create(model="tiny", messages=HI, stream=True):
            got.append(chunk.choices[0].delta.content)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(openai.APIError, match="memory is at 96 %"):
        read()
    assert "".join(got) == "Hel"
    assert system.has_heard(m.Cancel) == 0


def test_a_failure_in_mid_stream_ends_the_stream_without_done(http, system, body):
    def fail(chat):
        chat.reply.send(Delta("Hel", 1))
        chat.reply.send(Failed(ModelUnloaded("gone")))

    system.scripts[m.Chat] = fail
    last = events(http.post("/v1/chat/completions", json=body(stream=True)).text)[-1]
    assert json.loads(last)["error"]["code"] == "model_unloaded"


@quick_keepalive
def test_a_waiting_stream_gets_comments_that_say_what_for(http, system, says, body):
    chats = []
    system.scripts[m.Chat] = chats.append
    seen = []
    with http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as response:
        lines = response.iter_lines()
        waiting = [
            (Waiting("queue"), ": waiting in the queue"),
            (Waiting("read", 120_000_000, 540_000_000), ": waiting for the model to load: read 120/540 MB"),
            (Waiting("fetch", 1_000_000), ": waiting for the model to load: fetch 1/? MB"),
            (Waiting("prefill", 512, 4096), ": reading the prompt: 512/4096 tokens"),
        ]
        assert next(lines) == ": waiting"
        for item, expected in waiting:
            chats[0].reply.send(item)
            assert any(line == expected for line in lines)
        says("Hi")(chats[0])
        seen = [line for line in lines if line.startswith("data:")]
    assert response.status_code == 200
    assert "assistant" in seen[0]
    assert seen[-1] == "data: [DONE]"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("server_config", [{"server": {"keepalive": "100ms"}}], ids=[""])
def test_a_load_refused_while_it_is_undecided_has_its_own_status_however_long_that_took(
    http, system, body, path, monkeypatch
):
    monkeypatch.setattr(endpoint, "_UNDECIDED_TIMES", 1000)

    def refuse_later(chat):
        chat.reply.send(Waiting("queue"))
        threading.Timer(0.3, chat.reply.send, [Failed(Unavailable("memory is full", retry_after_s=7))]).start()

    system.scripts[m.Chat] = refuse_later
    answer = http.post(path, json=body(stream=True, max_tokens=5))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


@pytest.mark.parametrize("server_config", [{"server": {"keepalive": "400ms"}}], ids=[""])
def test_a_load_that_has_begun_is_told_after_the_usual_silence(http, system, body, monkeypatch):
    monkeypatch.setattr(endpoint, "_UNDECIDED_TIMES", 1000)  # no answer, then
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Waiting("read", 1_000_000, 2_000_000))
    started = time.monotonic()
    with http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as response:
        assert next(response.iter_lines()) == ": waiting for the model to load: read 1/2 MB"
    assert time.monotonic() - started > 0.3


@quick_keepalive
def test_a_failure_after_a_comment_is_an_event(http, system, body):
    chats = []
    system.scripts[m.Chat] = chats.append
    with http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as response:
        lines = response.iter_lines()
        assert next(lines) == ": waiting"
        chats[0].reply.send(Failed(LoadFailed("the file is broken")))
        last = [line for line in lines if line.startswith("data:")]
    assert "the file is broken" in last[0]
    assert len(last) == 1


@quick_keepalive
def test_the_openai_client_does_not_mind_comments(client, system, says):
    system.scripts[m.Chat] = lambda chat: threading.Timer(0.1, says("Hello"), [chat]).start()
    stream = client.chat.completions.create(model="tiny", messages=HI, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello"


def test_a_stream_left_by_its_client_is_cancelled_once(http, system, body):
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Delta("Hel", 1))
    with http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as response:
        assert next(response.iter_lines())
    chat = system.hears(m.Chat)
    assert system.hears(m.Cancel) == m.Cancel(chat.id, "tiny")
    assert system.has_heard(m.Cancel) == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("padding", [0, 100_000], ids=["small", "large"])
def test_a_request_left_before_its_first_token_is_cancelled_once(server, system, body, caplog, stream, padding):  # noqa: PLR0917 - as above
    raw = json.dumps(body(stream=stream, user="x" * padding)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(raw)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), DEADLINE_S) as connection:
        # While the loop stands still all of it arrives: more than 64 KiB at once make Sanic pause reading.
        with server.loop_held():
            connection.sendall(head.encode() + raw)
        chat = system.hears(m.Chat)
        chat.reply.send(Waiting("read", 1, 2))
    assert system.hears(m.Cancel) == m.Cancel(chat.id, "tiny")
    assert system.has_heard(m.Cancel) == 0
    server.stop()
    server.join()
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_finished_answer_is_not_cancelled(http, system, says, body, stream):
    system.scripts[m.Chat] = says("Hi")
    http.post("/v1/chat/completions", json=body(stream=stream))
    assert system.has_heard(m.Cancel) == 0


def test_many_streams_at_once_do_not_mix(server, system, says, body):
    def echo(chat):
        says(*chat.request.messages[0]["content"])(chat)

    system.scripts[m.Chat] = echo
    texts = {}

    def one(number):
        asked = body(stream=True, messages=[{"role": "user", "content": f"number {number} " * 20}])
        got = events(httpx.post(f"{server.url}/v1/chat/completions", json=asked, timeout=DEADLINE_S).text)[:-1]
        texts[number] = "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in got)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: f"number {number} " * 20 for number in range(16)}


@pytest.fixture
def short_name(server, monkeypatch):
    """``big`` means ``org/big``, as the catalog has it for a model of ``org`` that lies in a folder."""
    catalog = server.app.ctx.state.catalog
    find = type(catalog).find
    monkeypatch.setattr(type(catalog), "find", lambda self, name: find(self, "org/big" if name == "big" else name))
    return "big"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat"])
def test_the_supervisor_is_told_a_model_s_full_name(http, system, says, body, short_name, path):  # noqa: PLR0917 - fixtures
    """It keeps one actor for each name, and an actor that was started under a short name was never heard."""
    system.scripts[m.Chat] = says("ok")
    response = http.post(path, json=body(model=short_name, max_tokens=5, stream=False))
    assert (response.status_code, response.json()["model"]) == (200, "big")
    assert system.hears(m.Chat).model == "org/big"


@pytest.mark.parametrize("verb", ["load", "unload", "pin"])
def test_administration_tells_a_model_s_full_name_too(http, system, short_name, verb):
    kind = {"load": m.LoadModel, "unload": m.UnloadModel, "pin": m.PinModel}[verb]
    system.scripts[kind] = lambda message: message.reply.send(ModelStatus(message.model, State.COLD))
    response = http.post(f"/admin/models/{short_name}/{verb}", json={"pinned": True} if verb == "pin" else {})
    assert (response.status_code, response.json()["name"]) == (200, "org/big")
    assert system.hears(kind).model == "org/big"
