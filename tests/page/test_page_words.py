"""The page's words: one table of two languages, the browser's or the chosen one."""

import re
from pathlib import Path
from typing import get_args

import pytest
from playwright.sync_api import expect

from plimsoll.actors.status import State
from plimsoll.http.request_log import Stage
from plimsoll.journal.events import KINDS
from plimsoll.memory.sample import Level

STATIC = Path(__file__).parents[2] / "http" / "static"
# Keys that scripts put together: of words of the server's, and of a choice.
MADE = re.compile(
    r"(level|status|state|severity|stage|ending|kind|theme|settings|unit)\.\w+|memory\.(open|closed)|card\.load"
    r"|plan\.(fits|evicts|waits|never|refused|wait_body|line_body)"
)
# What the server calls things, which the page puts into words.
SERVERS = {
    *(f"kind.{kind}" for kind in KINDS),
    *(f"state.{state}" for state in State),
    *(f"stage.{stage}" for stage in get_args(Stage)),
    *(f"level.{level.name.lower()}" for level in Level),
}


@pytest.fixture(scope="module")
def site(serve_module):
    return serve_module({"tiny": "fake:hold=10MiB"})


def test_every_text_is_there_in_both_languages_with_the_same_values(site, visit):
    words = visit(site).page.evaluate("""async () => (await import("/static/words.js")).WORDS""")
    for key, (english, russian) in words.items():
        forms = [english] if isinstance(english, str) else english
        others = [russian] if isinstance(russian, str) else russian
        assert (len(forms), len(others)) in {(1, 1), (2, 3)}, key
        values = {name for form in forms for name in re.findall(r"{(\w+)}", form)}
        for form in others:
            assert set(re.findall(r"{(\w+)}", form)) == values, key
    sources = {file.name: file.read_text(encoding="utf-8") for file in STATIC.glob("*.*") if file.name != "words.js"}
    html = set(re.findall(r'data-t(?:-\w+)?="([^"]+)"', sources["index.html"]))
    quoted = {one for text in sources.values() for one in re.findall(r'"([a-z]+\.\w+)"', text)}
    used = html | {one for one in quoted if one.partition(".")[0] in {key.partition(".")[0] for key in words}}
    files = {one for one in used if one.endswith((".js", ".css"))}
    assert used - files - set(words) == set(), "texts that are missing"
    assert {key for key in set(words) - used if not MADE.fullmatch(key)} == set(), "texts that nothing names"
    assert SERVERS - set(words) == set()


def test_a_russian_browser_gets_russian_and_may_choose(site, visit):
    visitor = visit(site, locale="ru-RU", viewport={"width": 360, "height": 740})
    page = visitor.page
    expect(page.locator("html")).to_have_attribute("lang", "ru")
    page.get_by_role("button", name="Загрузить tiny").click()
    expect(page.locator("[data-model=tiny] .state")).to_have_text("готова")
    expect(page.locator("#percent")).to_have_text(re.compile(r"^\d+,\d$"))
    expect(page.locator("#events-list")).to_contain_text("Модель tiny загружена в память")
    page.get_by_label("Модель", exact=True).select_option("tiny")
    page.get_by_role("textbox", name="Сообщение").fill("раз два три четыре пять")
    page.keyboard.press("Enter")
    expect(page.locator("#conversation .figures")).to_contain_text("5 токенов")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator("#language").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    page.reload()
    expect(page.locator("[data-model=tiny] .state")).to_have_text("ready")
    expect(page.locator("#conversation .figures")).to_contain_text("5 tokens")
    expect(page.locator("#events-list")).to_contain_text("model tiny loaded into memory")
    assert visitor.errors == []
