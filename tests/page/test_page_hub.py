"""Search and downloads, from a stand-in of the hub."""

import re

import hub
import pytest
from playwright.sync_api import expect

MIB = 2**20
KEYS = [{"name": "me", "role": "admin", "key": "open-sesame"}, {"name": "eye", "role": "user", "key": "only-look"}]


def found(name, downloads, **parameters):
    told = {"id": name, "downloads": downloads, "gated": False}
    return told | ({"safetensors": {"parameters": parameters}} if parameters else {})


@pytest.fixture
def far():
    """The hub, whose one model stops coming after 15 MiB until ``go_on``, and its address."""
    with hub.hub(hub.model_files(24 * MIB)) as (far, address):
        far.found = [found("org/vast", 90_021, U32=10**13), found("org/tiny", 7, BF16=4 * MIB)]
        far.cut_at = 15 * MIB
        yield far, address


def answered(page, code):
    """What the page says of a search that the server refuses with this code."""
    told = {"status": 503, "json": {"error": {"message": "refused", "code": code}}}
    page.route("**/admin/search?*", lambda route: route.fulfill(**told))
    page.locator("#hub-words").press("Enter")
    expect(page.locator("#hub-note")).to_contain_text("Models that are here work without")
    page.unroute("**/admin/search?*")
    return page.locator("#hub-note").inner_text()


def test_a_model_is_found_and_downloaded_with_the_keyboard_over_a_reload(serve, visit, far):
    hub, address = far
    # The download waits for what does not come, longer than the test takes.
    env = {"HF_ENDPOINT": address, "HF_TOKEN": "", "HF_HUB_DOWNLOAD_TIMEOUT": "120"}
    page = visit(serve({}, env=env)).page
    page.locator("#hub summary").press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#hub-words")).to_be_focused()
    page.keyboard.type("tiny")
    assert "can't be reached" in answered(page, "hub_unreachable")
    assert "stay offline" in answered(page, "hub_offline")
    page.locator("#hub-words").press("Enter")
    rows = page.locator("#hub-results li")
    expect(rows).to_have_text([re.compile("org/tiny.*8 MB · fits"), re.compile("org/vast.*too large · 90,021 downl")])
    page.get_by_role("button", name="Download org/vast").press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("will probably not fit")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Download org/tiny").press("Enter")
    pull = page.locator("[data-pull='org/tiny']")
    expect(pull).to_contain_text("of 24 MB")
    page.reload()
    expect(pull).to_contain_text("of 24 MB")
    expect(pull.get_by_role("progressbar")).to_have_attribute("aria-valuenow", re.compile(r"^[1-9]\d?$"))
    hub.go_on.set()
    expect(page.locator("#notices")).to_contain_text("org/tiny is here.")
    expect(pull).to_have_count(0)
    expect(page.locator("[data-model='org/tiny'] .state")).to_have_text("not loaded")


def test_a_download_that_fails_says_why_and_only_administrators_begin_one(serve, visit, far):
    hub, address = far
    hub.missing = True
    site = serve({}, env={"HF_ENDPOINT": address, "HF_TOKEN": ""}, access={"keys": KEYS})
    page = visit(site, storage_state=stored(site, "only-look")).page
    page.locator("#hub summary").click()
    page.locator("#hub-words").fill("org/none")
    page.keyboard.press("Enter")
    expect(page.locator("#hub-note")).to_contain_text("are for administrators")
    page = visit(site, storage_state=stored(site, "open-sesame")).page
    page.locator("#hub summary").click()
    page.locator("#hub-words").fill("org/none")
    hub.missing, hub.found = False, []
    page.keyboard.press("Enter")
    expect(page.locator("#hub-results li")).to_contain_text("as you named it")
    hub.missing = True
    page.get_by_role("button", name="Download org/none").click()
    expect(page.locator("[data-pull='org/none'] .error")).to_contain_text("failed: ")
    expect(page.get_by_role("button", name="Go on with org/none")).to_be_visible()


def stored(site, key):
    items = [{"name": "plimsoll.key", "value": key}]
    return {"cookies": [], "origins": [{"origin": site.url, "localStorage": items}]}


def test_speed_and_time_left_are_those_of_the_last_ten_seconds(serve, visit):
    told = visit(serve({})).page.evaluate(
        """async () => {
          const { Downloads } = await import("/static/downloads.js");
          const [root, feed] = [document.createElement("ul"), new EventTarget()];
          let at = 0;
          performance.now = () => 1000 * at;
          new Downloads(root, feed);
          const pull = { model: "x", begun_at: 1, stage: "fetch", total: 1000 * 2 ** 20, done: false, error: null };
          const heard = (time, mb) => {
            at = time;
            const detail = { pulls: [{ ...pull, completed: mb * 2 ** 20 }] };
            feed.dispatchEvent(new CustomEvent("pulls", { detail }));
            return root.querySelector(".facts").textContent;
          };
          // What was there before the page cost no time.
          return [heard(100, 500), heard(102, 520), heard(113, 600), heard(130, 600)];
        }"""
    )
    assert told == [
        "500 MB of 1,000 MB",
        "520 MB of 1,000 MB · 10 MB/s · 48 s left",
        "600 MB of 1,000 MB",
        "600 MB of 1,000 MB",
    ]
