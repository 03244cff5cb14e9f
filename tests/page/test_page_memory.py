"""The page as a whole: what it fetches, and the memory panel."""

import re

import httpx
from playwright.sync_api import expect

SMALL = "fake:hold=10MiB"
MIB = 2**20


def test_the_page_loads_without_errors_from_its_own_server_only_and_is_small(serve, visit):
    site = serve({"tiny": SMALL})
    visitor = visit(site)
    expect(visitor.page.locator("#version")).to_contain_text("Plimsoll")
    expect(visitor.page.locator("#plot canvas")).to_be_visible()
    assert visitor.errors == []
    assert all(url.startswith(site.url) for url in visitor.requests)
    sizes = [
        len(visitor.page.request.get(url).body())
        for url in {url for url in visitor.requests if "/static/" in url} | {f"{site.url}/static/index.html"}
    ]
    assert len(sizes) > 15
    assert sum(sizes) < 250_000


def test_every_script_of_the_page_is_fetched_ahead(serve, visit):
    visitor = visit(serve({}))
    for url in visitor.requests:
        if url.endswith(".js") and "/vendor/" not in url and not url.endswith(("/app.js", "/theme.js")):
            path = url[url.index("/static/") :]
            expect(visitor.page.locator(f'link[rel=modulepreload][href="{path}"]')).to_have_count(1)


def test_a_full_memory_is_said_in_words_and_where_it_went(serve, visit):
    # Higher than what the rest of a machine may take: its own use counts too.
    limits = {"limit": 1700 * MIB, "warning_percent": 60, "critical_percent": 95}
    page = visit(serve({"heavy": "fake:hold=1000MiB"}, memory=limits)).page
    expect(page.locator("#level")).to_have_text("normal")
    page.get_by_role("button", name="Load heavy").click()
    expect(page.locator("#level")).to_have_text("warning")
    expect(page.locator("#state")).to_have_text("warning")
    expect(page).to_have_title(re.compile("warning"))
    expect(page.locator("#sources .binds")).to_contain_text("limit (binds)")
    expect(page.locator("#holders")).to_contain_text("heavy")
    expect(page.locator("#events-list .warning").first).to_contain_text("high memory use")


def test_ranges_are_chosen_by_buttons_and_by_dragging_in_the_plot(serve, visit):
    page = visit(serve({})).page
    hour, day = (page.get_by_role("button", name=name, exact=True) for name in ("1 h", "24 h"))
    expect(hour).to_have_attribute("aria-pressed", "true")
    with page.expect_response("**/admin/history?*since=86400*"):
        day.click()
    expect(day).to_have_attribute("aria-pressed", "true")
    expect(hour).to_have_attribute("aria-pressed", "false")
    box = page.locator("#plot .u-over").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 300, box["y"] + 60, steps=4)
    page.mouse.up()
    expect(page.locator("#shown")).to_contain_text(" to ")
    expect(page.locator("#from")).not_to_have_value("")  # the log is at the same time
    expect(page.locator("#events-list li")).to_have_count(0)
    page.locator("#ranges").get_by_role("button", name="back to now").click()
    expect(day).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#events-list li").first).to_be_visible()


def test_a_finger_drags_in_the_plot_as_a_mouse_does(serve, visit):
    page = visit(serve({}), has_touch=True, viewport={"width": 360, "height": 740}).page
    box = page.locator("#plot .u-over").bounding_box()
    browser = page.context.new_cdp_session(page)

    def touch(kind, *x):
        points = [{"x": box["x"] + one, "y": box["y"] + 60} for one in x]
        browser.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 60)
    touch("touchEnd")
    expect(page.locator("#shown")).to_be_empty()  # that was a tap
    touch("touchStart", 60)
    for x in (80, 120, 180):
        touch("touchMove", x)
    touch("touchEnd")
    expect(page.locator("#shown")).to_contain_text(" to ")
    expect(page.locator("#plot .u-select")).to_have_css("width", "0px")


def test_new_thresholds_are_there_after_a_reload(serve, visit):
    site = serve({}, memory={"warning_percent": 85})
    page = visit(site).page
    mark = page.locator("#hold .mark.warning")
    expect(mark).to_have_attribute("title", "warning from 85 %")
    site.configure(memory={"warning_percent": 60})
    httpx.post(f"{site.url}/admin/reload").raise_for_status()
    expect(mark).to_have_attribute("title", "warning from 60 %")
    expect(page.locator("#events-list li", has_text="memory.warning_percent")).to_have_count(1)


def test_the_page_survives_a_restart_of_its_server(serve, visit):
    site = serve({"tiny": SMALL})
    page = visit(site).page
    begun = page.locator("#events-list li", has_text="the memory journal begins")
    expect(begun).to_have_count(1)
    site.stop()
    expect(page.locator("#connection")).to_contain_text("The server is gone, reconnecting")
    expect(page.locator("#state")).to_have_text("gone")
    site.start()
    expect(page.locator("#connection")).to_be_empty()
    expect(page.locator("#state")).to_have_text("healthy")
    # What happened while nobody listened comes out of the record.
    expect(begun).to_have_count(2)
    page.get_by_role("button", name="Load tiny").click()
    expect(page.locator("[data-model=tiny] .state")).to_have_text("ready")


def test_a_key_is_asked_for_kept_and_sent(serve, browser):
    keys = [{"name": "me", "role": "admin", "key": "open-sesame"}, {"name": "eye", "role": "read", "key": "only-look"}]
    site = serve({"tiny": SMALL}, access={"keys": keys})
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(site.url)
        expect(page.locator("#state")).to_have_text("no access")
        page.get_by_label("Key", exact=True).fill("open-sesam")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("does not accept the key")
        page.get_by_label("Key", exact=True).fill("only-look")
        page.keyboard.press("Enter")
        expect(page.locator("#state")).to_have_text("healthy")
        page.get_by_role("button", name="Load tiny").click()
        expect(page.locator("#notices .error")).to_contain_text("needs admin")
        page.get_by_role("button", name="Key", exact=True).click()
        page.get_by_label("Key", exact=True).fill("open-sesame")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.reload()
        page.get_by_role("button", name="Load tiny").click()
        expect(page.locator("[data-model=tiny] .state")).to_have_text("ready")


def test_samples_of_the_record_fill_what_is_not_live(serve, visit):
    page = visit(serve({})).page
    filled = page.evaluate(
        """async () => {
          const { Samples, columns } = await import("/static/samples.js");
          const one = (at) => [at, 50, 0, 25, 50, 100];
          const samples = new Samples();
          for (const at of [100, 100.25, 100.5, 200]) samples.push(one(at));
          samples.fill([98, 99, 100, 101, 102, 150, 199, 200.5].map(one));
          const rows = samples.since(0).map((row) => row[0]);
          return { rows, columns: columns([10, 11, 50].map(one)) };
        }"""
    )
    assert filled["rows"] == [98, 100, 100.25, 100.5, 102, 150, 200]
    assert filled["columns"] == [[10, 11, 30.5, 50], [25, 25, None, 25], [50, 50, None, 50]]
