"""The live feed: what a listener hears, what it missed, and what is left when it goes."""

import asyncio
import contextlib
import json
import logging
import queue
import socket
import time

import pytest

from plimsoll import __version__
from plimsoll.actors import messages as m
from plimsoll.actors.status import ModelStatus, State
from plimsoll.errors import LoadFailed
from plimsoll.http import downloads
from plimsoll.http.operations.events import missed
from plimsoll.http.operations.feed import _OUTBOX_BYTES, Listener
from plimsoll.journal import events as e
from plimsoll.journal.blackbox import BlackBox
from plimsoll.journal.journal import Journal
from plimsoll.memory.sample import Level, Reading, Sample

GB = 2**30
DEADLINE_S = 60
KILLED = e.WorkerKilled("tiny", 7)
RAISED = e.LevelChanged(e.LevelName.WARNING, e.LevelName.NORMAL, 87.5, "host")


class Ear:
    """A listener's end of the stream: events as (name, body, id), one after the other."""

    def __init__(self, response):
        self.response = response
        self._lines = response.iter_lines()

    def next(self, name):
        """The next event of that name; others, and comments, are passed over."""
        return self.next_with_id(name)[0]

    def next_with_id(self, name):
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            event = self._event()
            if event.get("event") == name:
                return json.loads(event["data"]), event.get("id")
        pytest.fail(f"no {name} in {DEADLINE_S} s")

    def comment(self):
        for line in self._lines:
            if line.startswith(":"):
                return line
        return None

    def _event(self):
        event = {}
        for line in self._lines:
            if not line:
                return event
            key, _, value = line.partition(": ")
            event[key] = value
        pytest.fail("the stream has ended")


@pytest.fixture
def listen(http):
    """``listen("?only=journal")`` connects and has heard the hello."""
    with contextlib.ExitStack() as stack:

        def connect(query="", **options):
            ear = Ear(stack.enter_context(http.stream("GET", f"/admin/events{query}", **options)))
            assert ear.response.status_code == 200
            ear.hello = ear.next("hello")
            return ear

        yield connect


@pytest.fixture
def feed(server):
    return server.app.ctx.feed


def until(condition, what):
    until_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < until_s:
        if condition():
            return
        time.sleep(0.005)
    pytest.fail(f"not in {DEADLINE_S} s: {what}")


def test_the_first_event_says_who_is_there(listen, system):
    system.journal.record(KILLED)
    ear = listen()
    assert ear.response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert ear.response.headers["cache-control"] == "no-cache"
    hello = ear.hello
    assert hello["version"] == __version__
    assert hello["thresholds"] == {"warning": 85, "critical": 95, "emergency": 98}
    assert hello["limit_gb"] is None
    assert hello["last_event"] == system.journal.last_id > 0
    assert abs(hello["now"] - time.time()) < 60
    assert hello["started_at"] <= hello["now"]


@pytest.mark.parametrize("server_config", [{"memory": {"limit": "16GiB"}}])
def test_a_limit_of_memory_is_said_in_gb(listen):
    assert listen().hello["limit_gb"] == 16


def test_a_sample_has_the_figures_of_every_source(listen, system, status):
    readings = (Reading("host", 100 * GB, 50 * GB), Reading("cgroup", 10 * GB, 9 * GB))
    held = {"tiny": 3 * GB, "gone": 0}
    told = status(
        Level.WARNING,
        sample=Sample(time.monotonic(), readings),
        footprints=held,
        sampler_lag_s=0.0123,
        seconds_to_critical=8.26,
        problems=["a reader fails"],
    )
    system.scripts[m.GetStatus] = lambda message: message.reply.send(told)
    sample = listen().next("sample")
    assert abs(sample.pop("at") - time.time()) < 60
    assert sample == {
        "level": "warning",
        "percent": 90.0,
        "source": "cgroup",
        "sources": {
            "host": {"percent": 50.0, "used": 50 * GB, "total": 100 * GB},
            "cgroup": {"percent": 90.0, "used": 9 * GB, "total": 10 * GB},
        },
        "used": 9 * GB,
        "total": 10 * GB,
        "front": 0,
        "models": {"tiny": 3 * GB},
        "lag_ms": 12.3,
        "admission": "open",
        "status": "degraded",
        "problems": ["a reader fails"],
        "seconds_to_critical": 8.3,
    }


def test_the_same_sample_is_sent_once_and_a_new_one_at_once_when_the_level_changes(listen, system, status):
    ear = listen("?only=sample,journal")
    assert ear.next("sample")["level"] == "normal"
    changed = status(Level.WARNING, 90.0)
    system.scripts[m.GetStatus] = lambda message: message.reply.send(changed)
    system.journal.record(RAISED)
    assert ear.next("sample")["level"] == "warning"


def test_models_are_sent_at_first_and_when_a_state_changes(listen, system, status):
    ear = listen("?only=models")
    assert [one["state"] for one in ear.next("models")["models"]] == ["cold", "cold"]
    ready = ModelStatus("tiny", State.READY, pinned=True)
    told = status(models=[ready], footprints={"tiny": GB}, tokens_per_s={"tiny": 12.34}, pinned=frozenset({"org/big"}))
    system.scripts[m.GetStatus] = lambda message: message.reply.send(told)
    big, tiny = ear.next("models")["models"]
    assert (tiny["state"], tiny["footprint_bytes"], tiny["tokens_per_s"]) == ("ready", GB, 12.3)
    assert (big["state"], big["pinned"]) == ("cold", True)


def test_models_that_are_busy_are_sent_again_and_again(listen, system, status):
    told = status(models=[ModelStatus("tiny", State.BUSY)])
    system.scripts[m.GetStatus] = lambda message: message.reply.send(told)
    ear = listen("?only=models")
    ear.next("models")
    ear.next("models")


def test_journal_events_come_with_their_text_and_their_id(listen, system):
    ear = listen("?only=journal")
    system.journal.record(e.ModelUnloaded("tiny", "idle", GB, GB, 340.4))
    body, number = ear.next_with_id("journal")
    assert int(number) == body["id"] == system.journal.last_id
    assert (body["kind"], body["severity"]) == ("model_unloaded", "info")
    assert body["text"].startswith("🗑️ model tiny unloaded from memory (1.0 GB of 1.0 GB back in 340 ms")
    assert body["event"] == {
        "model": "tiny",
        "reason": "idle",
        "expected_bytes": GB,
        "freed_bytes": GB,
        "milliseconds": 340.4,
    }


def test_names_that_are_not_text_break_nothing(listen, system):
    ear = listen("?only=journal")
    system.journal.record(e.ExternalPressure(90.0, 1, (e.OtherProcess("bad \udc80 name", 1, 2),)))
    system.journal.record(KILLED)
    assert ear.next("journal")["event"]["others"][0]["name"] == "bad ? name"
    assert ear.next("journal")["kind"] == "worker_killed"


def test_only_the_kinds_that_were_asked_for_come(listen, system):
    ear = listen("?only=journal")
    system.journal.record(KILLED)
    assert ear._event()["event"] == "journal"
    assert not system.has_heard(m.GetStatus), "nobody listens to what the Supervisor knows"


@pytest.mark.parametrize("how", ["header", "address", "both"])
def test_events_that_were_missed_come_first(listen, system, how):
    for pid in range(5):
        system.journal.record(e.WorkerKilled("tiny", pid))
    third = system.journal.recent()[2].id
    header = {"Last-Event-ID": str(third)} if how != "address" else {}
    query = {"address": f"&after={third}", "both": "&after=1", "header": ""}[how]
    ear = listen(f"?only=journal{query}", headers=header)
    system.journal.record(e.WorkerKilled("tiny", 5))
    assert [ear.next("journal")["event"]["pid"] for _ in range(3)] == [3, 4, 5]


def test_an_id_from_the_future_hides_nothing_that_comes(listen, system):
    ear = listen(f"?only=journal&after={10**17}")
    system.journal.record(KILLED)
    assert ear.next("journal")["kind"] == "worker_killed"


@pytest.mark.parametrize(
    ("query", "header", "param"),
    [
        ("?after=x", None, "after"),
        ("?after=-1", None, "after"),
        ("?after=1e3", None, "after"),
        (f"?after={'9' * 40}", None, "after"),
        ("", "seven", "Last-Event-ID"),
        ("", "²", "Last-Event-ID"),
        ("?only=journal,weather", None, "only"),
    ],
)
def test_bad_questions_are_refused(http, query, header, param):
    headers = {} if header is None else {"Last-Event-ID": header.encode()}
    response = http.get(f"/admin/events{query}", headers=headers)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert param in error["message"]


@pytest.mark.parametrize("server_config", [{"server": {"keepalive": "50ms"}}])
def test_silence_is_broken_by_comments(listen):
    assert listen("?only=journal").comment() == ": "


def test_the_last_listener_to_go_leaves_nothing_behind(http, server, feed, system):
    before = len(system.journal._subscribers)
    for _ in range(3):
        with http.stream("GET", "/admin/events") as one, http.stream("GET", "/admin/events") as other:
            ears = Ear(one), Ear(other)
            for ear in ears:
                ear.next("sample")
            assert feed.listeners == 2
            assert len(system.journal._subscribers) == before + 1, "one producer for all"
        until(lambda: not feed.listeners, "both gone")
        until(lambda: len(system.journal._subscribers) == before, "no subscription")
    until(lambda: not [one for one in _tasks(server) if one.get_name() == "feed"], "nobody asks any more")


def _tasks(server):
    return asyncio.all_tasks(server.loop)


def test_the_bound_of_an_outbox_holds_for_what_is_left_in_it_too():
    async def scenario():
        cuts = []
        listener = Listener(frozenset(), lambda: cuts.append(1))
        size = _OUTBOX_BYTES // 1000
        for _ in range(999):
            listener.put(b"x" * size)
        taken = await listener.next_batch(DEADLINE_S)
        for _ in taken:
            listener.put(b"x" * size)
        before = len(cuts)
        for _ in range(3):
            listener.put(b"x" * size)
        return before, len(cuts)

    assert asyncio.run(scenario()) == (0, 1)


def test_a_listener_that_does_not_read_is_cut_off_and_the_others_hear_on(server, listen, system, feed, caplog):
    caplog.set_level(logging.INFO, "plimsoll.http")
    ear = listen("?only=journal")
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        deaf.sendall(b"GET /admin/events?only=journal HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: feed.listeners == 2, "it listens")
        count = 0
        while feed.listeners == 2 and count < 5000:
            system.journal.record(e.LoadFailed("tiny", f"{count} {'x' * 10_000}"))
            assert ear.next("journal")["event"]["reason"].startswith(f"{count} ")
            count += 1
        until(lambda: feed.listeners == 1, "it is cut off")
    assert count < 5000
    assert caplog.text.count("reads too slowly and is cut off") == 1
    system.journal.record(KILLED)
    assert ear.next("journal")["kind"] == "worker_killed"


def test_without_a_supervisor_the_feed_says_so_and_goes_on(listen, system):
    ear = listen("?only=sample,journal")
    ear.next("sample")
    system.supervisor.stop(block=True)
    for _ in range(10):
        sample = ear.next("sample")
        if sample["problems"]:
            break
    assert sample["problems"] == ["the server's supervisor is not running; restart the server"]
    assert (sample["status"], sample["admission"]) == ("degraded", "closed")
    assert sample["percent"] > 0
    system.journal.record(KILLED)
    assert ear.next("journal")["kind"] == "worker_killed"


def test_the_stream_ends_in_order_when_the_server_stops(listen, server):
    ear = listen("?only=journal")
    server.stop()
    assert list(ear._lines) == []
    server.join()


def test_a_pin_is_passed_on_and_answered_with_the_model(http, system):
    def pin(message):
        message.reply.send(ModelStatus(message.model, State.COLD, pinned=message.pinned))

    system.scripts[m.PinModel] = pin
    response = http.post("/admin/models/org%2Fbig/pin", json={"pinned": True})
    assert (response.status_code, response.json()["name"], response.json()["pinned"]) == (200, "org/big", True)
    told = system.hears(m.PinModel)
    assert (told.model, told.pinned) == ("org/big", True)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"pinned": 1}', b'{"pinned": null}', b"[true]"])
def test_a_bad_pin_is_refused(http, content):
    response = http.post("/admin/models/tiny/pin", content=content)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_value")


def test_a_pin_of_an_unknown_model_is_404(http):
    assert http.post("/admin/models/nope/pin", json={"pinned": True}).status_code == 404


def test_events_come_in_the_language_that_is_asked_for(listen, system, http):
    system.journal.record(KILLED)
    english, russian = listen("?only=journal&after=0"), listen("?only=journal&after=0&language=ru")
    for _ in range(2):  # one that was missed, one that happens now
        assert english.next("journal")["text"].startswith("the worker of tiny")
        assert russian.next("journal")["text"].startswith("Процесс модели tiny")
        system.journal.record(KILLED)
    told = http.get("/admin/history?language=ru").json()["events"]
    assert told[0]["text"].startswith("Процесс модели tiny")
    answer = http.get("/admin/events?language=tlh")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "language")


def test_downloads_are_told_while_they_run_and_when_they_have_ended(listen, http, server, monkeypatch):
    steps = queue.Queue()

    def resolve(_source, *, progress, **_):
        while (step := steps.get(timeout=DEADLINE_S)) is not None:
            progress(*step)

    monkeypatch.setattr(downloads, "resolve", resolve)
    monkeypatch.setattr(downloads, "installed", lambda *_: False)
    ear = listen("?only=pulls")
    assert ear.next("pulls") == {"pulls": []}
    with http.stream("POST", "/api/pull", json={"model": "tiny"}) as pull:
        next(pull.iter_lines())  # and the client goes
    steps.put(("fetch", 1, 4))
    heard = {"completed": -1}
    while heard["completed"] != 1:
        (heard,) = ear.next("pulls")["pulls"]
    assert heard.pop("begun_at") <= time.time()
    assert heard == {"model": "tiny", "stage": "fetch", "completed": 1, "total": 4, "done": False, "error": None}
    (newcomer,) = listen("?only=pulls").next("pulls")["pulls"]
    assert newcomer["total"] == 4
    steps.put(None)
    assert ear.next("pulls")["pulls"][0]["done"]


def test_a_download_that_failed_is_told_until_it_is_tried_again(listen, http, monkeypatch):
    def resolve(*_, **__):
        raise LoadFailed("no network")

    monkeypatch.setattr(downloads, "resolve", resolve)
    monkeypatch.setattr(downloads, "installed", lambda *_: False)
    assert http.post("/api/pull", json={"model": "tiny", "stream": False}).status_code == 503
    (first,) = listen("?only=pulls").next("pulls")["pulls"]
    assert (first["done"], first["error"]) == (False, "no network")
    monkeypatch.setattr(downloads, "installed", lambda *_: True)
    assert http.post("/api/pull", json={"model": "tiny", "stream": False}).status_code == 200
    (again,) = listen("?only=pulls").next("pulls")["pulls"]
    assert (again["done"], again["error"]) == (True, None)


class TestMissed:
    """What comes out of memory and what out of the file."""

    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "blackbox.sqlite"

    @pytest.fixture
    def box(self, path):
        box = BlackBox(path)
        box.start()
        yield box
        box.close("the test is over")

    def test_events_of_the_run_before_come_from_the_file(self, path, box):
        before = Journal("en", box)
        for pid in range(3):
            before.record(e.WorkerKilled("tiny", pid))
        first = before.recent()[0].id
        assert box.flush(DEADLINE_S)
        now = Journal("en", box)
        now.record(e.WorkerKilled("tiny", 3))
        assert [one.event.pid for one in missed(now, first)] == [1, 2, 3]
        assert [one.event.pid for one in missed(now, before.last_id)] == [3]
        assert missed(now, now.last_id) == []

    def test_of_many_the_newest_thousand_come(self, box):
        journal = Journal("en", box)
        for pid in range(1500):
            journal.record(e.WorkerKilled("tiny", pid))
        assert box.flush(DEADLINE_S)
        assert [one.event.pid for one in missed(journal, 0)] == list(range(500, 1500))

    def test_a_file_that_cant_be_read_costs_only_what_is_in_it(self, tmp_path):
        (tmp_path / "broken").write_bytes(b"no database " * 100)
        journal = Journal("en", BlackBox(tmp_path / "broken"))
        journal.record(KILLED)
        assert [one.event for one in missed(journal, 0)] == [KILLED]
