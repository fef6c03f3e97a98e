"""Predict, check, exercise: what makes a reader of the book work."""

from __future__ import annotations

from k8snet.teach.exercise import Exercise, check, exercise, find
from k8snet.teach.grade import Finding, Prober, Result, grade
from k8snet.teach.predict import Prediction, predict

__all__ = ["Exercise", "Finding", "Prediction", "Prober", "Result", "check", "exercise", "find", "grade", "predict"]
