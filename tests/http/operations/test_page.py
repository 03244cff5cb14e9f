"""The page's files as they are sent."""

import re

import pytest

from plimsoll.http.operations.page import load

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "User-Agent": "Mozilla/5.0"}


def test_browsers_get_the_page_and_ollama_s_clients_their_words(http):
    page = http.get("/", headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "<title>Plimsoll</title>" in page.text
    assert "Accept" in page.headers["vary"]
    for headers in ({}, {"Accept": "application/json"}, BROWSER | {"User-Agent": "ollama/0.5 (arm64)"}):
        assert http.get("/", headers=headers).text == "Ollama is running"


def test_every_file_that_the_page_names_is_there(http):
    page = http.get("/", headers=BROWSER).text
    paths = set(re.findall(r'(?:href|src)="(/static/[^"]+)"', page))
    assert len(paths) > 20
    for path in paths:
        assert http.get(path).status_code == 200, path
    scripts = {f"/static/{path}" for path in load() if path.endswith(".js")}
    assert scripts <= paths


def test_files_carry_their_type_and_what_browsers_need_to_be_strict(http):
    for path, kind in (("app.js", "text/javascript"), ("style.css", "text/css"), ("mark.svg", "image/svg+xml")):
        answer = http.get(f"/static/{path}")
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-cache"


def test_what_a_browser_has_is_not_sent_again(http):
    tag = http.get("/static/app.js").headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = http.get("/static/app.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert http.get("/static/app.js", headers={"If-None-Match": '"other"'}).status_code == 200


def test_head_is_answered_without_a_body(http):
    answer = http.head("/static/app.js")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) > 1000


@pytest.mark.parametrize("path", ["nothing.js", "../page.py", "..%2fpage.py", "%2e%2e/page.py", "vendor/", ""])
def test_only_the_page_s_own_files_are_there(http, path):
    answer = http.get(f"/static/{path}", headers=BROWSER)
    assert answer.status_code == 404
    assert "import" not in answer.text


def test_no_script_makes_markup_of_text_or_asks_elsewhere():
    for path, file in load().items():
        if path.endswith(".js") and not path.startswith("vendor/"):
            script = file.data.decode()
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://", script), (
                path
            )
