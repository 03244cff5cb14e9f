"""``plimsoll doctor --deep``: every check runs here, on a tiny model, and a check that breaks is a finding."""

import json
import sys
from pathlib import Path
from subprocess import run

import pytest

from plimsoll import config
from plimsoll.cli import deep_checks
from plimsoll.cli.deep_checks import Effort, examine_deeply
from plimsoll.cli.machine_checks import OK, PROBLEM, WARNING, Finding

# In a process of its own: the tests of the command line import no MLX.
LEVELS = ("warning", "critical", "emergency")
BUILD = "import sys, pathlib, tiny_llama; tiny_llama.build(pathlib.Path(sys.argv[1]), max_position_embeddings=2048)"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    run([sys.executable, "-c", BUILD, folder / "tiny"], check=True, cwd=Path(__file__).parents[1])
    models = {
        "builtin": False,
        "programs": [],
        "cache_dir": str(folder),
        "entries": {"another": {"source": "fake:"}, "tiny": {"source": str(folder / "tiny")}},
    }
    return {"models": models, "logging": {"file": "none", "blackbox": "none"}}


def test_everything_runs_on_this_machine(plimsoll, settings, tmp_path):
    file = tmp_path / "deep.yaml"
    file.write_text(json.dumps(settings | {"server": {"port": 0}}))
    done = plimsoll("doctor", "--deep", "--quick", "--model", "tiny", "--json", "--config", file)
    told = json.loads(done.stdout)
    found = {one["subject"]: one for one in told["findings"]}
    assert [one for one in told["findings"] if one["level"] == PROBLEM] == []
    assert {
        "mlx-lm",
        "load",
        "streams",
        "prefix reuse",
        "memory sources",
        "pressure levels",
        "unload",
        "stop during a step",
        "took",
    } <= set(found)
    assert found["greedy tokens"]["text"] == "100% of the answer are mlx-lm's"
    pressure = told["figures"]["pressure"]
    assert {level: seen["acted"] for level, seen in pressure.items()} == dict.fromkeys(LEVELS, True)
    assert pressure["critical"]["refused"]
    assert told["figures"]["stop"]["exit_code"] == 0
    assert told["figures"]["stop"]["left"] == 0
    assert set(told["figures"]["streams"]) == {"1", "2"}
    assert {"plimsoll", "mlx", "mlx-lm", "python"} <= set(told["versions"])
    assert told["seconds"] < deep_checks.MOST_S


def test_a_check_that_breaks_is_a_finding_and_stops_no_other(monkeypatch):
    class Broken(deep_checks._Check):
        def steps(self):
            return (self._breaks, self._goes_on)

        def _breaks(self, folder):
            yield Finding(OK, "first", "went well")
            raise OSError("no such device")

        def _goes_on(self, folder):
            yield Finding(WARNING, "second", "slow")

    monkeypatch.setattr(deep_checks, "_Check", Broken)
    findings = examine_deeply(config.parse({}), effort=Effort()).findings
    assert [(one.level, one.subject) for one in findings][-3:] == [
        (PROBLEM, "breaks"),
        (WARNING, "second"),
        (OK, "took"),
    ]
    assert "OSError: no such device" in findings[-3].text


def test_what_would_begin_after_ten_minutes_is_left_out(monkeypatch):
    monkeypatch.setattr(deep_checks, "MOST_S", -1.0)
    report = examine_deeply(config.parse({}))
    assert {one.level for one in report.findings[:-1]} == {WARNING}
    assert report.findings[0].text.startswith("left out")
