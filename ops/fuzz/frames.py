"""Broken frames of the worker protocol, both ways, through a real socket: a frame, or ``ProtocolError``."""

import socket
from collections.abc import Iterator
from typing import Any

import harness
import msgspec
from mutate import Mutator

from plimsoll.catalog.source import ModelSource
from plimsoll.engine import protocol as p

_CHAT = p.ChatRequest(
    [{"role": "user", "content": "hello"}, {"role": "tool", "content": [{"type": "text", "text": "1"}]}],
    p.Sampling(0.5, seed=7, logit_bias={5: 1.5}),
    max_tokens=20,
    stop=("a", "b"),
    tools=(p.Tool("f", "does", {"type": "object", "properties": {"a": {"type": "string"}}}),),
    format=p.Format({"type": "object"}),
    template_kwargs={"mood": [1, None, {"deep": True}]},
)
_SOURCE = ModelSource("m", "folder", "/models/m", "/adapter")
COMMANDS: list[p.Command] = [
    p.LoadModel(_SOURCE, p.EngineOptions("/cache", 1 << 30, context=4096)),
    p.FetchModel(_SOURCE, p.EngineOptions("/cache")),
    p.Generate("a", _CHAT),
    p.Generate("b", p.EmbedRequest(["x", "y"], dimensions=8)),
    p.Generate("c", p.RerankRequest("x", ["y", "z"])),
    p.CancelRequest("a"),
    p.TrimCaches(),
    p.Shutdown(),
]
EVENTS: list[p.Event] = [
    p.LoadProgress("read", 1, 2),
    p.Fetched(),
    p.Ready(p.ModelInfo(4096, 600, 1 << 33, "cpu", "4-bit, float32", "openblas", 1.5)),
    p.LoadError("memory", "no"),
    p.Step(
        [("a", "héllo 🙂", 3), ("b", "", 4)],
        [("a", "stop", p.Usage(1, 3, 0))],
        [("c", "hm", 1)],
        [p.ToolCallPart("d", 0, "f", '{"a":')],
        [("e", [p.TokenLogprob("x", -0.5, [("y", -1.0)])])],
        [("a", "END")],
    ),
    p.Embedded("a", b"\0" * 64, 16, p.Usage(4)),
    p.PrefillProgress("a", 64, 1000),
    p.RequestError("a", "never_fits", "no", "messages"),
    p.EngineError("engine", "no"),
    p.Trimmed(1, 2),
]


def _read_commands(link: socket.socket) -> Iterator[p.Command]:
    return (command for command, _ in p.read_commands(link))


def case(mutator: Mutator) -> str:
    """Some frames with something broken, sent and read."""
    rnd = mutator.random
    frames, read = rnd.choice(((COMMANDS, _read_commands), (EVENTS, p.read_events)))
    chosen: list[Any] = [rnd.choice(frames) for _ in range(rnd.choice((1, 1, 2, 4)))]
    kind = rnd.randrange(3)
    if kind == 0:
        stream = mutator.bytes(b"".join(map(p.encode, chosen)))
    else:
        bodies = [p.encode(frame)[4:] for frame in chosen]
        broken = bodies.pop()
        bodies.append(mutator.bytes(broken) if kind == 1 else _rebuilt(mutator, broken))
        stream = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.sendall(stream[: 1 << 17])
        theirs.shutdown(socket.SHUT_WR)
        try:
            got = list(read(ours))
        except p.ProtocolError:
            return "refused"
    for frame in (one[0] if isinstance(one, tuple) else one for one in got):
        p.encode(frame)  # what was taken can be sent on
    return "read"


def _rebuilt(mutator: Mutator, body: bytes) -> bytes:
    try:
        return msgspec.msgpack.encode(mutator.structure(msgspec.msgpack.decode(body)))
    except (OverflowError, TypeError, ValueError, RecursionError):  # what was made has no form in MessagePack
        return mutator.bytes(body)


if __name__ == "__main__":
    harness.main("frames", case)
