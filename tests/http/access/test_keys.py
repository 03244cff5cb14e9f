"""Keys on the wire: every route, every API's own shape, the official clients."""

import re

import anthropic
import httpx
import openai
import pytest

from plimsoll.actors import messages as m
from plimsoll.http.access.permissions import Role, role_needed

KEYS = {role: f"the-{role}-key" for role in ("read", "user", "admin")}
ENTRIES = [{"name": f"{role}-one", "role": role, "key": key} for role, key in KEYS.items()]
WITH_KEYS = pytest.mark.parametrize("server_config", [{"access": {"keys": ENTRIES}}], ids=["keys"])
DEADLINE_S = 60


def bearer(role):
    return {"Authorization": f"Bearer {KEYS[role]}"}


def routes(server):
    """Every (method, path) that the app answers, with the holes in paths filled."""
    for route in server.app.router.routes:
        path = re.sub(r"<[^>]+>", "x", f"/{route.path}")
        yield from ((method, path) for method in sorted(route.methods - {"OPTIONS"}))


def status_without_body(http, method, path, headers):
    """The status only: an answer that was let in may be an endless stream."""
    with http.stream(method, path, headers=headers) as response:
        return response.status_code


@WITH_KEYS
def test_every_route_is_closed_without_a_key_but_the_few_that_are_meant_to_be_open(server, http):
    answers = {(method, path): status_without_body(http, method, path, {}) for method, path in routes(server)}
    opened = {path for (method, path), status in answers.items() if status != 401}
    probes = {"/v1", "/v1/messages", "/api"}
    assert opened <= probes | {"/", "/static/x", "/health", "/health/live", "/health/ready", "/openapi.json"}
    assert all(
        method in ("GET", "HEAD") for (method, path), status in answers.items() if path in probes and status != 401
    )
    assert {"/health", "/"} <= opened
    assert len(answers) > 30


@WITH_KEYS
def test_every_route_refuses_a_role_that_is_too_low(server, http):
    for method, path in routes(server):
        needed = role_needed(method, path) or 0
        for role in ("read", "user"):
            if Role[role.upper()] < needed:
                response = http.request(method, path, headers=bearer(role))
                assert response.status_code == 403, (method, path, role)
                assert method == "HEAD" or role in response.text


@WITH_KEYS
def test_a_path_that_is_not_there_is_closed_too(http):
    assert http.get("/nothing").status_code == 401
    assert http.get("/nothing", headers=bearer("read")).status_code == 404
    assert http.put("/v1/models").status_code == 401
    assert http.get("//admin/models").status_code == 401


@WITH_KEYS
@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/chat/completions", lambda body: body["error"]["code"] == "invalid_api_key"),
        ("/v1/messages", lambda body: (body["type"], body["error"]["type"]) == ("error", "authentication_error")),
        ("/api/chat", lambda body: "API key" in body["error"]),
        ("/admin/cleanup", lambda body: body["error"]["code"] == "invalid_api_key"),
    ],
)
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong-key"}, {"x-api-key": "wrong-key"}])
def test_401_has_the_shape_of_the_api_that_was_asked(http, path, error, headers):
    response = http.post(path, json={}, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert error(response.json())
    assert "wrong-key" not in response.text


@WITH_KEYS
def test_403_has_the_shape_of_the_api_that_was_asked(http, body):
    answers = {
        path: http.post(path, json=body(), headers=bearer("read")).json()["error"]
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat")
    }
    assert answers["/v1/chat/completions"]["type"] == "permission_error"
    assert answers["/v1/messages"]["type"] == "permission_error"
    assert "'read-one' has the role read" in answers["/api/chat"]


@WITH_KEYS
def test_an_unauthenticated_body_is_not_read_into_memory(http, system):
    response = http.post("/v1/chat/completions", content=b"x" * 1_000_000)
    assert response.status_code == 401
    assert system.has_heard(m.Chat) == 0


@WITH_KEYS
def test_health_without_a_key_is_the_summary(http):
    assert set(http.get("/health").json()) == {"status", "memory", "level"}
    assert set(http.get("/health", headers={"x-api-key": "wrong-key"}).json()) == {"status", "memory", "level"}
    assert "models" in http.get("/health", headers=bearer("read")).json()


def test_without_keys_nobody_is_asked_for_one(http, client):
    assert "models" in http.get("/health").json()
    assert http.post("/admin/cleanup", json=[], headers={"x-api-key": "whatever"}).status_code == 400
    assert client.models.list().data  # its key, "none", is ignored


@WITH_KEYS
@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
def test_a_key_in_one_header_is_enough_beside_another_that_is_wrong(http, header):
    headers = {"Authorization": "Bearer wrong-key", "x-api-key": "wrong-key"}
    headers[header] = headers[header].replace("wrong-key", KEYS["read"])
    assert http.get("/v1/models", headers=headers).status_code == 200


@WITH_KEYS
def test_openais_client_works_with_a_key_and_tells_a_wrong_one(server, system, says, body):
    system.scripts[m.Chat] = says("hello")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEYS["user"], max_retries=0) as client:
        assert client.chat.completions.create(**body()).choices[0].message.content == "hello"
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong-key", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError, match="none of this server's"):
            client.chat.completions.create(**body())
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEYS["read"], max_retries=0) as client:
        assert client.models.list().data
        with pytest.raises(openai.PermissionDeniedError):
            client.chat.completions.create(**body())


@WITH_KEYS
@pytest.mark.parametrize("how", ["api_key", "auth_token"])
def test_anthropics_client_works_with_a_key_and_tells_a_wrong_one(server, system, says, body, how):
    system.scripts[m.Chat] = says("hello")
    asked = body(max_tokens=5)
    with anthropic.Anthropic(base_url=server.url, max_retries=0, **{how: KEYS["user"]}) as client:
        assert client.messages.create(**asked).content[0].text == "hello"
    wrong = anthropic.Anthropic(base_url=server.url, max_retries=0, **{how: "wrong-key"})
    with wrong, pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
        wrong.messages.create(**asked)


@WITH_KEYS
def test_no_key_reaches_the_log(server, http, caplog):
    caplog.set_level("DEBUG")

    def broken():
        raise RuntimeError("broken")

    server.app.ctx.state.catalog.names = broken
    assert http.get("/v1/models", headers=bearer("admin")).status_code == 500
    http.get("/v1/models", headers={"x-api-key": "wrong-key"})
    assert "broken" in caplog.text
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert not any(key in text for text in ours for key in (*KEYS.values(), "wrong-key"))


@WITH_KEYS
def test_a_role_is_looked_up_anew_for_each_request_of_a_connection(server):
    with httpx.Client(base_url=server.url, timeout=DEADLINE_S) as one:
        seen = [
            one.post("/admin/cleanup", json=[], headers=bearer(role)).status_code for role in ("admin", "user", "admin")
        ]
        seen.append(one.get("/v1/models").status_code)
    assert seen == [400, 403, 400, 401]
