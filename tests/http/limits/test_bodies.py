"""The budget of all bodies: who is read, who waits, who loses the turn; on real sockets and in numbers."""

import asyncio
import contextlib
import json
import socket
import time

import httpx
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Finished
from plimsoll.engine.protocol import Usage
from plimsoll.errors import Unavailable
from plimsoll.http import body as bodies_of_requests
from plimsoll.http.limits.body_budget import SMALL_BYTES, BodyBudget, BodyShare, room_for

MIB, GIB = 2**20, 2**30
DEADLINE_S = 60
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


def run(test):
    """A coroutine of a test, as a test."""
    return asyncio.run(test())


def budget(room, wait_s=5.0):
    """Bodies that may take ``room`` bytes together."""
    return BodyBudget(room, lambda: None, lambda: None, wait_s)


def share(evicted=None):
    return BodyShare([].append if evicted is None else evicted.append)


async def until_true(sequence):
    """Until there is something in it."""
    deadline = time.monotonic() + DEADLINE_S
    while not sequence:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def settled(tasks=()):
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


@pytest.mark.parametrize(
    ("available", "largest", "room"),
    [
        (None, 16 * MIB, 16 * MIB),  # nothing is known yet
        (64 * GIB, 16 * MIB, 256 * MIB),
        (64 * GIB, 512 * MIB, 512 * MIB),
        (1 * GIB, 16 * MIB, 64 * MIB),
        (128 * MIB, 16 * MIB, 16 * MIB),  # a 16th would be too little for the largest, a quarter is more than enough
        (32 * MIB, 16 * MIB, 8 * MIB),
        (0, 16 * MIB, 0),
    ],
)
def test_bodies_take_a_share_of_what_is_free(available, largest, room):
    assert room_for(available, largest) == room


def test_a_body_that_fits_in_no_case_is_refused_at_once_and_a_small_one_never_is():
    bodies = BodyBudget(16 * MIB, lambda: 4 * MIB, lambda: None)
    bodies.check(SMALL_BYTES)
    with pytest.raises(Unavailable, match="2097152 bytes, but memory is so full that 1048576") as refused:
        bodies.check(2 * MIB)
    assert refused.value.retry_after_s


def test_who_finds_no_room_waits_and_shorter_bodies_go_first():
    @run
    async def _():
        bodies = budget(4 * MIB)
        first, long, short = share(), share(), share()
        await bodies.turn(first, 3 * MIB)
        waits = [asyncio.create_task(bodies.turn(one, size)) for one, size in ((long, 2 * MIB), (short, MIB + 1))]
        assert await settled(waits) == [False, False]
        assert (bodies.waiting, long.waits, short.waits) == (2, True, True)
        bodies.keep(first, 2 * MIB)
        assert await settled(waits) == [False, True]
        bodies.keep(first, 0)
        bodies.keep(short, 0)
        assert await settled(waits) == [True, True]
        assert (bodies.held, bodies.waiting) == (2 * MIB, 0)


def test_large_bodies_leave_room_for_others():
    @run
    async def _():
        bodies = budget(8 * MIB)
        await bodies.turn(share(), 5 * MIB)
        large = asyncio.create_task(bodies.turn(share(), 2 * MIB))
        await settled()
        await asyncio.wait_for(bodies.turn(share(), MIB), DEADLINE_S)
        assert not large.done()
        large.cancel()
        await settled()
        assert bodies.waiting == 0


def test_who_waits_too_long_is_told_so_and_leaves_the_line():
    @run
    async def _():
        bodies = budget(2 * MIB, wait_s=0.05)
        await bodies.turn(share(), 2 * MIB)
        with pytest.raises(Unavailable, match=r"found no room within 0\.05 s: other requests take 2097152 of the"):
            await bodies.turn(share(), MIB)
        assert bodies.waiting == 0


def test_one_whose_client_is_silent_loses_its_turn_only_while_others_wait():
    @run
    async def _():
        bodies, evicted = budget(2 * MIB), []
        silent = share(evicted)
        await bodies.turn(silent, 2 * MIB)
        bodies.note(silent, 100)
        await asyncio.sleep(1.5)
        assert not evicted
        waits = asyncio.create_task(bodies.turn(share(), 2 * MIB))
        await until_true(evicted)
        assert [type(error) for error in evicted] == [Unavailable]
        assert not waits.done()  # until the connection has let go
        bodies.keep(silent, 0)
        await asyncio.wait_for(waits, DEADLINE_S)


def test_a_slow_one_loses_its_turn_and_a_steady_one_does_not():
    slow, steady = share(), share()
    for _ in range(40):  # ten seconds
        for one, pace in ((slow, 20_000), (steady, MIB // 4)):
            one.received += pace
            one.check()
    assert (slow.is_slow, steady.is_slow) == (True, False)


def test_first_bytes_of_those_who_wait_take_no_turn_away():
    @run
    async def _():
        bodies = budget(MIB)
        crowd = [share() for _ in range(100)]
        for one in crowd:
            bodies.note(one, SMALL_BYTES)
        assert bodies.held == 100 * SMALL_BYTES
        await asyncio.wait_for(bodies.turn(crowd[0], MIB), DEADLINE_S)
        for one in crowd:
            bodies.keep(one, 0)
        assert bodies.held == 0


def test_what_large_bodies_took_is_given_back_to_the_system_afterwards():
    @run
    async def _():
        given = []
        bodies = BodyBudget(8 * MIB, lambda: None, lambda: given.append(1))
        for size in (MIB, 4 * MIB):
            one = share()
            await bodies.turn(one, size)
            bodies.keep(one, 10)
            bodies.keep(one, 0)
        assert not given
        await until_true(given)
        assert given == [1]


@pytest.mark.parametrize(
    ("text", "times"), [("x", 1), ("é", 2), ("日", 2), ("🙂", 4), ("\\ud83d\\ude42", 4), ("\\n", 1), ("\\u00e9", 2)]
)
def test_what_a_decoded_body_takes_is_not_underestimated(text, times):
    raw = json.dumps({"x": "y" * 100_000}).encode().replace(b"yy", text.encode(), 1)
    held = json.loads(raw)["x"].__sizeof__()
    assert held <= bodies_of_requests._kept_bytes(raw, 1, 0) <= times * len(raw) + 1000


def connect(server):
    sock = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=DEADLINE_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
    return sock


def push(sock, data):
    """As much of it as the server takes now; how much that was."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < len(data):
            sent += sock.send(data[sent : sent + 65536])
    sock.settimeout(DEADLINE_S)
    return sent


def rest(sock):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while block := sock.recv(65536):
            data += block
    return data


def until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_a_crowd_of_unfinished_bodies_is_held_back_and_small_requests_are_answered(server, system, body, says):
    system.scripts[m.Chat] = says("hi", reason="stop")
    bodies = server.app.ctx.bodies
    size = 4 * MIB
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(connect(server)) for _ in range(30)]
        for one in crowd:
            one.sendall(POST % size)
            push(one, b" " * (size - 1))
        until(lambda: bodies.waiting > 20, "most wait")
        # All of them would be 120 MiB; in line each has its first bytes only.
        assert bodies._taken <= 16 * MIB
        assert bodies.held <= 16 * MIB + 30 * 4 * SMALL_BYTES
        started = time.monotonic()
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body()).status_code == 200
        assert time.monotonic() - started < 5
        answers = [json.loads(rest(one).partition(b"\r\n\r\n")[2]) for one in crowd[:4]]
        # They hold the turns and send nothing; or they waited for so long.
        assert {answer["error"]["code"] for answer in answers} == {"unavailable"}
    until(lambda: bodies.held == 0 and not bodies.waiting, "all is given back")


def test_one_that_waits_is_served_when_it_is_its_turn(server, system, body, says):
    system.scripts[m.Chat] = says("hi", reason="stop")
    bodies = server.app.ctx.bodies
    raw = json.dumps(body(metadata={"x": "y" * 5 * MIB})).encode()
    with connect(server) as holder:
        holder.sendall(POST % (15 * MIB) + b" " * MIB)
        until(lambda: bodies.held >= 15 * MIB, "the first has its turn")
        started = time.monotonic()
        answer = httpx.post(f"{server.url}/v1/chat/completions", content=raw, timeout=DEADLINE_S)
        assert answer.status_code == 200
        assert time.monotonic() - started > 0.5
        assert rest(holder).startswith(b"HTTP/1.1 503")
    until(lambda: bodies.held == 0, "all is given back")


def test_a_body_in_chunks_waits_like_any_other(server):
    bodies = server.app.ctx.bodies
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with connect(server) as one, connect(server) as other:
        for sock in (one, other):
            sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            push(sock, chunk * 4)
        until(lambda: bodies.waiting == 1, "the second waits")
        assert b"503 Service Unavailable" in rest(one)
        until(lambda: bodies.waiting == 0, "it is its turn")


def test_the_raw_body_is_let_go_before_the_answer_is_waited_for(server, system, body):
    chats = []
    system.scripts[m.Chat] = chats.append
    bodies = server.app.ctx.bodies
    raw = json.dumps(body(stream=True, padding="x" * 3 * MIB, messages=[{"role": "user", "content": "é" * 1000}]))
    with connect(server) as sock:
        sock.sendall(POST % len(raw) + raw.encode())
        until(lambda: chats, "the chat has begun")
        (connection,) = server.app.ctx.sweeper.connections
        assert connection.http.request.body == b""
        assert bodies.held > 0
        chats[0].reply.send(Finished("stop", Usage()))
        until(lambda: bodies.held == 0, "the request is not kept after its answer")


def test_memory_that_is_full_is_told_before_the_body_is_sent(server, status, system):
    server.app.ctx.state.sample = status(percent=99.99).sample  # 13 MiB are free
    with connect(server) as sock:
        sock.sendall(POST.replace(b"Host", b"Expect: 100-continue\r\nHost") % (8 * MIB))
        head, _, text = rest_of_answer(sock)
    assert head.startswith(b"HTTP/1.1 503")  # and no 100 before it
    assert b"Retry-After" in head
    assert "memory is so full" in json.loads(text)["error"]["message"]


def rest_of_answer(sock):
    data = b""
    while not data.endswith(b"}"):
        data += sock.recv(65536)
    return data.rpartition(b"\r\n\r\n")


def test_the_rest_of_a_refused_body_is_dropped_unread_and_the_connection_goes_on(server, status):
    server.app.ctx.state.sample = status(percent=99.99).sample
    size = 8 * MIB
    with connect(server) as sock:
        sock.sendall(
            POST % size + b" " * size + b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        answers = rest(sock)
    assert answers.startswith(b"HTTP/1.1 503")
    assert b"HTTP/1.1 200" in answers


def test_large_bodies_are_decoded_one_by_one_and_the_loop_runs_in_between():
    @run
    async def _():
        bodies, seen = budget(MIB), []

        async def decode(name):
            await bodies.let_others_run()
            seen.append(name)

        async def others():
            for _ in range(20):
                seen.append(".")
                await asyncio.sleep(0)

        await asyncio.gather(others(), *(decode(name) for name in "abcd"))
        assert [name for name in seen if name != "."] == list("abcd")
        text = "".join(seen)
        assert not any(pair in text for pair in ("ab", "bc", "cd"))


@pytest.mark.parametrize("piece", [1000, 100_000, 5 * MIB])
def test_a_large_body_arrives_whole_however_it_is_cut_and_what_follows_it_is_another_request(
    server, system, body, says, piece
):
    system.scripts[m.Chat] = says("hi", reason="stop")
    text = "".join(f"{number}," for number in range(200_000))
    raw = json.dumps(body(messages=[{"role": "user", "content": text}])).encode()
    sent = POST % len(raw) + raw + b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    with connect(server) as sock:
        for start in range(0, len(sent), piece):
            sock.sendall(sent[start : start + piece])
        answers = rest(sock)
    assert answers.count(b"HTTP/1.1 200") == 2
    assert system.hears(m.Chat).request.messages[0]["content"] == text
