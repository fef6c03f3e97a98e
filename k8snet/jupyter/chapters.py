"""The chapters of the book: where their notebooks are, and what these say about themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k8snet.errors import InvalidInput, NotFound

__all__ = ["Chapter", "code_cells", "find_chapters", "package_folder"]

FILE_NAME = re.compile(r"\d\d-[a-z0-9-]+\.ipynb")  # not the edited copies a reader keeps beside
USUAL_TIME_S = 60.0
ITEM = re.compile(r"^[-*+]\s+", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One notebook of the book."""

    path: Path
    title: str
    summary: str  # what a reader will be able to do, or else the first sentence
    cells: int  # code cells that are not empty
    timeout_s: float  # what it may take on an ordinary machine
    requires: tuple[str, ...]  # what the machine must be able to do, in `k8snet doctor`'s words

    @property
    def name(self) -> str:
        """Number and slug, as "03-bridge"."""
        return self.path.stem

    @property
    def number(self) -> int:
        """Its place in the book."""
        return int(self.name.split("-")[0])

    @property
    def slug(self) -> str:
        """Its name without the number, as "bridge"."""
        return self.name.split("-", 1)[1]

    def is_called(self, name: str) -> bool:
        """Tell whether *name* means this chapter: its number, its slug or both."""
        name = name.removesuffix(".ipynb")
        return name in (self.name, self.slug) or (name.isdigit() and int(name) == self.number)


def package_folder(part: str) -> Path:
    """Return the folder *part* ("notebooks" or "book") of the repository, or of an installed wheel.

    Raises:
        NotFound: neither has it.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package.parent / part, package / "_book" / part)
    wanted = package.parent / "pyproject.toml"
    for place in places if wanted.exists() else places[1:]:
        if place.is_dir():
            return place
    raise NotFound(f"the book's {part}/ is not installed: pip install --force-reinstall k8snet")


def find_chapters(names: Sequence[str] = (), *, source: Path | None = None) -> list[Chapter]:
    """Return the chapters called *names*, in the order of the book; all if none is named.

    Args:
        names: numbers, slugs or both: "3", "03", "bridge", "03-bridge".
        source: the folder of the notebooks, instead of the book's own.

    Raises:
        NotFound: no chapter has that name; the message lists those there are.
        InvalidInput: a file is no notebook, or its metadata cannot be used.
    """
    folder = source or package_folder("notebooks")
    files = sorted(path for path in folder.glob("*.ipynb") if FILE_NAME.fullmatch(path.name))
    chapters = [_read(path) for path in files]
    if not chapters:
        raise NotFound(f"no chapter (NN-slug.ipynb) in {folder}")
    for name in names:
        if not any(chapter.is_called(name) for chapter in chapters):
            known = ", ".join(chapter.name for chapter in chapters)
            raise NotFound(f"no chapter is called {name!r}. There are: {known}")
    return [one for one in chapters if not names or any(one.is_called(name) for name in names)]


def code_cells(path: Path) -> list[str]:
    """Return the source of each code cell of a notebook that is not empty.

    Raises:
        InvalidInput: the file is no notebook.
    """
    return _cells(path, "code")[0]


def _read(path: Path) -> Chapter:
    texts, told = _cells(path, "markdown")
    title, summary = _opening(texts)
    return Chapter(
        path=path.resolve(), title=title or path.stem, summary=summary,
        cells=len(code_cells(path)), timeout_s=_timeout(path, told), requires=_requires(path, told),
    )  # fmt: skip


def _cells(path: Path, kind: str) -> tuple[list[str], dict[str, Any]]:
    """Return the cells of that kind that are not empty, and what the metadata says to us."""
    try:
        notebook = json.loads(path.read_text())
        sources = ["".join(one["source"]) for one in notebook["cells"] if one["cell_type"] == kind]
        told = dict(notebook.get("metadata", {}).get("k8snet", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"{path} is not a notebook: {error}") from None
    return [source for source in sources if source.strip()], told


def _timeout(path: Path, told: dict[str, Any]) -> float:
    timeout = told.get("timeout_s", USUAL_TIME_S)
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or timeout <= 0:
        raise InvalidInput(f"{path.name}: its metadata has timeout_s {timeout!r}, not seconds")
    return float(timeout)


def _requires(path: Path, told: dict[str, Any]) -> tuple[str, ...]:
    requires = told.get("requires", [])
    if not isinstance(requires, list) or not all(isinstance(name, str) for name in requires):
        raise InvalidInput(f"{path.name}: its metadata has requires {requires!r}, not names")
    return tuple(requires)


def _opening(texts: list[str]) -> tuple[str, str]:
    """Return the first heading, and the first list after it, or else the first sentence of prose."""
    blocks = [block.strip() for block in re.split(r"\n\s*\n|(?<=\n)(?=#)", "\n\n".join(texts))]
    title = next((block for block in blocks if block.startswith("# ")), "")
    head, _, rest = title.partition("\n")
    after = [rest.strip(), *(blocks[blocks.index(title) + 1 :] if title else blocks)]
    telling = next((block for block in after if block and block[0] not in "#:`<!|{["), "")
    if ITEM.match(telling):
        items = (" ".join(item.split()) for item in ITEM.split(telling))
        return head.removeprefix("# ").strip(), " ".join(item for item in items if item)
    return head.removeprefix("# ").strip(), re.split(r"(?<=[.?!])\s", " ".join(telling.split()))[0]
