"""The book in JupyterLab, driven through its own buttons and menus."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from k8snet.jupyter.chapters import code_cells, find_chapters
from tests import executed
from tests.browser.conftest import Look, Tab, watch

ADDRESS = re.compile(rb"http://127\.0\.0\.1:\d+/lab\S*token=\w+")
CHAPTER = "02"
STARTED_WITHIN_S = 90
RUN_WITHIN_MS = 120_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def url_from(server: subprocess.Popen[bytes]) -> str:
    """Return the address that the server prints, with its token."""
    assert server.stdout is not None
    said, deadline = b"", time.monotonic() + STARTED_WITHIN_S
    while not (found := ADDRESS.search(said)):
        ready, _, _ = select.select([server.stdout], [], [], max(0, deadline - time.monotonic()))
        more = os.read(server.stdout.fileno(), 65536) if ready else b""
        assert more, f"no address from `k8snet lab`:\n{said.decode(errors='replace')}"
        said += more
    return found[0].decode()


@contextlib.contextmanager
def serving(home: Path) -> Iterator[str]:
    """Run `k8snet lab` in a folder and a home of its own; yield its address."""
    own = {"HOME": home, "XDG_STATE_HOME": home / "state", "JUPYTER_CONFIG_DIR": home / "config"}
    process = subprocess.Popen(
        [sys.executable, "-m", "k8snet.cli", "lab", "--no-browser", f"--port={free_port()}", f"--dir={home / 'book'}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, **{name: str(path) for name, path in own.items()}},
    )  # fmt: skip
    try:
        yield url_from(process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with serving(tmp_path) as address:
        yield address


def open_notebook(page: Page, server: str) -> None:
    """Open the chapter in JupyterLab, nothing executed yet."""
    address, _, token = server.partition("?")
    place = f"{address.split('/lab')[0]}/lab/tree/{find_chapters([CHAPTER])[0].path.name}"
    page.goto(f"{place}?reset&{token}", timeout=60_000)
    expect(page.locator(".jp-Notebook")).to_be_visible(timeout=60_000)
    expect(page.locator(".jp-Toolbar-kernelName")).to_contain_text("k8snet", timeout=60_000)


@pytest.fixture
def notebook(server: str, open_tab: Callable[[Look], Tab]) -> Iterator[Tab]:
    """The chapter, open in JupyterLab with the kernelspec k8snet, nothing executed yet."""
    tab = open_tab(Look(name="lab", width=1400, height=1000, scheme="light"))
    tab.page.unroute("**/*")
    watch(tab, allowed=(server.split("/lab")[0], "data:", "blob:"))
    open_notebook(tab.page, server)
    yield tab
    tab.page.evaluate("() => { window.onbeforeunload = null; }")


def menu(page: Page, entry: str) -> None:
    """Click an entry of the menu Run."""
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{entry}")).first.click()


def select_cell(page: Page, number: int) -> Locator:
    """Select a cell, opening it first if it is folded."""
    cell = page.locator(".jp-Notebook .jp-Cell").nth(number)
    cell.scroll_into_view_if_needed()
    if cell.locator(".jp-Placeholder").count():
        cell.locator(".jp-Placeholder-contentContainer, .jp-Placeholder").first.click()
    cell.locator(".jp-InputPrompt").first.click()
    return cell


def prompts(page: Page) -> list[str]:
    """Return the execution counters of all code cells, also of those out of sight."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')].map(
            cell => cell.querySelector('.jp-InputPrompt')?.textContent ?? '')"""
    )


def finished(page: Page, cells: int) -> bool:
    """Tell whether the last cell has its number, scrolling to it so that JupyterLab draws it."""
    page.locator(".jp-Notebook .jp-CodeCell").last.scroll_into_view_if_needed()
    return any(prompt.strip() == f"[{cells}]:" for prompt in prompts(page))


def run_all(page: Page) -> bool:
    """Run the whole chapter; return whether it came to its last cell in time."""
    menu(page, "Run All Cells")
    cells = len(code_cells(find_chapters([CHAPTER])[0].path))
    return executed.eventually(lambda: finished(page, cells), timeout_s=RUN_WITHIN_MS / 1000)


def test_chapter_2_runs_in_jupyterlab_and_draws_its_diagram(notebook):
    """This is what the book is for: open it, run it, see what the kernel holds."""
    page = notebook.page
    assert run_all(page)
    assert page.locator(".jp-Notebook [data-mime-type='application/vnd.jupyter.error']").count() == 0
    assert page.locator(".jp-Notebook [data-mime-type='application/vnd.jupyter.stderr']").all_inner_texts() == []
    figure = page.locator(".jp-Notebook figure svg").first
    figure.scroll_into_view_if_needed()
    box = figure.bounding_box()
    assert box is not None
    assert box["width"] > 100
    assert box["height"] > 50
    drawn = figure.text_content() or ""
    assert "client" in drawn
    assert "server" in drawn
    notebook.shoot("jupyterlab-02")
    assert [said for said in notebook.complaints if "asked the network" in said] == []


def first_exercise() -> tuple[int, int]:
    """Return where chapter 2 shows its first exercise, and where that one's solution is."""
    cells = json.loads(find_chapters([CHAPTER])[0].path.read_text())["cells"]
    shows = next(number for number, cell in enumerate(cells) if "exercise(" in "".join(cell["source"]))
    solved = next(
        number for number, cell in enumerate(cells) if number > shows and "solution" in cell["metadata"].get("tags", [])
    )
    return shows, solved


def test_the_check_button_of_an_exercise_says_no_before_it_is_solved_and_yes_after(notebook):
    """A check that is always content teaches nothing, nor does one that never is."""
    page = notebook.page
    shows, solved = first_exercise()
    exercise = select_cell(page, shows)
    menu(page, "Run All Above Selected Cell")
    menu(page, "Run Selected Cell")
    button = exercise.get_by_role("button", name="Check")
    button.wait_for(timeout=RUN_WITHIN_MS)
    button.click()
    expect(exercise.locator(".k8snet-card.result.bad")).to_be_visible(timeout=30_000)
    select_cell(page, solved)
    menu(page, "Run Selected Cell")
    button.click()  # answered when the cell has run: one after the other
    expect(exercise.locator(".k8snet-card.result.good")).to_be_visible(timeout=30_000)
    notebook.shoot("jupyterlab-02-exercise")
