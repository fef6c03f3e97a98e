"""The static book, as a reader sees it who opens it from a folder, without a network."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from bs4 import BeautifulSoup

from k8snet.jupyter.chapters import find_chapters
from tests.browser.conftest import LOOKS, Look

# Each thing that is wrong with a page, in words.
FAULTS = """() => {
    const faults = [];
    const name = e => `${e.tagName.toLowerCase()}.${e.getAttribute('class') ?? ''}`;
    const wide = document.documentElement.scrollWidth - window.innerWidth;
    if (wide > 0) faults.push(`the page scrolls sideways by ${wide} pixels`);
    for (const e of document.querySelectorAll('article img'))
        if (!e.complete || e.naturalWidth === 0) faults.push(`empty picture ${e.src}`);
    for (const e of document.querySelectorAll('article svg')) {
        const box = e.getBoundingClientRect();
        if (e.closest('details:not([open])')) continue;
        if (box.width < 8 || box.height < 8 || !e.childElementCount) faults.push('an empty drawing');
    }
    const column = document.querySelector('article')?.getBoundingClientRect();
    for (const e of document.querySelectorAll('article pre, article table, article figure, article .text_html')) {
        const box = e.getBoundingClientRect();
        const holder = e.parentElement.closest('.text_html, .pst-scrollable-table-container, figure');
        if (column && !holder && box.right > column.right + 1)
            faults.push(`${name(e)} sticks out of the column by ${Math.round(box.right - column.right)} pixels`);
    }
    return faults;
}"""

CONTRAST = """([colour]) => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => {
        const part = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    };
    const span = document.createElement('span');
    span.className = `-Color -Color-${colour}`;
    document.querySelector('.cell_output .output.stream pre').append(span);
    let behind = span;
    while (rgb(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
    const [a, b] = [getComputedStyle(span).color, getComputedStyle(behind).backgroundColor].map(c => light(rgb(c)));
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}"""


def pages(book: Path) -> list[Path]:
    return sorted(path for path in book.rglob("*.html") if "_static" not in path.parts)


def chapter_page(book: Path, name: str) -> Path:
    return book / "chapters" / f"{name}.html"


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.name)
def test_every_page_fits_its_window_and_asks_nothing_of_the_network(book, open_tab, look):
    """The book is read from folders, on phones, in the dark and on machines without a network."""
    tab = open_tab(look)
    faults = {}
    for path in pages(book):
        tab.complaints.clear()
        tab.page.goto(path.as_uri())
        found = [*tab.page.evaluate(FAULTS), *tab.complaints]
        tab.shoot(str(path.relative_to(book).with_suffix("")).replace("/", "-"))
        if found:
            faults[str(path.relative_to(book))] = found
    assert faults == {}


def test_every_link_among_the_pages_leads_somewhere(book):
    """A reader without a network cannot look elsewhere for what a dead link meant."""
    soups = {path: BeautifulSoup(path.read_text(), "html.parser") for path in pages(book)}
    names = {path: {tag["id"] for tag in soup.find_all(id=True)} for path, soup in soups.items()}
    dead = []
    for path, soup in soups.items():
        for link in soup.find_all("a", href=True):
            target, fragment = urldefrag(urljoin(path.as_uri(), link["href"]))
            if not target.startswith("file:") or link["href"] == "#":
                continue
            file = Path(unquote(target.removeprefix("file://")))
            if not file.is_file() or (fragment and unquote(fragment) not in names.get(file, {unquote(fragment)})):
                dead.append(f"{path.relative_to(book)}: {link['href']}")
    assert dead == []


@pytest.mark.parametrize("attribute", ["src", "href"])
def test_no_page_loads_anything_from_elsewhere(book, attribute):
    """A browser that has a network would fetch it, and tell somebody who reads what."""
    loaded = re.compile(rf"<(?:script|link|img|iframe|source)\b[^>]*\b{attribute}=[\"'](?:https?:)?//[^\"']*")
    found = {str(path.relative_to(book)): loaded.findall(path.read_text()) for path in pages(book)}
    assert {path: hits for path, hits in found.items() if hits} == {}


def test_the_search_finds_a_word_from_a_folder(book, open_tab):
    """Search engines of static pages often fetch their index, which file:// refuses."""
    tab = open_tab()
    tab.page.goto((book / "index.html").as_uri())
    tab.page.keyboard.press("Control+k")
    tab.page.keyboard.type("masquerade")
    tab.page.keyboard.press("Enter")
    found = tab.page.locator("#search-results a[href*='glossary']").first
    found.wait_for(timeout=20_000)
    found.click()
    assert "glossary.html" in tab.page.url
    assert tab.complaints == []


@pytest.mark.parametrize("chapter", find_chapters(), ids=lambda chapter: chapter.name)
def test_the_download_is_the_chapter_as_it_was_written(book, open_tab, chapter):
    """Outputs of our machine are of no use in a notebook that somebody wants to run."""
    tab = open_tab()
    tab.page.goto(chapter_page(book, chapter.name).as_uri())
    with tab.page.expect_download() as download:
        tab.page.get_by_label("Download this chapter").click()
    assert Path(download.value.path()).read_bytes() == chapter.path.read_bytes()
    assert download.value.suggested_filename == chapter.path.name


@pytest.mark.parametrize("look", LOOKS[:2], ids=lambda look: look.name)
@pytest.mark.parametrize("colour", ["Black", "Red", "Green", "Yellow", "Blue", "Magenta", "Cyan", "White"])
def test_the_colours_of_a_terminal_can_be_read(book, open_tab, look: Look, colour):
    """A contrast of 4.5 is what WCAG asks of text."""
    tab = open_tab(look)
    with_output = next(path for path in pages(book) if 'class="output stream' in path.read_text())
    tab.page.goto(with_output.as_uri())
    assert tab.page.evaluate(CONTRAST, [colour]) >= 4.5


def test_no_output_stands_in_a_light_box_in_the_dark(book, open_tab):
    """The theme puts a light box round every HTML output, which our drawings do not need."""
    tab = open_tab(LOOKS[1])
    boxes = {}
    for path in (book / "chapters").glob("*.html"):
        tab.page.goto(path.as_uri())
        colours = tab.page.evaluate(
            """() => [...document.querySelectorAll('.cell_output .text_html')]
                .map(e => getComputedStyle(e).backgroundColor)"""
        )
        boxes[path.name] = set(colours) - {"rgba(0, 0, 0, 0)"}
    assert not any(boxes.values()), boxes


def test_a_solution_is_folded_until_the_reader_opens_it(book, open_tab):
    """Who sees the solution first has no exercise."""
    tab = open_tab()
    seen = 0
    for path in (book / "chapters").glob("*.html"):
        tab.page.goto(path.as_uri())
        for cell in tab.page.locator("div.cell.tag_solution").all():
            code = cell.locator(".cell_input").first
            assert not code.is_visible()
            cell.locator("summary").first.click()
            assert code.is_visible()
            seen += 1
    assert seen == solutions()


def test_nothing_is_cut_off_on_paper(book, open_tab):
    """Paper does not scroll: long lines of code and of output wrap instead."""
    tab = open_tab()
    tab.page.emulate_media(media="print")
    cut = {}
    for path in (book / "chapters").glob("*.html"):
        tab.page.goto(path.as_uri())
        cut[path.name] = tab.page.evaluate(
            """() => [...document.querySelectorAll('article pre')]
                .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.innerText)"""
        )
    assert not any(cut.values()), cut


def solutions() -> int:
    return sum(chapter.path.read_text().count('"solution"') for chapter in find_chapters())
