"""The table of clients: its snippets are those that run, and they do run."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "ops" / "clients"
TOOL = runpy.run_path(str(FOLDER / "clients.py"))


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    server, url = TOOL["serve"](tmp_path_factory.mktemp("server"))
    yield url
    server.terminate()
    server.wait(60)
    server.stdout.close()


def test_the_page_is_the_one_that_the_script_writes():
    assert TOOL["PAGE"].read_text(encoding="utf-8") == TOOL["page"](TOOL["old_rows"]())


@pytest.mark.parametrize("file", ["with_openai.py", "with_responses.py", "with_anthropic.py", "with_ollama.py"])
def test_a_snippet_does_what_the_page_says(url, file, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [file, url, TOOL["MODEL"], TOOL["FIRST"], TOOL["SECOND"], TOOL["THIRD"]])
    client = runpy.run_path(str(FOLDER / file))["client"]
    getattr(client, "close", client._client.close)()
    assert tuple(capsys.readouterr().out.splitlines()) == TOOL["WANTED"]
