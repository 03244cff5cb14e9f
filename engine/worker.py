"""The child process that owns one model: ``python -m plimsoll.engine.worker FD [warm]``.

Two threads. The reader parses commands and tokenises. The main thread is the step thread: it owns every MLX object,
runs the batch and writes to the socket. (A rank of a group has a third thread, which reports its host's memory.) The
process ends when the socket closes, so no worker outlives the front. With ``stdio`` for FD the link is the process's
standard input and output, as a remote shell needs it.
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
from typing import TYPE_CHECKING, Literal, cast

from plimsoll.catalog.model_card import makes_embeddings, scores_documents
from plimsoll.catalog.source import ModelSource, Progress
from plimsoll.engine.engine import Engine
from plimsoll.engine.preparation import Preparation, Prepared
from plimsoll.engine.protocol import (
    CancelRequest,
    Command,
    EngineError,
    EngineOptions,
    Event,
    Fetched,
    FetchModel,
    Generate,
    GiveWay,
    JoinGroup,
    Lease,
    LoadError,
    LoadModel,
    LoadProgress,
    ProtocolError,
    ReadAhead,
    Ready,
    Replay,
    RequestError,
    Shutdown,
    Step,
    TrimCaches,
    Trimmed,
    Usage,
    encode,
    read_commands,
)
from plimsoll.engine.row_guard import describe, is_out_of_memory
from plimsoll.engine.worker_link import Link, Stdio

if TYPE_CHECKING:
    from plimsoll.engine.group.follower import Follower
    from plimsoll.engine.group.rank import Rank
    from plimsoll.engine.load.loading import TokenizerReader

# The kernel's OOM killer takes the process with the highest score: a worker, never the front.
_OOM_SCORE_ADJ = "800"

# When a request arrives at an idle engine, the worker waits _GATHER_S for another one to read with it, and after each
# further one again, up to _GATHER_MOST_S in all.
_GATHER_S = 0.005
_GATHER_MOST_S = 0.05
# After this long without a job the worker does its idle work, such as writing stored prompts to disk.
_IDLE_S = 1.0


_NOTHING = Step([])
# Steps may have nothing to report (long prefills of embeddings, parts of a tool call): the worker then sends an empty
# Step once per this interval as a heartbeat.
_QUIET_S = 1.0

_WAKE = object()  # a job without work: it only ends a wait for jobs
_Job = Command | RequestError | Step | Prepared | object


def main() -> None:
    """Serve one model on the link that the first argument names."""
    link = Stdio() if sys.argv[1] == "stdio" else socket.socket(fileno=int(sys.argv[1]))
    # What a library prints must not reach standard output, which may be the link: it goes to standard error.
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
        self._preparation = Preparation(self._jobs.put, wake=lambda: self._jobs.put(_WAKE))
        self._engine: Engine | None = None
        self._tokenizers: TokenizerReader | None = None
        self._rank: Rank | None = None
        self._sending = threading.Lock()  # a rank tells its host's memory from a thread of its own
        self._tidying = False
        self._sent_s = time.monotonic()

    def run(self, *, warm: bool = False) -> None:
        """Load the model, then step until ``Shutdown``. Every failure is sent to the front before the process ends.

        A ``warm`` worker imports the MLX engine before the first command: the imports are most of a small model's load.
        """
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        # Where a hard end is clean (Linux), SIGTERM keeps its default and is instant. Metal wants an orderly one.
        if sys.platform == "darwin":
            signal.signal(signal.SIGTERM, lambda *_: self._jobs.put(Shutdown()))
        if warm:
            import plimsoll.engine.chat.engine  # noqa: F401, PLC0415 - on this thread, which will use it
            from plimsoll.engine.load.loading import TokenizerReader  # noqa: PLC0415 - the same

            gc.freeze()  # the collection after the load, which a request waits for, then skips these objects
            self._tokenizers = TokenizerReader()
        while isinstance(load := self._jobs.get(), ReadAhead):
            self._read_ahead(load)
        if isinstance(load, JoinGroup):
            from plimsoll.engine.group.rank import Rank  # noqa: PLC0415 - most workers are in no group

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
            self._send(LoadError("memory" if is_out_of_memory(error) else "load", describe(error)))
            return
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - after any error the stream may be poisoned, so this worker ends
            kind: Literal["memory", "engine"] = "memory" if is_out_of_memory(error) else "engine"
            self._send(EngineError(kind, describe(error)))

    # ---- reader thread

    def _read(self) -> None:
        try:
            for command, frame_bytes in read_commands(self._link):
                self._sort(command, frame_bytes)
        except (ProtocolError, OSError) as error:
            sys.stderr.write(f"plimsoll worker: {error}\n")
        finally:
            # The front has gone or sent an invalid frame. The step thread may be inside MLX for seconds: do not wait.
            os._exit(0)

    def _sort(self, command: Command, frame_bytes: int) -> None:
        """Requests are prepared first, on this thread or a pool's; other commands go to the step thread as they are."""
        if isinstance(command, CancelRequest) and self._preparation.drop(command.id):
            self._jobs.put(Step([], [(command.id, "cancelled", Usage())]))
        elif not isinstance(command, Generate):
            self._jobs.put(command)
        elif engine := self._engine:
            self._preparation.begin(engine, command, frame_bytes)
        else:
            # Waiting here would keep this thread from seeing that the front is gone.
            self._jobs.put(RequestError(command.id, "internal_error", "the model is not loaded yet"))

    # ---- step thread

    def _read_ahead(self, command: ReadAhead) -> None:
        from plimsoll.catalog.files import local_folder  # noqa: PLC0415 - a fake engine starts without it

        # Errors in the files are reported when the model is loaded.
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
        # Collect what loading left behind once; the rest lives as long as the process, so later collections skip it.
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
        """Do every job that waits; without anything to step, wait for one. False on ``Shutdown``."""
        gather_until = None if engine.busy() else math.inf
        while True:
            for late in self._preparation.overdue():
                self._send(late)
            try:
                job = self._next_job(engine, gather_until)
            except queue.Empty:
                if engine.busy():
                    return True
                if self._preparation.unfinished:
                    self._send(_NOTHING)  # a heartbeat while another process compiles grammars
                else:
                    self._tidying = engine.idle()
                continue
            if isinstance(job, Shutdown):
                return False
            self._tidying = True
            self._do(engine, job)
            if gather_until == math.inf:
                gather_until = time.monotonic() + _GATHER_MOST_S

    def _next_job(self, engine: Engine, gather_until: float | None) -> _Job:
        """The next job. Raises ``queue.Empty`` when the engine should step, or do its idle work, instead of waiting."""
        if not engine.busy():
            return self._jobs.get(timeout=_IDLE_S if self._tidying or self._preparation.unfinished else None)
        # Requests that clients send at the same time arrive one after another; one batch reads all of them sooner.
        if gather_until is not None and time.monotonic() < gather_until:
            return self._jobs.get(timeout=_GATHER_S)
        return self._jobs.get(block=False)

    def _do(self, engine: Engine, job: _Job) -> None:
        match job:
            case Prepared():
                engine.submit(job.id, job.prompt)
            case CancelRequest():
                engine.cancel(job.id)
            case RequestError() | Step():
                self._send(job)
            case Lease():
                engine.lease(job)
            case GiveWay():
                for event in engine.give_way():
                    self._send(event)
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
        """Send an event; any thread may call this."""
        frame = encode(event)
        # When the link is broken the reader thread sees that as well, and ends the process.
        with self._sending, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._link.sendall(frame)


def choose_engine(
    path: Path, options: EngineOptions, tokenizers: "TokenizerReader | None" = None, rank: "Rank | None" = None
) -> Engine:
    """The engine that serves the model whose files are at ``path``, or ``rank``'s share of it.

    ``tokenizers`` may have read its tokenizer.
    """
    if rank and not rank.leads:
        check_mlx_lm()
        from plimsoll.engine.group.follower import Follower  # noqa: PLC0415 - as below

        return Follower(options, rank)

    if options.embeddings or makes_embeddings(path) or scores_documents(path):
        from plimsoll.engine.embed.engine import EmbeddingEngine  # noqa: PLC0415 - as above

        return EmbeddingEngine(options)
    check_mlx_lm()
    from plimsoll.engine.chat.engine import MlxEngine  # noqa: PLC0415 - as above

    return MlxEngine(options, tokenizers=tokenizers, rank=rank)


def check_mlx_lm() -> None:
    """Raise ``MlxLmDoesNotFit`` where the installed mlx-lm lacks a name that the chat engine uses."""
    from plimsoll.engine.mlx_lm_internals import check_version  # noqa: PLC0415 - a fake engine starts without it

    check_version()


def _resolve(source: ModelSource, options: EngineOptions, progress: Progress) -> Path:
    from plimsoll.catalog.fetch import resolve  # noqa: PLC0415 - a fake engine starts without it

    return resolve(source, cache_dir=Path(options.cache_dir), offline=options.offline, progress=progress)


if __name__ == "__main__":
    main()
