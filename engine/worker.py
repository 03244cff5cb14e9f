"""The child process that owns one model: ``python -m plimsoll.engine.worker FD [warm]``.

Two threads. The reader parses commands and tokenises. The main thread is the step thread: it owns every MLX object,
runs the batch and is the one that writes to the socket (a rank of a group has a third, for its host's memory). The
process ends when the socket closes, so no worker outlives the front. With ``stdio`` for FD its standard input and
output are the link: so it runs behind a remote shell.
"""

import contextlib
import gc
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from plimsoll.engine.engine import Engine, Progress
from plimsoll.engine.link import Link, Stdio
from plimsoll.engine.protocol import (
    CancelRequest,
    Command,
    EngineError,
    EngineOptions,
    Event,
    Fetched,
    FetchModel,
    Generate,
    JoinGroup,
    LoadError,
    LoadModel,
    LoadProgress,
    ModelSource,
    ProtocolError,
    ReadAhead,
    Ready,
    Replay,
    RequestError,
    Shutdown,
    Step,
    TrimCaches,
    Trimmed,
    encode,
    read_commands,
)
from plimsoll.errors import BadRequest, ContextTooLong

if TYPE_CHECKING:
    from plimsoll.engine.follower import Follower
    from plimsoll.engine.rank import Rank
    from plimsoll.engine.tokenizers import TokenizerReader

# The kernel's OOM killer takes the process with the highest score: a worker, never the front.
_OOM_SCORE_ADJ = "800"

# A request that comes to an idle engine waits this long for others, and so long if they go on coming.
_GATHER_S = 0.005
_GATHER_MOST_S = 0.05
# Silence after which a worker has time to put things away.
_IDLE_S = 1.0

_OUT_OF_MEMORY = (
    "[malloc] Unable to allocate",
    "[metal::malloc]",
    "Insufficient Memory",
    "kIOGPUCommandBufferCallbackErrorOutOfMemory",
    "out of memory",
)


class _Prepared:
    """A tokenised request on its way from the reader to the step thread."""

    def __init__(self, request_id: str, prompt: Any) -> None:
        self.id = request_id
        self.prompt = prompt


_NOTHING = Step([])
# Steps without anything to tell (long prefills of embeddings, parts of a tool call) still show that there are steps.
_QUIET_S = 1.0

_Job = Command | RequestError | _Prepared


def main() -> None:
    """Serve one model on the link that the first argument names."""
    link = Stdio() if sys.argv[1] == "stdio" else socket.socket(fileno=int(sys.argv[1]))
    # A stray print of any library must not end up in the user's terminal as an answer would.
    os.dup2(2, 1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ)
    Worker(link).run(warm="warm" in sys.argv[2:])
    # Not sys.exit: tearing down an interpreter with MLX in it takes time, and the kernel frees it all the same.
    sys.stderr.flush()
    os._exit(0)


class Worker:
    """One connection, one engine."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._engine: Engine | None = None
        self._tokenizers: TokenizerReader | None = None
        self._rank: Rank | None = None
        self._sending = threading.Lock()  # a rank tells its host's memory from a thread of its own
        self._tidying = False
        self._sent_s = time.monotonic()

    def run(self, *, warm: bool = False) -> None:
        """Load, then step until told to stop; every failure is told to the front before the process ends.

        A ``warm`` worker does its imports before it is told what to load: they are most of a small model's load.
        """
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        # Where a hard end is clean (Linux), SIGTERM keeps its default and is instant. Metal wants an orderly one.
        if sys.platform == "darwin":
            signal.signal(signal.SIGTERM, lambda *_: self._jobs.put(Shutdown()))
        if warm:
            import plimsoll.engine.mlx_engine  # noqa: F401, PLC0415 - on this thread, which will use it
            from plimsoll.engine.tokenizers import TokenizerReader  # noqa: PLC0415 - the same

            gc.freeze()  # nobody waits now: the collection after the load need not look at all this
            self._tokenizers = TokenizerReader()
        while isinstance(load := self._jobs.get(), ReadAhead):
            self._read_ahead(load)
        if isinstance(load, JoinGroup):
            from plimsoll.engine.rank import Rank  # noqa: PLC0415 - most workers are in no group

            self._rank = Rank(load, self._write)
            load = self._jobs.get()
        if not isinstance(load, LoadModel | FetchModel):
            return
        try:
            if isinstance(load, FetchModel):
                self._fetch(load)
                return
            self._load(load)
        except Exception as error:  # noqa: BLE001 - whatever a model's files make a library raise
            self._send(LoadError("memory" if _is_out_of_memory(error) else "load", describe(error)))
            return
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - a poisoned stream is never stepped again
            kind: Literal["memory", "engine"] = "memory" if _is_out_of_memory(error) else "engine"
            self._send(EngineError(kind, describe(error)))

    # ---- reader thread

    def _read(self) -> None:
        try:
            for command in read_commands(self._link):
                self._jobs.put(self._prepare(command) if isinstance(command, Generate) else command)
        except (ProtocolError, OSError) as error:
            sys.stderr.write(f"plimsoll worker: {error}\n")
        finally:
            # The front is gone, or talks rubbish. The step thread may be inside MLX for a long time: don't wait for it.
            os._exit(0)

    def _prepare(self, command: Generate) -> _Job:
        engine = self._engine
        if engine is None:
            # Waiting here would keep this thread from seeing that the front is gone.
            return RequestError(command.id, "internal_error", "the model is not loaded yet")
        try:
            return _Prepared(command.id, engine.prepare(command.request))
        except BadRequest as error:
            code: Any = "context_length_exceeded" if isinstance(error, ContextTooLong) else "invalid_value"
            return RequestError(command.id, code, error.message, error.param)
        except BaseException as error:  # noqa: BLE001 - a tokenizer that panics in Rust raises no Exception
            return RequestError(command.id, "internal_error", f"the prompt can't be tokenised: {describe(error)}")

    # ---- step thread

    def _read_ahead(self, command: ReadAhead) -> None:
        from plimsoll.catalog.files import local_folder  # noqa: PLC0415 - a fake engine starts without it

        # Whatever is wrong with the files is told when the model is loaded.
        with contextlib.suppress(OSError):
            folder = local_folder(command.source, Path(command.cache_dir))
            if folder and self._tokenizers:
                self._tokenizers.read(folder)

    def _fetch(self, command: FetchModel) -> None:
        _resolve(command.source, command.options, self._progress)
        self._send(Fetched())

    def _load(self, command: LoadModel) -> None:
        source, options = command.source, command.options
        engine: Engine
        if source.kind == "fake":
            from plimsoll.engine.fake_engine import FakeEngine  # noqa: PLC0415 - without MLX it starts in 0.1 s

            engine, path = FakeEngine(source.location), Path()
        else:
            path = _resolve(source, options, self._progress)
            engine = choose_engine(path, options, self._tokenizers, self._rank)
        info = engine.load(path, self._progress)
        # What loading left behind is garbage that lives as long as the process: collect it once, here.
        gc.collect()
        gc.freeze()
        self._engine = engine
        self._send(Ready(info))

    def _progress(self, stage: str, done: int, total: int) -> None:
        self._send(LoadProgress(stage, done, total))

    def _serve(self) -> None:
        engine = self._engine
        assert engine is not None  # noqa: S101 - loaded before
        while True:
            if not self._take_jobs(engine):
                engine.close()
                return
            for event in engine.step():
                self._send(event)
            self._send(_NOTHING)

    def _take_jobs(self, engine: Engine) -> bool:
        """Everything that waits, and at least one job when there is nothing to step. False on ``Shutdown``."""
        gather_until = None if engine.busy() else math.inf
        while True:
            try:
                job = self._next_job(engine, gather_until)
            except queue.Empty:
                if engine.busy():
                    return True
                self._tidying = engine.idle()
                continue
            if isinstance(job, Shutdown):
                return False
            self._tidying = True
            self._do(engine, job)
            if gather_until == math.inf:
                gather_until = time.monotonic() + _GATHER_MOST_S

    def _next_job(self, engine: Engine, gather_until: float | None) -> _Job:
        """Raises ``queue.Empty`` when there is something better to do than to wait."""
        if not engine.busy():
            return self._jobs.get(timeout=_IDLE_S if self._tidying else None)
        # Requests that were sent at once come one after another; read together they are answered sooner.
        if gather_until is not None and time.monotonic() < gather_until:
            return self._jobs.get(timeout=_GATHER_S)
        return self._jobs.get(block=False)

    def _do(self, engine: Engine, job: _Job) -> None:
        match job:
            case _Prepared():
                engine.submit(job.id, job.prompt)
            case CancelRequest():
                engine.cancel(job.id)
            case RequestError():
                self._send(job)
            case TrimCaches():
                self._send(Trimmed(*engine.trim()))
            case Replay():
                cast("Follower", engine).replay(job.op)

    def _send(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, Step) and event == _NOTHING and now - self._sent_s < _QUIET_S:
            return
        self._sent_s = now
        self._write(event)

    def _write(self, event: Event) -> None:
        """Any thread's way out."""
        frame = encode(event)
        # The reader sees a broken link too and ends the process.
        with self._sending, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._link.sendall(frame)


def choose_engine(
    path: Path, options: EngineOptions, tokenizers: "TokenizerReader | None" = None, rank: "Rank | None" = None
) -> Engine:
    """The engine that serves the model whose files are at ``path``, or ``rank``'s share of it.

    ``tokenizers`` may have read its tokenizer.
    """
    if rank and not rank.leads:
        from plimsoll.engine.follower import Follower  # noqa: PLC0415 - as below

        return Follower(options, rank)
    from plimsoll.engine.sentence import makes_embeddings  # noqa: PLC0415 - a fake engine starts without MLX

    if options.embeddings or makes_embeddings(path):
        from plimsoll.engine.embedding import EmbeddingEngine  # noqa: PLC0415 - as above

        return EmbeddingEngine(options)
    from plimsoll.engine.mlx_engine import MlxEngine  # noqa: PLC0415 - as above

    return MlxEngine(options, tokenizers=tokenizers, rank=rank)


def _resolve(source: ModelSource, options: EngineOptions, progress: Progress) -> Path:
    from plimsoll.catalog import resolve  # noqa: PLC0415 - a fake engine starts without it

    return resolve(source, cache_dir=Path(options.cache_dir), offline=options.offline, progress=progress)


def describe(error: BaseException) -> str:
    """One line for an exception of any library."""
    text, name = " ".join(str(error).split())[:500], type(error).__name__
    if isinstance(error, BadRequest):
        return text
    return f"{name}: {text}" if text else name  # Python's own MemoryError says nothing else


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(mark in str(error) for mark in _OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
