"""The pictures of the page in docs/images, from a server on the fake engine with an hour behind it.

Run: python ops/screenshots.py. Needs Chromium (apt-get install chromium) and 2 GB of free memory. Loopback only.
"""

import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.served import Served
from playwright.sync_api import Browser, Page, expect, sync_playwright

from plimsoll.journal import events as e
from plimsoll.journal.blackbox import BlackBox
from plimsoll.memory.sample import Level, Reading, Sample

ARGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
IMAGES = Path(__file__).parents[1] / "docs" / "images"
MOST_BYTES = 150_000
MIB = 2**20
LIMIT = 4096 * MIB
FRONT = 40 * MIB
QUESTION = "What is a Plimsoll line?"
ANSWER = (
    "It is the mark on a ship's hull that shows how deep she may lie in the water. Load her until the line is wet and "
    "no further. Samuel Plimsoll had it made law in 1876 and sailors have slept better since."
)
CODER, PHI, LLAMA = "qwen2.5-coder-7b", "phi3.5-mini", "llama-3.2-3b"
ENTRIES = {
    CODER: f"fake:hold=1200MiB,load_s=1,tokens_per_s=24,length={len(ANSWER.split())},answer={ANSWER}",
    PHI: "fake:hold=420MiB,load_s=0.5",
    LLAMA: "fake:hold=700MiB",
    "deepseek-r1-distill-14b": "fake:hold=2200MiB",
    "nomic-embed-text": {"source": "fake:hold=60MiB", "pin": True},
}


FOUND = [
    {"name": name, "size_bytes": size * MIB, "fits": fits, "downloads": downloads, "gated": False}
    for name, size, fits, downloads in (
        ("mlx-community/Qwen2.5-Coder-7B-Instruct-4bit", 4096, True, 41_207),
        ("mlx-community/Qwen2.5-Coder-32B-Instruct-4bit", 17_600, True, 28_914),
        ("mlx-community/Qwen3-Coder-480B-A35B-Instruct-4bit", 257_000, False, 9_120),
    )
]


def main() -> None:
    path = shutil.which("chromium")
    if path is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    IMAGES.mkdir(exist_ok=True)
    expect.set_options(timeout=30_000)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        remember(Path(folder) / "blackbox.sqlite")
        with Served(Path(folder), settings()) as served:
            browser = playwright.chromium.launch(executable_path=path, args=ARGS)
            pictures(browser, served.url)
            browser.close()


def pictures(browser: Browser, url: str) -> None:
    page = open_page(browser, url, 1280, 860, "light")
    for name in (PHI, CODER):
        page.get_by_role("button", name=f"Load {name}").click()
        expect(page.locator(f"[data-model='{name}'] .state")).to_have_text("ready")
    ask(page)
    expect(page.locator("#conversation .assistant")).to_contain_text("no further")
    expect(page.locator(f"[data-model='{CODER}'] .facts").first).to_contain_text("tokens/s")
    save(page, "page-light.png")
    expect(page.locator("#conversation .figures")).to_be_visible()
    page.close()

    page = open_page(browser, url, 1200, 800, "dark")
    page.get_by_role("button", name="Load deepseek").click()
    expect(page.get_by_role("dialog")).to_contain_text("will unload")
    save(page, "page-dark.png")
    page.close()

    page = open_page(browser, url, 390, 844, "light")
    save(page, "page-phone.png")
    page.close()

    page = open_page(browser, url, 1280, 860, "light")
    find(page)
    save(page, "page-search.png", "#models")
    page.close()


def open_page(browser: Browser, url: str, width: int, height: int, scheme: str) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type] # one of two words
    page.goto(url)
    expect(page.locator("#events-list li").nth(5)).to_be_attached()
    expect(page.locator("[data-model=nomic-embed-text] .state")).to_have_text("ready")
    return page


def ask(page: Page) -> None:
    page.get_by_label("Model", exact=True).select_option(CODER)
    page.get_by_label("Message").fill(QUESTION)
    page.keyboard.press("Enter")


def find(page: Page) -> None:
    """Search for models; the answer stands in for the hub's."""
    page.route(
        "**/admin/search?*", lambda route: route.fulfill(json={"budget_bytes": 96 * 1024 * MIB, "models": FOUND})
    )
    page.locator("#hub summary").click()
    page.locator("#hub-words").fill("qwen coder")
    page.keyboard.press("Enter")
    expect(page.locator("#hub-results li")).to_have_count(len(FOUND))
    expect(page.locator("[data-model=deepseek-r1-distill-14b] .plan")).to_contain_text("would unload")


def save(page: Page, name: str, part: str | None = None) -> None:
    file = IMAGES / name
    page.evaluate("scrollTo(0, 0); document.querySelector('#notices').replaceChildren()")
    if part:
        page.locator(part).screenshot(path=file)
    else:
        page.screenshot(path=file)
    size = file.stat().st_size
    print(f"{file.name}: {size / 1000:.0f} kB")
    assert size < MOST_BYTES, f"{name} is larger than {MOST_BYTES} bytes"


# ---- the server and its past


def settings() -> dict[str, Any]:
    entries = {name: one if isinstance(one, dict) else {"source": one} for name, one in ENTRIES.items()}
    return {
        "memory": {"limit": LIMIT, "warning_percent": 70, "critical_percent": 90, "emergency_percent": 97},
        "models": {"builtin": False, "entries": entries},
    }


def remember(path: Path) -> None:
    """An hour in the black box: models come, a conversation grows up to the warning, the idle one goes."""
    clock = [time.time() - 3600]
    box = BlackBox(path, now=lambda: clock[0])
    box.start()
    story = {
        3400: e.ModelLoaded(PHI, 4.1, 420 * MIB, 470 * MIB, "gpu"),
        2900: e.ModelLoaded(CODER, 9.8, 1200 * MIB, 1260 * MIB, "gpu"),
        2200: e.ModelLoaded(LLAMA, 5.2, 700 * MIB, 740 * MIB, "gpu"),
        1190: e.LevelChanged(e.LevelName.WARNING, e.LevelName.NORMAL, 70.6, "limit"),
        1180: e.CleanupStarted(aggressive=False, reason="memory is at warning", percent=71.2),
        1172: e.ModelUnloaded(LLAMA, "to make room", 740 * MIB, 735 * MIB, 610.0),
        1171: e.CleanupDone(
            aggressive=False,
            unloaded=(LLAMA,),
            expected_bytes=740 * MIB,
            freed_bytes=735 * MIB,
            percent_before=71.2,
            percent_after=53.1,
        ),
        1150: e.LevelChanged(e.LevelName.NORMAL, e.LevelName.WARNING, 53.0, "limit"),
    }
    for ago in range(3600, 0, -1):
        clock[0] = time.time() - ago
        if ago in story:
            box.event(story[ago])
        used = held(ago)
        readings = (Reading("limit", LIMIT, used), Reading("host", 16 * LIMIT, 5 * LIMIT // 4))
        level = Level.WARNING if 1150 < ago <= 1190 else Level.NORMAL
        box.sample(Sample(-float(ago), readings, footprints={1: used}), level)
        if ago % 500 == 0:
            box.flush()
    box.close("stopped")


def held(ago: int) -> int:
    """What is held ``ago`` seconds before now, in bytes."""
    since = {PHI: (3400, 470), CODER: (2900, 1260), LLAMA: (2200, 740)}
    mib = sum(size * min(1, (begun - ago) / 12) for begun, size in since.values() if ago < begun)
    if ago < 1172:
        mib -= 740
    if 1172 <= ago < 1900:
        mib += 375 * (1900 - ago) / 728  # the conversation's KV cache
    elif ago < 1172:
        mib += 375 * max(0, ago - 700) / 472
    return FRONT + int((mib + 18 * math.sin(ago / 37) + 7 * math.sin(ago / 5)) * MIB)


if __name__ == "__main__":
    main()
