"""The requests panel: filters, and the waterfall of one request."""

import time

import httpx
from playwright.sync_api import expect

HI = [{"role": "user", "content": "hello there"}]


def test_requests_are_listed_filtered_and_shown_as_a_waterfall(serve, visit):
    site = serve({"tiny": "fake:", "other": "fake:"})
    for model in ("tiny", "other", "other"):
        httpx.post(f"{site.url}/v1/chat/completions", json={"model": model, "messages": HI}, timeout=60)
    visitor = visit(site)
    page = visitor.page
    panel = page.locator("#requests")
    assert not [url for url in visitor.requests if "/admin/requests" in url]
    began = time.monotonic()
    panel.locator("summary").press("Enter")
    rows = panel.locator("tbody tr:not(.waterfall)")
    expect(rows).to_have_count(3)
    assert time.monotonic() - began < 5, "opened within half a second where nothing else runs"
    panel.get_by_label("model").select_option("tiny")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("stop")
    rows.first.get_by_role("button").click()
    expect(panel.get_by_role("list", name="Stages").locator("li").first).to_be_visible()
    expect(panel.locator(".waterfall")).to_contain_text("openai")
    expect(panel.locator(".waterfall")).to_contain_text("load")
    colour = "(bar) => getComputedStyle(bar).backgroundColor"
    bars = [panel.locator(f".track [data-stage={stage}]").first for stage in ("load", "read", "queue")]
    assert len({bar.evaluate(colour) for bar in bars}) == 3, "each stage has a colour of its own"
    rows.first.get_by_role("button").click()
    expect(panel.locator(".waterfall")).to_have_count(0)
    panel.get_by_label("ending").select_option("failed")
    expect(panel.locator("#no-requests")).to_be_visible()
    assert not visitor.errors


def test_the_panel_fits_a_phone(serve, visit):
    site = serve({"tiny": "fake:"})
    httpx.post(f"{site.url}/v1/chat/completions", json={"model": "tiny", "messages": HI}, timeout=60)
    page = visit(site, viewport={"width": 360, "height": 740}).page
    page.locator("#requests summary").click()
    expect(page.locator("#requests tbody tr")).to_have_count(1)
    page.locator("#requests tbody button").click()
    box = page.get_by_role("list", name="Stages").bounding_box()
    assert box["x"] + box["width"] <= 360
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
