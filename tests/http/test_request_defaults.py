"""Aliases, profiles and defaults of entries, on every API; ``models.default``."""

import pytest

from plimsoll.actors import messages as m
from plimsoll.catalog.defaults import Defaults
from plimsoll.engine.protocol import ChatRequest, EmbedRequest, Sampling
from plimsoll.http.request_defaults import with_defaults

ENTRY = {
    "source": "fake:",
    "aliases": ["gpt-4o"],
    "sampling": {"temperature": 0.3, "top_p": 0.5},
    "max_tokens": 50,
    "thinking": False,
    "reasoning_budget": 9,
    "system_prefix": "Be brief.",
    "profiles": {
        "hot": {"sampling": {"temperature": 1.5}, "thinking": True, "system_prefix": "Be wild.", "aliases": ["wild"]}
    },
}
MODELS = {"builtin": False, "programs": [], "entries": {"tiny": ENTRY}}
HI = [{"role": "user", "content": "hi"}]
WAYS = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": HI, "max_tokens": 7},
    "/api/chat": {"messages": HI, "stream": False},
    "/api/generate": {"prompt": "hi", "stream": False},
}


@pytest.fixture
def server_config():
    return {"models": MODELS}


@pytest.fixture
def asked(http, system, says):
    """What the actors are asked for a request."""
    system.scripts[m.Chat] = says("hello")

    def ask(path, **body):
        answer = http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return system.hears(m.Chat), answer.json()

    return ask


@pytest.mark.parametrize("path", WAYS)
@pytest.mark.parametrize("name", ["tiny", "gpt-4o", "tiny:latest"])
def test_an_entrys_defaults_hold_on_every_api_under_every_name(asked, path, name):
    told, _ = asked(path, model=name, **WAYS[path])
    request = told.request
    assert told.model == "tiny"
    assert (request.sampling.temperature, request.sampling.top_p) == (0.3, 0.5)
    assert request.max_tokens == (7 if "max_tokens" in WAYS[path] else 50)
    assert (request.thinking, request.thinking_budget) == (False, 9)
    assert request.messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]


@pytest.mark.parametrize("path", WAYS)
def test_a_profile_is_the_same_worker_with_other_defaults(asked, path):
    told, answer = asked(path, model="gpt-4o:hot", **WAYS[path])
    assert told.model == "tiny"
    assert (told.request.sampling.temperature, told.request.sampling.top_p) == (1.5, 0.5)
    assert told.request.thinking is True
    assert told.request.messages[0]["content"] == "Be wild."
    assert answer["model"] == "gpt-4o:hot"


def test_what_the_client_sends_comes_first(asked):
    body = {"temperature": 1.0, "max_tokens": 5, "reasoning_effort": "high", "reasoning_budget": 3}
    messages = [{"role": "system", "content": "You are a pirate."}, *HI]
    request = asked("/v1/chat/completions", model="tiny", messages=messages, **body)[0].request
    assert (request.sampling.temperature, request.sampling.top_p) == (1.0, 0.5)
    assert (request.max_tokens, request.thinking, request.thinking_budget) == (5, True, 3)
    assert request.messages[0]["content"] == "Be brief.\n\nYou are a pirate."
    kwargs = {"enable_thinking": True}
    request = asked("/v1/chat/completions", model="tiny", messages=HI, chat_template_kwargs=kwargs)[0].request
    assert request.thinking is None


def test_a_prompt_that_is_read_as_it_is_gets_no_prefix(asked):
    request = asked("/v1/completions", model="tiny", prompt="Once")[0].request
    assert (request.prompt, request.messages, request.sampling.temperature) == ("Once", [], 0.3)


def test_lists_show_aliases_and_profiles_as_models(http):
    names = {"tiny", "gpt-4o", "tiny:hot", "wild"}
    assert {one["id"] for one in http.get("/v1/models").json()["data"]} == names
    tags = http.get("/api/tags").json()["models"]
    assert {one["name"] for one in tags} == names
    assert len({one["digest"] for one in tags}) == 4
    assert http.get("/v1/models/tiny:hot").json()["id"] == "tiny:hot"
    assert {one["name"] for one in http.get("/admin/models").json()["models"]} == {"tiny"}


def test_a_profile_that_is_not_there_is_an_unknown_model(http):
    for name in ("tiny:cold", "tiny:hot:hot", ":hot", "hot"):
        assert http.post("/v1/chat/completions", json={"model": name, "messages": HI}).status_code == 404, name


@pytest.mark.parametrize("path", WAYS)
@pytest.mark.parametrize("named", [{}, {"model": ""}])
def test_without_a_default_a_request_without_a_model_gets_400_with_the_names(http, path, named):
    answer = http.post(path, json=WAYS[path] | named)
    assert answer.status_code == 400
    assert "model is missing" in answer.text
    assert "tiny" in answer.text


def test_defaults_of_nothing_change_nothing():
    request = ChatRequest(HI, Sampling(temperature=0.1), given=("temperature",))
    assert with_defaults(request, Defaults()) is request
    embed = EmbedRequest(["a"])
    assert with_defaults(embed, Defaults(max_tokens=3)) is embed


def test_a_request_whose_values_were_all_given_keeps_them():
    request = ChatRequest(HI, Sampling(temperature=0.1))
    assert with_defaults(request, Defaults(sampling=(("temperature", 1.0),))).sampling.temperature == 0.1
