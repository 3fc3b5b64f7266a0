"""Size alone: the runs that saw the most tokens, L(N) = floor + A / N^alpha at that length.

Where the law of size and tokens does not fit (a small world is learnt in leaps, not by a power of the tokens), more of
the same tokens is not foretold, but a larger model at the length that was trained is. Its floor is what this much
training, and a block of this length, leave to any size: not the entropy of the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.scaling.laws import RESAMPLES, Array, Point, Z, columns, resampled_weights, spare, widened

EXPONENTS, STEPS = (0.02, 1.5), 240
"""Exponents that are tried."""
FITTED = 3
"""Parameters of the law."""


@dataclass(frozen=True)
class SizeFit:
    """A law of size at one length; every field but the first two may be an array of resamples."""

    tokens: float
    points: int
    floor: Array
    a: Array
    alpha: Array
    residual: float
    """Root of the mean squared relative residual."""

    def predict(self, parameters: float) -> tuple[float, float, float]:
        """The loss of a run of this length, and the interval of 90 % in which a single run lies: that of the law, and a
        residual, as those had that it was fitted to."""
        loss, low, high = self.law(parameters)
        noise = Z * spare(self.points, FITTED) * self.residual * loss
        return loss, loss - math.hypot(noise, max(0, loss - low)), loss + math.hypot(noise, max(0, high - loss))

    def law(self, parameters: float) -> tuple[float, float, float]:
        """The loss by the law, and the interval of 90 % in which the law itself lies."""
        losses = self.floor + self.a * parameters**-self.alpha
        return float(losses[0]), *self.interval(losses)

    @property
    def at_an_edge(self) -> bool:
        """Whether the exponent is the least or the greatest that was tried, or larger models are worse: the runs do not
        tell it."""
        low, high = EXPONENTS
        return not 1.05 * low < float(self.alpha[0]) < high / 1.05 or not float(self.a[0]) > 0

    def interval(self, values: Array) -> tuple[float, float]:
        """Of 90 %; the first of the values is that of the runs themselves."""
        return widened(values[1:], self.points, FITTED)


def fit_size(points: Sequence[Point], *, seed: int = 0, resamples: int = RESAMPLES) -> SizeFit:
    """Fit the law of size to the runs with the most tokens, and bootstrap it over cells and seeds.

    Raises:
        ValueError: fewer than 4 sizes have so many tokens.
    """
    tokens = max((point.tokens for point in points), default=0.0)
    longest = [point for point in points if point.tokens == tokens]
    if len({point.parameters for point in longest}) < 4:
        raise ValueError("a law of size needs 4 sizes that saw as many tokens")
    n_P, _, loss_P = columns(longest)
    unit = np.exp(np.log(n_P).mean())
    weights_RP = np.concatenate([np.ones((1, len(longest))), resampled_weights(longest, resamples, seed)]) / loss_P**2
    alphas = np.geomspace(*EXPONENTS, STEPS)
    x_IP = (n_P / unit) ** -alphas[:, None]
    # The floor is eliminated: a straight line in x, weighted, for every resample and exponent.
    w1_R1 = weights_RP.sum(axis=1, keepdims=True)
    mean_x, mean_y = weights_RP @ x_IP.T / w1_R1, (weights_RP @ loss_P)[:, None] / w1_R1
    xx = weights_RP @ (x_IP**2).T - w1_R1 * mean_x**2
    xy = (weights_RP * loss_P) @ x_IP.T - w1_R1 * mean_x * mean_y
    yy = (weights_RP @ loss_P**2)[:, None] - w1_R1 * mean_y**2
    slope = xy / xx
    best = np.where(slope > 0, yy - slope * xy, np.inf).argmin(axis=1)
    rows = np.arange(len(best))
    slope, floor, alpha = slope[rows, best], (mean_y - slope * mean_x)[rows, best], alphas[best]
    off = (floor[0] + slope[0] * x_IP[best[0]]) / loss_P - 1
    return SizeFit(tokens, len(longest), floor, slope * unit**alpha, alpha, float(np.sqrt(np.mean(off**2))))
