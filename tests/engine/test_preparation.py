"""What takes long to prepare delays its own request: the reader reads on, and others overtake."""

import queue
import threading
import time

import psutil
import pytest
import tiny_llama

from plimsoll.catalog.source import ModelSource
from plimsoll.engine import preparation
from plimsoll.engine import protocol as p
from plimsoll.engine.chat import grammar, grammar_trial
from plimsoll.engine.engine import Unfinished
from plimsoll.engine.handle.process import WorkerProcess
from plimsoll.engine.preparation import Preparation, Prepared
from plimsoll.errors import BadRequest

HOSTILE = [{"type": "integer", "multipleOf": prime} for prime in (999_983, 999_979, 999_961, 999_959)]


class Work(Unfinished):
    """Takes as many turns as it has, each until it is let go on."""

    def __init__(self, turns=1, error=None):
        self.turns, self.error = turns, error
        self.begun, self.go_on, self.stopped = threading.Semaphore(0), threading.Semaphore(0), False

    def work(self, *, last):
        self.begun.release()
        assert self.go_on.acquire(timeout=60)
        self.turns -= 1
        if self.error and not isinstance(self.error, BadRequest):
            raise self.error
        return last or self.turns <= 0

    def stop(self):
        self.stopped = True
        self.go_on.release(10)

    def prepared(self):
        if self.error:
            raise self.error
        return "prompt"


class Engine:
    """What it prepares is in ``made``, by the text that is asked for; a function is called."""

    def __init__(self):
        self.made = {}

    def prepare(self, request, so_far=()):
        made = self.made.get(request.prompt, request.prompt)
        return made() if callable(made) else made


class Desk(Preparation):
    def __init__(self):
        self.delivered, self.woken = queue.Queue(), []
        super().__init__(self.delivered.put, lambda: self.woken.append(1))
        self.engine = Engine()

    def ask(self, name, made=None, text=None):
        text = text or name
        if made is not None:
            self.engine.made[text] = made
        command = p.Generate(name, p.ChatRequest([], prompt=text))
        self.begin(self.engine, command, len(p.encode(command)))
        return made

    def next(self):
        return self.delivered.get(timeout=60)


@pytest.fixture
def desk():
    return Desk()


def test_short_requests_are_prepared_at_once_in_their_order(desk):
    for name in "abc":
        desk.ask(name)
    assert [desk.delivered.get_nowait() for _ in "abc"] == [Prepared(name, name) for name in "abc"]
    assert not desk.woken


def test_a_costly_grammar_keeps_nobody_waiting(desk):
    costly = desk.ask("costly", Work(turns=2))
    assert costly.begun.acquire(timeout=60)
    desk.ask("plain")
    assert desk.delivered.get_nowait() == Prepared("plain", "plain")
    costly.go_on.release()
    assert costly.begun.acquire(timeout=60)  # its second turn, in the other lane
    quick = desk.ask("quick", Work())
    quick.go_on.release()
    assert desk.next() == Prepared("quick", "prompt")
    assert desk.unfinished == 1
    costly.go_on.release()
    assert desk.next() == Prepared("costly", "prompt")
    assert desk.unfinished == 0
    assert desk.woken


def test_what_looks_costly_goes_behind_others_of_its_kind_at_once(desk):
    costly, quick = Work(turns=9), Work()
    costly.looks_costly = True
    desk.ask("costly", costly)
    assert costly.begun.acquire(timeout=60)
    desk.ask("quick", quick).go_on.release()
    assert desk.next() == Prepared("quick", "prompt")
    costly.go_on.release()
    assert desk.next() == Prepared("costly", "prompt")


@pytest.mark.parametrize(
    ("schema", "costly"),
    [
        ({"type": "integer", "multipleOf": 999_983}, True),
        ({"type": "number", "multipleOf": 1e-7}, True),
        ({"type": "integer", "multipleOf": 100, "maximum": 99_999}, False),
        ({"allOf": [{"pattern": "a+"}, {"pattern": "b"}]}, True),
        ({"properties": {"a": {"pattern": "^a{9}$"}}, "required": ["multipleOf"]}, False),
    ],
)
def test_what_looks_costly(schema, costly):
    line = f"answer: %json {grammar._json(schema, 'response_format', 'The schema')}"
    assert (grammar._COSTLY.search(line) is not None) is costly


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BadRequest("No such schema.", param="response_format"), "invalid_value", "No such schema"),
        (ValueError("odd"), "internal_error", "can't be compiled: ValueError: odd"),
    ],
)
def test_an_error_of_a_grammar_is_its_requests_own(desk, error, code, words):
    desk.ask("bad", Work(error=error)).go_on.release()
    told = desk.next()
    assert (told.id, told.code) == ("bad", code)
    assert words in told.message
    desk.ask("next", Work()).go_on.release()
    assert desk.next() == Prepared("next", "prompt")


def test_a_panic_while_a_text_is_read_is_its_requests_own(desk):
    class Panic(BaseException):
        pass

    def panic():
        raise Panic("\ud800")

    desk.ask("bad", panic)
    told = desk.next()
    assert (told.id, told.code) == ("bad", "internal_error")
    told.message.encode()


def test_a_cancel_frees_its_lane_and_drops_the_result(desk):
    running, waiting = desk.ask("running", Work()), desk.ask("waiting", Work())
    assert running.begun.acquire(timeout=60)
    assert desk.drop("waiting")
    assert desk.drop("running")
    assert running.stopped
    assert not desk.drop("running")
    desk.ask("next", Work()).go_on.release()
    assert desk.next() == Prepared("next", "prompt")
    assert not waiting.begun.acquire(blocking=False)
    assert desk.unfinished == 0


def test_only_so_many_wait(desk, monkeypatch):
    monkeypatch.setattr(preparation, "MOST_UNFINISHED", 2)
    first, _ = desk.ask("a", Work()), desk.ask("b", Work())
    desk.ask("c", Work())
    told = desk.next()
    assert (told.id, told.code, told.param) == ("c", "queue_full", "response_format")
    assert "2 of them wait" in told.message
    first.stop()
    desk.drop("b")


def test_nobody_waits_for_ever(desk, monkeypatch):
    assert desk.overdue() == []
    work = desk.ask("a", Work())
    assert desk.overdue() == []
    monkeypatch.setattr(preparation, "PATIENCE_S", 0.0)
    (late,) = desk.overdue()
    assert (late.id, late.code) == ("a", "queue_full")
    assert work.stopped
    assert desk.overdue() == []
    assert not desk.drop("a")


def test_short_texts_overtake_a_huge_one(desk):
    reading, go_on = threading.Event(), threading.Event()

    def read():
        reading.set()
        assert go_on.wait(60)
        return "long"

    text = "x" * (preparation.LONG_BYTES + 1)
    desk.ask("huge", read, text)
    assert reading.wait(60)
    desk.ask("short")
    assert desk.delivered.get_nowait() == Prepared("short", "short")
    go_on.set()
    assert desk.next() == Prepared("huge", "long")
    go_on.clear()
    desk.ask("dropped", text=text)
    assert desk.drop("dropped")
    go_on.set()
    desk.ask("next", lambda: "next", text + "y")
    assert desk.next() == Prepared("next", "next")


# ---- the child process


def test_a_trial_that_is_stopped_ends_at_once():
    trial, grammar = grammar_trial.Trial(), 'start: %json {"multipleOf": 999983}'
    before, found = time.monotonic(), []
    thread = threading.Thread(target=lambda: found.append(trial.affordable(grammar, grammar_trial.CPU_S)))
    thread.start()
    while trial._child is None and time.monotonic() < before + 10:
        time.sleep(0.01)
    child = psutil.Process(trial._child.pid)
    trial.stop()
    thread.join(60)
    assert found == [False]
    assert not child.is_running()
    assert not trial.affordable('start: "a"', grammar_trial.CPU_S)


def test_the_first_turn_is_short_and_enough_for_a_plain_schema():
    cost = cpu_s(lambda: grammar_trial.Trial().affordable('start: "a"', grammar_trial.FIRST_CPU_S), True)
    assert (
        cpu_s(
            lambda: grammar_trial.Trial().affordable('start: %json {"multipleOf": 999983}', grammar_trial.FIRST_CPU_S),
            False,
        )
        < cost + 1
    )


def cpu_s(work, expected):
    before = psutil.Process().cpu_times()
    assert work() is expected
    after = psutil.Process().cpu_times()
    return after.children_user + after.children_system - before.children_user - before.children_system


# ---- a real worker


@pytest.fixture
def worker(tmp_path):
    events = queue.Queue()
    worker = WorkerProcess(events.put, events.put)
    worker.send(
        p.LoadModel(ModelSource("m", "folder", str(tiny_llama.build(tmp_path / "m"))), p.EngineOptions(cache_dir=""))
    )
    worker.events = events
    until(worker, p.Ready)
    yield worker
    worker.kill()


def until(worker, kind):
    while not isinstance(event := worker.events.get(timeout=60), kind):
        assert not isinstance(event, int), "the worker died"
    return event


def endings(worker, count):
    """(request id, reason or error code) in the order in which they came."""
    found = []
    while len(found) < count:
        event = worker.events.get(timeout=60)
        assert not isinstance(event, int | p.EngineError), event
        if isinstance(event, p.RequestError):
            found.append((event.id, event.code))
        if isinstance(event, p.Step):
            found += [(name, reason) for name, reason, _ in event.endings]
    return found


def generate(worker, name, schema=None):
    form = p.Format(schema) if schema else None
    worker.send(p.Generate(name, p.ChatRequest([], prompt="a ship", max_tokens=3, format=form)))


def test_hostile_schemas_delay_nobody_else(worker):
    """Each took 2 s of the reader: with four, an innocent request waited for 8 s and more."""
    for index, schema in enumerate(HOSTILE):
        generate(worker, f"hostile{index}", schema)
    generate(worker, "plain")
    generate(worker, "small", {"type": "integer"})
    found = endings(worker, 6)
    assert "plain" in [name for name, _ in found[:2]], "only the small schema may be as quick"
    refused = [(name, code) for name, code in found if name.startswith("hostile")]
    assert [name for name, _ in refused] == [f"hostile{index}" for index in range(4)]
    # On a machine that is very busy, the last of them wait in vain for their turn.
    assert {code for _, code in refused} <= {"invalid_value", "queue_full"}
    assert refused[0][1] == "invalid_value"
    assert [name for name, _ in found].index("small") < 4
    # What was compiled or refused once is known.
    generate(worker, "again", HOSTILE[0])
    generate(worker, "plain too")
    assert endings(worker, 2)[0] == ("again", "invalid_value")


def test_a_cancel_that_comes_while_a_grammar_is_compiled_is_heard_at_once(worker):
    for index, schema in enumerate(HOSTILE):
        generate(worker, f"hostile{index}", schema)
    for index in range(4):
        worker.send(p.CancelRequest(f"hostile{index}"))
    generate(worker, "plain")
    assert endings(worker, 5) == [*((f"hostile{index}", "cancelled") for index in range(4)), ("plain", "length")]
    generate(worker, "small", {"type": "integer"})
    assert endings(worker, 1)[0][0] == "small"
