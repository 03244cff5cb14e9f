"""What the black box remembers, asked for over HTTP."""

import pytest

from plimsoll.journal import events as e
from plimsoll.journal.blackbox import BlackBox
from plimsoll.memory.sample import Level, Reading, Sample

KILLED = e.WorkerKilled("tiny", 7)
FAILED = e.LoadFailed("tiny", "no such file")


@pytest.fixture
def box(system, tmp_path, clock):
    """A black box behind the server's journal."""
    box = BlackBox(tmp_path / "blackbox.sqlite", now=clock)
    box.start()
    system.journal.blackbox = box
    system.journal.now = clock
    yield box
    box.close("the test is over")


def sampled(box, clock, percents):
    """One sample per second, the last one now."""
    clock.at -= len(percents)
    for step, percent in enumerate(percents):
        clock.at += 1
        readings = (Reading("host", 1000, percent * 10),)
        box.sample(Sample(100.0 + step, readings, footprints={1: 100, 2: 200}), Level.WARNING)


def test_samples_and_events_of_the_last_hour_are_shown(http, system, box, clock):
    sampled(box, clock, [50, 60])
    system.journal.record(KILLED)
    body = http.get("/admin/history?since=1m").json()
    assert (body["since"], body["until"]) == (60, 0)
    assert [row[1:] for row in body["samples"]] == [[50.0, 1, 300, 500, 1000], [60.0, 1, 300, 600, 1000]]
    assert [round(row[0] - clock.at) for row in body["samples"]] == [-1, 0]
    (event,) = body["events"]
    assert event == {
        "id": system.journal.last_id,
        "at": round(clock.at, 3),
        "kind": "worker_killed",
        "severity": "warning",
        "text": "the worker of tiny (pid 7) did not stop in time and is killed to get its memory back",
        "event": {"model": "tiny", "pid": 7},
    }


def test_a_stretch_of_the_past_is_cut_out(http, system, box, clock):
    clock.at -= 20
    system.journal.record(KILLED)
    clock.at += 10
    system.journal.record(FAILED)
    sampled(box, clock, [50])
    clock.at += 10
    system.journal.record(KILLED)
    sampled(box, clock, [60])
    body = http.get("/admin/history?since=15s&until=5").json()
    assert [one["kind"] for one in body["events"]] == ["load_failed"]
    assert [row[1] for row in body["samples"]] == [50.0]


def test_of_many_samples_the_fullest_of_each_stretch_is_shown(http, box, clock):
    sampled(box, clock, [50] * 42 + [90] + [50] * 57)
    samples = http.get("/admin/history?since=100&points=10").json()["samples"]
    assert 10 <= len(samples) <= 11
    assert max(row[1] for row in samples) == 90.0


def test_of_many_events_the_newest_are_shown(http, system, box):
    for pid in range(10):
        system.journal.record(e.WorkerKilled("tiny", pid))
    events = http.get("/admin/history?points=3").json()["events"]
    assert [one["event"]["pid"] for one in events] == [7, 8, 9]


@pytest.mark.parametrize("kept", [True, False], ids=["black box", "memory"])
def test_one_kind_of_event_can_be_asked_for(http, system, kept, request):
    if kept:
        request.getfixturevalue("box")
    system.journal.record(KILLED)
    system.journal.record(FAILED)
    events = http.get("/admin/history?kind=load-failed").json()["events"]
    assert [one["kind"] for one in events] == ["load_failed"]


def test_samples_or_events_can_be_asked_for_alone(http, system, box, clock):
    sampled(box, clock, [50, 60])
    system.journal.record(KILLED)
    samples, events = (http.get("/admin/history", params={"only": only}).json() for only in ("samples", "events"))
    assert (bool(samples["samples"]), samples["events"]) == (True, [])
    assert (events["samples"], len(events["events"])) == ([], 1)


def test_without_a_black_box_the_events_of_this_run_are_shown(http, system):
    system.journal.record(KILLED)
    body = http.get("/admin/history").json()
    assert body["samples"] == []
    assert [one["kind"] for one in body["events"]] == ["worker_killed"]
    assert http.get("/admin/history?since=2h&until=1h").json()["events"] == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("since=yesterday", "since"),
        ("since=-5", "since"),
        ("since=nan", "since"),
        ("since=10&until=10", "since"),
        ("until=x", "until"),
        ("points=0", "points"),
        ("points=10001", "points"),
        ("points=1.5", "points"),
        ("points=²", "points"),
        (f"points={'9' * 5000}", "points"),
        ("kind=weather", "kind"),
        ("only=models", "only"),
    ],
)
def test_bad_questions_are_refused(http, query, param):
    response = http.get(f"/admin/history?{query}")
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert param in error["message"]


def test_a_black_box_that_cant_be_read_is_an_error_with_a_sentence(http, system, tmp_path):
    path = tmp_path / "broken.sqlite"
    path.write_bytes(b"no database " * 100)
    system.journal.blackbox = BlackBox(path)
    response = http.get("/admin/history")
    assert response.status_code == 503
    assert "can't be read" in response.json()["error"]["message"]
