"""Reading the configuration again, from the wire's side."""

import concurrent.futures
import threading

import pytest

from plimsoll import config
from plimsoll.actors import messages as m
from plimsoll.errors import ConfigError
from plimsoll.http.process import reload
from plimsoll.journal import events

DEADLINE_S = 60
ENTRIES = {"mine": {"source": "fake:"}}


@pytest.fixture
def recorded(system):
    made = []
    system.journal.subscribe(lambda entry: made.append(entry.event))
    return made


@pytest.fixture(autouse=True)
def _supervisor_agrees(system):
    system.scripts[m.Reconfigure] = lambda message: message.reply.send(None)


def finds(running, /, **sections):
    running.read = lambda: config.parse(sections)


def test_what_has_changed_is_told_to_the_supervisor_and_answered(http, server, system, recorded):
    finds(
        server,
        memory={"warning_percent": 70, "limit": "1GiB", "critical_grace": "3s"},
        models={"entries": ENTRIES, "queue": 5},
        server={"port": 1, "shutdown_grace": "7s"},
    )
    answer = http.post("/admin/reload")
    assert answer.status_code == 200
    assert answer.json()["needs_restart"] == ["server.port"]
    changed = answer.json()["changed"]
    assert set(changed) == {
        *("memory.warning_percent", "memory.limit", "memory.critical_grace"),
        *("models.queue", "models.entries.mine", "server.shutdown_grace"),
    }
    told = system.hears(m.Reconfigure)
    settings = told.settings
    assert (settings.thresholds.warning, settings.limit_bytes, settings.queue) == (70, 2**30, 5)
    assert (settings.critical_grace_s, told.drain_s) == (3, 7)
    assert told.catalog.find("mine").source.kind == "fake"
    assert recorded == [events.ConfigReloaded(tuple(changed), ("server.port",))]


def test_the_front_end_goes_by_the_new_configuration(http, server, system):
    assert http.get("/v1/models/mine").status_code == 404
    finds(
        server,
        memory={"warning_percent": 70},
        models={"entries": ENTRIES},
        server={"max_body": "1KiB"},
        logging={"language": "ru"},
    )
    http.post("/admin/reload").raise_for_status()
    assert http.get("/v1/models/mine").status_code == 200
    assert http.get("/v1/models/tiny").status_code == 404
    assert http.get("/health").json()["memory"]["warning_threshold"] == 70
    assert system.journal.language == "ru"
    # A connection's bound is that of its beginning.
    http.headers["Connection"] = "close"
    http.get("/health/live")
    assert http.post("/v1/chat/completions", content=b"x" * 2000).status_code == 413


def test_a_file_that_can_not_be_used_changes_nothing_and_says_why(http, server, system, recorded):
    def refuse():
        raise ConfigError("/etc/plimsoll.yaml: memory.limit: 'lots' is not allowed, expected a size like 16GiB")

    server.read = refuse
    answer = http.post("/admin/reload")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "config_error"
    assert "memory.limit: 'lots' is not allowed" in answer.json()["error"]["message"]
    assert recorded == [events.ConfigRefused(answer.json()["error"]["message"])]
    assert not system.has_heard(m.Reconfigure)
    assert http.get("/v1/models/tiny").status_code == 200


def test_a_folder_that_is_not_there_is_found_before_anything_changes(http, server, system, tmp_path):
    finds(server, models={"dir": str(tmp_path / "none")}, memory={"warning_percent": 70})
    answer = http.post("/admin/reload")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "models.dir")
    assert not system.has_heard(m.Reconfigure)
    assert http.get("/health").json()["memory"]["warning_threshold"] == 85


def test_a_supervisor_that_does_not_answer_leaves_the_front_end_as_it_was(http, server, system, monkeypatch):
    monkeypatch.setattr(reload, "_TIMEOUT_S", 0.1)
    system.scripts[m.Reconfigure] = lambda _message: None
    finds(server, models={"entries": ENTRIES})
    answer = http.post("/admin/reload")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert http.get("/v1/models/mine").status_code == 404


def test_two_at_once_are_done_one_after_the_other(http, server, recorded):
    reading, go_on = threading.Event(), threading.Event()
    queues = iter((5, 6))

    def read():
        reading.set()
        assert go_on.wait(DEADLINE_S)
        return config.parse({"models": {"queue": next(queues)}})

    server.read = read
    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = [pool.submit(http.post, "/admin/reload") for _ in range(2)]
        assert reading.wait(DEADLINE_S)
        assert http.get("/health/live").status_code == 200, "the loop does not wait for the disk"
        go_on.set()
        assert [one.result().json()["changed"] for one in asked] == [["models.queue"]] * 2
    assert server.app.ctx.state.config.models.queue == 6
    assert len(recorded) == 2


def test_nothing_to_change_is_said_to_be_nothing(http):
    assert http.post("/admin/reload").json() == {"changed": [], "needs_restart": []}


def test_api_keys_that_were_added_are_asked_for_from_then_on(http, server, system, tmp_path):
    key = tmp_path / "key"
    key.write_text("a-key-that-is-long-enough-to-be-one")
    finds(server, access={"keys": [{"name": "me", "role": "admin", "file": str(key)}]})
    assert http.post("/admin/reload").json()["changed"] == ["access.keys"]
    assert http.get("/v1/models").status_code == 401
    old = {"Authorization": f"Bearer {key.read_text()}"}
    assert http.get("/v1/models", headers=old).status_code == 200
    # The configuration says the same, the file another key.
    key.write_text("another-key-that-is-long-enough-too")
    assert http.post("/admin/reload", headers=old).json()["changed"] == []
    assert http.get("/v1/models", headers=old).status_code == 401


KEYS = {"keys": [{"name": "boss", "role": "admin", "key": "key-of-the-boss"}]}


@pytest.mark.parametrize("server_config", [{"access": KEYS}], ids=["keys"])
@pytest.mark.parametrize(("address", "status", "then"), [("0.0.0.0", 400, 401), ("127.0.0.1", 200, 200)])
def test_the_last_key_is_not_taken_away_where_others_could_come_in(http, server, address, status, then):
    server.app.ctx.gate.bound_to(address)
    finds(server)
    answer = http.post("/admin/reload", headers={"x-api-key": "key-of-the-boss"})
    assert answer.status_code == status
    assert ("--insecure" in answer.text) == (status == 400)
    assert "key-of-the-boss" not in answer.text
    assert http.get("/v1/models").status_code == then


@pytest.mark.parametrize("server_config", [{"access": KEYS}], ids=["keys"])
def test_a_key_that_was_changed_counts_from_the_next_request_on_and_is_told_nowhere(http, server, recorded):
    finds(server, access={"keys": [{"name": "boss", "role": "admin", "key": "another-key"}]})
    answer = http.post("/admin/reload", headers={"x-api-key": "key-of-the-boss"})
    assert answer.json()["changed"] == ["access.keys"]
    statuses = [
        http.get("/v1/models", headers={"x-api-key": key}).status_code for key in ("key-of-the-boss", "another-key")
    ]
    assert statuses == [401, 200]
    assert "key" not in repr(recorded).replace("access.keys", "")
