"""One Chromium and one built book a session; pages light, dark and on a phone."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, Route, sync_playwright
from rich.console import Console

from k8snet.jupyter import book as builder
from tests import executed

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Look:
    """A way to look at the book."""

    name: str
    width: int  # CSS pixels
    height: int
    scheme: str  # what the reader's system prefers


LOOKS = (
    Look(name="light", width=1280, height=900, scheme="light"),
    Look(name="dark", width=1280, height=900, scheme="dark"),
    Look(name="mobile", width=390, height=844, scheme="light"),
)


@dataclass(kw_only=True)
class Tab:
    """A page of the browser, and all that it complained of or asked the network for."""

    page: Page
    look: Look
    complaints: list[str] = field(default_factory=list)

    def shoot(self, name: str) -> None:
        """Save a picture of the whole page in $K8SNET_SCREENSHOTS, if that is set."""
        if folder := os.environ.get("K8SNET_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=str(Path(folder, f"{name}-{self.look.name}.png")), full_page=True)


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built book, made from the chapters that this session executed."""
    executed.use(tmp_path_factory)
    run = executed.run()
    if failed := [name for name, reason in run.outcomes.items() if reason]:
        pytest.fail(f"no book without its chapters: {', '.join(failed)} failed, see tests/notebooks")
    folder, said = tmp_path_factory.mktemp("html"), io.StringIO()
    code = builder.build(output=folder, executed=run.folder, jobs=2, console=Console(file=said))
    assert code == 0, said.getvalue()
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[[Look], Tab]]:
    """A function that opens a tab which may read files and nothing else."""
    contexts = []

    def make(look: Look = LOOKS[0]) -> Tab:
        context = browser.new_context(
            viewport={"width": look.width, "height": look.height}, color_scheme=look.scheme, accept_downloads=True
        )
        context.set_default_timeout(15_000)
        contexts.append(context)
        tab = Tab(page=context.new_page(), look=look)
        watch(tab)
        return tab

    yield make
    for context in contexts:
        context.close()


def watch(tab: Tab, *, allowed: tuple[str, ...] = ("file:", "data:", "blob:")) -> None:
    """Refuse every request but the *allowed* ones, and note it with all errors of the page."""

    def decide(route: Route) -> None:
        if route.request.url.startswith(allowed):
            route.continue_()
            return
        tab.complaints.append(f"asked the network for {route.request.url}")
        route.abort()

    tab.page.route("**/*", decide)
    tab.page.on("pageerror", lambda error: tab.complaints.append(f"error in a script: {_first(error)}"))
    tab.page.on(
        "console",
        lambda said: tab.complaints.append(f"console: {said.text}") if said.type == "error" else None,
    )


def _first(error: Error) -> str:
    return str(error).splitlines()[0]
