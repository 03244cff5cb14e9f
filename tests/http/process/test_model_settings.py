"""A model's entry, read and changed over HTTP."""

import pytest

from plimsoll import config, config_file
from plimsoll.actors import messages as m

FILE = """\
models:
  builtin: false
  programs: []
  entries:
    mine:
      source: 'fake:'  # my own
      pin: true
"""
KEYS = {
    "access": {
        "keys": [{"name": "root", "role": "admin", "key": "r" * 16}, {"name": "eve", "role": "user", "key": "e" * 16}]
    }
}


@pytest.fixture
def file(server, system, tmp_path):
    """The server's configuration file, which a change is written into."""
    path = tmp_path / "c.yaml"
    path.write_text(FILE)
    server.read = lambda: config.load(path)
    server.change = lambda changes: config_file.change(path, changes)
    system.scripts[m.Reconfigure] = lambda message: message.reply.send(None)
    return path


@pytest.fixture
def loaded(http, file):
    assert http.post("/admin/reload").status_code == 200
    return file


def test_a_change_is_written_and_in_force_at_once(http, loaded, system, says):
    change = {"model": "mine", "set": {"temperature": 0.4, "aliases": ["m"]}, "unset": ["pin"]}
    answer = http.post("/admin/settings", json=change)
    assert answer.json() == {"changed": ["models.entries.mine"], "needs_restart": []}
    assert "# my own" in loaded.read_text()
    told = http.get("/admin/settings?model=m").json()
    sampling = told["entry"].pop("sampling")
    assert told == {"model": "mine", "entry": {"source": "fake:", "aliases": ["m"]}}
    assert sampling["temperature"] == 0.4
    system.scripts[m.Chat] = says("hello")
    http.post("/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    assert system.hears(m.Chat).request.sampling.temperature == 0.4


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "mine", "set": {"temperature": 9}}, 400, "models.entries.mine.sampling.temperature"),
        ({"model": "mine", "set": {"tempo": 9}}, 400, "unknown key"),
        ({"model": "mine"}, 400, "say what to set"),
        ({"model": "mine", "set": {"pin": True}, "unset": ["pin"]}, 400, "set and unset"),
        ({"model": "none", "set": {"pin": True}}, 404, "There is no model"),
        ({"model": "mine", "set": {"chat_template": "/etc/passwd"}}, 403, "on the server's machine"),
        ({"model": "mine", "set": {"hosts": ["a", "b"]}}, 403, "on the server's machine"),
    ],
)
def test_a_change_that_is_refused_leaves_the_file_alone(http, loaded, change, status, words):
    answer = http.post("/admin/settings", json=change)
    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert loaded.read_text() == FILE


@pytest.mark.parametrize("server_config", [KEYS], ids=[""])
def test_settings_are_for_administrators_alone(http, file):
    for key, status in (("e" * 16, 403), ("r" * 16, 200)):
        headers = {"Authorization": f"Bearer {key}"}
        assert http.get("/admin/settings?model=tiny", headers=headers).status_code == status
