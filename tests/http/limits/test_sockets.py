"""Clients that take too long, on real sockets: half headers, slow bodies, no reading, too many."""

import contextlib
import json
import socket
import struct
import threading
import time

import httpx
import openai
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Finished
from plimsoll.engine.protocol import Usage

DEADLINE_S = 60
SHORT = {"header_time": "200ms", "body_time": "200ms", "idle": "200ms", "slow_client": "200ms"}
KEYS = {
    "keys": [{"name": "ada", "role": "user", "key": "key-of-ada"}, {"name": "bob", "role": "user", "key": "bob's-key"}]
}
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"


def with_config(**sections):
    return pytest.mark.parametrize("server_config", [sections], ids=["limits"])


def with_limits(**limits):
    return with_config(limits=limits)


def until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def connect(server, received=None):
    sock = socket.socket()
    sock.settimeout(DEADLINE_S)
    if received:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, received)
    sock.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
    return sock


def rest(sock):
    """Everything until the server closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while block := sock.recv(65536):
            data += block
    return data


def trickle(sock, data):
    """Send it byte by byte, slowly, from a thread, until it is all sent or the server has closed."""

    def run():
        with contextlib.suppress(OSError):
            for index in range(len(data)):
                sock.sendall(data[index : index + 1])
                time.sleep(0.02)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def opened(server):
    return len(server.app.ctx.sweeper.connections)


@with_limits(**SHORT)
@pytest.mark.parametrize(
    ("begun", "trickled", "key"),
    [
        (b"", POST + b"X: " + b"y" * 1000, "limits.header_time"),
        (POST + b"Content-Length: 100000\r\n\r\n", b"{" + b" " * 1000, "limits.body_time"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n" + b"1\r\n \r\n" * 200, "limits.body_time"),
        (POST + b"Content-Length: 100000\r\nExpect: 100-continue\r\n\r\n", b"", "limits.body_time"),
        (POST + b"Content-Length: 100000\r\n\r\n{", b"", "limits.body_time"),
    ],
    ids=["headers", "body", "chunks", "nothing after continue", "half a body"],
)
def test_what_trickles_in_is_answered_with_408_and_closed(server, begun, trickled, key):
    with connect(server) as sock:
        sock.sendall(begun)
        thread = trickle(sock, trickled)
        answer = rest(sock)
    thread.join(DEADLINE_S)
    head, _, body = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    error = json.loads(body)["error"]
    assert error["code"] == "request_timeout"
    assert key in error["message"]
    until(lambda: opened(server) == 0, "the connection is still counted")


@with_limits(**SHORT)
@pytest.mark.parametrize(
    "sent", [b"", b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["nothing", "one request"]
)
def test_an_idle_connection_is_closed(server, sent):
    with connect(server) as sock:
        sock.sendall(sent)
        answer = rest(sock)
    assert answer.startswith(b"HTTP/1.1 200") == bool(sent)
    until(lambda: opened(server) == 0, "the connection is still counted")


@with_config(limits=SHORT, access=KEYS)
def test_the_body_of_a_refused_request_is_not_waited_for_for_ever(server):
    with connect(server) as sock:
        sock.sendall(POST + b"Content-Length: 100000\r\n\r\n")
        thread = trickle(sock, b"x" * 1000)
        assert rest(sock).startswith(b"HTTP/1.1 401")
    thread.join(DEADLINE_S)
    until(lambda: opened(server) == 0, "the connection is still counted")


@with_limits(headers=20)
def test_too_many_headers_are_431(http):
    assert http.get("/health/live", headers={f"x-{n}": "y" for n in range(10)}).status_code == 200
    response = http.get("/health/live", headers={f"x-{n}": "y" for n in range(20)})
    assert response.status_code == 431
    assert "limits.headers" in response.json()["error"]["message"]


@with_limits(header_size="2KiB")
def test_headers_that_are_too_long_are_431(http):
    response = http.get("/health/live", headers={"x": "y" * 3000})
    assert response.status_code == 431
    assert response.json()["error"]["code"] == "headers_too_large"


def test_a_client_that_sends_far_more_headers_than_are_read_still_reads_why_it_is_refused(server):
    for _ in range(5):
        with connect(server) as one:
            one.sendall(b"GET /health/live HTTP/1.1\r\nx: " + b"y" * 400_000 + b"\r\n\r\n")
            assert rest(one).startswith(b"HTTP/1.1 431")
    until(lambda: opened(server) == 0, "all places are free")


GET = b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n"


def is_refused_for_connections(sock):
    head, _, body = rest(sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503")
    assert b"connection: close" in head.lower()
    assert b"retry-after: 1" in head.lower()
    return "limits.connections" in json.loads(body)["error"]["message"]


def busy(server, system, body):
    """A connection whose answer never comes."""
    asked = json.dumps(body()).encode()
    sock = connect(server)
    sock.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(asked) + asked)
    system.hears(m.Chat)
    return sock


@with_limits(connections=3)
def test_one_connection_too_many_is_told_503_and_a_place_that_is_left_is_given_again(server, system, body, caplog):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(busy(server, system, body)) for _ in range(3)]
        for request in (GET % b"v1/models", POST + b"Content-Length: 1000000\r\n\r\n{"):
            with connect(server) as one:
                one.sendall(request)
                assert is_refused_for_connections(one)
        until(lambda: opened(server) == 3, "none of them stays")
        held[0].close()
        until(lambda: opened(server) == 2, "one place is free")
        assert httpx.get(f"{server.url}/v1/models").status_code == 200
    until(lambda: "were turned away" in caplog.text, "it is in the log")


@with_limits(connections=3)
def test_probes_and_administration_of_this_machine_are_served_when_all_places_are_taken(server, system, body):
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(busy(server, system, body))
        for path in ("/health", "/health/live", "/health/ready", "/metrics", "/admin/models"):
            assert httpx.get(f"{server.url}{path}").status_code == 200, path
        assert httpx.get(f"{server.url}/v1/models").status_code == 503


@with_limits(connections=20, header_time="1h", idle="1h")
def test_idle_connections_give_their_places_to_those_who_ask(server, caplog):
    with contextlib.ExitStack() as stack:
        used = stack.enter_context(connect(server))
        used.sendall(GET % b"health/live")
        assert used.recv(9) == b"HTTP/1.1 "
        crowd = [stack.enter_context(connect(server)) for _ in range(60)]
        until(lambda: server.app.ctx.slots.taken >= 50, "all places are taken, and the reserve")
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        # Who has just come may be about to ask; who asks waits for the second after which that is not so.
        with httpx.Client(base_url=server.url) as client:
            for _ in range(3):
                assert client.get("/v1/models").status_code == 200
        assert b"limits.connections" not in rest(used)  # the one that was idle for the longest, closed without a word
        assert is_refused_for_connections(crowd[19])  # the first in the reserve, when that was full
    until(lambda: "idle ones closed for them" in caplog.text, "it is in the log")


@with_limits(connections=5, header_time="1h")
def test_half_a_request_holds_no_place_against_those_who_ask(server):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(server)).sendall(b"GET /hea")
        until(lambda: server.app.ctx.slots.taken == 20, "all are connected")
        assert httpx.get(f"{server.url}/v1/models").status_code == 200


@with_limits(connections=5, header_time="1h")
def test_a_crowd_that_connects_on_and_on_does_not_keep_probes_out(server):
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect(server))
        assert httpx.get(f"{server.url}/health/live").status_code == 200
    until(lambda: server.app.ctx.slots.taken == 0, "all places are free")


@with_limits(connections=50, slow_client="500ms")
def test_no_way_of_leaving_loses_a_place(server, system, body):
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Delta("a", 1))
    asked = json.dumps(body(stream=True)).encode()
    ask = POST + b"Content-Length: %d\r\n\r\n" % len(asked) + asked
    for begun in (b"", b"GET", POST + b"Content-Length: 9\r\n\r\n", b"NONSENSE\r\n\r\n", ask, ask + b"GET /"):
        for reset in (False, True):
            sock = connect(server)
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.sendall(begun)
            if begun.startswith(ask):
                system.hears(m.Chat)
                assert sock.recv(9) == b"HTTP/1.1 "
            sock.close()
            if begun.startswith(ask):
                system.hears(m.Cancel)
    until(lambda: opened(server) == 0, "all places are free")


@with_limits(slow_client="500ms")
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_who_stops_reading_is_cut_off_and_the_answer_cancelled(server, system, body, caplog, stream):
    texts = ["x" * 1000] * 3000

    def script(chat):
        for count, text in enumerate(texts, start=1):
            chat.reply.send(Delta(text, count))
        if not stream:
            chat.reply.send(Finished("stop", Usage()))

    system.scripts[m.Chat] = script
    asked = json.dumps(body(stream=stream)).encode()
    with connect(server, received=4096) as sock:
        sock.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(asked) + asked)
        assert sock.recv(9) == b"HTTP/1.1 "
        until(lambda: "did not read its answer" in caplog.text, "it is cut off")
        if stream:
            system.hears(m.Cancel)
        until(lambda: opened(server) == 0, "the connection is still counted")
    assert "limits.slow_client" in caplog.text


def test_what_piles_up_for_one_who_stopped_reading_is_bounded_long_before_the_limit(server, system, body, caplog):
    chats = []
    system.scripts[m.Chat] = chats.append
    asked = json.dumps(body(stream=True)).encode()
    with connect(server, received=4096) as sock:
        sock.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(asked) + asked)
        until(lambda: chats, "the chat has begun")
        until(lambda: _pile_up(chats[0]) or "did not read its answer" in caplog.text, "it is cut off")
        system.hears(m.Cancel)
    assert "parts wait" in caplog.text


def _pile_up(chat):
    for count in range(200):
        chat.reply.send(Delta("x" * 1000, count))


@with_config(limits={"requests_per_minute": 60, "burst": 2}, access=KEYS)
def test_a_key_that_asks_too_often_is_told_when_to_ask_again_and_others_are_not(server, http):
    clock = [100.0]
    server.app.ctx.gate._clock = lambda: clock[0]
    ada, bob = ({"Authorization": f"Bearer {key}"} for key in ("key-of-ada", "bob's-key"))
    statuses = [http.get("/v1/models", headers=ada).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = http.post("/v1/messages", headers=ada)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="key-of-ada", max_retries=0)
    with client, pytest.raises(openai.RateLimitError, match="'ada' may make 60 requests per minute"):
        client.models.list()
    assert http.get("/health/live", headers=ada).status_code == 200
    assert http.get("/v1/models", headers=bob).status_code == 200
    clock[0] += 1
    assert http.get("/v1/models", headers=ada).status_code == 200
    assert http.get("/v1/models", headers=ada).status_code == 429
