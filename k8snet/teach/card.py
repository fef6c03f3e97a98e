"""The frame that questions, exercises and results are shown in."""

from __future__ import annotations

import html

from markdown_it import MarkdownIt

__all__ = ["card", "inline", "markdown"]

STYLE = (
    ".k8snet-card{border:1px solid rgba(128,140,155,.45);border-left:4px solid #1f6fb2;border-radius:6px;"
    "padding:.5rem .9rem;margin:.6rem 0;line-height:1.5;max-width:52rem;box-sizing:border-box;overflow-wrap:anywhere;"
    "font-size:var(--jp-content-font-size1,inherit)}"  # in JupyterLab widgets are set smaller than other outputs
    ".k8snet-card.predict{border-left-color:#b45309}.k8snet-card.good{border-left-color:#15803d}"
    ".k8snet-card.bad{border-left-color:#b91c1c}"
    ".k8snet-card h5{margin:.1rem 0 .4rem;font-size:1rem;font-weight:600}"
    ".k8snet-card p{margin:.3rem 0}.k8snet-card ul,.k8snet-card ol{margin:.3rem 0;padding-left:1.4rem}"
    ".k8snet-card.result ul{list-style:none;padding-left:1.4rem}.k8snet-card.result li{text-indent:-1.2rem}"
    ".k8snet-card code{font-size:.92em;background:rgba(128,140,155,.18);border-radius:3px;padding:.05em .3em}"
)
_MARKDOWN = MarkdownIt("commonmark", {"html": False})


def card(kind: str, title: str, body: str, *, good: bool | None = None) -> str:
    """Return a card as HTML that stands by itself.

    Args:
        kind: "predict", "exercise" or "result".
        title: plain text.
        body: HTML.
        good: whether a result is a success; None for what is no result.
    """
    colour = "" if good is None else " good" if good else " bad"
    return f'<div class="k8snet-card {kind}{colour}"><style>{STYLE}</style><h5>{html.escape(title)}</h5>{body}</div>'


def markdown(text: str) -> str:
    """Return Markdown as HTML; HTML in it is shown, not obeyed."""
    return str(_MARKDOWN.render(text))


def inline(text: str) -> str:
    """Return one line of Markdown as HTML, without a paragraph round it."""
    return str(_MARKDOWN.renderInline(text))
