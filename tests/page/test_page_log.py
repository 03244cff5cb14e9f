"""The event log: live, filtered, and out of the record of an earlier run."""

import datetime as dt

from playwright.sync_api import expect

ENTRIES = {"tiny": "fake:hold=10MiB", "torn": "fake:fail_load=the file is torn"}


def rows(page, text=None):
    return page.locator("#events-list li", has_text=text)


def test_an_event_appears_live_and_is_found_after_a_restart(serve, visit):
    site = serve(ENTRIES)
    page = visit(site).page
    site.load("tiny")
    expect(rows(page, "model tiny loaded")).to_have_count(1)
    site.stop()
    site.start()
    again = visit(site).page
    expect(rows(again, "model tiny loaded")).to_have_count(1)
    expect(rows(again, "the last run ended in order")).to_have_count(1)
    # And once, though the first window heard it live and reads it again.
    expect(rows(page, "the memory journal begins")).to_have_count(2)
    expect(rows(page, "model tiny loaded")).to_have_count(1)


def test_the_log_is_filtered_by_severity_kind_and_words(serve, visit):
    site = serve(ENTRIES)
    page = visit(site).page
    site.load("tiny")
    page.get_by_role("button", name="Load torn").click()
    expect(rows(page, "torn could not be loaded")).to_have_count(1)
    page.get_by_label("severity").select_option("errors")
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("the file is torn")
    page.get_by_label("severity").select_option("all")
    page.get_by_label("kind").select_option("model loaded")
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("model tiny loaded")
    page.get_by_label("kind").select_option("all")
    page.get_by_label("search").fill("TORN memory")
    expect(rows(page, "torn")).to_have_count(2)
    expect(page.locator("#events .count")).to_contain_text("2 of ")
    page.get_by_label("search").fill("no such words")
    expect(page.locator("#no-events")).to_be_visible()


def test_a_time_that_is_picked_shows_its_events_and_moves_the_plot(serve, visit):
    page = visit(serve(ENTRIES)).page
    expect(rows(page, "the memory journal begins")).to_have_count(1)
    now = dt.datetime.now().astimezone()
    ago = now - dt.timedelta(hours=3)
    page.get_by_label("from", exact=True).fill(f"{ago - dt.timedelta(hours=1):%Y-%m-%dT%H:%M}")
    page.get_by_label("to", exact=True).fill(f"{ago:%Y-%m-%dT%H:%M}")
    expect(rows(page)).to_have_count(0)
    expect(page.locator("#plot-note")).to_have_text("Nothing was recorded in this time.")
    page.get_by_label("to", exact=True).fill(f"{now + dt.timedelta(minutes=1):%Y-%m-%dT%H:%M}")
    expect(rows(page, "the memory journal begins")).to_have_count(1)
    page.get_by_role("button", name="last night").click()
    expect(page.get_by_label("to", exact=True)).not_to_have_value("")
