"""Cards, their buttons, and what is asked before something is unloaded."""

import re

import httpx
import pytest
from playwright.sync_api import expect

MIB = 2**20
# Room for one of the two beside the server's own 65 MiB: each needs its 320 MiB and 350 MiB for a process and a KV
# cache, less once it was measured.
TIGHT = {"limit": 800 * MIB, "critical_percent": 95, "warning_percent": 90}
PAIR = {"first": "fake:hold=320MiB", "second": "fake:hold=320MiB"}


@pytest.fixture
def card():
    return lambda page, name: page.locator(f"[data-model={name}]")


def test_a_model_is_loaded_pinned_and_unloaded_by_its_buttons(serve, visit, card):
    site = serve({"tiny": "fake:hold=10MiB"})
    page = visit(site).page
    tiny = card(page, "tiny")
    expect(tiny.locator(".state")).to_have_text("not loaded")
    tiny.get_by_role("button", name="Load").click()
    expect(tiny.locator(".state")).to_have_text("ready")
    expect(tiny).to_contain_text(re.compile(r"\d+ MB, \d"))
    expect(tiny).to_contain_text("unloads in")
    tiny.get_by_role("button", name="Pin").click()
    expect(tiny).to_contain_text("pinned")
    expect(tiny).not_to_contain_text("unloads in")
    assert site.model("tiny")["pinned"]
    tiny.get_by_role("button", name="Unpin").click()
    expect(tiny).not_to_contain_text("pinned")
    tiny.get_by_role("button", name="Unload").click()
    expect(tiny.locator(".state")).to_have_text("not loaded")
    expect(page.locator("#models .count")).to_have_text("0 of 1 loaded")


def test_a_load_that_fits_is_not_asked_about_and_shows_its_progress(serve, visit, card):
    page = visit(serve({"slow": "fake:hold=20MiB,load_s=1.5"})).page
    card(page, "slow").get_by_role("button", name="Load").click()
    expect(card(page, "slow").locator(".state")).to_contain_text(re.compile(r"loading \d+ %"))
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(card(page, "slow").locator(".state")).to_have_text("ready")


def test_a_load_that_evicts_says_so_first(serve, visit, card):
    site = serve(PAIR, memory=TIGHT)
    site.load("first")
    page = visit(site).page
    # Said on the card, before anything is pressed.
    expect(card(page, "second").locator(".plan")).to_have_text(re.compile("^needs .+, would unload first$"))
    load = card(page, "second").get_by_role("button", name="Load")
    load.click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(re.compile(r"Loading second \(needs .+\) will unload first"))
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert site.model("first")["state"] == "ready"
    assert site.model("second")["state"] == "cold"
    load.click()
    dialog.get_by_role("button", name="Unload first and load").click()
    expect(card(page, "second").locator(".state")).to_have_text("ready")
    expect(card(page, "first").locator(".state")).to_have_text("not loaded")
    expect(page.locator("#events-list")).to_contain_text("first")


def test_a_load_that_can_t_be_says_why_and_offers_nothing(serve, visit, card):
    site = serve(
        {"pinned": {"source": "fake:hold=320MiB", "pin": True}, **PAIR, "vast": "fake:hold=900MiB"}, memory=TIGHT
    )
    page = visit(site).page
    expect(card(page, "pinned").locator(".state")).to_have_text("ready")
    card(page, "first").get_by_role("button", name="Load").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("In the way: pinned is pinned.")
    expect(dialog.get_by_role("button")).to_have_text(["Close"])
    dialog.get_by_role("button").click()
    card(page, "vast").get_by_role("button", name="Load").click()
    expect(dialog).to_contain_text("more than this machine may use")


def test_a_failed_load_shows_its_error(serve, visit, card):
    page = visit(serve({"torn": "fake:fail_load=the file is torn"})).page
    card(page, "torn").get_by_role("button", name="Load").click()
    expect(page.locator("#notices")).to_contain_text("the file is torn")
    expect(card(page, "torn").locator(".error")).to_contain_text("the file is torn")


def test_the_clean_up_names_whom_it_unloads_and_what_it_freed(serve, visit, card):
    site = serve({"old": "fake:hold=10MiB", "new": "fake:hold=10MiB"})
    site.load("old")
    site.load("new")
    page = visit(site).page
    expect(card(page, "new").locator(".state")).to_have_text("ready")
    free = page.get_by_role("button", name="Free memory")
    dialog = page.get_by_role("dialog")
    free.click()
    expect(dialog).to_contain_text("stay. Now: old.")
    dialog.get_by_role("button", name="Unload idle models").click()
    expect(card(page, "old").locator(".state")).to_have_text("not loaded")
    expect(page.locator("#notices")).to_contain_text("Unloaded old:")
    expect(card(page, "new").locator(".state")).to_have_text("ready")
    free.click()
    expect(dialog).to_contain_text("Now: new.")
    dialog.get_by_role("button", name="Unload all models").click()
    expect(card(page, "new").locator(".state")).to_have_text("not loaded")


def test_it_can_all_be_done_with_the_keyboard(serve, visit, card):
    site = serve(PAIR, memory=TIGHT)
    site.load("first")
    page = visit(site).page
    expect(card(page, "second").get_by_role("button", name="Load")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    load = card(page, "second").get_by_role("button", name="Load")
    for _ in range(40):
        page.keyboard.press("Tab")
        if load.evaluate("(node) => node === document.activeElement"):
            break
    expect(load).to_be_focused()
    assert load.evaluate("(node) => getComputedStyle(node).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("will unload first")
    page.keyboard.press("Escape")
    # The focus is back before the browser says that the dialog is closed; until then the button's first press goes on.
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(load).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("button", name="Unload first and load")).to_be_focused()
    page.keyboard.press("Enter")
    expect(card(page, "second").locator(".state")).to_have_text("ready")
    page.locator("#plot").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#shown")).to_contain_text(" to ")
    page.keyboard.press("Escape")
    expect(page.locator("#shown")).to_be_empty()


def test_every_plan_is_told_in_words(serve, visit):
    page = visit(serve({})).page
    told = page.evaluate(
        """async () => {
          const { loadQuestion, fetchQuestion, cleanupVictims } = await import("/static/plans.js");
          const plan = { model: "x", required_gb: 4.1, available_gb: 1, percent_after: 80, evict: [], blockers: [] };
          const ask = (verdict) => loadQuestion({ ...plan, verdict });
          const model = (name, state, idle_s, pinned = false) => ({ name, state, idle_s, pinned });
          const models = [model("a", "ready", 50), model("b", "busy"), model("c", "ready", 9), model("d", "cold")];
          const pinned = [model("p", "ready", 99, true), model("q", "ready", 5), model("r", "ready", 1)];
          return {
            load: ask("load"),
            wait: ask("wait").body[0],
            refuse: ask("refuse").body[1],
            fetch: fetchQuestion("x", "the files of x are not here yet").body[0],
            idle: [cleanupVictims(models, false), cleanupVictims(pinned, false)],
            all: cleanupVictims(models, true),
          };
        }"""
    )
    assert told == {
        "load": None,
        "wait": "x needs 4.1 GB and 1.0 GB may be granted now. It loads as soon as a model that is leaving is gone.",
        "refuse": "Other programs hold the memory.",
        "fetch": "the files of x are not here yet.",
        "idle": [["a", "c"], ["q"]],
        "all": ["a", "b", "c"],
    }


def test_a_models_settings_are_written_into_the_file_and_in_force(serve, visit, card):
    site = serve({"tiny": {"source": "fake:", "sampling": {"temperature": 0.5}, "max_tokens": 9}})
    visitor = visit(site)
    page = visitor.page
    card(page, "tiny").get_by_role("button", name="Settings of tiny").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("temperature")).to_have_value("0.5")
    dialog.get_by_label("temperature").fill("0.25")
    dialog.get_by_label("longest answer").fill("")
    dialog.get_by_label("other names").fill("one, two")
    dialog.get_by_label("thinks").select_option("no")
    dialog.get_by_role("button", name="Save").click()
    expect(page.locator("#notices")).to_contain_text("The settings of tiny are saved")
    told = httpx.get(f"{site.url}/admin/settings?model=two", timeout=60).json()
    assert told["entry"]["sampling"]["temperature"] == 0.25
    assert (told["entry"]["aliases"], told["entry"]["thinking"]) == (["one", "two"], False)
    assert "max_tokens" not in told["entry"]
    card(page, "tiny").get_by_role("button", name="Settings of tiny").click()
    dialog.get_by_label("temperature").fill("2")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert not visitor.errors
