"""The chi-square that the tests of balance count with, against the printed tables."""

from __future__ import annotations

import math

import pytest

from tests.chance import chi_square_p


@pytest.mark.parametrize(("degrees", "point"), [(1, 3.841), (2, 5.991), (3, 7.815), (9, 16.919)])
def test_the_chi_square_of_the_tests_is_the_one_of_the_tables(degrees, point):
    """The 5 % points."""
    step = math.sqrt(point * 1000 / 2)
    counts = [1000 + step, 1000 - step, *[1000] * (degrees - 1)]
    assert chi_square_p(counts) == pytest.approx(0.05, abs=1e-4)


def test_one_alone_is_always_even():
    assert chi_square_p([3000]) == 1.0
