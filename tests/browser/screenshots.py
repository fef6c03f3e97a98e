"""Make the pictures that README.md and the book show anew.

Like: .venv/bin/python -m tests.browser.screenshots

It runs chapter 02 in JupyterLab and builds the book, so it takes about two minutes. No test: pictures change with
every MAC, and whether they are good is for eyes to judge.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright

from k8snet.jupyter import book
from tests.browser.conftest import FLAGS
from tests.browser.test_lab import open_notebook, run_all, serving

FOLDER = Path(__file__).resolve().parents[2] / "book/_static/screenshots"
COLOURS = 128  # of the 256 that a PNG with a palette may have
MOST_BYTES = 250_000
TERMINAL, QUESTION, ANSWER = "nud stale", "The entry is STALE", "the request at once, and a second later"
DRAWING = "Marked is what the last two commands have changed."
PAGE, PAGE_DRAWING = "chapters/03-bridge.html", "Three containers are plugged into docker0"


def main() -> int:
    """Make both pictures, and say how large they are."""
    path = shutil.which("chromium")
    if path is None:
        print("chromium is not installed: ./run test sets it up", file=sys.stderr)
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="k8snet-pictures-") as scratch, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        with serving(Path(scratch, "home")) as server:
            save(chapter_in_lab(chromium, server), "chapter-lab.png")
        pages = Path(scratch, "pages")
        if book.build(output=pages, executed=None, jobs=2):
            return 1
        save(page_in_the_dark(chromium, pages), "page-dark.png")
        chromium.close()
    return 0


def chapter_in_lab(browser: Browser, server: str) -> bytes:
    """Chapter 02 after all of its cells: a prediction, a terminal session, and a diagram in a view of its own."""
    page = window(browser, 1200, 1000, "light")
    open_notebook(page, server)
    if not run_all(page):
        raise SystemExit("the chapter did not come to its end in JupyterLab")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+b")  # without the list of files
    figure = found(page, f".jp-Notebook figure:has-text('{DRAWING}')")
    figure.locator("svg").click(button="right")
    page.locator(".lm-Menu-itemLabel", has_text="Create New View for Cell Output").click()
    page.locator(f".jp-LinkedOutputView figure:has-text('{DRAWING}')").wait_for()
    drag_down(page, page.locator("#jp-main-dock-panel > .lm-DockPanel-handle:not(.lm-mod-hidden)").first, 80)
    asked = found(page, f".jp-Notebook .jp-CodeCell:has-text('{QUESTION}')")
    asked.get_by_role("button", name=ANSWER).click()
    asked.get_by_text("Noted").wait_for()
    found(page, f".jp-Notebook .jp-CodeCell:has-text('{TERMINAL}')").evaluate("cell => cell.scrollIntoView()")
    page.locator(".jp-LinkedOutputView").first.click(position={"x": 5, "y": 5})  # takes the frame off the cell
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)
    return page.screenshot()


def drag_down(page: Page, handle: Locator, pixels: int) -> None:
    """Give the upper of two views more room."""
    box = handle.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y + pixels, steps=5)
    page.mouse.up()


def page_in_the_dark(browser: Browser, pages: Path) -> bytes:
    """A page of the static book, in its dark look, at a diagram."""
    page = window(browser, 1280, 800, "dark")
    page.goto((pages / PAGE).as_uri())
    figure = page.locator(f"figure:has-text('{PAGE_DRAWING}')")
    page.mouse.move(640, 400)
    while (left := figure.evaluate("drawing => drawing.getBoundingClientRect().bottom - innerHeight + 60")) > 1:
        page.mouse.wheel(0, min(left, 250))  # as a reader would, so that the list of sections follows
        page.wait_for_timeout(100)
    page.wait_for_timeout(1000)
    return page.screenshot()


def window(browser: Browser, width: int, height: int, scheme: str) -> Page:
    """Open a window, for a reader who prefers light or dark."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    context.set_default_timeout(30_000)
    return context.new_page()


def found(page: Page, what: str) -> Locator:
    """Scroll until JupyterLab, which draws only what is in sight, has drawn *what*."""
    page.locator(".jp-WindowedPanel-outer").evaluate("panel => { panel.scrollTop = 0; }")
    thing = page.locator(what).first
    for _ in range(60):
        if thing.count() and thing.is_visible():
            thing.scroll_into_view_if_needed()
            return thing
        page.locator(".jp-WindowedPanel-outer").evaluate("panel => { panel.scrollTop += panel.clientHeight / 2; }")
        page.wait_for_timeout(150)
    raise SystemExit(f"nothing in the notebook fits {what}")


def save(picture: bytes, name: str) -> None:
    """Write a picture with a small palette; refuse one that is too large for a repository."""
    small = Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True)
    if len(out.getvalue()) > MOST_BYTES:
        raise SystemExit(f"{name} has {len(out.getvalue())} bytes, over {MOST_BYTES}: take fewer colours")
    (FOLDER / name).write_bytes(out.getvalue())
    print(f"{FOLDER / name}: {len(out.getvalue())} bytes")


if __name__ == "__main__":
    sys.exit(main())
