"""Sessions of agents through the whole server, with the fake engine as the model."""

import json
from collections.abc import Callable
from typing import Any

import httpx
from agent_turns import PATHS, RESULT, SESSIONS


def test_every_turn_of_every_agent_is_answered_and_its_tool_is_called(process: Callable[..., Any]) -> None:
    url = process(source="fake:context=20000").url
    with httpx.Client(base_url=url, timeout=60) as http:
        for client, (api, turns) in SESSIONS.items():
            called, told, last = (_answer(http, api, body) for body in turns)
            assert '"run"' in called, client
            assert RESULT.split()[0] in told, client
            assert "now?" in last, client
        metrics = http.get("/metrics").text
    assert 'plimsoll_left_out_total{kind="web_search",what="tool"} 3.0' in metrics


def _answer(http: httpx.Client, api: str, body: dict[str, Any]) -> str:
    """All that a stream says."""
    answer = http.post(PATHS[api], json={"model": "tiny", "stream": True} | body)
    assert answer.status_code == 200, answer.text
    assert "error" not in answer.text or '"error":null' in answer.text, answer.text
    return json.dumps(answer.text).replace('\\"', '"')
