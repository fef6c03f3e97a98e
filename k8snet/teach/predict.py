"""Predict: a question that the reader answers before the output appears."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as widgets

from k8snet.errors import InvalidInput, NotFound
from k8snet.teach.card import STYLE, card, markdown

__all__ = ["Prediction", "predict"]

COMMITTED = "Noted: <b>{choice}</b><br>Run on, and see."  # an option may end in a question mark


@dataclass(kw_only=True)
class Prediction:
    """A question with options; the reader's choice once it is made."""

    slug: str
    question: str  # Markdown
    options: tuple[str, ...]  # Markdown
    choice: str | None = field(default=None)

    def choose(self, option: str) -> None:
        """Commit to an option; the first choice counts.

        Raises:
            NotFound: there is no such option.
        """
        if option not in self.options:
            raise NotFound(f"{option!r} is not among the options: {', '.join(self.options)}")
        self.choice = self.choice or option

    def _html(self) -> str:
        options = "".join(
            f"<li>{markdown(option).removeprefix('<p>').removesuffix('</p>' + chr(10))}</li>" for option in self.options
        )
        return card("predict", "Predict", f"{markdown(self.question)}<ol type='a'>{options}</ol>")

    def widget(self) -> widgets.Widget:
        """Return the question with buttons, for a live notebook."""
        head = widgets.HTML(card("predict", "Predict", markdown(self.question)))
        note = widgets.HTML(f"<style>{STYLE}</style>")
        buttons = [
            widgets.Button(description=option.replace("`", ""), layout=widgets.Layout(width="auto", max_width="100%"))
            for option in self.options
        ]

        def commit(button: widgets.Button) -> None:
            self.choose(self.options[buttons.index(button)])
            for one in buttons:
                one.disabled = True
            button.button_style = "info"
            note.value = COMMITTED.format(choice=html.escape(self.choice or ""))

        for button in buttons:
            button.on_click(commit)
        return widgets.VBox([head, widgets.HBox(buttons, layout=widgets.Layout(flex_flow="row wrap")), note])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Return buttons for a live notebook, and a card for pages without a kernel."""
        text = "\n".join(
            [
                self.question,
                *(f"  ({letter}) {option}" for letter, option in zip("abcdefgh", self.options, strict=False)),
            ]
        )
        return {**view(self.widget()), "text/html": self._html(), "text/plain": text}


def view(widget: widgets.Widget) -> dict[str, Any]:
    """Return what a notebook needs to show a live widget."""
    kind = "application/vnd.jupyter.widget-view+json"
    found: dict[str, Any] = widget._repr_mimebundle_() or {}  # IPython's own protocol
    return {kind: found[kind]} if kind in found else {}


def predict(slug: str, question: str, options: Sequence[str]) -> Prediction:
    """Ask the reader to commit to an answer, before the next cell shows it.

    Args:
        slug: names the question in this chapter.
        question: Markdown.
        options: two to eight answers; the first choice counts.

    Raises:
        InvalidInput: fewer than two options, more than eight, or the same one twice.
    """
    if not 2 <= len(set(options)) == len(options) <= 8:
        raise InvalidInput(f"predict {slug!r}: two to eight different options")
    return Prediction(slug=slug, question=question, options=tuple(options))
