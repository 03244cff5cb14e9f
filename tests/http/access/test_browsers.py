"""Web pages: DNS rebinding, requests across sites, and the pages that are let in."""

import socket

import pytest

from plimsoll.actors import messages as m

PAGE = "https://chat.example"
LISTED = pytest.mark.parametrize("server_config", [{"access": {"origins": [PAGE], "hosts": ["Box.lan"]}}], ids=["page"])


@pytest.mark.parametrize("host", ["evil.example", "evil.example:11435", "192.0.2.1", "localhost.evil.example"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/models"), ("POST", "/admin/cleanup"), ("GET", "/nothing")])
def test_a_name_that_was_pointed_here_is_refused(http, system, host, method, path):
    response = http.request(method, path, headers={"Host": host})
    assert response.status_code == 403
    assert "access.hosts" in response.text
    assert system.has_heard(m.CleanUpModels) == 0


@LISTED
@pytest.mark.parametrize("host", ["box.lan", "BOX.LAN:80", "localhost", "[::1]:11435", "x.localhost"])
def test_names_that_are_ours_are_answered(http, host):
    assert http.get("/v1/models", headers={"Host": host}).status_code == 200


def test_two_hosts_are_refused_and_none_is_a_program(server):
    def answer(head):
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 10) as connection:
            connection.sendall(head.encode() + b"\r\nConnection: close\r\n\r\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).split()[1]

    assert answer("GET /health/live HTTP/1.1\r\nHost: localhost\r\nHost: evil.example") == b"400"
    assert answer("GET /health/live HTTP/1.0") == b"200"


CROSS = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
]


@pytest.mark.parametrize("headers", CROSS, ids=str)
@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v1/chat/completions", "text/plain"),
        ("POST", "/v1/chat/completions", "application/json"),
        ("POST", "/api/chat", "application/x-www-form-urlencoded"),
        ("POST", "/admin/cleanup", "text/plain"),
        ("GET", "/health", ""),
        ("OPTIONS", "/v1/chat/completions", ""),
    ],
)
def test_a_page_of_another_site_gets_nothing_done(http, system, body, headers, method, path, kind):  # noqa: PLR0917 - the table
    asked = body() if method == "POST" else None
    sent = headers | {"Content-Type": kind, "Access-Control-Request-Method": "POST"}
    response = http.request(method, path, headers=sent, json=asked)
    assert response.status_code == 403
    assert "access.origins" in response.text
    assert "access-control-allow-origin" not in response.headers
    assert system.has_heard(m.Chat) + system.has_heard(m.CleanUpModels) == 0


def test_a_form_of_another_site_is_no_visit(http):
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert http.get("/", headers=visit).status_code == 200
    assert http.post("/admin/cleanup", headers=visit).status_code == 403
    assert http.get("/", headers=visit | {"Sec-Fetch-Dest": "iframe"}).status_code == 403


def test_our_own_page_is_answered_without_cors(server, http):
    response = http.get("/v1/models", headers={"Origin": server.url, "Sec-Fetch-Site": "same-origin"})
    assert response.status_code == 200
    assert not {"access-control-allow-origin", "vary"} & set(response.headers)


@LISTED
def test_a_listed_page_may_ask_read_and_stream(http, system, says, body):
    system.scripts[m.Chat] = says("hello")
    for stream in (False, True):
        response = http.post("/v1/chat/completions", json=body(stream=stream), headers={"Origin": PAGE})
        assert "hello" in response.text
        assert response.headers["access-control-allow-origin"] == PAGE
        assert response.headers["vary"] == "Origin"
    refused = http.post("/v1/chat/completions", json=body(model="nope"), headers={"Origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (404, PAGE)
    assert http.get("/v1/models").headers["vary"] == "Origin"


@pytest.mark.parametrize(
    "server_config",
    [{"access": {"origins": [PAGE], "keys": [{"name": "a", "role": "user", "key": "some-long-key"}]}}],
    ids=["keys"],
)
def test_a_preflight_needs_no_key_and_what_follows_does(http):
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os",
    }
    response = http.options("/v1/chat/completions", headers=asked)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["vary"] == "Origin"
    refused = http.get("/v1/models", headers={"Origin": PAGE})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == PAGE
    assert http.options("/v1/models", headers={"Origin": PAGE}).status_code == 401  # no preflight: a plain OPTIONS
    private = http.options("/v1/models", headers=asked | {"Access-Control-Request-Private-Network": "true"})
    assert private.headers["access-control-allow-private-network"] == "true"
