"""Predictions, exercises and checks, without a kernel."""

from __future__ import annotations

import pytest

from k8snet.errors import InvalidInput, NotFound
from k8snet.teach import Finding, Result, find, grade, predict
from k8snet.teach.card import markdown


def test_the_first_choice_counts():
    """Who has seen the output cannot predict it any more."""
    question = predict("x", "Which?", ["a", "b"])
    question.choose("b")
    question.choose("a")
    assert question.choice == "b"
    with pytest.raises(NotFound, match="among the options: a, b"):
        question.choose("c")


@pytest.mark.parametrize("options", [[], ["a"], ["a", "a"], list("abcdefghi")])
def test_a_question_needs_two_to_eight_different_options(options):
    with pytest.raises(InvalidInput, match="two to eight"):
        predict("x", "Which?", options)


def test_a_prediction_is_shown_live_and_on_a_page():
    bundle = predict("x", "Which `one`?", ["a", "b"])._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "<code>one</code>" in bundle["text/html"]
    assert "(b) b" in bundle["text/plain"]


def test_clicking_an_option_commits_to_it():
    question = predict("x", "Which?", ["a", "b"])
    _head, row, note = question.widget().children
    row.children[1].click()
    assert question.choice == "b"
    assert all(button.disabled for button in row.children)
    assert "<b>b</b>" in note.value


def test_no_finding_is_no_success():
    assert not Result(title="x", findings=()).ok
    assert not Result(title="x", findings=(Finding(True, "a"), Finding(False, "b"))).ok


def test_an_error_of_the_network_is_a_finding():
    class Lab:
        def snapshot(self):
            raise NotFound("no netns 'third'")

    result = grade("x", lambda network, probe: iter(()), Lab())
    assert [str(one) for one in result.findings] == ["✘ no netns 'third'"]


def test_html_in_a_task_is_shown_not_obeyed():
    assert "<script>" not in markdown("<script>alert(1)</script>")


def test_an_unknown_exercise_is_named():
    with pytest.raises(NotFound, match="no chapter '77'"):
        find("77-nothing")
