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

from plimsoll.engine.link import Link
from plimsoll.engine.row_ops import Op

MAX_FRAME_BYTES = 256 * 1024 * 1024
MAX_INPUTS = 2048
"""Texts in one ``EmbedRequest``, as OpenAI has it: their vectors are in memory together."""
_LENGTH = struct.Struct(">I")


class _Frame(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Frames are arrays on the wire: new fields go last and get a default."""


class ModelSource(msgspec.Struct, frozen=True):
    """Where a model's files come from.

    ``location`` is a folder of MLX files (``folder``), a file (``gguf``), a Hugging Face repo id (``repo``), a
    package name (``builtin``) or the switches of the fake engine (``fake``). ``adapter`` is the folder
    of a LoRA adapter.
    """

    name: str
    kind: Literal["folder", "gguf", "repo", "builtin", "fake"]
    location: str
    adapter: str = ""


class EngineOptions(msgspec.Struct, frozen=True):
    """How a worker runs its model; ``kv_bytes`` is what all its KV caches together may take, 0 for no bound."""

    cache_dir: str
    kv_bytes: int = 0
    offline: bool = False
    context: int | None = None
    max_batch: int = 16
    prefill_chunk: int | None = None
    prompt_cache_bytes: int = 512 * 1024 * 1024
    dequantize: bool = False
    adapter: str = ""
    embeddings: bool = False
    disk_cache_bytes: int = 0


class GroupHost(msgspec.Struct, frozen=True):
    """A host of a worker group: ``name`` for the remote shell, ``address`` for the others' traffic.

    ``rdma`` names its device towards each host of the group (jaccl only), None towards itself; ``here`` is the machine
    of the front.
    """

    name: str
    address: str
    rdma: tuple[str | None, ...] = ()
    here: bool = False


class Group(msgspec.Struct, frozen=True):
    """A model that several processes serve together, one on each of ``hosts``; the first one is this machine."""

    hosts: tuple[GroupHost, ...]
    backend: Literal["ring", "jaccl"]
    split: Literal["tensor", "pipeline"]


class Sampling(msgspec.Struct, frozen=True):
    """How the next token is chosen. ``temperature`` 0 is greedy; a ``seed`` makes the answer repeatable."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 1.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=0)] = 0
    min_p: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    presence_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, msgspec.Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=10)] = 1.0
    seed: int | None = None
    logit_bias: dict[int, float] = {}


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = {}


class Format(msgspec.Struct, frozen=True):
    """The form of the whole answer: any JSON object, or what ``schema`` (a JSON schema) allows."""

    schema: dict[str, Any] | None = None


class ChatRequest(msgspec.Struct, frozen=True, tag="chat"):
    """One answer to generate; what every API's chat and completion requests are translated into.

    ``max_tokens`` unset means up to the end of the context. ``prompt`` is text that is read as it is, without the
    chat template and instead of ``messages``. ``tool_choice`` is auto, none, required or the name of one tool.
    ``logprobs`` asks for the chosen tokens' log-probabilities and those of that many alternatives. ``thinking`` unset
    leaves it to the model's template. ``count_only`` ends at once with the prompt's tokens in the usage.
    """

    messages: list[dict[str, Any]]
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    prompt: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    format: Format | None = None
    logprobs: int | None = None
    thinking: bool | None = None
    template_kwargs: dict[str, Any] = {}
    count_only: bool = False


class EmbedRequest(msgspec.Struct, frozen=True, tag="embed"):
    """Texts, or in their place token ids, to turn into one vector each; ``dimensions`` cuts the vectors short.

    What is too long is refused, or cut where ``truncate`` says so.
    """

    texts: list[str] = []
    tokens: list[list[int]] = []
    dimensions: int | None = None
    truncate: bool = False


Request = ChatRequest | EmbedRequest


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One chosen token with its natural log-probability, and the likeliest alternatives (text, logprob)."""

    text: str
    logprob: float
    top: list[tuple[str, float]] = []


class ToolCallPart(msgspec.Struct, frozen=True, array_like=True):
    """Part of call number ``index`` of a request: ``name`` with its first part, ``arguments`` are pieces of JSON."""

    request_id: str
    index: int
    name: str = ""
    arguments: str = ""


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one finished request; ``cached_tokens`` of the prompt came out of the prompt cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class ModelInfo(msgspec.Struct, frozen=True):
    """What a loaded model is; ``blas`` names the CPU's matrix library or is empty on a GPU.

    ``working_set_bytes`` is what the accelerator recommends to use at most, 0 on a CPU.
    """

    context: int
    vocab_size: int
    weights_bytes: int
    device: str
    dtype: str
    blas: str = ""
    load_s: float = 0.0
    working_set_bytes: int = 0


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
    id: str
    request: Request


class CancelRequest(_Frame, frozen=True):
    id: str


class TrimCaches(_Frame, frozen=True):
    """Give back what can be computed again: prompt caches, garbage, the allocator's cache."""


class Shutdown(_Frame, frozen=True):
    """Drop the model and exit; open requests are not answered any more."""


class Replay(_Frame, frozen=True):
    """The first rank of a group sends it as an event, the others get it as a command and do the same."""

    op: Op


Command = LoadModel | ReadAhead | FetchModel | Generate | CancelRequest | TrimCaches | Shutdown | JoinGroup | Replay

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
    string) for endings by one of the client's own. For one request the order is
    reasoning, texts, logprobs, calls, ending.
    """

    texts: list[tuple[str, str, int]]
    endings: list[tuple[str, str, Usage]] = []
    reasoning: list[tuple[str, str, int]] = []
    calls: list[ToolCallPart] = []
    logprobs: list[tuple[str, list[TokenLogprob]]] = []
    stops: list[tuple[str, str]] = []


class Embedded(_Frame, frozen=True):
    """The vectors of one ``EmbedRequest``: float32, little-endian, row after row; this is its ending."""

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
    code: Literal["invalid_value", "context_length_exceeded", "insufficient_memory", "never_fits", "internal_error"]
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


def read_commands(link: Link) -> Iterator[Command]:
    """Commands until the peer closes. Raises ``ProtocolError`` for a malformed one."""
    return _read(link, _commands)


def read_events(link: Link) -> Iterator[Event]:
    """Events until the peer closes. Raises ``ProtocolError`` for a malformed one."""
    return _read(link, _events)


def _read(link: Link, decoder: "msgspec.msgpack.Decoder[Any]") -> Iterator[Any]:
    with link.makefile("rb", buffering=1 << 16) as stream:
        while len(head := stream.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame of {length} bytes is above the bound of {MAX_FRAME_BYTES}")
            body = stream.read(length)
            if len(body) < length:
                return
            try:
                yield decoder.decode(body)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"malformed frame: {error}") from None
