"""Exercises: a task, a check of the network's state, and hints that come one at a time."""

from __future__ import annotations

import html
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from k8snet.errors import LabClosed, NotFound
from k8snet.lab import open_lab
from k8snet.teach.card import STYLE, card, markdown
from k8snet.teach.grade import Check, Result, grade
from k8snet.teach.predict import view

if TYPE_CHECKING:
    from k8snet.lab import Lab

__all__ = ["Exercise", "Sheet", "check", "exercise", "find"]

CHAPTERS = "k8snet.teach.exercises"  # one module a chapter, with EXERCISES in it


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """What to build, and how to tell that it was built."""

    slug: str  # "NN-name": chapter and name
    title: str
    task: str  # Markdown
    hints: tuple[str, ...]  # Markdown; from a nudge to the command
    check: Check


@dataclass(frozen=True)
class Sheet:
    """An exercise in a notebook, tied to the lab that it is about."""

    exercise: Exercise
    lab: Lab

    def grade(self) -> Result:
        """Return what the check finds in the lab as it is now."""
        lab = self.lab if self.lab.open else open_lab(self.lab.name)
        if lab is None:
            raise LabClosed(f"the lab {self.lab.name!r} is closed; run the cell that makes it")
        return grade(self.exercise.title, self.exercise.check, lab)

    def widget(self) -> widgets.Widget:
        """Return the exercise with its buttons, for a live notebook."""
        task = widgets.HTML(card("exercise", f"Exercise: {self.exercise.title}", markdown(self.exercise.task)))
        outcome = widgets.HTML(f"<style>{STYLE}</style>")
        check_button = widgets.Button(
            description="Check", button_style="primary", tooltip="Look at the network as it is now"
        )
        hint_button = widgets.Button(
            description=f"Hint (0 of {len(self.exercise.hints)})", disabled=not self.exercise.hints
        )
        hints = widgets.HTML()
        shown: list[str] = []

        def on_check(_: widgets.Button) -> None:
            outcome.value = "Checking…"
            try:
                outcome.value = self.grade()._repr_html_()  # our own
            except LabClosed as error:
                outcome.value = html.escape(str(error))

        def on_hint(button: widgets.Button) -> None:
            shown.append(markdown(self.exercise.hints[len(shown)]))
            hints.value = "".join(f"<div>{hint}</div>" for hint in shown)
            button.description = f"Hint ({len(shown)} of {len(self.exercise.hints)})"
            button.disabled = len(shown) == len(self.exercise.hints)

        check_button.on_click(on_check)
        hint_button.on_click(on_hint)
        return widgets.VBox([task, widgets.HBox([check_button, hint_button]), hints, outcome])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Return buttons for a live notebook, and a card with folded hints for pages without a kernel."""
        hints = "".join(
            f"<details><summary>Hint {number}</summary>{markdown(hint)}</details>"
            for number, hint in enumerate(self.exercise.hints, 1)
        )
        page = card("exercise", f"Exercise: {self.exercise.title}", markdown(self.exercise.task) + hints)
        return {
            **view(self.widget()),
            "text/html": page,
            "text/plain": f"Exercise: {self.exercise.title}\n{self.exercise.task}",
        }


def find(slug: str) -> Exercise:
    """Return the exercise called *slug*, as in "02-third-netns".

    Raises:
        NotFound: there is none; the message lists those of the chapter.
    """
    chapter = slug.partition("-")[0]
    try:
        module = importlib.import_module(f"{CHAPTERS}.chapter_{chapter}")
    except ModuleNotFoundError:
        raise NotFound(f"no chapter {chapter!r} has exercises; write the slug as in '02-third-netns'") from None
    for one in module.EXERCISES:
        if one.slug == slug:
            return one  # type: ignore[no-any-return]  # EXERCISES is checked by the tests
    raise NotFound(f"no exercise {slug!r}; chapter {chapter} has: {', '.join(one.slug for one in module.EXERCISES)}")


def exercise(slug: str, lab: Lab) -> Sheet:
    """Show an exercise, with a Check button that looks at *lab*.

    Raises:
        NotFound: there is no such exercise.
    """
    return Sheet(find(slug), lab)


def check(slug: str, lab: Lab) -> Result:
    """Return whether an exercise is done in *lab*, as the Check button would.

    Raises:
        NotFound: there is no such exercise.
    """
    return Sheet(find(slug), lab).grade()
