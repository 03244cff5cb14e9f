"""One error shape for everything that can go wrong."""

import socket

import httpx
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Finished
from plimsoll.errors import ContextTooLong

DEADLINE_S = 60


def port_of(server):
    return int(server.url.rpartition(":")[2])


def says_raw(server, request):
    """The answer to raw bytes, read until the server closes."""
    with socket.create_connection(("127.0.0.1", port_of(server)), DEADLINE_S) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_an_unknown_path_is_404_with_the_path(http):
    response = http.get("/v2/nothing")
    assert response.status_code == 404
    assert response.json() == {
        "error": {
            "message": "there is no /v2/nothing here",
            "type": "invalid_request_error",
            "param": None,
            "code": "not_found",
        }
    }


def test_a_wrong_method_is_405_with_the_right_ones(http):
    response = http.delete("/v1/chat/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json()["error"]["code"] == "method_not_allowed"


def test_an_unexpected_exception_is_500_without_its_insides(server, http, caplog):
    def broken():
        raise RuntimeError("secret detail")

    server.app.ctx.state.catalog.names = broken
    response = http.get("/v1/models")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert "secret detail" in caplog.text
    assert http.get("/health/live").status_code == 200


TOO_LONG = "prompt is too long: 9000 tokens > 7000 maximum. Here this model's maximum context length is 7256 tokens."


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"])
def test_a_prompt_that_can_never_fit_is_a_400_with_the_words_and_the_maximum_that_clients_act_on(
    http, system, path, stream
):
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Failed(ContextTooLong(TOO_LONG, param="messages")))
    said = {"input": "hi"} if path == "/v1/responses" else {"messages": [{"role": "user", "content": "hi"}]}
    more = {"max_tokens": 32_000} if path == "/v1/messages" else {}
    response = http.post(path, json={"model": "tiny", "stream": stream, **said, **more})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error if path == "/api/chat" else error["message"]) == TOO_LONG
    if path.startswith(("/v1/chat", "/v1/responses")):
        assert error["code"] == "context_length_exceeded"
    if path == "/v1/messages":
        assert error["type"] == "invalid_request_error"


def test_an_unexpected_exception_in_mid_stream_is_an_event(http, system, body, caplog):
    def nonsense(chat):
        chat.reply.send(Delta("Hel", 1))
        chat.reply.send(Finished("stop", None))

    system.scripts[m.Chat] = nonsense
    text = http.post("/v1/chat/completions", json=body(stream=True, stream_options={"include_usage": True})).text
    assert "internal_error" in text
    assert "[DONE]" not in text
    assert "AttributeError" in caplog.text


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_a_body_of_100_mb_is_413_and_the_server_goes_on(http, framing):
    block = b" " * 1_000_000
    content = block * 100 if framing == "content-length" else (block for _ in range(100))
    response = http.post("/v1/chat/completions", content=content)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    assert "16777216 bytes" in response.json()["error"]["message"]
    assert http.get("/health/live").status_code == 200


@pytest.mark.parametrize("server_config", [{"server": {"max_body": "2KiB"}}])
def test_the_bound_on_bodies_is_the_configured_one(http, system, says, body):
    system.scripts[m.Chat] = says("ok")
    assert http.post("/v1/chat/completions", json=body(user="x" * 1000)).status_code == 200
    assert http.post("/v1/chat/completions", json=body(user="x" * 3000)).status_code == 413


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET / HTTP/9.9\r\n\r\n", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", b"431"),
        ("GET /ü HTTP/1.1\r\nconnection: close\r\n\r\n".encode(), b"400"),
    ],
    ids=["no request line", "version", "content-length", "long header", "not ascii"],
)
def test_broken_http_is_answered_in_the_same_shape(server, request_bytes, status):
    answer = says_raw(server, request_bytes)
    assert answer.split()[1] == status
    assert b'{"error":{"message":' in answer
    assert httpx.get(f"{server.url}/health/live").status_code == 200
