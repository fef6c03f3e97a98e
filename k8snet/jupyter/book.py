"""Build the static book: executed chapters, prose and reference into one folder of HTML.

build           what `k8snet book` calls
├── runner      executes the chapters, unless it is given executed ones
├── gather      puts book/, chapters and generated pages into one source folder
└── sphinx      makes the pages; every warning is an error
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from k8snet.errors import CommandFailed, InvalidInput, NotFound, ProgramMissing
from k8snet.jupyter.chapters import Chapter, find_chapters, package_folder
from k8snet.jupyter.runner import show_run
from k8snet.linux import run

__all__ = ["build", "gather", "page_of", "public_modules"]

SPHINX_TIMEOUT_S = 900.0
NOT_DOCUMENTED = ("cli", "jupyter", "_book", "teach/exercises")  # run, not imported; or a spoiler
WIDGET = "application/vnd.jupyter.widget-view+json"
FOLDED = "solution"  # the tag of a hidden solution; myst-nb calls it "hide-cell"
LINK = re.compile(r"!?\[([^\]]+)\]\(([^)\s]+)\)")  # of Markdown; a picture has a ! before it
ABSENT = "This copy of k8snet was installed without it; it is in the repository.\n"


def build(
    *, output: Path, executed: Path | None, jobs: int, source: Path | None = None,
    console: Console | None = None,
) -> int:  # fmt: skip
    """Build the HTML book in *output*, and return an exit code.

    Args:
        output: the folder of the pages; an older book in it is replaced.
        executed: a folder of executed notebooks; None executes every chapter first.
        jobs: how many chapters are executed at once.
        source: the folder of the notebooks, instead of the book's own.
        console: where to print, instead of standard output.

    Raises:
        InvalidInput: *output* holds something else than a book.
        NotFound: *executed* lacks a chapter.
        ProgramMissing: sphinx is not installed.
    """
    console = console or Console(highlight=False)
    _check_target(output)
    if not all(importlib.util.find_spec(name) for name in ("sphinx", "myst_nb", "sphinx_book_theme")):
        raise ProgramMissing("sphinx and its theme are not installed: pip install 'k8snet[book]'")
    chapters = find_chapters(source=source)
    with tempfile.TemporaryDirectory(prefix="k8snet-book-") as scratch:
        if executed is None:
            executed = Path(scratch, "executed")
            code = show_run(chapters, output=executed, jobs=jobs, console=console)
            if code != 0:
                console.print("The book was not built.")
                return code
        pages = gather(Path(scratch, "source"), chapters=chapters, executed=executed)
        return _make_pages(pages, Path(scratch, "html"), output, console)


def _make_pages(pages: Path, html: Path, output: Path, console: Console) -> int:
    """Run sphinx, and put what it made in place of *output*."""
    argv = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    try:
        with console.status("building the pages"):
            run.run([*argv, str(pages), str(html)], timeout_s=SPHINX_TIMEOUT_S)
    except CommandFailed as error:
        console.print("sphinx refused the book:", markup=False)
        console.print(error.stderr.strip(), markup=False, soft_wrap=True)
        return 1
    shutil.rmtree(html / ".doctrees", ignore_errors=True)
    _replace(output, html)
    console.print(f"the book: {output / 'index.html'}", soft_wrap=True)
    return 0


def _check_target(output: Path) -> None:
    """Refuse a folder that holds something else than an older book."""
    if output.exists() and not output.is_dir():
        raise InvalidInput(f"{output} is a file: name a folder for the book")
    if output.exists() and any(output.iterdir()) and not (output / "objects.inv").exists():
        raise InvalidInput(f"{output} holds something else than a book: name an empty folder")


def _replace(output: Path, html: Path) -> None:
    _check_target(output)
    shutil.rmtree(output, ignore_errors=True)
    shutil.copytree(html, output)


# -- the source folder -----------------------------------------------------------------


def gather(target: Path, *, chapters: Sequence[Chapter], executed: Path) -> Path:
    """Put all that sphinx reads into *target*, and return it.

    Args:
        target: a folder that does not exist yet.
        chapters: the chapters of the book, in order.
        executed: the folder with each chapter's executed notebook.

    Raises:
        NotFound: a chapter is not among the executed ones.
    """
    shutil.copytree(package_folder("book"), target, ignore=shutil.ignore_patterns("_build", ".*"))
    for folder in ("chapters", "api", "_generated", "_originals"):
        (target / folder).mkdir()
    for chapter in chapters:
        done = executed / chapter.path.name
        if not done.is_file():
            raise NotFound(f"{chapter.path.name} is not in {executed}: run `k8snet run --output`")
        notebook = page_of(json.loads(done.read_text()))
        (target / "chapters" / chapter.path.name).write_text(json.dumps(notebook))
        shutil.copy(chapter.path, target / "_originals")  # what the download button gives
    (target / "_generated" / "map.md").write_text(_map(chapters))
    _write_reference(target / "api")
    _fetch(target / "changelog.md", "CHANGELOG.md", "Changes")
    _fetch(target / "benchmarks" / "README.md", "benchmarks/README.md", "Benchmarks")
    return target


def page_of(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return an executed notebook as a page: solutions folded, nothing that needs a kernel.

    A widget stays if it brought HTML that works by itself; else its output goes.
    """
    kept = ("kernelspec", "language_info")
    metadata = {key: value for key, value in notebook["metadata"].items() if key in kept}
    return {**notebook, "metadata": metadata, "cells": [_page_cell(cell) for cell in notebook["cells"]]}


def _page_cell(cell: dict[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {"tags": list(cell["metadata"].get("tags", []))}
    if FOLDED in metadata["tags"]:
        metadata["tags"].append("hide-cell")
        metadata["mystnb"] = {"code_prompt_show": "Solution", "code_prompt_hide": "Solution"}
    page = {**cell, "metadata": metadata}
    if cell["cell_type"] == "code":
        outputs = (_page_output(output) for output in cell["outputs"])
        page["outputs"] = [output for output in outputs if output]
    return page


def _page_output(output: dict[str, Any]) -> dict[str, Any] | None:
    data = output.get("data", {})
    if WIDGET not in data:
        return output
    if not data.keys() & {"text/html", "image/svg+xml", "image/png"}:
        return None  # buttons without a kernel behind them
    return {**output, "data": {kind: value for kind, value in data.items() if kind != WIDGET}}


def _map(chapters: Sequence[Chapter]) -> str:
    rows = []
    for chapter in chapters:
        cells = (f"[{chapter.title}](chapters/{chapter.path.name})", chapter.summary)
        rows.append(" | ".join([f"| {chapter.number:02}", *(cell.replace("|", r"\|") for cell in cells)]) + " |")
    return "\n".join(["| | Chapter | After it you can |", "|--:|---|---|", *rows, ""])


def _fetch(target: Path, name: str, title: str) -> None:
    """Copy a document of the repository, and the pictures beside it, or say that it is not there."""
    root = package_folder("book").parent
    target.parent.mkdir(exist_ok=True)
    document = root / name
    if not document.is_file():
        target.write_text(f"# {title}\n\n{ABSENT}")
        return
    if document.parent != root:
        for kind in ("*.svg", "*.png", "*.json"):
            for picture in document.parent.glob(kind):
                shutil.copy(picture, target.parent)
    target.write_text(LINK.sub(lambda link: _kept_link(link, target.parent), document.read_text()))


def _kept_link(link: re.Match[str], folder: Path) -> str:
    """Return a link or a picture, or only its text if the book does not have that file."""
    text, leads_to = link.groups()
    elsewhere = re.match(r"[a-z]+:|#", leads_to)
    return link[0] if elsewhere or (folder / leads_to.split("#")[0]).exists() else text


# -- the reference ---------------------------------------------------------------------


def public_modules() -> Iterator[tuple[str, str]]:
    """Yield name and first docstring line of each module that a reader may import."""
    package = Path(__file__).resolve().parents[1]
    for path in sorted(package.rglob("*.py")):
        inner = path.relative_to(package).with_suffix("")
        if inner.name.startswith("_") or any(inner.is_relative_to(folder) for folder in NOT_DOCUMENTED):
            continue
        tree = ast.parse(path.read_text())
        told = ast.get_docstring(tree) or ""
        if _has_public_names(tree):
            yield ".".join(("k8snet", *inner.parts)), told.split("\n\n")[0].replace("\n", " ")


def _has_public_names(tree: ast.Module) -> bool:
    named = (node.targets for node in tree.body if isinstance(node, ast.Assign))
    return any(isinstance(one, ast.Name) and one.id == "__all__" for targets in named for one in targets)


def _write_reference(folder: Path) -> None:
    modules = dict(public_modules())
    for name in modules:
        text = f"{name}\n{'=' * len(name)}\n\n.. automodule:: {name}\n   :members:\n"
        (folder / f"{name}.rst").write_text(text)
    rows = [f"   * - :doc:`{name} <{name}>`\n     - {told}\n" for name, told in modules.items()]
    table = ".. list-table::\n   :widths: 30 70\n\n" + "".join(rows)
    tree = ".. toctree::\n   :hidden:\n\n" + "".join(f"   {name}\n" for name in modules)
    opening = (
        "The library\n===========\n\n"
        "What the chapters import. Each page is made from the module's own docstrings; a line\n"
        "under a function's name is the command that a person would type for the same effect.\n\n"
    )
    (folder / "index.rst").write_text(opening + table + "\n" + tree)
