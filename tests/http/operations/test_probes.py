"""What clients get that only look whether a server is there."""

import pytest

KEYS = {"access": {"keys": [{"name": "ann", "role": "user", "key": "ann-0123456789abcdef"}]}}


@pytest.mark.parametrize("server_config", [{}, KEYS])
def test_a_client_that_looks_whether_a_server_is_there_gets_a_harmless_answer(http, server_config):
    for path in ("/", "/v1", "/v1/", "/v1/messages", "/api", "/api/"):
        assert http.get(path).status_code == 200, path
        answer = http.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path


def test_head_works_wherever_get_does(server, http):
    for route in server.app.router.routes:
        if "GET" in route.methods:
            assert "HEAD" in route.methods or route.path == "admin/events", route.path
    assert http.head("/admin/events").headers["content-type"].startswith("text/event-stream")
