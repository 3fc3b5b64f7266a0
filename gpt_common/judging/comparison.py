"""Means with their errors, and two models compared pair by pair: what both were asked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FEWEST = 10
"""Pairs below which no error is told."""
WIDE = 1.96
"""Standard errors on each side of an interval that holds the truth in 95 % of cases."""


@dataclass(frozen=True)
class Estimate:
    """A figure, and how far it may be off."""

    value: float
    error: float
    """Standard error; NaN where there was too little to tell."""
    count: int
    """What it was estimated from."""

    @property
    def interval(self) -> tuple[float, float]:
        """That holds the truth in 95 % of cases."""
        return self.value - WIDE * self.error, self.value + WIDE * self.error

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.value) > WIDE * self.error  # never where the error is NaN


def ratio(sums: npt.ArrayLike, sizes: npt.ArrayLike) -> Estimate:
    """sum(sums) / sum(sizes), and its standard error over what they are given of.

    The error of a ratio of two sums over independent pieces (Cochran, Sampling Techniques, 1977, section 6.4).
    """
    above, below = np.asarray(sums, np.float64), np.asarray(sizes, np.float64)
    count, total = len(above), below.sum()
    value = float(above.sum() / total) if total else math.nan
    if count < FEWEST or not total:
        return Estimate(value, math.nan, count)
    deviation = above - value * below
    return Estimate(value, math.sqrt(float(deviation @ deviation) * count / (count - 1)) / float(total), count)


def mean(values: npt.ArrayLike) -> Estimate:
    """The mean and its standard error."""
    values = np.asarray(values, np.float64)
    return ratio(values, np.ones(len(values)))
