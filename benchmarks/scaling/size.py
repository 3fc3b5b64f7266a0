"""By size and depth: the runs that saw the most tokens, L(N, depth) = floor + A / (N^alpha depth^gamma) at that length.

Where the law of size and tokens does not fit (a small world is learnt in leaps, not by a power of the tokens), more of
the same tokens is not foretold, but a larger model at the length that was trained is. Its floor is what this much
training, and a block of this length, leave to any size: not the entropy of the text. Of two models of one size the
deeper one may do better, here by some percent of the excess: gamma says by how much, and is 0 in a grid of one depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.scaling.laws import RESAMPLES, Array, Point, Z, around, columns, resampled_weights, spare, widened

EXPONENTS, STEPS = (0.02, 1.5), 120
"""Values of alpha that are tried."""
DEEPER = np.linspace(-1.0, 1.0, 41)
"""Values of gamma that are tried."""


@dataclass(frozen=True)
class SizeFit:
    """A law of size at one length; arrays are over resamples, the first of them the runs themselves."""

    tokens: float
    points: int
    depths: tuple[int, ...]
    """That the runs have."""
    floor: Array
    a: Array
    alpha: Array
    gamma: Array
    residual: float
    """Root of the mean squared relative residual."""

    @property
    def fitted(self) -> int:
        """How many parameters the runs decide."""
        return 4 if len(self.depths) > 1 else 3

    def predict(self, parameters: float, depth: int) -> tuple[float, float, float]:
        """The loss of a run of this length, and the interval of 90 % in which a single run lies: as `Fit.predict`."""
        loss, low, high = self.law(parameters, depth)
        return loss, *around(loss, (low, high), Z * spare(self.points, self.fitted) * self.residual * loss)

    def law(self, parameters: float, depth: int) -> tuple[float, float, float]:
        """The loss by the law, and the interval of 90 % in which the law itself lies."""
        losses = self.floor + self.a * parameters**-self.alpha * depth**-self.gamma
        return float(losses[0]), *self.interval(losses)

    @property
    def at_an_edge(self) -> bool:
        """Whether an exponent is the least or the greatest that was tried, or larger models are worse: the runs do not
        tell it."""
        low, high = EXPONENTS
        inside = 1.05 * low < float(self.alpha[0]) < high / 1.05 and abs(float(self.gamma[0])) < DEEPER[-1]
        return not inside or not float(self.a[0]) > 0

    def interval(self, values: Array) -> tuple[float, float]:
        """Of 90 %; the first of the values is that of the runs themselves."""
        return widened(values[1:], self.points, self.fitted)


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
    depth_P = np.array([point.shape[1] for point in longest], np.float64)
    depths = tuple(sorted({point.shape[1] for point in longest}))
    unit, deep = np.exp(np.log(n_P).mean()), max(1.0, np.exp(np.log(np.maximum(depth_P, 1)).mean()))
    weights_RP = np.concatenate([np.ones((1, len(longest))), resampled_weights(longest, resamples, seed)]) / loss_P**2
    alphas, gammas = np.geomspace(*EXPONENTS, STEPS), DEEPER if len(depths) > 1 else np.zeros(1)
    # The floor is eliminated: a straight line in x, weighted, for every resample and pair of exponents.
    w1_R1 = weights_RP.sum(axis=1, keepdims=True)
    mean_y, yy = (weights_RP @ loss_P)[:, None] / w1_R1, (weights_RP @ loss_P**2)[:, None]
    square_RGA, slope_RGA, floor_RGA = (np.empty((len(weights_RP), len(gammas), STEPS)) for _ in range(3))
    for number, gamma in enumerate(gammas):
        x_AP = (n_P / unit) ** -alphas[:, None] * (depth_P / deep) ** -gamma
        mean_x = weights_RP @ x_AP.T / w1_R1
        xx = weights_RP @ (x_AP**2).T - w1_R1 * mean_x**2
        xy = (weights_RP * loss_P) @ x_AP.T - w1_R1 * mean_x * mean_y
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = slope_RGA[:, number] = xy / xx
        square_RGA[:, number] = np.where(slope > 0, yy - w1_R1 * mean_y**2 - slope * xy, np.inf)
        floor_RGA[:, number] = mean_y - slope * mean_x
    rows = np.arange(len(weights_RP))
    g, a = np.divmod(square_RGA.reshape(len(rows), -1).argmin(axis=1), STEPS)
    slope, floor, alpha, gamma = slope_RGA[rows, g, a], floor_RGA[rows, g, a], alphas[a], gammas[g]
    x_P = (n_P / unit) ** -alpha[0] * (depth_P / deep) ** -gamma[0]
    residual = float(np.sqrt(np.mean(((floor[0] + slope[0] * x_P) / loss_P - 1) ** 2)))
    return SizeFit(tokens, len(longest), depths, floor, slope * unit**alpha * deep**gamma, alpha, gamma, residual)
