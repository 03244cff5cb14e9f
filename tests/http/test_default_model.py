"""``models.default``: who names no model, or one that is not here, gets that one."""

import pytest

from plimsoll.actors import messages as m

ENTRIES = {
    "tiny": {"source": "fake:", "profiles": {"hot": {"sampling": {"temperature": 1.5}}}},
    "off": {"source": "fake:", "enabled": False},
}
MODELS = {"builtin": False, "programs": [], "default": "tiny:hot", "entries": ENTRIES}
HI = [{"role": "user", "content": "hi"}]
WAYS = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 7},
    "/api/chat": {"messages": HI, "stream": False},
    "/api/generate": {"prompt": "hi", "stream": False},
}


@pytest.fixture
def server_config():
    return {"models": MODELS}


@pytest.mark.parametrize("path", WAYS)
@pytest.mark.parametrize("named", [{}, {"model": ""}, {"model": "gpt-5"}, {"model": "off"}], ids=str)
def test_the_default_answers_and_the_answer_says_so(http, system, says, path, named):
    system.scripts[m.Chat] = says("hello")
    answer = http.post(path, json=WAYS[path] | named)
    told = system.hears(m.Chat)
    assert (told.model, told.request.sampling.temperature) == ("tiny", 1.5)
    assert answer.json()["model"] == "tiny:hot"


def test_a_model_that_is_named_and_here_is_not_replaced(http, system, says):
    system.scripts[m.Chat] = says("hello")
    answer = http.post("/v1/chat/completions", json={"model": "tiny", "messages": HI})
    assert answer.json()["model"] == "tiny"


def test_administration_takes_no_default(http):
    assert http.post("/admin/models/gpt-5/load").status_code == 404
    assert http.post("/api/show", json={"model": "gpt-5"}).status_code == 404
