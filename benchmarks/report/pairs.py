"""Is one faster than the other, by how much, and how sure is that?

The unit is the process, not the step: steps of one process share its memory layout, its clock, and the minute in
which it ran, so a thousand of them say little more than ten. Each backend runs once in every round, and the ratio is
taken within the round. The interval is a percentile bootstrap of the mean log ratio over rounds, with percentiles
moved outwards for small samples so that it is as wide as Student's t would make it (Hesterberg 2015, "What teachers
should know about the bootstrap", section 4.3).

A difference is claimed only if the interval excludes 1 *and* the difference is larger than what this machine, in the
same session, showed between two runs of one backend (the A/A control). The interval alone would cry wolf about six
times in a hundred with six rounds; both together less than once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
CONFIDENCE = 0.95
MINIMUM_ROUNDS = 6
"""With fewer, all rounds agree by chance in more than 5 of 100 cases (2 / 2^5 = 6 %)."""
# 97.5 % quantiles of Student's t by degrees of freedom, from 5; beyond the table the normal's is near enough.
T_QUANTILES = (2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093)


@dataclass(frozen=True)
class Ratio:
    """How the times of two backends relate."""

    value: float
    """Geometric mean of the rounds' ratios: time of the one over time of the other."""
    low: float | None
    """95 % interval; None with fewer than MINIMUM_ROUNDS."""
    high: float | None
    rounds: int
    """Rounds in which both were measured."""

    @property
    def reach(self) -> float:
        """The largest difference that the interval allows, as an absolute log ratio; infinite without an interval."""
        if self.low is None or self.high is None:
            return math.inf
        return max(abs(math.log(self.low)), abs(math.log(self.high)))

    def inverse(self) -> Ratio:
        """The same from the other side."""
        low, high = (None if bound is None else 1 / bound for bound in (self.high, self.low))
        return Ratio(1 / self.value, low, high, self.rounds)

    def excludes_one(self) -> bool:
        """Whether the interval lies on one side of 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def paired_ratio(times: Sequence[float | None], others: Sequence[float | None], *, seed: int = 0) -> Ratio | None:
    """Ratio of two backends' times, round by round.

    Args:
        times: one figure per round (a median over its samples), in any unit; None where a round has none.
        others: the same of the backend to compare with.

    Returns:
        None if no round has both.
    """
    pairs = [(a, b) for a, b in zip(times, others, strict=False) if a is not None and b is not None]
    if not pairs:
        return None
    logs = np.log([a / b for a, b in pairs])
    low, high = (None, None) if len(pairs) < MINIMUM_ROUNDS else _interval([logs], [1.0], seed)
    return Ratio(math.exp(float(logs.mean())), low, high, len(pairs))


def unpaired_ratio(times: Sequence[float], others: Sequence[float]) -> Ratio | None:
    """Ratio of two backends' times from different sessions: rounds do not belong together, each side is resampled."""
    if not times or not others:
        return None
    logs = [np.log(times), np.log(others)]
    rounds = min(len(times), len(others))
    low, high = (None, None) if rounds < MINIMUM_ROUNDS else _interval(logs, [1.0, -1.0], 0)
    return Ratio(math.exp(float(logs[0].mean() - logs[1].mean())), low, high, rounds)


def _interval(samples: Sequence[npt.NDArray[np.float64]], signs: Sequence[float], seed: int) -> tuple[float, float]:
    """Bounds of the signed sum of the samples' means, as ratios."""
    generator = np.random.default_rng(seed)
    total = np.zeros(RESAMPLES)
    for sample, sign in zip(samples, signs, strict=True):
        draws = generator.integers(0, len(sample), (RESAMPLES, len(sample)))
        total += sign * sample[draws].mean(axis=1)
    tail = tail_probability(min(len(sample) for sample in samples))
    low, high = np.quantile(total, [tail, 1 - tail])
    return math.exp(float(low)), math.exp(float(high))


def tail_probability(n: int) -> float:
    """Which percentile of a bootstrap of n values bounds a 95 % interval."""
    quantile = T_QUANTILES[n - 6] if n - 6 < len(T_QUANTILES) else NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * quantile)


def differs(ratio: Ratio | None, control: Ratio | None) -> bool:
    """Whether to claim that the two are not equally fast.

    Args:
        control: the A/A control of the same session; without one nothing is claimed.
    """
    if ratio is None or control is None or not ratio.excludes_one():
        return False
    return abs(math.log(ratio.value)) > control.reach
