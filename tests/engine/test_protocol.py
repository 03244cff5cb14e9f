"""Frames on a real socket."""

import contextlib
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.engine import protocol as p


def through(data: bytes) -> list[p.Event]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        return list(p.read_events(theirs))


def test_events_arrive_as_they_were_sent() -> None:
    sent: list[p.Event] = [
        p.LoadProgress("read", 1, 2),
        p.Ready(p.ModelInfo(4096, 600, 1, "cpu", "float32")),
        p.Step([("a", "héllo 🙂", 3)], [("a", "stop", p.Usage(1, 3, 0))]),
        p.RequestError("b", "invalid_value", "no", "messages"),
        p.Trimmed(1, 2),
    ]
    assert through(b"".join(map(p.encode, sent))) == sent


def test_a_frame_cut_short_by_the_end_of_the_worker_is_no_event() -> None:
    whole = p.encode(p.LoadProgress("read", 1, 2))
    assert through(whole + whole[:-1]) == [p.LoadProgress("read", 1, 2)]


def test_a_length_above_the_bound_is_refused_before_anything_is_read() -> None:
    with pytest.raises(p.ProtocolError, match="above the bound"):
        through(b"\xff\xff\xff\xff")


@given(st.binary(max_size=200))
def test_rubbish_is_a_protocol_error_or_the_end_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(p.ProtocolError):
        through(data)


def test_a_frame_that_is_nested_too_deeply_is_a_protocol_error() -> None:
    """The decoder raises RecursionError, which ended the reader without a word."""
    frame = p.encode(p.Generate("a", p.ChatRequest([{"role": "user", "content": "X"}])))[4:]
    body = frame.replace(b"\xa1X", b"\x91" * 100_000 + b"\xc0")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(len(body).to_bytes(4, "big") + body)
        with pytest.raises(p.ProtocolError, match="malformed frame"):
            list(p.read_commands(theirs))


def test_text_that_is_not_utf_8_is_a_protocol_error() -> None:
    """The decoder raises UnicodeDecodeError, which is none of its own errors."""
    frame = p.encode(p.RequestError("a", "internal_error", "XX"))
    with pytest.raises(p.ProtocolError, match="malformed frame"):
        through(frame.replace(b"XX", b"\xff\xfe"))


def test_a_command_comes_with_the_size_of_its_frame() -> None:
    """The reader encoded every conversation once more to know how long it is."""
    command = p.Generate("a", p.ChatRequest([{"role": "user", "content": "X" * 1000}]))
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(p.encode(command))
        assert list(p.read_commands(theirs)) == [(command, len(p.encode(command)) - 4)]
