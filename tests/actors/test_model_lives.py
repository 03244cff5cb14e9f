"""Models through their lives, with real worker processes on the fake engine."""

import os
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed, Logprobs, PromptLogprobs, Waiting
from plimsoll.actors.status import ModelStatus, State
from plimsoll.errors import (
    ContextTooLong,
    InsufficientMemory,
    LoadFailed,
    ModelUnloaded,
    QueueFull,
    ShuttingDown,
    UnknownModel,
    WorkerDied,
)

Start = Callable[..., Any]
SLOW = "fake:tokens_per_s=50,answer=la,length=100000,context=1000000"


def test_a_model_loads_on_its_first_request_and_answers(server: Start) -> None:
    reply = server({"a": "fake:load_s=0.1,hold=10MiB"}).chat("a", "one two three")
    ending = reply.ending()
    assert ending.reason == "stop"
    assert ending.usage.completion_tokens == 3
    assert reply.text == "one two three"
    stages = [item.stage for item in reply.items if isinstance(item, Waiting)]
    assert stages[0] == "queue"
    assert stages[-1] == "read"


def test_ten_callers_of_one_cold_model_cause_one_load(server: Start) -> None:
    system = server({"a": "fake:load_s=0.2"})
    replies = [system.chat("a") for _ in range(10)]
    assert [reply.ending().reason for reply in replies] == ["stop"] * 10
    pids = {one.pid for one in psutil.Process().children() if "plimsoll.engine.worker" in one.cmdline()}
    assert len(pids) == 1


def test_a_model_loads_while_another_keeps_streaming(server: Start) -> None:
    system = server({"a": SLOW, "b": "fake:load_s=0.3"})
    streaming = system.chat("a")
    streaming.next(Delta)
    before = len(streaming.items)
    assert system.chat("b").ending().reason == "stop"
    streaming.endings()
    assert sum(isinstance(item, Delta) for item in streaming.items[before:]) > 5


def test_an_unknown_model_is_refused_by_name(server: Start) -> None:
    failed = server({"a": "fake:"}).chat("nope").ending()
    assert isinstance(failed.error, UnknownModel)
    assert "nope" in failed.error.message


def test_a_bad_request_costs_only_itself(server: Start) -> None:
    system = server({"a": SLOW})
    running = system.chat("a")
    running.next(Delta)
    refused = system.chat("a", "raise BadRequest").ending()
    assert refused.error.param == "messages"
    running.next(Delta)


def test_a_prompt_past_the_context_is_refused_with_the_figures(server: Start) -> None:
    failed = server({"a": "fake:context=4"}).chat("a", "one two three four five").ending()
    assert isinstance(failed.error, ContextTooLong)
    assert "5" in failed.error.message


def test_a_cancelled_request_leaves_and_the_others_go_on(server: Start) -> None:
    system = server({"a": SLOW})
    kept, dropped = system.chat("a"), system.chat("a")
    dropped.next(Delta)
    system.system.supervisor.tell(m.Cancel(dropped.id, "a"))
    assert dropped.ending().reason == "cancelled"
    kept.next(Delta)
    assert system.model("a").active == 1


def test_a_request_cancelled_while_its_model_loads_does_not_abort_the_load_for_others(server: Start) -> None:
    system = server({"a": "fake:load_s=0.3"})
    dropped, kept = system.chat("a"), system.chat("a")
    system.system.supervisor.tell(m.Cancel(dropped.id, "a"))
    assert dropped.ending().reason == "cancelled"
    assert kept.ending().reason == "stop"


def test_a_full_queue_answers_429(server: Start) -> None:
    system = server({"a": "fake:load_s=0.5"}, models={"queue": 2}, engine={"max_batch": 1})
    replies = [system.chat("a") for _ in range(4)]
    failed = replies[-1].ending()
    assert isinstance(failed.error, QueueFull)
    assert failed.error.retry_after_s
    assert [reply.ending().reason for reply in replies[:3]] == ["stop"] * 3


def test_without_patience_a_killed_worker_ends_its_requests_and_the_next_request_loads_it_again(server: Start) -> None:
    system = server({"a": SLOW, "b": SLOW}, memory={"patience": 0})
    victim, bystander = system.chat("a"), system.chat("b")
    victim.next(Delta)
    bystander.next(Delta)
    os.kill(system.model("a").pid, signal.SIGKILL)
    failed = victim.ending(deadline_s=10.0)
    assert isinstance(failed.error, WorkerDied)
    assert "SIGKILL" in failed.error.message
    bystander.next(Delta)
    system.chat("a").next(Delta)
    assert victim.endings() == 1


def test_the_answers_of_a_killed_worker_go_on_where_they_were(server: Start) -> None:
    said = "one two three four five six seven eight nine ten"
    system = server({"a": "fake:tokens_per_s=50", "b": SLOW})
    bystander = system.chat("b")
    bystander.next(Delta)
    victims = [system.chat("a", said), system.chat("a", f"think of it | {said}", logprobs=1)]
    for victim in victims:
        victim.next(Delta)
    os.kill(system.model("a").pid, signal.SIGKILL)
    assert [victim.ending().reason for victim in victims] == ["stop", "stop"]
    assert [victim.text for victim in victims] == [said, f"think of it{said}"]
    assert sum(len(item.tokens) for item in victims[1].items if isinstance(item, Logprobs)) == 13
    assert all(victim.endings() == 1 for victim in victims)
    assert any(item == Waiting("resume") for item in victims[0].items)
    bystander.next(Delta)


@pytest.mark.parametrize("crash_at", [2, 4])
def test_the_scores_of_a_prompt_are_sent_once_however_often_the_worker_dies(server: Start, crash_at: int) -> None:
    system = server({"a": f"fake:crash_at={crash_at},crash_signal={signal.SIGKILL.value}", "b": "fake:"})
    said = "one two three four"
    how = {"prompt": said, "logprobs": 1, "score_prompt": True, "max_tokens": 4}
    replies = [system.chat(model, said, **how) for model in ("a", "b")]
    assert [reply.ending().reason for reply in replies] == ["stop"] * 2
    scores = [[one for one in reply.items if isinstance(one, PromptLogprobs)] for reply in replies]
    assert scores[0] == scores[1]
    assert [token.text for token in scores[0][0].tokens] == ["one", " two", " three", " four"]
    assert len(scores[0]) == 1
    assert replies[0].text == replies[1].text
    tokens = [[token for one in reply.items if isinstance(one, Logprobs) for token in one.tokens] for reply in replies]
    assert tokens[0] == tokens[1]


def test_a_worker_that_runs_out_of_memory_has_its_untouched_requests_retried_once(server: Start) -> None:
    system = server({"a": "fake:raise_at=1,prefill_s=0.05"})
    failed = system.chat("a").ending()
    assert isinstance(failed.error, InsufficientMemory)
    assert "MemoryError" in failed.error.message
    # Two lives were spent on it: the first try and the one retry.
    system.until_state("a", State.COLD, State.BACKOFF)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGKILL])
def test_a_crash_at_low_use_costs_one_model_and_no_other(server: Start, number: signal.Signals) -> None:
    entries = {
        "a": f"fake:crash_at=2,crash_signal={number.value}",
        "busy": SLOW,
        "pinned": {"source": SLOW, "pin": True},
    }
    system = server(entries, engine={"max_batch": 2}, memory={"patience": 0})
    streaming = system.chat("busy")
    streaming.next(Delta)
    pids = system.until_state("busy", State.BUSY).pid, system.until_state("pinned", State.READY).pid
    failed = system.chat("a", "one two three").ending()
    assert type(failed.error) is WorkerDied
    assert number.name in failed.error.message
    streaming.next(Delta)
    assert (system.model("busy").pid, system.model("pinned").pid) == pids
    assert system.model("busy").state == State.BUSY


def test_a_segfault_near_the_line_counts_as_lack_of_memory_and_is_answered_with_the_figures(server: Start) -> None:
    system = server(
        {"a": f"fake:crash_at=2,tokens_per_s=2,crash_signal={signal.SIGSEGV.value}"}, memory={"patience": 0}
    )
    reply = system.chat("a", "one two three")
    reply.next(Delta)
    system.memory.percent = 93.0
    failed = reply.ending()
    assert isinstance(failed.error, InsufficientMemory)
    assert "SIGSEGV" in failed.error.message
    assert failed.error.details["used_percent"] == 93.0
    assert failed.error.details["binding_source"] == "host"


def test_a_failed_load_fails_its_waiters_with_the_reason_and_cools_down(server: Start) -> None:
    system = server({"a": "fake:fail_load=the weights are torn"})
    replies = [system.chat("a") for _ in range(3)]
    for reply in replies:
        failed = reply.ending()
        assert isinstance(failed.error, LoadFailed)
        assert "the weights are torn" in failed.error.message
    again = system.chat("a").ending()
    assert again.error.retry_after_s
    assert system.status().problems


def test_a_load_that_runs_out_of_memory_is_answered_as_such(server: Start) -> None:
    failed = server({"a": "fake:load_memory_error=true"}).chat("a").ending()
    assert isinstance(failed.error, InsufficientMemory)


def test_a_worker_that_dies_three_times_in_a_minute_is_given_up(server: Start) -> None:
    system = server({"a": "fake:crash_in_load=true"})
    failed = system.chat("a").ending()
    assert isinstance(failed.error, WorkerDied)
    system.until_state("a", State.FAILED)


def test_an_idle_model_is_unloaded_after_its_ttl_and_its_process_is_gone(server: Start) -> None:
    system = server({"a": {"source": "fake:hold=20MiB", "idle_ttl": "300ms"}})
    assert system.chat("a").ending().reason == "stop"
    pid = system.model("a").pid
    system.until_state("a", None)
    assert not psutil.pid_exists(pid)


def test_a_model_that_can_not_be_weighed_for_a_reason_that_nobody_thought_of_fails_its_load(
    server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RecursionError

    monkeypatch.setattr("plimsoll.actors.load_needs.weigh_source", broken)
    failed = server({"a": {"source": "fake:"}}).chat("a").ending()
    assert isinstance(failed.error, LoadFailed)
    assert "a can't be loaded: its files can't be weighed (RecursionError)" in failed.error.message


def test_a_pinned_model_loads_at_start_and_stays(server: Start) -> None:
    system = server({"a": {"source": "fake:", "pin": True, "idle_ttl": "10ms"}})
    status = system.until_state("a", State.READY)
    assert status.idle_ttl_s is None
    os.kill(status.pid, signal.SIGKILL)
    system.until(lambda: system.model("a").pid not in (None, status.pid), "the pinned model back")


def test_a_request_that_comes_while_the_model_leaves_is_served_by_the_next_life(server: Start) -> None:
    system = server({"a": "fake:slow_close_s=0.3"})
    system.chat("a").ending()
    first = system.model("a").pid
    gone = system.tell(lambda reply: m.UnloadModel("a", reply, 0.0))
    late = [system.chat("a") for _ in range(3)]
    assert gone.next(ModelStatus).state == State.STOPPED
    assert [reply.ending().reason for reply in late] == ["stop"] * 3
    assert system.model("a").pid != first


def test_an_unload_lets_running_answers_finish_within_the_grace(server: Start) -> None:
    system = server({"a": "fake:tokens_per_s=100,answer=la,length=30"})
    reply = system.chat("a")
    reply.next(Delta)
    system.tell(lambda gone: m.UnloadModel("a", gone, 10.0)).next(ModelStatus)
    assert reply.ending().reason == "stop"


def test_an_unload_ends_what_still_runs_after_the_grace(server: Start) -> None:
    system = server({"a": SLOW})
    reply = system.chat("a")
    reply.next(Delta)
    system.tell(lambda gone: m.UnloadModel("a", gone, 0.1)).next(ModelStatus)
    assert isinstance(reply.ending().error, ModelUnloaded)


def test_a_worker_that_ignores_sigterm_and_hangs_is_killed(server: Start) -> None:
    system = server({"a": "fake:hang_at=1,ignore_sigterm=true"}, engine={"stop_grace": "100ms"})
    reply = system.chat("a")
    system.until_state("a", State.BUSY)
    system.tell(lambda gone: m.UnloadModel("a", gone, 0.0)).next(ModelStatus)
    assert isinstance(reply.ending().error, ModelUnloaded)


def test_a_stopped_process_does_not_hold_up_an_unload(server: Start) -> None:
    system = server({"a": SLOW}, engine={"stop_grace": "100ms"})
    reply = system.chat("a")
    reply.next(Delta)
    os.kill(system.model("a").pid, signal.SIGSTOP)
    system.tell(lambda gone: m.UnloadModel("a", gone, 0.0)).next(ModelStatus)
    assert reply.endings() == 1


def test_a_model_can_be_loaded_ahead_of_requests(server: Start) -> None:
    system = server({"a": "fake:load_s=0.1", "b": "fake:fail_load=broken"})
    assert system.tell(lambda reply: m.LoadModel("a", reply)).next(ModelStatus).state == State.READY
    assert "broken" in system.tell(lambda reply: m.LoadModel("b", reply)).next(Failed).error.message


def test_when_the_server_stops_running_answers_finish_and_new_requests_are_refused(server: Start) -> None:
    system = server({"a": "fake:tokens_per_s=100,answer=la,length=30"})
    running = system.chat("a")
    running.next(Delta)
    done = system.tell(lambda reply: m.StopAll(10.0, reply))
    late = system.chat("a")
    assert isinstance(late.ending().error, ShuttingDown)
    assert running.ending().reason == "stop"
    assert done.next() is None
