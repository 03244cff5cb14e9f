"""What the command line says of models and does to them."""

import json

import httpx
import pytest


def test_models_lists_kind_install_state_and_state(shell, plimsoll, url, tmp_path):
    entries = {"echo": {"source": "fake:"}, "gone": {"source": "org/name"}}
    file = shell.write(tmp_path, {"models": {"builtin": False, "cache_dir": str(tmp_path), "entries": entries}})
    plimsoll("chat", "echo", "--once", "hi", "--url", url)
    head, echo, gone = plimsoll("models", "--config", file, "--url", url).stdout.splitlines()
    assert head.split() == ["NAME", "KIND", "SIZE", "QUANT", "CONTEXT", "CAN", "INSTALLED", "FITS", "STATE"]
    assert echo.split() == ["echo", "fake", "-", "-", "-", "-", "yes", "?", "ready"]
    assert gone.split() == ["gone", "repo", "-", "-", "-", "-", "no", "?", "-"]


def test_models_works_without_a_server(shell, plimsoll, tmp_path):
    file = shell.write(tmp_path, {"models": {"builtin": False, "entries": {"echo": {"source": "fake:"}}}})
    done = plimsoll("models", "--config", file, "--url", "http://127.0.0.1:1")
    assert (done.returncode, "echo" in done.stdout) == (0, True)
    assert "no server" in done.stderr


def test_ps_shows_what_runs_for_people_and_for_programs(plimsoll, url):
    plimsoll("chat", "echo", "--once", "hi", "--url", url)
    table = plimsoll("ps", "--url", url).stdout
    told = json.loads(plimsoll("ps", "--json", "--url", url).stdout)["models"]
    (running,) = [one for one in told if one["name"] == "echo"]
    assert running["state"] == "ready"
    assert str(running["pid"]) in table
    assert "broken" not in table
    assert "in 15 min" in table


def test_models_for_programs(shell, plimsoll, no_server, tmp_path):
    file = shell.write(tmp_path, {"models": {"builtin": False, "entries": {"gone": {"source": "org/name"}}}})
    told = json.loads(plimsoll("models", "--json", "--config", file, "--url", no_server).stdout)
    row = {"name": "gone", "kind": "repo", "size_bytes": None, "installed": False, "state": None}
    row |= {"quantization": None, "context": None, "abilities": [], "fits": None}
    assert told == {"models": [row], "passed_over": []}


def test_ps_is_aligned_and_fits_a_terminal_of_80_columns(plimsoll, url):
    plimsoll("load", "echo", "--url", url)
    head, *rows = plimsoll("ps", "--url", url).stdout.splitlines()
    assert all(len(line) <= 80 for line in (head, *rows))
    (echo,) = [row for row in rows if row.startswith("echo ")]
    assert echo.index("in 15 min") == head.index("UNLOADS")


def test_load_waits_until_the_model_is_ready(shell, plimsoll, url):
    plimsoll("unload", "other", "--url", url)
    done = plimsoll("load", "other", "--url", url)
    assert done.returncode == 0
    assert done.stdout.startswith("other is ready: loaded in")
    assert shell.states(url)["other"] == "ready"
    told = json.loads(plimsoll("load", "other", "--json", "--url", url).stdout)
    assert (told["name"], told["state"]) == ("other", "ready")


@pytest.mark.parametrize(
    ("model", "word"), [("broken", "the file is torn"), ("nope", "no model 'nope'"), ("huge", "needs")]
)
def test_a_load_that_fails_is_one_line_and_exit_code_1(shell, plimsoll, url, model, word):
    shell.fails(plimsoll("load", model, "--url", url), 1, word)


def test_load_with_plan_says_first_what_it_would_do(plimsoll, url):
    done = plimsoll("load", "echo", "--plan", "--url", url)
    assert (done.returncode, "echo fits" in done.stderr) == (0, True)
    refused = plimsoll("load", "huge", "--plan", "--url", url)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "can never be loaded" in refused.stderr


def test_plan_answers_by_its_exit_code(plimsoll, url):
    assert plimsoll("plan", "echo", "--url", url).returncode == 0
    done = plimsoll("plan", "huge", "--json", "--url", url)
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (1, "never")


def test_unload_says_whether_there_was_anything_to_unload(shell, plimsoll, url):
    plimsoll("load", "other", "--url", url)
    done = plimsoll("unload", "other", "--url", url)
    assert done.stdout.startswith("other is unloaded")
    assert shell.states(url)["other"] == "cold"
    assert plimsoll("unload", "other", "--url", url).stdout == "other was not loaded\n"
    shell.fails(plimsoll("unload", "nope", "--url", url), 1, "nope")


def test_unload_gives_running_answers_the_grace_it_is_told(plimsoll, url):
    body = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert plimsoll("unload", "slow", "--grace", "0", "--url", url).returncode == 0
        assert any("error" in line for line in lines)


def test_cleanup_tells_what_it_unloaded(plimsoll, url):
    for model in ("echo", "other"):
        plimsoll("chat", model, "--once", "hi", "--url", url)
    assert "unloaded echo" in plimsoll("cleanup", "--url", url).stdout
    told = json.loads(plimsoll("cleanup", "--aggressive", "--json", "--url", url).stdout)
    assert (told["aggressive"], "other" in told["unloaded"]) == (True, True)


def test_names_with_slashes_and_colons_reach_their_model(shell, plimsoll, tmp_path):
    with shell.serving(tmp_path, {"org/name:8b": {"source": "fake:"}}) as url:
        assert plimsoll("load", "org/name:8b", "--url", url).returncode == 0
        assert shell.states(url) == {"org/name:8b": "ready"}
