"""Student's t distribution, for intervals of few values."""

from collections.abc import Sequence
from functools import cache
from math import sqrt
from statistics import stdev

import mpmath

CONFIDENCE = 0.95


@cache
def quantile(probability: float, freedom: int) -> float:
    """The t > 0 with P(T ≤ t) = `probability` > ½, for so many degrees of freedom ν.

    P(T ≤ t) = 1 − ½·I_x(ν/2, ½) with x = ν / (ν + t²) and I the regularized incomplete beta function (Abramowitz and
    Stegun 26.7.1 and 26.5.27).
    """

    def excess(t: mpmath.mpf) -> mpmath.mpf:
        x = freedom / (freedom + t * t)
        return 1 - mpmath.betainc(freedom / 2, 0.5, 0, x, regularized=True) / 2 - probability

    return float(mpmath.findroot(excess, (0, 1000), solver="bisect", tol=1e-24, maxsteps=100))


def half_interval(values: Sequence[float]) -> float:
    """Half the width of Student's 95% interval for the mean of at least two values."""
    return quantile((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / sqrt(len(values))
