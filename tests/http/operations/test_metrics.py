"""What Prometheus reads."""

import json
import os
import re
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from plimsoll import __version__
from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Failed
from plimsoll.actors.status import ModelStatus, State
from plimsoll.errors import InsufficientMemory
from plimsoll.http.operations.metrics import death_class, unload_reason
from plimsoll.journal import events as e
from plimsoll.memory.sample import Level, Reading, Sample

ROOT = Path(__file__).parents[3]
DASHBOARD = json.loads((ROOT / "ops/grafana/plimsoll.json").read_text(encoding="utf-8"))
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
# The words of PromQL that are no metric and no label.
PROMQL = {"sum", "rate", "increase", "by", "le", "histogram_quantile", "max", "min", "clamp_min", "vector", "or", "on"}


def scrape(http):
    """Every sample by its name and the values of its labels, in the order of their names."""
    response = http.get("/metrics")
    assert response.status_code == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def exported(http):
    """The names of all series, those without a value yet too."""
    names = set()
    for family in text_string_to_metric_families(http.get("/metrics").text):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        names |= {family.name + suffix for suffix in suffixes}
    return names


def test_requests_are_counted_by_api_model_and_outcome(http, system, says, body):
    system.scripts[m.Chat] = says("one", "two")
    assert http.post("/v1/chat/completions", json=body()).status_code == 200
    assert http.post("/v1/chat/completions", json=body(stream=True)).status_code == 200
    assert http.post("/v1/messages", json=body(max_tokens=5)).status_code == 200
    found = scrape(http)
    assert found["plimsoll_requests_total", "openai", "tiny", "stop"] == 2
    assert found["plimsoll_requests_total", "anthropic", "tiny", "stop"] == 1
    assert found["plimsoll_prompt_tokens_total", "tiny"] == 9
    assert found["plimsoll_cached_tokens_total", "tiny"] == 3
    assert found["plimsoll_completion_tokens_total", "tiny"] == 6
    assert found["plimsoll_first_token_seconds_count", "tiny"] == 3


def test_a_client_that_goes_away_is_a_cancelled_request(http, system, body):
    system.scripts[m.Chat] = lambda chat: chat.reply.send(Delta("one", 1))
    with http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as response:
        next(response.iter_lines())
    system.hears(m.Cancel)
    assert scrape(http)["plimsoll_requests_total", "openai", "tiny", "cancelled"] == 1


def test_errors_are_counted_by_code_wherever_they_come_from(http, system, body):
    error = InsufficientMemory("96 % used")

    def fails_late(chat):
        chat.reply.send(Delta("one", 1))
        chat.reply.send(Failed(error))

    system.scripts[m.Chat] = lambda chat: chat.reply.send(Failed(error))
    assert http.post("/v1/chat/completions", json=body()).status_code == 503
    system.scripts[m.Chat] = fails_late
    assert http.post("/v1/chat/completions", json=body(stream=True)).status_code == 200
    assert http.post("/v1/chat/completions", json={}).status_code == 400
    assert http.post("/v1/chat/completions", json=body(model="nope")).status_code == 404
    assert http.get("/nowhere").status_code == 404
    found = scrape(http)
    codes = {key[1]: value for key, value in found.items() if key[0] == "plimsoll_errors_total"}
    assert codes == {"insufficient_memory": 2, "invalid_value": 1, "model_not_found": 1, "not_found": 1}
    assert found["plimsoll_requests_total", "openai", "tiny", "failed"] == 2


def test_names_that_are_in_no_catalog_become_no_label(http, body):
    # Few, for models.dir is looked at anew for each of them, a quarter of a second apart.
    for number in range(2):
        http.post("/v1/chat/completions", json=body(model=f"made-up-{number}"))
        http.post("/api/chat", json=body(model=f"made-up-{number}"))
        http.post(f"/admin/models/made-up-{number}/load")
    assert "made-up" not in http.get("/metrics").text


def test_memory_is_that_of_the_latest_sample(http, system, status):
    readings = (Reading("host", 1000, 500), Reading("cgroup", 100, 90))
    told = status(
        Level.CRITICAL,
        sample=Sample(1.0, readings, footprints={os.getpid(): 77}),
        models=[ModelStatus("tiny", State.BUSY, active=3, queued=2)],
        footprints={"tiny": 5},
        sampler_lag_s=0.25,
        admission="closed",
        problems=["one"],
    )
    system.scripts[m.GetStatus] = lambda message: message.reply.send(told)
    found = scrape(http)
    assert found["plimsoll_memory_used_percent", "host"] == 50
    assert found["plimsoll_memory_used_percent", "cgroup"] == 90
    assert found["plimsoll_memory_used_bytes", "cgroup"] == 90
    assert found["plimsoll_memory_total_bytes", "host"] == 1000
    assert found["plimsoll_memory_threshold_percent", "critical"] == 95
    assert found["plimsoll_memory_level",] == 2
    assert found["plimsoll_admission_open",] == 0
    assert found["plimsoll_sampler_lag_seconds",] == 0.25
    assert found["plimsoll_front_footprint_bytes",] == 77
    assert found["plimsoll_model_footprint_bytes", "tiny"] == 5
    assert found["plimsoll_model_active", "tiny"] == 3
    assert found["plimsoll_model_queued", "tiny"] == 2
    assert found["plimsoll_model_state", "tiny", "busy"] == 1
    assert found["plimsoll_problems",] == found["plimsoll_supervisor_up",] == 1


def test_the_journals_events_are_counted(http, system):
    record = system.journal.record
    record(e.ModelLoaded("tiny", 1.5, 1, 2, "cpu"))
    record(e.LoadFailed("tiny", "no file"))
    record(e.LoadRefused("tiny", 5, 4, 90.0, "full"))
    record(e.ModelUnloaded("tiny", "to make room for org/big", 100, 90, 5.0))
    record(e.ModelUnloaded("tiny", "idle", 100, -5, 5.0))
    record(e.WorkerDied("tiny", "signal 11 (SIGSEGV)", "loading"))
    record(e.WorkerDied("tiny", "exit code 3", "generating"))
    record(e.OutOfMemory("tiny", "no room", 99.0))
    record(e.WorkerKilled("tiny", 7))
    record(e.WorkerHung("tiny", 7, 60.0, "generating", 1))
    record(e.WorkerStuck("tiny", 7, 5))
    record(e.CleanupStarted(True, "asked for", 96.0))
    record(e.LevelChanged(e.LevelName.WARNING, e.LevelName.NORMAL, 87.5, "host"))
    found = scrape(http)
    assert found["plimsoll_loads_total", "tiny"] == found["plimsoll_load_failures_total", "tiny"] == 1
    assert found["plimsoll_load_seconds_sum", "tiny"] == 1.5
    assert found["plimsoll_loads_refused_total", "tiny"] == 1
    assert found["plimsoll_unloads_total", "tiny", "make_room"] == found["plimsoll_unloads_total", "tiny", "idle"] == 1
    assert (found["plimsoll_reclaim_expected_bytes_total",], found["plimsoll_reclaim_freed_bytes_total",]) == (200, 90)
    deaths = {key[1]: value for key, value in found.items() if key[0] == "plimsoll_worker_deaths_total"}
    assert deaths == {"sigsegv": 1, "exit": 1, "out_of_memory": 1, "unresponsive": 1, "hung": 1, "stuck": 1}
    assert found["plimsoll_cleanups_total", "aggressive"] == 1
    assert found["plimsoll_events_total", "model_unloaded"] == 2
    assert found["plimsoll_memory_level_changes_total", "warning"] == 1


@pytest.mark.parametrize(
    ("reason", "label"),
    [
        ("idle", "idle"),
        ("not kept alive", "keep_alive"),
        ("asked for", "asked"),
        ("before loading org/big", "make_room"),
        ("high memory use", "warning"),
        ("memory critical", "critical"),
        ("memory emergency", "emergency"),
        ("MemoryError of tiny", "out_of_memory"),
        ("the configuration changed", "reload"),
        ("the server stops", "shutdown"),
        ("actor failed: KeyError(1)", "other"),
    ],
)
def test_reasons_become_few_words(reason, label):
    assert unload_reason(reason) == label


def test_a_death_without_a_signal_is_an_exit():
    assert (death_class("exit code 1"), death_class("signal 9 (SIGKILL)")) == ("exit", "sigkill")


def test_without_a_supervisor_memory_is_still_read(http, system):
    system.supervisor.stop(block=True)
    found = scrape(http)
    assert found["plimsoll_supervisor_up",] == 0
    assert 0 < found["plimsoll_memory_used_percent", "host"] < 100
    assert ("plimsoll_memory_level",) not in found


def test_openmetrics_is_given_to_who_asks_for_it(http):
    plain = http.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    response = http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family for family in openmetrics(response.text)}
    assert families["plimsoll_build"].samples[0].labels["version"] == __version__


def test_nothing_is_kept_outside_of_the_server(http, server):
    http.get("/metrics")
    mine = {name for name in REGISTRY._names_to_collectors if name.startswith("plimsoll")}
    assert not mine
    assert server.app.ctx.state.recorder is not None


# ---- the dashboard and the documentation


def expressions():
    panels = [one for panel in DASHBOARD["panels"] for one in (panel, *panel.get("panels", []))]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def metrics_of(expression):
    """The metrics that a PromQL expression names: what is left without texts, labels, functions and durations."""
    bare = re.sub(r'"[^"]*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|without|on) *\([^)]*\)", " ", bare)
    return {word for word in re.findall(r"[a-zA-Z_:][\w:]*", bare) if word not in PROMQL}


def test_every_expression_of_the_dashboard_names_metrics_that_there_are(http):
    names = exported(http)
    assert len(expressions()) > 20
    for expression in expressions():
        assert metrics_of(expression), expression
        assert metrics_of(expression) <= names, expression


def test_a_wrong_name_in_an_expression_would_be_seen():
    wrong = 'sum by (le, model) (rate(plimsoll_nothing_bucket{model=~"$model"}[$__rate_interval]))'
    assert metrics_of(wrong) == {"plimsoll_nothing_bucket"}


def test_legends_name_labels_that_their_expression_leaves():
    documented = dict(re.findall(r"`(plimsoll_\w+)\{([\w,]+)\}`", OPERATIONS))
    panels = [one for one in DASHBOARD["panels"] if one["type"] != "row"]
    for target in (one for panel in panels for one in panel["targets"]):
        grouped = re.findall(r"by \(([\w, ]+)\)", target["expr"])
        (metric, *_) = metrics_of(target["expr"])
        left = grouped[0] if grouped else documented.get(metric, "")
        used = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
        assert set(used) <= set(re.split(r"[, ]+", left)), target


def test_the_dashboard_can_be_imported():
    assert DASHBOARD["id"] is None
    assert DASHBOARD["uid"] == "plimsoll"
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    panels = [one for one in DASHBOARD["panels"] if one["type"] != "row"]
    assert len({one["id"] for one in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in panels:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert panel["targets"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
    places = [
        (x, y)
        for one in DASHBOARD["panels"]
        for x in range(one["gridPos"]["x"], one["gridPos"]["x"] + one["gridPos"]["w"])
        for y in range(one["gridPos"]["y"], one["gridPos"]["y"] + one["gridPos"]["h"])
    ]
    assert len(places) == len(set(places)), "no panel lies on another"
    assert max(x for x, _ in places) < 24


def test_every_metric_is_documented_and_nothing_else_is(http):
    section = OPERATIONS.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(plimsoll_\w+)[{`]", section))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported(http)}
    assert documented == families
