"""Narrow, dark, without motion."""

import pytest
from playwright.sync_api import expect

LONG = "a-model-with-a-very-long-name-that-nobody-would-shorten/instruct-4bit-mixed"


@pytest.fixture(scope="module")
def site(serve_module):
    return serve_module({LONG: "fake:hold=10MiB", "torn": f"fake:fail_load={'x' * 200}"})


def background(page):
    return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")


@pytest.mark.parametrize("width", [360, 768, 1100])
def test_nothing_is_wider_than_the_window(site, visit, width):
    page = visit(site, viewport={"width": width, "height": 740}).page
    page.get_by_role("button", name="Load torn").click()
    expect(page.locator("[data-model=torn] .error")).to_be_visible()
    page.get_by_label("Model", exact=True).select_option(LONG)
    page.get_by_label("Message").fill("w" * 300)
    page.keyboard.press("Enter")
    expect(page.locator("#conversation .assistant .body")).to_have_text("w" * 300)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(page.locator("#plot canvas")).to_be_visible()
    page.get_by_role("button", name="Free memory").click()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


def test_it_is_dark_where_the_system_is_and_as_chosen(site, visit):
    page = visit(site, color_scheme="dark").page
    dark = background(page)
    assert max(int(part) for part in dark.removeprefix("rgb(").rstrip(")").split(",")) < 60
    theme = page.locator("#theme")
    expect(theme).to_have_text("auto")
    theme.click()
    expect(theme).to_have_text("light")
    light = background(page)
    assert light != dark
    page.reload()
    expect(theme).to_have_text("light")
    assert background(page) == light
    assert background(visit(site, color_scheme="light").page) == light


def test_nothing_moves_where_motion_is_not_wanted(site, visit):
    page = visit(site, reduced_motion="reduce").page
    moving = """[...document.querySelectorAll("*")].filter((node) => {
      const { transitionDuration, animationName } = getComputedStyle(node);
      return transitionDuration.split(", ").some((one) => parseFloat(one) > 0) || animationName !== "none";
    }).length"""
    assert page.evaluate(moving) == 0


def test_every_field_and_button_has_a_name_and_statuses_are_announced(site, visit):
    page = visit(site).page
    expect(page.get_by_role("button", name="Load torn")).to_be_visible()
    nameless = page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea")]
          .filter((node) => !(node.getAttribute("aria-label") || node.textContent.trim() || node.labels?.length))
          .map((node) => node.id)"""
    )
    assert nameless == []
    for name in ("#state", "#connection", "#level", "#notices", "#chat-status", "#event-news"):
        expect(page.locator(name)).to_have_role("status")
