"""The worker protocol: length-prefixed MessagePack frames over one socket.

A frame is a 4-byte big-endian length and one tagged ``msgspec`` struct. The front sends ``Command``s, the worker
sends ``Event``s. A worker serves one model: after any ``ReadAhead`` the first command is ``LoadModel`` (or
``FetchModel``), and ``Ready`` or ``LoadError`` answers it. Every ``Generate`` is answered by any number of entries in
``Step.texts`` and by exactly one ending: an entry in ``Step.endings`` or a ``RequestError``.
"""

import struct
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from plimsoll.catalog.source import Group, ModelSource
from plimsoll.engine.group.group_ops import Op
from plimsoll.engine.worker_link import Link

MAX_FRAME_BYTES = 256 * 1024 * 1024
MAX_INPUTS = 2048
"""Texts in one ``EmbedRequest``, as OpenAI has it, or documents of a ``RerankRequest``: all are in memory together."""
_LENGTH = struct.Struct(">I")


class _Frame(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Frames are arrays on the wire: new fields go last and get a default."""


class EngineOptions(msgspec.Struct, frozen=True):
    """How a worker runs its model; ``kv_bytes`` is what all its KV caches together may take, 0 for no bound.

    With ``kv_lease`` that is only the beginning: the worker asks for more by ``LeaseWanted``, and never gets more than
    ``kv_most_bytes``. ``prompt_cache_bytes`` of these are for kept ones at most; None is all that running requests
    leave. ``chat_template`` is the file of one in the place of the model's. ``wired_bytes`` is what a GPU's worker may
    wire: None for what the model needs, 0 for nothing. ``prompt_lookup``: tokens may be drafted from what an answer
    repeats.
    """

    cache_dir: str
    kv_bytes: int = 0
    offline: bool = False
    context: int | None = None
    max_batch: int = 16
    prefill_chunk: int | None = None
    prompt_cache_bytes: int | None = None
    dequantize: bool = False
    adapter: str = ""
    embeddings: bool = False
    disk_cache_bytes: int = 0
    wired_bytes: int | None = None
    chat_template: str = ""
    kv_lease: bool = False
    kv_most_bytes: int = 0
    prompt_lookup: bool = True


LEAST_TOP_P = 1e-6
"""A ``top_p`` with which only the likeliest token is left: what a client means by 0.

A smaller one underflows to 0 in float32, which would drop even that token.
"""


class Sampling(msgspec.Struct, frozen=True):
    """How the next token is chosen. ``temperature`` 0 is greedy; a ``seed`` makes the answer repeatable.

    Clients may give a ``top_p`` of 0, which becomes ``LEAST_TOP_P``, and a ``top_k`` of -1, which is off like 0.
    """

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=0)] = 0
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] = 1.0
    seed: int | None = None
    logit_bias: dict[int, float] = {}

    def __post_init__(self) -> None:
        if self.top_p < LEAST_TOP_P or self.top_k < 0:
            msgspec.structs.force_setattr(self, "top_p", max(self.top_p, LEAST_TOP_P))
            msgspec.structs.force_setattr(self, "top_k", max(self.top_k, 0))


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call; ``strict`` calls follow ``parameters``, a JSON schema, to the letter.

    A tool ``in_messages`` is told of by a message, so the chat template is not to tell of it as well.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = False
    in_messages: bool = False


class Format(msgspec.Struct, frozen=True):
    """The form of the whole answer: any JSON object, or what ``schema`` (a JSON schema) allows."""

    schema: dict[str, Any] | None = None


class ChatRequest(msgspec.Struct, frozen=True, tag="chat"):
    """One answer to generate; what every API's chat and completion requests are translated into.

    ``max_tokens`` unset means up to the end of the context. ``prompt`` is text, or token ids, that is read as it is,
    without the chat template and instead of ``messages``; with a ``suffix`` the answer is what stands between the two.
    ``tool_choice`` is auto, none, required or the name of one tool.
    ``logprobs`` asks for the chosen tokens' log-probabilities and those of that many alternatives; with
    ``score_prompt`` also for those of the prompt's tokens, and ``max_tokens`` may be 0. ``thinking`` unset leaves it to
    the model's template. ``count_only`` ends at once with the prompt's tokens in the usage. ``continue_last`` has the
    answer go on with the last message, which is the assistant's. ``thinking_budget`` is how many tokens the model may
    think; None is without a bound. ``given`` names the values of ``sampling`` that the client gave: others are the
    model's own where it has some. None means that all were given.
    """

    messages: list[dict[str, Any]]
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    prompt: str | list[int] | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    format: Format | None = None
    logprobs: int | None = None
    thinking: bool | None = None
    template_kwargs: dict[str, Any] = {}
    count_only: bool = False
    continue_last: bool = False
    thinking_budget: int | None = None
    given: tuple[str, ...] | None = None
    suffix: str = ""
    score_prompt: bool = False


class EmbedRequest(msgspec.Struct, frozen=True, tag="embed"):
    """Texts, or in their place token ids, to turn into one vector each; ``dimensions`` cuts the vectors short.

    What is too long is refused, or cut where ``truncate`` says so.
    """

    texts: list[str] = []
    tokens: list[list[int]] = []
    dimensions: int | None = None
    truncate: bool = False


class RerankRequest(msgspec.Struct, frozen=True, tag="rerank"):
    """Documents that a cross encoder scores by how well each answers ``query``.

    A document that is too long beside the query is cut; a query that leaves no room for one is refused.
    """

    query: str
    documents: list[str]


Request = ChatRequest | EmbedRequest | RerankRequest


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One chosen token with its natural log-probability, and the likeliest alternatives (text, logprob).

    ``part`` has the token's bytes where they are only a part of a character, which ``text`` can't show; ``top_parts``
    has those of such alternatives, by their index.
    """

    text: str
    logprob: float
    top: list[tuple[str, float]] = []
    part: bytes = b""
    top_parts: dict[int, bytes] = {}

    @property
    def encoded(self) -> bytes:
        return self.part or self.text.encode()

    @property
    def alternatives(self) -> list[tuple[str, float, bytes]]:
        """Text, logprob and bytes of each of ``top``."""
        parts = self.top_parts
        return [(text, value, parts.get(at) or text.encode()) for at, (text, value) in enumerate(self.top)]


class ToolCallPart(msgspec.Struct, frozen=True, array_like=True):
    """Part of call number ``index`` of a request: ``name`` with its first part, ``arguments`` are pieces of JSON."""

    request_id: str
    index: int
    name: str = ""
    arguments: str = ""


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one finished request; ``cached_tokens`` of the prompt were not read again.

    They came from ``cached_from`` (``running row``, ``memory``, ``disk`` or empty), and the prompt left the closest
    known conversation after ``left_at`` tokens, in the middle of ``left_text``.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cached_from: str = ""
    left_at: int = 0
    left_text: str = ""


class ModelInfo(msgspec.Struct, frozen=True):
    """What a loaded model is; ``blas`` names the CPU's matrix library or is empty on a GPU.

    ``working_set_bytes`` is what the accelerator recommends to use at most, 0 on a CPU. ``longest`` is the longest
    conversation that ever fits, in tokens, 0 where the worker does not say. ``sampling`` has, for each value that a
    request may leave out, the ``value`` that holds then and where it is ``from``.
    """

    context: int
    vocab_size: int
    weights_bytes: int
    device: str
    dtype: str
    blas: str = ""
    load_s: float = 0.0
    working_set_bytes: int = 0
    longest: int = 0
    sampling: dict[str, dict[str, Any]] = {}


# ---- commands: front to worker


class JoinGroup(_Frame, frozen=True):
    """Become rank ``rank`` of ``group``; said before ``LoadModel`` and answered by ``HostMemory``.

    ``ports`` are the ranks' own for the ring, or the coordinator's alone.
    """

    group: Group
    rank: int
    ports: list[int]


class LoadModel(_Frame, frozen=True):
    """``share_bytes`` is what one rank takes on its host, with its KV caches, where the model is a group's."""

    source: ModelSource
    options: EngineOptions
    share_bytes: int = 0


class ReadAhead(_Frame, frozen=True):
    """To a worker that waits: this model is likely to be loaded soon. Not answered."""

    source: ModelSource
    cache_dir: str


class FetchModel(_Frame, frozen=True):
    """Bring the model's files here, answer ``Fetched`` and exit; nothing is loaded."""

    source: ModelSource
    options: EngineOptions


class Generate(_Frame, frozen=True):
    """Answer ``request``; ``so_far`` holds the answer's tokens that an earlier worker has sent already.

    The answer goes on behind them: they count as its own in every respect, and nothing of them is sent again.
    """

    id: str
    request: Request
    so_far: tuple[int, ...] = ()


class CancelRequest(_Frame, frozen=True):
    id: str


class TrimCaches(_Frame, frozen=True):
    """Give back what can be computed again: prompt caches, garbage, the allocator's cache."""


class Lease(_Frame, frozen=True):
    """The KV caches may take ``kv_bytes`` from now on, and will never get more than ``most_bytes``.

    Answers ``LeaseWanted``. ``more`` is False if nothing that runs could free memory for this worker.
    """

    kv_bytes: int
    most_bytes: int
    more: bool = True


class GiveWay(_Frame, frozen=True):
    """Another model needs memory: drop stored prefixes, and hand back by ``LeaseWanted`` what no request uses."""


class Shutdown(_Frame, frozen=True):
    """Drop the model and exit; open requests are not answered any more."""


class Replay(_Frame, frozen=True):
    """The first rank of a group sends it as an event, the others get it as a command and do the same."""

    op: Op


Command = (
    LoadModel
    | ReadAhead
    | FetchModel
    | Generate
    | CancelRequest
    | TrimCaches
    | Lease
    | GiveWay
    | Shutdown
    | JoinGroup
    | Replay
)

# ---- events: worker to front


class LoadProgress(_Frame, frozen=True):
    """``stage`` is fetch, convert or read; ``total`` 0 means not known yet. Units: bytes."""

    stage: str
    done: int
    total: int


class Fetched(_Frame, frozen=True):
    """The model's files are all here."""


class Ready(_Frame, frozen=True):
    info: ModelInfo


class LoadError(_Frame, frozen=True):
    """The load failed and the worker exits. ``kind`` ``memory`` means it ran out of memory.

    ``host_full`` and ``host_never``: a host of its group has no room for its share, now or whatever is unloaded.
    """

    kind: Literal["memory", "load", "host_full", "host_never"]
    message: str


class Step(_Frame, frozen=True):
    """One decode step for the whole batch.

    ``texts`` holds (request id, text, tokens so far); text may be empty while a character or a stop string is
    incomplete. ``endings`` holds (request id, finish reason ``stop`` | ``length`` | ``tool_calls`` | ``cancelled``,
    usage). ``reasoning`` is as ``texts``, for what the model thinks before it answers; ``calls`` are parts of tool
    calls; ``logprobs`` holds (request id, chosen tokens) where they were asked for; ``stops`` holds (request id, stop
    string) for endings by one of the client's own. ``prompts`` holds (request id, tokens of the prompt) with the first
    token of an answer or its ending, where the prompt was to be scored; the first token's log-probability says nothing.
    For one request the order is prompts, reasoning, texts, logprobs, calls, ending.

    ``tokens`` holds (request id, token id) for each new token of an answer, in order. With the tokens of all frames so
    far another worker can carry the answer on (``Generate.so_far``).
    """

    texts: list[tuple[str, str, int]]
    endings: list[tuple[str, str, Usage]] = []
    reasoning: list[tuple[str, str, int]] = []
    calls: list[ToolCallPart] = []
    logprobs: list[tuple[str, list[TokenLogprob]]] = []
    stops: list[tuple[str, str]] = []
    tokens: list[tuple[str, int]] = []
    prompts: list[tuple[str, list[TokenLogprob]]] = []


class Embedded(_Frame, frozen=True):
    """The vectors of one ``EmbedRequest``: float32, little-endian, row after row; this is its ending.

    Those of a ``RerankRequest`` have one number each, the document's score as a logit.
    """

    id: str
    vectors: bytes
    dimensions: int
    usage: Usage


class PrefillProgress(_Frame, frozen=True):
    id: str
    done: int
    total: int


class RequestError(_Frame, frozen=True):
    """One request can't be served; the others go on. ``code`` is a code of ``plimsoll.errors``."""

    id: str
    code: Literal[
        "invalid_value", "context_length_exceeded", "insufficient_memory", "never_fits", "queue_full", "internal_error"
    ]
    message: str
    param: str | None = None


class EngineError(_Frame, frozen=True):
    """The engine raised: every open request has failed and the worker exits, for it may be poisoned.

    ``host``: another host of its group is out of memory.
    """

    kind: Literal["memory", "engine", "host"]
    message: str


class HostMemory(_Frame, frozen=True):
    """What the host of a rank says of its memory: (source, total, used), bytes; the front knows the host's name.

    ``device`` is what MLX computes on there.
    """

    readings: list[tuple[str, int, int]]
    device: Literal["cpu", "gpu"]
    host: str = ""


class LeaseWanted(_Frame, frozen=True):
    """The KV caches want room for ``kv_bytes`` in all; with less than ``needed_bytes`` a request has to wait.

    A ``Lease`` answers it, unless it is no more than the lease: then the rest is handed back with it. ``longest`` is
    the longest conversation that ever fits, in tokens, as it was measured so far.
    """

    kv_bytes: int
    needed_bytes: int = 0
    longest: int = 0


class Held(_Frame, frozen=True):
    """The request waits for memory: it needs room for ``needed_bytes``, and ``room_bytes`` are leased."""

    id: str
    room_bytes: int
    needed_bytes: int


class Trimmed(_Frame, frozen=True):
    """The answer to ``TrimCaches``: bytes that MLX holds in arrays and in its cache, afterwards."""

    active_bytes: int
    cache_bytes: int


Event = (
    LoadProgress
    | Fetched
    | Ready
    | LoadError
    | Step
    | PrefillProgress
    | RequestError
    | EngineError
    | Trimmed
    | Embedded
    | Replay
    | HostMemory
    | LeaseWanted
    | Held
)

_encoder = msgspec.msgpack.Encoder()
_commands = msgspec.msgpack.Decoder(Command)
_events = msgspec.msgpack.Decoder(Event)


class ProtocolError(Exception):
    """The peer sent something that is no frame."""


def encode(frame: Command | Event) -> bytes:
    """One frame with its length."""
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


def read_commands(link: Link) -> Iterator[tuple[Command, int]]:
    """Commands until the peer closes, each with its frame's length in bytes. Raises ``ProtocolError`` for a bad one."""
    return _read(link, _commands)


def read_events(link: Link) -> Iterator[Event]:
    """Events until the peer closes. Raises ``ProtocolError`` for a malformed one."""
    return (event for event, _ in _read(link, _events))


def _read(link: Link, decoder: "msgspec.msgpack.Decoder[Any]") -> Iterator[tuple[Any, int]]:
    with link.makefile("rb", buffering=1 << 16) as stream:
        while len(head := stream.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame of {length} bytes is above the bound of {MAX_FRAME_BYTES}")
            body = stream.read(length)
            if len(body) < length:
                return
            try:
                yield decoder.decode(body), length
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"malformed frame: {error}") from None
