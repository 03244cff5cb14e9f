"""``plimsoll doctor``."""

import json
import os
import socket

import pytest

from plimsoll.cli.client import Client
from plimsoll.cli.machine_checks import OK, PROBLEM, WARNING


def examine(plimsoll, *arguments, **environment):
    done = plimsoll("doctor", "--json", *arguments, **environment)
    told = json.loads(done.stdout)
    assert done.returncode == (1 if told["problems"] else 0)
    return told["findings"]


def of(findings, subject):
    return [one for one in findings if one["subject"] == subject]


@pytest.fixture
def settings(shell, tmp_path):
    """Writes a configuration that has nothing wrong but what is given."""

    def write(port=0, **models):
        models = {"builtin": False, "cache_dir": str(tmp_path), **models}
        places = {"file": str(tmp_path / "log"), "blackbox": str(tmp_path / "box.sqlite")}
        return shell.write(tmp_path, {"server": {"port": port}, "models": models, "logging": places})

    return write


def test_a_sound_machine_has_no_problem(plimsoll, settings):
    file = settings(entries={"echo": {"source": "fake:"}})
    findings = examine(plimsoll, "--config", file)
    subjects = {"configuration", "python", "mlx", "memory", "swap", "disk", "models", "log", "black box", "port"}
    assert subjects <= {one["subject"] for one in findings}
    assert not [one for one in findings if one["level"] == PROBLEM]
    assert "echo" in of(findings, "models")[0]["text"]
    assert "mlx-lm" in of(findings, "mlx")[0]["text"]
    people = plimsoll("doctor", "--config", file)
    assert people.stdout.splitlines()[-1].startswith("0 problems")


def test_models_that_are_torn_or_too_large_are_problems_with_a_hint(plimsoll, settings, tmp_path):
    entries = {
        "huge": {"source": "fake:hold=90000000MiB"},
        "gone": {"source": str(tmp_path / "no-folder")},
        "later": {"source": "org/name"},
    }
    findings = examine(plimsoll, "--config", settings(entries=entries))
    wrong = of(findings, "model")
    assert [one["level"] for one in wrong] == [PROBLEM, PROBLEM]
    assert all(one["hint"] for one in wrong)
    assert "later" in of(findings, "models")[0]["text"]


def test_what_looks_like_a_model_and_is_passed_over_is_named_with_its_reason(plimsoll, settings, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "gone").symlink_to(tmp_path / "nowhere")
    (passed,) = of(examine(plimsoll, "--config", settings(dirs=[str(tmp_path / "models")])), "passed over")
    assert passed["level"] == WARNING
    assert "gone is a link to something that is not there" in passed["text"]


def test_a_wrong_configuration_is_a_problem_and_the_rest_is_examined(shell, plimsoll, tmp_path):
    findings = examine(plimsoll, "--config", shell.write(tmp_path, {"server": {"port": "x"}}))
    assert of(findings, "configuration")[0]["level"] == PROBLEM
    assert of(findings, "memory")


def test_a_port_that_somebody_has_is_a_problem_that_names_them(plimsoll, settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (found,) = of(examine(plimsoll, "--config", settings(taken.getsockname()[1])), "port")
    assert found["level"] == PROBLEM
    assert f"(pid {os.getpid()})" in found["text"]


def test_a_server_that_answers_is_told_with_its_version(plimsoll, settings, url):
    findings = examine(plimsoll, "--config", settings(), "--url", url)
    server = of(findings, "server")[0]
    assert server["level"] in (OK, WARNING)
    assert Client(url).get("/health")["version"] in server["text"]


def test_a_named_server_that_does_not_answer_is_a_problem(plimsoll, settings, no_server):
    (found,) = of(examine(plimsoll, "--config", settings(), "--url", no_server), "server")
    assert found["level"] == PROBLEM


def test_places_that_can_t_be_written_are_told(shell, plimsoll, tmp_path):
    (tmp_path / "a-file").write_text("")
    places = {"file": str(tmp_path / "a-file" / "log"), "blackbox": "none"}
    findings = examine(plimsoll, "--config", shell.write(tmp_path, {"logging": places, "models": {"builtin": False}}))
    assert of(findings, "log")[0]["level"] == WARNING
    assert "switched off" in of(findings, "black box")[0]["text"]
