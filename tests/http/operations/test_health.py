"""Health in every state of the server."""

import pytest

from plimsoll.actors import messages as m
from plimsoll.actors.status import ModelStatus, State
from plimsoll.engine.protocol import ModelInfo
from plimsoll.memory.sample import Level, Reading, Sample

GB = 2**30


def answers(made):
    return lambda message: message.reply.send(made)


def test_the_body_has_what_the_brief_asks_for(http, system, status):
    system.scripts[m.GetStatus] = answers(status(percent=87.5))
    body = http.get("/health").json()
    assert body["status"] == "healthy"
    assert body["memory"] == {
        "used_percent": 87.5,
        "available_gb": 16.0,
        "total_gb": 128.0,
        "warning_threshold": 85.0,
        "critical_threshold": 95.0,
    }


@pytest.mark.parametrize(
    ("level", "problems", "name", "code"),
    [
        (Level.NORMAL, [], "healthy", 200),
        (Level.WARNING, [], "warning", 200),
        (Level.CRITICAL, [], "critical", 503),
        (Level.EMERGENCY, [], "critical", 503),
        (Level.NORMAL, ["tiny failed three times"], "degraded", 200),
        (Level.WARNING, ["a reader fails"], "degraded", 200),
        (Level.CRITICAL, ["a reader fails"], "critical", 503),
    ],
)
def test_level_and_problems_make_the_status(http, system, status, level, problems, name, code):  # noqa: PLR0917 - fixtures and parameters
    system.scripts[m.GetStatus] = answers(status(level, 96.0, problems=problems, admission="closed"))
    response = http.get("/health")
    body = response.json()
    assert (response.status_code, body["status"]) == (code, name)
    assert body["problems"] == problems
    assert body["level"] == level.name.lower()
    assert body["admission"] == "closed"
    assert body["memory"]["used_percent"] == 96.0


def test_the_binding_source_and_its_figures_are_shown(http, system, status):
    readings = (Reading("host", 100 * GB, 50 * GB), Reading("cgroup", 10 * GB, 9 * GB))
    system.scripts[m.GetStatus] = answers(status(sample=Sample(1.0, readings)))
    body = http.get("/health").json()
    assert body["binding_source"] == "cgroup"
    assert body["memory"]["total_gb"] == 10.0


def test_models_with_a_life_are_summed_up(http, system, status):
    info = ModelInfo(4096, 1000, 10, "cpu", "float32", "openblas")
    models = [ModelStatus("tiny", State.BUSY, active=2, queued=1, info=info), ModelStatus("big", State.COLD)]
    system.scripts[m.GetStatus] = answers(status(models=models, footprints={"tiny": 2 * 1024**3}))
    assert http.get("/health").json()["models"] == [
        {
            "name": "tiny",
            "state": "busy",
            "active": 2,
            "queued": 1,
            "footprint_gb": 2.0,
            "device": "cpu",
            "blas": "openblas",
        }
    ]


def test_a_supervisor_that_has_no_sample_yet_does_not_hide_the_figures(http, system, status):
    system.scripts[m.GetStatus] = answers(status(sample=None))
    assert http.get("/health").json()["memory"]["total_gb"] > 0


@pytest.mark.parametrize("how", ["silent", "dead"])
def test_without_a_supervisor_the_server_is_degraded_and_still_gives_figures(http, system, how):
    if how == "dead":
        system.supervisor.stop()
    else:
        system.scripts[m.GetStatus] = lambda _message: None
    response = http.get("/health", timeout=60)
    body = response.json()
    assert (response.status_code, body["status"]) == (200, "degraded")
    assert "supervisor" in body["problems"][0]
    assert body["memory"]["total_gb"] > 0
    assert http.get("/health/live").status_code == 200
    assert http.get("/health/ready", timeout=60).status_code == 503


@pytest.mark.parametrize(
    ("changes", "code"), [({}, 200), ({"admission": "closed"}, 503), ({"stopping": True}, 503)], ids=str
)
def test_readiness_follows_admission_and_stopping(http, system, status, changes, code):
    system.scripts[m.GetStatus] = answers(status(**changes))
    response = http.get("/health/ready")
    assert response.status_code == code
    assert bool(response.json()["reasons"]) == (code == 503)


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_a_probe_may_use_head(http, path):
    response = http.head(path)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize(("query", "clean_up"), [("", True), ("?cleanup=yes", True), ("?cleanup=no", False)])
def test_asking_cleans_up_at_critical_unless_told_not_to(http, system, query, clean_up):
    assert http.get(f"/health{query}").status_code == 200
    assert system.hears(m.GetStatus).clean_up is clean_up


def test_a_misspelt_cleanup_starts_none(http, system):
    response = http.get("/health?cleanup=false")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "cleanup")
    assert not system.has_heard(m.GetStatus)


def test_what_connections_and_bodies_take_is_shown(http, server, status):
    server.app.ctx.state.sample = status(percent=99.9).sample  # 131 MiB are free: a quarter is more than one body's 16
    assert http.get("/health").json()["front"] == {
        "connections": 1,
        "connections_limit": 1000,
        "body_bytes": 0,
        "body_bytes_limit": 16 * 2**20,
        "bodies_waiting": 0,
    }
