"""Administration of models."""

import time

import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Failed, Waiting
from plimsoll.actors.status import ModelStatus, State
from plimsoll.engine.protocol import ModelInfo
from plimsoll.errors import InsufficientMemory
from plimsoll.units import Seconds


def test_all_models_are_listed_cold_ones_too(http, system, status):
    info = ModelInfo(4096, 1000, 10, "cpu", "float32")
    ready = ModelStatus("tiny", State.READY, pid=7, last_used=time.monotonic() - 60, idle_ttl_s=Seconds(900), info=info)
    system.scripts[m.GetStatus] = lambda message: message.reply.send(status(models=[ready]))
    big, tiny = http.get("/admin/models").json()["models"]
    assert (big["name"], big["state"], big["idle_s"]) == ("org/big", "cold", None)
    assert (tiny["name"], tiny["state"], tiny["pid"]) == ("tiny", "ready", 7)
    assert tiny["idle_s"] == pytest.approx(60, abs=5)
    assert tiny["unload_in_s"] == pytest.approx(840, abs=5)
    assert tiny["info"]["device"] == "cpu"


def test_the_ages_tell_which_of_two_models_was_used_last(http, system, status):
    now = time.monotonic()
    pair = [
        ModelStatus("tiny", State.READY, last_used=now - 0.02),
        ModelStatus("org/big", State.READY, last_used=now),
    ]
    system.scripts[m.GetStatus] = lambda message: message.reply.send(status(models=pair))
    big, tiny = http.get("/admin/models").json()["models"]
    assert tiny["idle_s"] - big["idle_s"] == pytest.approx(0.02, abs=0.0015)


@pytest.mark.parametrize("changes", [{"pinned": True}, {"state": State.BUSY}, {"idle_ttl_s": None}], ids=str)
def test_a_model_that_is_not_about_to_leave_has_no_countdown(http, system, status, changes):
    one = ModelStatus(**{"name": "tiny", "state": State.READY, "last_used": 1.0, "idle_ttl_s": 900.0} | changes)
    system.scripts[m.GetStatus] = lambda message: message.reply.send(status(models=[one]))
    assert http.get("/admin/models").json()["models"][1]["unload_in_s"] is None


@pytest.mark.parametrize("path", ["org/big", "org%2Fbig"])
def test_a_model_is_loaded_and_its_state_answered(http, system, path):
    def load(message):
        message.reply.send(Waiting("read", 1, 2))
        message.reply.send(ModelStatus(message.model, State.READY))

    system.scripts[m.LoadModel] = load
    response = http.post(f"/admin/models/{path}/load")
    assert (response.status_code, response.json()["state"]) == (200, "ready")
    assert system.hears(m.LoadModel).model == "org/big"


def test_a_refused_load_says_why(http, system):
    error = InsufficientMemory("96 % used", retry_after_s=10, details={"used_percent": 96.0})
    system.scripts[m.LoadModel] = lambda message: message.reply.send(Failed(error))
    response = http.post("/admin/models/tiny/load")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "10"
    assert response.json()["error"]["memory"] == {"used_percent": 96.0}


@pytest.mark.parametrize(("content", "grace_s"), [(b"", 10.0), (b"{}", 10.0), (b'{"grace_s": 2.5}', 2.5)])
def test_a_model_is_unloaded_with_a_grace(http, system, content, grace_s):
    system.scripts[m.UnloadModel] = lambda message: message.reply.send(ModelStatus(message.model, State.STOPPED))
    response = http.post("/admin/models/tiny/unload", content=content)
    assert response.json()["state"] == "stopped"
    told = system.hears(m.UnloadModel)
    assert (told.model, told.grace_s) == ("tiny", grace_s)


@pytest.mark.parametrize("content", [b'{"grace_s": -1}', b'{"grace_s": "x"}', b"[]", b"{"])
def test_a_bad_grace_is_refused(http, content):
    assert http.post("/admin/models/tiny/unload", content=content).status_code == 400


@pytest.mark.parametrize(
    ("path", "code"),
    [("nope/load", "model_not_found"), ("tiny/explode", "not_found"), ("tiny", "not_found"), ("/load", "not_found")],
)
def test_what_is_not_there_is_404(http, path, code):
    response = http.post(f"/admin/models/{path}")
    assert (response.status_code, response.json()["error"]["code"]) == (404, code)


def test_ended_requests_are_told_the_newest_first(http, system, says, body):
    system.scripts[m.Chat] = says("one", "two")
    for _ in range(2):
        assert http.post("/v1/chat/completions", json=body()).status_code == 200
    told = http.get("/admin/requests").json()["requests"]
    assert len(told) == 2
    assert told[0]["ended_at"] >= told[1]["ended_at"]
    assert told[0]["outcome"] == "stop"
