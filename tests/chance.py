"""How likely it is that chance alone does it."""

from __future__ import annotations

import math
from collections.abc import Sequence


def chi_square_p(counts: Sequence[float]) -> float:
    """Return how likely an even lot is to be at least as uneven as *counts*; exact, but for rounding.

    Q(k/2, x/2) for k degrees of freedom; Source: Abramowitz and Stegun, 26.4.4 and 26.4.5.
    """
    expected, degrees = sum(counts) / len(counts), len(counts) - 1
    half = sum((count - expected) ** 2 for count in counts) / expected / 2
    if degrees % 2 == 0:
        return math.exp(-half) * sum(half**n / math.factorial(n) for n in range(degrees // 2)) if degrees else 1.0
    rest = sum(half ** (n - 0.5) / math.gamma(n + 0.5) for n in range(1, (degrees - 1) // 2 + 1))
    return math.erfc(math.sqrt(half)) + math.exp(-half) * rest
