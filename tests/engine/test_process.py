"""Worker processes as the front sees them, and what is left when the front is gone."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from plimsoll.catalog.source import ModelSource
from plimsoll.engine import protocol as p
from plimsoll.engine.handle.environment import worker_environment
from plimsoll.engine.handle.process import NOT_STARTED, Started, WorkerProcess

OPTIONS = p.EngineOptions(cache_dir="")


class Heard:
    """A worker and all it says."""

    def __init__(self, switches: str) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.worker = WorkerProcess(self.events.put, self.events.put)
        self.worker.send(p.LoadModel(ModelSource("a", "fake", switches), OPTIONS))

    def next(self, kind: type) -> Any:
        while not isinstance(event := self.events.get(timeout=60), kind):
            pass
        return event


@pytest.fixture
def worker() -> Any:
    heard: list[Heard] = []

    def start(switches: str = "") -> Heard:
        heard.append(Heard(switches))
        return heard[-1]

    yield start
    for one in heard:
        one.worker.kill()


def test_shutdown_ends_the_worker_with_code_0_after_its_last_event(worker: Any) -> None:
    one = worker("hold=1MiB")
    one.next(p.Ready)
    one.worker.send(p.Shutdown())
    assert one.next(int) == 0
    assert not psutil.pid_exists(one.worker.pid)


def test_sigterm_ends_it_in_mid_load(worker: Any) -> None:
    one = worker("load_s=60")
    one.worker.terminate()
    assert one.next(int) == -signal.SIGTERM


def test_commands_to_a_stopped_worker_never_block_the_sender(worker: Any) -> None:
    one = worker()
    one.next(p.Ready)
    os.kill(one.worker.pid, signal.SIGSTOP)
    big = p.ChatRequest([{"role": "user", "content": "x" * 1_000_000}])
    started = time.monotonic()
    for index in range(20):
        one.worker.send(p.Generate(str(index), big))
    assert time.monotonic() - started < 10.0
    one.worker.kill()
    assert one.next(int) == -signal.SIGKILL


def test_a_worker_offers_itself_to_the_kernels_oom_killer(worker: Any) -> None:
    one = worker()
    one.next(p.Ready)
    score = Path(f"/proc/{one.worker.pid}/oom_score_adj")
    if sys.platform == "linux":
        assert int(score.read_text()) == 800


def test_a_worker_without_a_model_of_its_own_never_imports_mlx(worker: Any) -> None:
    one = worker()
    one.next(p.Ready)
    assert not [m.path for m in psutil.Process(one.worker.pid).memory_maps() if "mlx" in m.path]


def test_a_worker_s_start_imports_nothing_that_only_the_front_needs() -> None:
    code = "import sys, plimsoll.engine.worker; print(*{'plimsoll.config', 'psutil', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


FRONT = """
import sys, time
from plimsoll.catalog.source import ModelSource
from plimsoll.engine import protocol as p
from plimsoll.engine.handle.process import WorkerProcess
switches = sys.argv[1]
def heard(event):
    if isinstance(event, p.Ready):
        worker.send(p.Generate("1", p.ChatRequest([{"role": "user", "content": "hi"}])))
    if isinstance(event, p.LoadProgress if "load_s" in switches else p.Ready):
        print(worker.pid, flush=True)
worker = WorkerProcess(heard, lambda code: None)
worker.send(p.LoadModel(ModelSource("a", "fake", switches), p.EngineOptions(cache_dir="")))
time.sleep(60)
"""


@pytest.mark.parametrize(
    "doing", ["tokens_per_s=50,answer=la,length=1000000,context=9999999", "hang_at=1", "load_s=60"]
)
def test_no_worker_outlives_a_front_that_was_killed(doing: str) -> None:
    front = subprocess.Popen([sys.executable, "-c", FRONT, doing], stdout=subprocess.PIPE)
    assert front.stdout
    with front.stdout:
        worker = psutil.Process(int(front.stdout.readline()))
        front.kill()
        front.wait()
    until = time.monotonic() + 20.0
    # Whoever adopted it may leave it a zombie: that holds no memory.
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the worker still runs"
        time.sleep(0.01)


def test_openblas_is_found_where_distributions_put_it(tmp_path: Path) -> None:
    library = tmp_path / "usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0"
    library.parent.mkdir(parents=True)
    library.touch()
    assert worker_environment("auto", root=tmp_path, platform="linux")["LD_PRELOAD"].startswith(str(library))


def test_without_openblas_nothing_is_preloaded(tmp_path: Path) -> None:
    assert "LD_PRELOAD" not in worker_environment("auto", root=tmp_path, platform="linux")
    assert "LD_PRELOAD" not in worker_environment("none", platform="linux")
    assert worker_environment("auto", platform="darwin") == {}


def test_a_request_for_vectors_costs_a_chat_worker_nothing_but_a_refusal(worker: Any) -> None:
    one = worker()
    one.next(p.Ready)
    one.worker.send(p.Generate("a", p.EmbedRequest(["hello"])))
    refused = one.next(p.RequestError)
    assert (refused.id, refused.code, refused.param) == ("a", "invalid_value", "model")
    one.worker.send(p.Generate("b", p.ChatRequest([{"role": "user", "content": "hello"}])))
    assert one.next(p.Step).texts == [("b", "hello", 1)]


def test_steps_that_hold_only_calls_reach_the_front(worker: Any) -> None:
    one = worker()
    one.next(p.Ready)
    chat = p.ChatRequest([{"role": "user", "content": "call f {}"}], tools=(p.Tool("f"),))
    one.worker.send(p.Generate("a", chat))
    step = one.next(p.Step)
    assert step.calls == [p.ToolCallPart("a", 0, "f"), p.ToolCallPart("a", 0, "", "{}")]
    assert step.endings == [("a", "tool_calls", p.Usage(3, 1))]


def test_a_warm_worker_tells_whom_it_was_handed_to() -> None:
    first: queue.Queue[Any] = queue.Queue()
    second: queue.Queue[Any] = queue.Queue()
    worker = WorkerProcess(first.put, lambda *exit_: first.put(exit_), warm=True)
    try:
        worker.hand_over(second.put, lambda *exit_: second.put(exit_))
        worker.send(p.LoadModel(ModelSource("a", "fake", "answer=hi"), OPTIONS))
        while not isinstance(second.get(timeout=60), p.Ready):
            pass
    finally:
        worker.kill()
    while second.get(timeout=60) != (-signal.SIGKILL, False):
        pass
    assert all(isinstance(item, Started) for item in list(first.queue))


def test_a_worker_that_read_ahead_in_vain_loads_another_model(tmp_path: Path) -> None:
    heard: queue.Queue[Any] = queue.Queue()
    worker = WorkerProcess(heard.put, lambda *exit_: heard.put(exit_), warm=True)
    try:
        for folder in (tmp_path, tmp_path / "missing"):
            worker.send(p.ReadAhead(ModelSource("b", "folder", str(folder)), ""))
        worker.send(p.LoadModel(ModelSource("a", "fake", "answer=hi"), OPTIONS))
        while not isinstance(heard.get(timeout=60), p.Ready):
            pass
    finally:
        worker.kill()


def test_an_exit_before_the_hand_over_is_told_to_both() -> None:
    first: queue.Queue[Any] = queue.Queue()
    second: queue.Queue[Any] = queue.Queue()
    worker = WorkerProcess(first.put, lambda *exit_: first.put(exit_), warm=True)
    worker.kill()
    while not isinstance(exit_ := first.get(timeout=60), tuple):
        pass
    assert exit_ == (-signal.SIGKILL, False)
    worker.hand_over(second.put, lambda *exit_: second.put(exit_))
    assert second.get(timeout=60) == (-signal.SIGKILL, False)


def slow_start(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event, list[Any]]:
    """Starts set the first event and wait for the second; all that were made are in the list."""
    begun, go, made, start = threading.Event(), threading.Event(), [], subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> Any:
        begun.set()
        go.wait(60)
        made.append(start(*arguments, **options))
        return made[-1]

    monkeypatch.setattr("plimsoll.engine.handle.process.subprocess.Popen", popen)
    return begun, go, made


def test_a_slow_start_holds_up_nobody_and_what_was_sent_meanwhile_arrives(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, go, _ = slow_start(monkeypatch)
    began = time.monotonic()
    one = worker("answer=hi")  # and tells it to load
    assert time.monotonic() - began < 30.0
    assert one.worker.pid is None
    go.set()
    one.next(Started)
    assert psutil.pid_exists(one.worker.pid)
    one.next(p.Ready)


@pytest.mark.parametrize("how", ["terminate", "kill"])
def test_a_process_that_was_told_to_end_while_it_started_ends(
    worker: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    begun, go, made = slow_start(monkeypatch)
    one = worker("load_s=60")
    assert begun.wait(60)
    getattr(one.worker, how)()
    go.set()
    assert one.next(int) == (-signal.SIGTERM if how == "terminate" else -signal.SIGKILL)
    assert all(process.returncode is not None for process in made)


def test_a_worker_that_can_not_be_started_says_why_and_has_one_exit(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def popen(*_: Any, **__: Any) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr("plimsoll.engine.handle.process.subprocess.Popen", popen)
    one = worker()
    assert "no more processes" in one.next(p.LoadError).message
    assert one.next(int) == NOT_STARTED
    one.worker.kill()
    with pytest.raises(queue.Empty):
        one.events.get(timeout=0.1)


GARBAGE = "import socket, sys, time; socket.socket(fileno=int(sys.argv[1])).sendall(b'\\xff' * 64); time.sleep(60)"


def test_what_is_no_message_of_the_protocol_is_the_reason_that_is_told(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "plimsoll.engine.handle.process.worker_command", lambda python, link: [python, "-c", GARBAGE, link]
    )
    one = worker()
    told = one.next(p.EngineError)
    assert told.kind == "engine"
    assert "protocol" in told.message
    assert one.next(int) == -signal.SIGKILL
