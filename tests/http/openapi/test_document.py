"""The OpenAPI document is whole, valid, and says what is really answered."""

import re

import jsonschema
import msgspec
import pytest
import schemathesis
from jsonschema.validators import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from plimsoll.actors import messages as m
from plimsoll.actors.replies import Delta, Finished, Logprobs, ToolCallDelta, Waiting
from plimsoll.actors.status import ModelStatus, State
from plimsoll.catalog.names import Catalog
from plimsoll.engine.protocol import TokenLogprob, Usage
from plimsoll.http.openapi import document as openapi
from plimsoll.journal import events

METHODS = {"get", "head", "post", "put", "patch", "delete"}
DOCUMENT = msgspec.json.decode(openapi.encoded())
FINISHED = Finished("stop", Usage(5, 4, 1))


def operations():
    return [(path, method) for path, item in DOCUMENT["paths"].items() for method in item if method in METHODS]


def told(path, method, status, media):
    """The schema of one answer."""
    response = DOCUMENT["paths"][path][method]["responses"][str(status)]
    return response["content"][media]["schema"]


def validator(schema):
    resource = Resource(contents=DOCUMENT, specification=DRAFT202012)
    # References of the document are relative to its own root.
    rooted = msgspec.json.decode(msgspec.json.encode(schema).replace(b'"#/', b'"urn:plimsoll#/'))
    return Draft202012Validator(rooted, registry=Registry().with_resource("urn:plimsoll", resource))


def test_every_route_and_method_is_in_the_document_and_the_other_way_round(server):
    router = server.app.router
    routes = {(route.path, method.lower()) for route in router.routes for method in route.methods}
    found = set()
    for path, method in operations():
        route, *_ = router.get(re.sub(r"\{\w+\}", "x", path), method.upper(), None)
        found.add((route.path, method))
    assert found == routes


def test_the_document_is_served_without_changes_of_its_own(http):
    response = http.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    assert response.json() == DOCUMENT
    assert http.head("/openapi.json").status_code == 200


def test_the_document_is_one_that_tools_can_load():
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    loaded = [result.ok() for result in schema.get_all_operations()]
    assert {(one.path, one.method) for one in loaded} == set(operations())
    assert schema.specification.version == "3.1.0"


def test_every_schema_is_valid_and_every_reference_leads_somewhere():
    components = DOCUMENT["components"]["schemas"]
    for schema in components.values():
        Draft202012Validator.check_schema(schema)
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', openapi.encoded().decode()))
    assert references <= components.keys()
    assert not any("." in name for name in components)


def test_operation_ids_are_unique():
    ids = [DOCUMENT["paths"][path][method]["operationId"] for path, method in operations()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(("path", "method"), [one for one in operations() if one[1] == "post"])
def test_every_example_is_one_that_its_schema_allows(path, method):
    body = DOCUMENT["paths"][path][method].get("requestBody", {}).get("content", {}).get("application/json", {})
    if "example" in body:
        validator(body["schema"]).validate(body["example"])


def test_a_wrong_answer_would_be_seen():
    with pytest.raises(jsonschema.ValidationError):
        validator(told("/v1/models", "get", 200, "application/json")).validate({"object": "list", "data": [], "x": 1})


SCORED = Logprobs([TokenLogprob(" one", -0.5, [(" one", -0.5), (" two", -1.5)]), TokenLogprob(" two", -0.5, [])])
SAID = [
    Waiting("prefill", 2, 5),
    Delta("hm ", 1, reasoning=True),
    Delta(" one two", 2),
    SCORED,
    ToolCallDelta(0, "f", '{"a":'),
    ToolCallDelta(0, "", "1}"),
]
ENTRIES = {"models": {"builtin": False, "entries": {"tiny": {"source": "fake:"}}}}
CHATS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 2}
    | {"n": 2, "stream_options": {"include_usage": True}},
    "/v1/completions": {"prompt": "x", "logprobs": 2, "stream_options": {"include_usage": True}},
    "/v1/responses": {"input": "x", "top_logprobs": 2, "metadata": {"a": "b"}, "text": {"format": {"type": "text"}}},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
    "/api/chat": {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 2},
    "/api/generate": {"prompt": "x", "logprobs": True},
}


@pytest.fixture(name="chatting")
def _chatting(server, system):
    def answer(chat):
        for item in SAID:
            chat.reply.send(item)
        chat.reply.send(FINISHED)

    system.scripts[m.Chat] = answer
    # Ollama's endpoints ask for more of a model than its name.
    server.app.ctx.state.catalog = Catalog(server.config.models)


@pytest.mark.usefixtures("chatting")
@pytest.mark.parametrize("server_config", [ENTRIES])
@pytest.mark.parametrize("path", CHATS)
def test_whole_answers_are_as_the_document_says(http, path):
    response = http.post(path, json={"model": "tiny", "stream": False} | CHATS[path])
    assert response.status_code == 200, response.text
    validator(told(path, "post", 200, "application/json")).validate(response.json())


@pytest.mark.usefixtures("chatting")
@pytest.mark.parametrize("server_config", [ENTRIES])
@pytest.mark.parametrize("path", CHATS)
def test_every_event_of_a_stream_is_as_the_document_says(http, path):
    response = http.post(path, json={"model": "tiny", "stream": True} | CHATS[path])
    media = response.headers["content-type"].partition(";")[0]
    lines = response.text.splitlines()
    if media == "text/event-stream":
        lines = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    items = [msgspec.json.decode(line) for line in lines if line != "[DONE]"]
    schema = told(path, "post", 200, media)
    if media == "text/event-stream":
        data = schema["properties"]["data"]
        schema = data.get("anyOf", [data])[-1]["contentSchema"]
        last = [one["const"] for one in data.get("anyOf", []) if "const" in one]
        assert last == (["[DONE]"] if response.text.endswith("data: [DONE]\n\n") else [])
    check = validator(schema)
    assert len(items) > 1
    for item in items:
        check.validate(item)


@pytest.mark.parametrize("path", CHATS)
def test_errors_are_as_the_document_says(http, path):
    for asked, status in (({"model": 5}, 400), ({"model": "nope"} | CHATS[path], 404)):
        response = http.post(path, json=asked)
        assert response.status_code == status
        validator(told(path, "post", status, "application/json")).validate(response.json())


def test_the_feed_and_the_history_are_as_the_document_says(http, system, status):
    told_now = status(models=[ModelStatus("tiny", State.READY)], footprints={"tiny": 5}, tokens_per_s={"tiny": 1.5})
    system.scripts[m.GetStatus] = lambda message: message.reply.send(told_now)
    system.journal.record(events.WorkerKilled("tiny", 7))
    schemas = DOCUMENT["components"]["schemas"]
    of = {"hello": "HelloEvent", "sample": "SampleEvent", "models": "ModelsTold", "pulls": "PullsEvent"}
    of["journal"] = "JournalEvent"
    of["pulls"] = "PullsEvent"
    with http.stream("GET", "/admin/events?after=1") as response:
        name = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                validator(schemas[of.pop(name)]).validate(msgspec.json.decode(line.removeprefix("data: ")))
                if not of:
                    break
    history = http.get("/admin/history").json()
    assert history["events"]
    validator(told("/admin/history", "get", 200, "application/json")).validate(history)
