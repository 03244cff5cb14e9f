"""What administrators see of the newest requests."""

import pytest

from plimsoll.actors import messages as m
from plimsoll.journal.blackbox import BlackBox

ROOT, EVE = "r" * 16, "e" * 16
KEYS = [{"name": "root", "role": "admin", "key": ROOT}, {"name": "eve", "role": "read", "key": EVE}]
HI = [{"role": "user", "content": "who are you"}]


def asks(http, **headers):
    body = {"model": "tiny", "messages": HI}
    return http.post("/v1/chat/completions", json=body, headers=headers)


def test_the_newest_requests_come_first_with_their_stages(http, system, says):
    system.scripts[m.Chat] = says("hello")
    first, second = asks(http).json()["id"], asks(http).json()["id"]
    rows = http.get("/admin/requests").json()["requests"]
    assert [f"chatcmpl-{row['id']}" for row in rows] == [second, first]
    assert (rows[0]["model"], rows[0]["outcome"], rows[0]["key"]) == ("tiny", "stop", "")
    assert set(rows[0]["stages_s"]) == {"queue", "load", "read", "decode", "pause"}
    assert len(http.get("/admin/requests?limit=1").json()["requests"]) == 1
    assert http.get("/admin/requests?model=other").json() == {"requests": []}
    one = http.get(f"/admin/requests/{rows[1]['id'][:12]}").json()
    assert (one["id"], one["spans"][0][0]) == (rows[1]["id"], "read")
    assert "texts" not in one


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x"])
def test_a_limit_that_is_not_allowed_is_refused(http, query):
    assert http.get(f"/admin/requests?{query}").status_code == 400


def test_a_request_that_is_not_kept_is_not_found(http):
    answer = http.get("/admin/requests/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "request_not_found")


@pytest.mark.parametrize("server_config", [{"requests": {"keep_texts": True}, "access": {"keys": KEYS}}], ids=[""])
def test_texts_are_for_administrators_alone(http, system, says):
    system.scripts[m.Chat] = says("I am ", "tiny")
    asks(http, Authorization=f"Bearer {ROOT}")
    (row,) = http.get("/admin/requests", headers={"Authorization": f"Bearer {EVE}"}).json()["requests"]
    assert row["key"] == "root"
    told = {}
    for key in (ROOT, EVE):
        told[key] = http.get(f"/admin/requests/{row['id']}", headers={"Authorization": f"Bearer {key}"}).json()
    assert told[ROOT]["texts"]["answer"] == "I am tiny"
    assert "who are you" in told[ROOT]["texts"]["prompt"]
    assert "texts" not in told[EVE]
    assert "who are you" not in str(told[EVE])


def test_tokens_are_summed_by_day_model_and_key(http, system, says, tmp_path):
    assert http.get("/admin/tokens").json() == {"days": []}
    system.journal.blackbox = box = BlackBox(tmp_path / "box.sqlite")
    box.start()
    try:
        for prompt in (10, 5):
            system.journal.tokens("tiny", "eve", (prompt, 4, 2))
        system.journal.tokens("other", "", (1, 0, 1))
        days = http.get("/admin/tokens?days=1").json()["days"]
    finally:
        box.close("test")
    assert [(one["model"], one["key"], one["requests"]) for one in days] == [("tiny", "eve", 2), ("other", "", 1)]
    assert (days[0]["prompt"], days[0]["reused"], days[0]["completion"]) == (15, 8, 4)


def test_a_black_box_from_before_gets_the_table(tmp_path):
    box = BlackBox(tmp_path / "box.sqlite")
    box.start()
    box.flush()
    box.close("test")
    import sqlite3

    with sqlite3.connect(tmp_path / "box.sqlite") as connection:
        connection.execute("DROP TABLE tokens")
    box = BlackBox(tmp_path / "box.sqlite")
    box.start()
    box.tokens("a", "", (1, 0, 1))
    assert box.flush()
    assert not box.problem
    box.close("test")
