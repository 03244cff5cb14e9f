"""What the models do when memory runs short; the sampler is the test's, the workers are real."""

import time
from collections.abc import Callable
from typing import Any

from plimsoll.actors.replies import Delta, Waiting
from plimsoll.actors.status import State
from plimsoll.errors import InsufficientMemory, Unavailable

Start = Callable[..., Any]
SLOW = "fake:tokens_per_s=50,answer=la,length=100000,context=1000000"


def loaded(server: Start, *names: str, **sections: Any) -> Any:
    """A server with ``names`` loaded in this order, all idle."""
    system = server(dict.fromkeys(names, "fake:hold=5MiB"), **sections)
    for name in names:
        assert system.chat(name).ending().reason == "stop"
    return system


def test_high_use_unloads_all_idle_models_but_the_last_used(server: Start) -> None:
    system = loaded(server, "a", "b", "c")
    system.memory.percent = 88.0
    system.until_state("a", None)
    system.until_state("b", None)
    assert system.model("c").state == State.READY


def test_a_busy_model_stays_at_warning(server: Start) -> None:
    system = server({"busy": SLOW, "idle": "fake:", "last": "fake:"})
    running = system.chat("busy")
    running.next(Delta)
    system.chat("idle").ending()
    system.chat("last").ending()
    system.memory.percent = 90.0
    system.until_state("idle", None)
    running.next(Delta)
    assert system.model("busy").state == State.BUSY


def test_a_load_at_warning_waits_for_the_clean_up_and_then_runs(server: Start) -> None:
    system = loaded(server, "a", "b")
    system.memory.percent = 88.0
    system.until_state("a", None)
    assert system.chat("a").ending().reason == "stop"


def test_critical_use_unloads_every_model_and_refuses_loads_with_the_figures(server: Start) -> None:
    system = loaded(server, "a", "b")
    system.memory.percent = 96.2
    system.until_state("a", None)
    system.until_state("b", None)
    failed = system.chat("a").ending()
    assert isinstance(failed.error, InsufficientMemory)
    assert failed.error.details["used_percent"] == 96.2
    assert failed.error.retry_after_s
    assert system.status().admission == "closed"


def test_a_busy_model_gets_its_grace_at_critical_and_may_finish(server: Start) -> None:
    system = server({"a": "fake:tokens_per_s=100,answer=la,length=40"})
    running = system.chat("a")
    running.next(Delta)
    system.memory.percent = 96.0
    assert running.ending().reason == "stop"
    system.until_state("a", None)


def test_a_busy_model_is_ended_with_the_figures_when_its_grace_is_over(server: Start) -> None:
    system = server({"a": SLOW}, memory={"critical_grace": "300ms", "patience": 0})
    running = system.chat("a")
    running.next(Delta)
    system.memory.percent = 96.0
    failed = running.ending()
    assert isinstance(failed.error, InsufficientMemory)
    assert failed.error.details["used_percent"] == 96.0
    system.until_state("a", None)


def test_an_emergency_stops_every_worker_at_once(server: Start) -> None:
    system = server({"busy": SLOW, "loading": "fake:load_s=30", "idle": "fake:"}, memory={"patience": 0})
    running, waiting = system.chat("busy"), system.chat("loading")
    running.next(Delta)
    waiting.next(Waiting)
    system.chat("idle").ending()
    system.memory.percent = 98.5
    for reply in (running, waiting):
        assert isinstance(reply.ending(deadline_s=10.0).error, InsufficientMemory)
    system.until(lambda: not system.status().models, "no model left")


def test_an_emergency_that_passes_costs_no_answer(server: Start) -> None:
    said = "one two three four five six seven eight nine ten"
    system = server({"busy": "fake:tokens_per_s=50", "loading": "fake:load_s=1"})
    running, waiting = system.chat("busy", said), system.chat("loading")
    running.next(Delta)
    waiting.next(Waiting)
    system.memory.percent = 98.5
    system.until(lambda: not any(one.pid for one in system.status().models), "no worker left")
    system.memory.percent = 40.0
    assert [reply.ending().reason for reply in (running, waiting)] == ["stop", "stop"]
    assert running.text == said


def test_admission_opens_again_when_memory_is_back(server: Start) -> None:
    system = loaded(server, "a", memory={"clear_after": "200ms"})
    system.memory.percent = 96.0
    system.until_state("a", None)
    system.memory.percent = 40.0
    system.until(lambda: system.status().admission == "open", "admission open")
    assert system.chat("a").ending().reason == "stop"


def test_pinned_models_come_back_after_an_emergency(server: Start) -> None:
    system = server({"a": {"source": "fake:", "pin": True}}, memory={"clear_after": "200ms"})
    system.until_state("a", State.READY)
    system.memory.percent = 99.0
    system.until(lambda: not system.status().models, "the pinned model gone")
    system.memory.percent = 30.0
    system.until_state("a", State.READY)


def test_when_memory_can_not_be_read_loads_are_refused_and_nothing_is_stopped(server: Start) -> None:
    system = server({"a": "fake:", "b": "fake:"})
    system.chat("a").ending()
    system.memory.error = OSError("no /proc here")
    system.until(lambda: system.status().problems, "the problem named in the status")
    failed = system.chat("b").ending()
    assert isinstance(failed.error, Unavailable)
    assert "can't be read" in failed.error.message
    assert system.chat("a").ending().reason == "stop"


def test_every_request_has_one_ending_through_an_emergency(server: Start) -> None:
    system = server(
        {"a": "fake:tokens_per_s=200,answer=la,length=20", "b": SLOW}, memory={"clear_after": "100ms", "patience": "2s"}
    )
    replies = [system.chat(name) for name in ("a", "b") * 10]
    replies[1].next(Delta)
    system.memory.percent = 99.0  # and stays there: who is paused ends after the patience
    replies += [system.chat(name) for name in ("a", "b") * 5]
    for reply in replies:
        reply.ending()
    assert {reply.endings() for reply in replies} == {1}


def test_a_model_that_runs_out_of_memory_takes_idle_models_along_and_no_answer_of_another(server: Start) -> None:
    system = server({"busy": SLOW, "idle": "fake:", "short": "fake:"}, memory={"critical_grace": 0.3})
    running = system.chat("busy")
    running.next(Delta)
    system.chat("idle").ending()
    ended = system.chat("short", "raise MemoryError").ending()
    assert isinstance(ended.error, InsufficientMemory)
    system.until_state("idle", None)
    # Far past its grace: what the dead worker held is back, and memory is not full.
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        running.next(Delta)
    assert system.model("busy").state == State.BUSY
