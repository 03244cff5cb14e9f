"""``plimsoll requests``."""

import json

import httpx

from plimsoll.cli.requests import waterfall

HI = [{"role": "user", "content": "hello there"}]


def test_requests_are_shown_as_a_table_and_one_as_a_waterfall(plimsoll, url):
    for model in ("echo", "other"):
        httpx.post(f"{url}/v1/chat/completions", json={"model": model, "messages": HI}, timeout=60)
    head, *rows = plimsoll("requests", "--model", "echo", "--limit", "1", "--url", url).stdout.splitlines()
    assert head.split() == ["ID", "ENDED", "KEY", "MODEL", "IN", "REUSED", "OUT", "FIRST", "TIME", "ENDING"]
    (row,) = rows
    assert row.split()[3] == "echo"
    assert row.split()[-1] == "stop"
    shown = plimsoll("requests", row.split()[0], "--url", url).stdout
    assert "openai  echo" in shown
    assert "ended: stop" in shown
    assert "load" in shown
    told = json.loads(plimsoll("requests", row.split()[0], "--json", "--url", url).stdout)
    assert told["spans"]
    done = plimsoll("requests", "--key", "nobody", "--url", url)
    assert "none is like that" in done.stderr
    assert plimsoll("requests", "--tokens", "--url", url).stdout.startswith("DAY")


def test_an_id_that_is_not_kept_is_told(plimsoll, shell, url):
    shell.fails(plimsoll("requests", "nothing", "--url", url), 1, "none of the newest 1000 requests")


def test_a_waterfall_draws_each_stretch_where_it_was():
    told = {
        "id": "abc",
        "api": "openai",
        "model": "m",
        "key": "eve",
        "prompt_tokens": 100,
        "completion_tokens": 41,
        "reused_tokens": 60,
        "reused_from": "memory",
        "outcome": "failed",
        "why": "worker_died: it died",
        "seconds": 10.0,
        "stages_s": {"decode": 4.0},
        "texts": {"prompt": "P", "answer": "A"},
        "spans": [["queue", 0, 0.25], ["load", 0.25, 4.75], ["read", 5, 1], ["decode", 6, 4]],
    }
    lines = waterfall(told).splitlines()
    assert lines[0] == "abc  openai  m  key eve"
    assert lines[1] == "100 tokens in, 60 of them reused from memory, 41 out at 10.0 tokens/s"
    assert lines[2] == "ended: failed, worker_died: it died"
    assert lines[3] == "queue     250 ms  |#" + " " * 39 + "|"
    assert lines[5] == "read       1.0 s  |" + " " * 20 + "####" + " " * 16 + "|"
    assert lines[6] == "decode     4.0 s  |" + " " * 24 + "#" * 16 + "|"
    assert lines[-2:] == ["asked: P", "answered: A"]
