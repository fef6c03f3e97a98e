"""How sphinx makes the book. `k8snet book` copies this folder, adds the chapters, and runs it."""

from __future__ import annotations

import base64
import dataclasses
import inspect
import re
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ipython_pygments_lexers import IPythonLexer
from pygments.lexer import bygroups, using
from pygments.lexers.shell import BashLexer
from pygments.token import Keyword, Number, Operator, Text

import k8snet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

project = "k8snet"
author = "The k8snet authors"
copyright = "the k8snet authors; text CC BY-SA 4.0, code Apache-2.0"  # noqa: A001  # sphinx's name
release = k8snet.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_generated", "_originals", "_build"]
language = "en"
templates_path = ["_templates"]

# -- chapters: executed already, shown as they are --------------------------------------
nb_execution_mode = "off"
nb_merge_streams = True
nb_number_source_lines = False
nb_ipywidgets_js = {}  # no script from elsewhere: a page has no kernel for it
nb_mime_priority_overrides = [
    ("html", "text/html", 0),  # our widgets' own HTML, which works without a kernel
    ("html", "application/vnd.jupyter.widget-view+json", None),
]
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "smartquotes"]
myst_heading_anchors = 4  # so that a chapter can point into another one
suppress_warnings = [
    "mystnb.unknown_mime_type",  # a value may bring formats that only JupyterLab knows
    "ref.python",  # two layers may name a class alike; an annotation then links to the first
]

# -- reference --------------------------------------------------------------------------
default_role = "literal"  # docstrings write `code` as Markdown does
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 76
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Fields", "params_style")]

# -- pages ------------------------------------------------------------------------------
html_theme = "sphinx_book_theme"
html_title = "k8snet"
html_static_path = ["_static"]
html_css_files = ["k8snet.css"]
html_favicon = "_static/mark.svg"
html_show_search_summary = False  # it fetches pages, which a browser refuses to file://
html_copy_source = False
html_context = {"default_mode": "auto"}  # light or dark as the reader's system has it
html_theme_options = {
    "navbar_persistent": [],  # the search box of the side bar is enough
    "logo": {"text": "k8snet", "image_light": "_static/mark.svg", "image_dark": "_static/mark-dark.svg",
             "alt_text": "k8snet, the first page"},
    "use_download_button": False,  # ours gives the notebook as written, also from file://
    "article_header_end": ["download.html", "article-header-buttons.html"],
    "use_fullscreen_button": False,
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "toc_title": "On this page",
    "home_page_in_toc": False,
    "pygments_light_style": "tango",
    "pygments_dark_style": "github-dark",
    "footer_content_items": ["copyright"],
}  # fmt: skip


class CommandLexer(BashLexer):
    """Bash's, without its numbers: an address is not a 10 and some text."""

    def get_tokens_unprocessed(self, text: str, stack: tuple[str, ...] = ("root",)) -> Iterator[tuple[int, Any, str]]:
        """Yield tokens as the base class does."""
        for place, kind, value in super().get_tokens_unprocessed(text, stack):
            yield place, Text if kind in Number else kind, value


class NetnsLexer(IPythonLexer):
    """IPython's, with the body of a `%%netns` cell as shell."""

    name = "IPython with netns cells"
    tokens = {  # noqa: RUF012  # pygments wants a plain class attribute
        **IPythonLexer.tokens,
        "root": [
            (
                r"(?s)(\s*)(%%)(netns)([^\n]*\n)(.*)",
                bygroups(Text, Operator, Keyword, Text, using(CommandLexer)),
            ),
            *IPythonLexer.tokens["root"],
        ],
    }


SECTION = re.compile(r"(Args|Fields|Raises|Returns|Yields|Attributes|Example|Examples|Note):$")
CODE = re.compile(r"(?<![`:\w])`([^`]+)`(?!`)")  # Markdown's, which docstrings write
FIELD = re.compile(r"    (\w+): [^#]+#(?!:) *(?!noqa|type:)(.+)")


def commands_as_blocks(_app: Sphinx, what: str, _name: str, obj: Any, _options: Any, lines: list[str]) -> None:
    """Show a docstring's `Like: COMMAND` and its indented drawings as blocks of code."""
    if what == "module":  # autodoc takes the margin off a drawing that is all there is
        lines[:] = (obj.__doc__ or "").splitlines()
    paragraphs = [list(group) for filled, group in groupby(lines, key=lambda line: bool(line.strip())) if filled]
    in_section, shown = False, []
    for paragraph in paragraphs:
        if not paragraph[0].startswith(" "):
            in_section = bool(SECTION.match(paragraph[0]))
            shown += [*_prose(paragraph), ""]
        else:
            shown += [*paragraph, ""] if in_section else ["::", "", *("    " + line for line in paragraph), ""]
    lines[:] = ["..", "", *shown] if what == "property" else shown  # napoleon takes a first "WORDS: ..." for a type


def _prose(paragraph: list[str]) -> list[str]:
    """Return a paragraph with Markdown's `code` as reStructuredText's, and its command as a block."""
    for number, line in enumerate(paragraph):
        prose, like, command = line.rpartition("Like: ")
        if like and (not prose or prose.endswith(". ")):
            block = ["", ".. code-block:: bash", "   :class: like", ""]
            rest = [re.sub(r"(?<!\.)\.$", "", command), *paragraph[number + 1 :]]
            return [*_prose([*paragraph[:number], prose]), *block, *("   " + more for more in rest)]
    return CODE.sub(r"``\1``\\ ", "\n".join(paragraph)).split("\n")


def fields_with_units(_app: Sphinx, what: str, _name: str, obj: Any, _options: Any, lines: list[str]) -> None:
    """List a dataclass's fields with the comments that follow them: meaning and unit."""
    if what != "class" or not dataclasses.is_dataclass(obj):
        return
    source = (FIELD.match(line) for line in inspect.getsource(obj).splitlines())
    told = {one[1]: one[2].strip() for one in source if one}
    shown = [one for one in dataclasses.fields(obj) if not one.name.startswith("_")]
    if shown:
        fields = [f"    {one.name} ({one.type}): {told.get(one.name, '')}" for one in shown]
        lines += ["", "Fields:", *fields, ""]


def original_of_chapter(app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Give a chapter's page its notebook as written, for the download button.

    It stands in the page itself: from file:// a browser saves that, but would show a file.
    """
    notebook = app.srcdir / "_originals" / f"{page.removeprefix('chapters/')}.ipynb"
    if page.startswith("chapters/") and notebook.is_file():
        context["original_name"] = notebook.name
        context["original"] = base64.b64encode(notebook.read_bytes()).decode()


def setup(app: Sphinx) -> None:
    """Register what is ours."""
    app.add_lexer("ipython3", NetnsLexer)
    app.add_lexer("ipython", NetnsLexer)
    app.add_lexer("bash", CommandLexer)
    app.connect("html-page-context", original_of_chapter)
    app.connect("autodoc-process-docstring", commands_as_blocks, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", fields_with_units, priority=110)
