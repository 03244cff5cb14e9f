"""``GET /admin/search``: the hub by way of a child process, which is scripted here."""

import pytest

from plimsoll.catalog.hub_search import HubUnreachable
from plimsoll.http.operations import model_search

REPOS = [
    {"id": "org/huge", "downloads": 900, "gated": "manual", "safetensors": {"parameters": {"U32": 10**15}}},
    {"id": "org/unsaid", "downloads": 5},
    {"id": "org/small", "downloads": 7, "gated": False, "safetensors": {"parameters": {"BF16": 10**6}}},
]


@pytest.fixture
def asked(monkeypatch):
    """What the hub was asked; it answers with ``REPOS``."""
    asked = []
    monkeypatch.setattr(model_search, "search_in_child", lambda *words: asked.append(words) or REPOS)
    return asked


def test_what_fits_this_machine_comes_first(http, asked):
    body = http.get("/admin/search", params={"words": " tiny  llama ", "limit": 3}).json()
    assert asked == [("tiny llama", 3)]
    assert body["budget_bytes"] == 128 * 2**30 * 95 // 100
    assert [(one["name"], one["fits"]) for one in body["models"]] == [
        ("org/small", True),
        ("org/unsaid", None),
        ("org/huge", False),
    ]
    assert body["models"][2] == {
        "name": "org/huge",
        "size_bytes": 4 * 10**15,
        "fits": False,
        "downloads": 900,
        "gated": True,
    }


@pytest.mark.parametrize("query", ["", "?words=%20", "?words=a%0Ab%00", "?words=a&limit=0", f"?words={'a' * 201}"])
def test_bad_questions_are_refused_by_name(http, asked, query):
    answer = http.get(f"/admin/search{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == ("limit" if "limit" in query else "words")
    assert not asked


@pytest.mark.parametrize("server_config", [{"models": {"offline": True}}])
def test_offline_is_said_without_asking(http, asked):
    error = http.get("/admin/search?words=a").json()["error"]
    assert (error["code"], "models.offline" in error["message"]) == ("hub_offline", True)
    assert not asked


def test_a_hub_that_does_not_answer_is_said(http, monkeypatch):
    def fail(*_):
        raise HubUnreachable("no network")

    monkeypatch.setattr(model_search, "search_in_child", fail)
    answer = http.get("/admin/search?words=a")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "hub_unreachable")


@pytest.mark.parametrize(
    "server_config", [{"access": {"keys": [{"name": "eye", "role": "user", "key": "only-to-look"}]}}]
)
def test_searching_is_for_administrators(http, asked):
    answer = http.get("/admin/search?words=a", headers={"Authorization": "Bearer only-to-look"})
    assert answer.status_code == 403
    assert not asked


def test_the_child_says_in_one_line_that_there_is_no_network(monkeypatch):
    from plimsoll.catalog.hub_search import search_in_child

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachable, match=r"^the hub can't be reached \(.*refused"):
        search_in_child("tiny", 1)
