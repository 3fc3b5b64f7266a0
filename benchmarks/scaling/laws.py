"""Scaling laws fitted to runs: L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, approach 3).

For given exponents the law is linear in E, A and B, so these are solved for and only (alpha, beta) are searched for
(variable projection: Golub & Pereyra 1973): no start decides where it ends, which the published fit suffered from
(Besiroglu et al. 2024). Of the built-in corpus E is known, and then it is no parameter.

Residuals are relative to the loss. Intervals are bootstrapped over cells of the grid and over seeds within a cell; all
resamples are fitted at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
EXPONENTS = (0.02, 4.0)
"""Where both are looked for; language models have 0.2 to 0.5, small worlds up to 2."""
COARSE, FINE, ZOOMS = 56, 9, 16
"""Values of an exponent on the first grid, on each finer one, and how often it becomes finer. A finer grid reaches two
steps of the one before to each side: the valley of good fits is long, narrow and bent."""
RESAMPLES = 400
MIDDLE = 0.9
"""Of an interval."""
Z = NormalDist().inv_cdf((1 + MIDDLE) / 2)
"""Standard deviations to each side that hold that much of a bell curve."""


@dataclass(frozen=True)
class Point:
    """A run that ended: a cell of a grid, with one seed."""

    parameters: float
    tokens: float
    flops: float
    loss: float
    """Nats per token on held-out text."""
    cell: str = ""
    """Runs that differ in their seed alone have one."""
    shape: tuple[int, int] = (0, 0)
    """Width and depth, for people: laws see sizes alone."""


@dataclass(frozen=True)
class Law:
    """L(N, D) = floor + a / N^alpha + b / D^beta; every field may be an array of resamples."""

    floor: Array
    a: Array
    alpha: Array
    b: Array
    beta: Array

    def loss(self, parameters: npt.ArrayLike, tokens: npt.ArrayLike) -> Array:
        """Nats per token."""
        n, d = np.asarray(parameters, np.float64), np.asarray(tokens, np.float64)
        return np.asarray(self.floor + self.a * n**-self.alpha + self.b * d**-self.beta)

    @property
    def exponent(self) -> Array:
        """Of the best size in a budget of FLOPs: N ~ C^exponent, D ~ C^(1 - exponent), where C ~ N D."""
        return self.exponent_in(1.0)

    def exponent_in(self, growth: float) -> Array:
        """As `exponent`, where the FLOPs of a token grow as N^growth: C ~ N^growth D."""
        return np.asarray(self.beta / (self.alpha + growth * self.beta))

    def best_parameters(self, product: npt.ArrayLike) -> Array:
        """The size at which the loss is lowest where N times D is this."""
        ratio = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        return np.asarray(ratio * np.asarray(product, np.float64) ** self.exponent)

    def of(self, number: int) -> Law:
        """One of the resamples."""
        return Law(*(np.atleast_1d(each)[number] for each in (self.floor, self.a, self.alpha, self.b, self.beta)))


@dataclass(frozen=True)
class Fit:
    """A law, and how sure it is."""

    law: Law
    resampled: Law
    """The law of each resample."""
    floor_known: bool
    points: int
    residual: float
    """Root of the mean squared relative residual."""

    def interval(self, values: Array) -> tuple[float, float]:
        """The middle 90 % of what the resamples say, wider by what a fit of several parameters takes off residuals."""
        return widened(values, self.points, self.fitted)

    @property
    def fitted(self) -> int:
        """How many parameters the law has that the runs decide."""
        return 4 if self.floor_known else 5

    @property
    def at_an_edge(self) -> bool:
        """Whether an exponent is the least or the greatest that was looked for: the runs do not tell it."""
        low, high = EXPONENTS
        return any(not 1.05 * low < float(each) < high / 1.05 for each in (self.law.alpha, self.law.beta))

    def predict(self, parameters: float, tokens: float) -> tuple[float, float, float]:
        """The loss of a run, and the interval in which a single run lies: the law is not known better than its own
        interval, and a run is off the law by a residual, as those were that it was fitted to."""
        loss = float(self.law.loss(parameters, tokens))
        sure = self.interval(self.resampled.loss(parameters, tokens))
        return loss, *around(loss, sure, Z * spare(self.points, self.fitted) * self.residual * loss)


def widened(values: Array, points: int, parameters: int) -> tuple[float, float]:
    """The middle 90 % of what resamples say, wider by what a fit of so many parameters takes off residuals."""
    low, middle, high = np.quantile(values, [(1 - MIDDLE) / 2, 0.5, (1 + MIDDLE) / 2])
    wider = spare(points, parameters)
    return float(middle + wider * (low - middle)), float(middle + wider * (high - middle))


def around(loss: float, sure: tuple[float, float], noise: float) -> tuple[float, float]:
    """The interval in which a single run lies, from that of the law and the noise of a run."""
    low, high = sure
    return loss - math.hypot(noise, max(0, loss - low)), loss + math.hypot(noise, max(0, high - loss))


def spare(points: int, parameters: int) -> float:
    """By how much residuals of runs that were not fitted are larger than of those that were."""
    return math.sqrt(points / max(1, points - parameters))


def fit_law(points: Sequence[Point], floor: float | None = None, *, seed: int = 0, resamples: int = RESAMPLES) -> Fit:
    """Fit the law, and bootstrap it.

    Args:
        floor: the entropy of the text, nats per token, where it is known; otherwise it is fitted.

    Raises:
        ValueError: too few runs, sizes or lengths to tell the exponents from one another.
    """
    sizes, lengths = {point.parameters for point in points}, {point.tokens for point in points}
    if len(points) < 6 or len(sizes) < 3 or len(lengths) < 3:
        raise ValueError(
            f"{len(points)} runs of {len(sizes)} sizes and {len(lengths)} lengths: a law needs 6 runs, 3 sizes and 3 "
            "lengths at least"
        )
    weights = np.concatenate([np.ones((1, len(points))), resampled_weights(points, resamples, seed)])
    law = _fitted(points, weights, floor)
    n, d, loss = columns(points)
    first = law.of(0)
    residual = float(np.sqrt(np.mean((first.loss(n, d) / loss - 1) ** 2)))
    others = Law(*(each[1:] for each in (law.floor, law.a, law.alpha, law.b, law.beta)))
    return Fit(first, others, floor is not None, len(points), residual)


def columns(points: Sequence[Point]) -> tuple[Array, Array, Array]:
    """Parameters, tokens and losses."""
    n, d, loss = np.array([(point.parameters, point.tokens, point.loss) for point in points], np.float64).T
    return n, d, loss


def resampled_weights(points: Sequence[Point], count: int, seed: int) -> Array:
    """(R, P): how often each run is in each resample. Cells are drawn, and in each as many of its seeds as it has."""
    rng = np.random.default_rng(seed)
    cells: dict[str, list[int]] = {}
    for number, point in enumerate(points):
        cells.setdefault(point.cell or f"{point.parameters:.0f} {point.tokens:.0f}", []).append(number)
    members = [np.array(numbers) for numbers in cells.values()]
    weights = np.zeros((count, len(points)))
    for row in weights:
        for cell in rng.integers(len(members), size=len(members)):
            drawn = members[cell][rng.integers(len(members[cell]), size=len(members[cell]))]
            np.add.at(row, drawn, 1.0)
    return weights


def _fitted(points: Sequence[Point], weights_RP: Array, floor: float | None) -> Law:
    """The law of every row of weights: on a grid of exponents first, then on ever finer ones around the best of it."""
    n, d, loss = columns(points)
    # In units of their own: powers of a billion and of a million stay near 1, and the equations well posed.
    unit_n, unit_d = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())
    weights_RP = weights_RP / loss**2  # residuals are relative
    rows = len(weights_RP)
    grid = np.geomspace(*EXPONENTS, COARSE)
    alphas, betas = np.tile(grid, (rows, 1)), np.tile(grid, (rows, 1))
    step = grid[1] / grid[0]
    for zoom in range(ZOOMS + 1):
        found = _solved(n / unit_n, d / unit_d, loss, weights_RP, alphas, betas, floor)
        best = found[0].reshape(rows, -1).argmin(axis=1)
        row = np.arange(rows)
        i, j = np.divmod(best, betas.shape[1])
        alpha, beta = alphas[row, i], betas[row, j]
        if zoom < ZOOMS:
            around = np.geomspace(step**-2, step**2, FINE)
            alphas, betas = alpha[:, None] * around, beta[:, None] * around
            step = (around[1] / around[0]) ** 1.01
    floors, a, b = (part[row, i, j] for part in found[1:])
    return Law(floors, a * unit_n**alpha, alpha, b * unit_d**beta, beta)


def _solved(
    n_P: Array, d_P: Array, loss_P: Array, weights_RP: Array, alphas_RI: Array, betas_RJ: Array, floor: float | None
) -> tuple[Array, Array, Array, Array]:
    """Sum of squares, E, A and B, each (R, I, J), by the normal equations; none of the three is negative."""
    x_RIP, y_RJP = n_P ** -alphas_RI[:, :, None], d_P ** -betas_RJ[:, :, None]
    w_RP = weights_RP

    def sums(left: Array, right: Array) -> Array:
        return np.asarray(np.einsum("rip,rjp->rij", left * w_RP[:, None], right))

    ones = np.ones((len(w_RP), 1, len(n_P)))
    target = np.broadcast_to(loss_P - (floor or 0.0), ones.shape)
    xx, yy = sums(x_RIP * x_RIP, ones), sums(ones, y_RJP * y_RJP)
    xy = sums(x_RIP, y_RJP)
    xt, yt, tt = sums(x_RIP, target), sums(target, y_RJP), sums(target, target)
    e, a, b = np.zeros_like(xy), *_two(xx, yy, xy, xt, yt)
    if floor is None:
        x1, y1, t1, w1 = sums(x_RIP, ones), sums(ones, y_RJP), sums(target, ones), sums(ones, ones)
        # E is eliminated: what is left is the same in deviations from weighted means.
        a_, b_ = _two(xx - x1 * x1 / w1, yy - y1 * y1 / w1, xy - x1 * y1 / w1, xt - x1 * t1 / w1, yt - y1 * t1 / w1)
        e_ = (t1 - a_ * x1 - b_ * y1) / w1
        free = e_ > 0  # else the best that is allowed is at 0
        e, a, b = np.where(free, e_, e), np.where(free, a_, a), np.where(free, b_, b)
        square = tt - 2 * (e * t1 + a * xt + b * yt)
        square += e * e * w1 + a * a * xx + b * b * yy + 2 * (e * a * x1 + e * b * y1 + a * b * xy)
    else:
        e = np.full_like(xy, floor)
        square = tt - 2 * (a * xt + b * yt) + a * a * xx + b * b * yy + 2 * a * b * xy
    return np.where((a > 0) & (b > 0), square, np.inf), e, a, b


def _two(xx: Array, yy: Array, xy: Array, xt: Array, yt: Array) -> tuple[Array, Array]:
    determinant = xx * yy - xy * xy
    with np.errstate(divide="ignore", invalid="ignore"):
        return (xt * yy - yt * xy) / determinant, (yt * xx - xt * xy) / determinant


def growth_of(points: Sequence[Point]) -> float:
    """The power of its size with which the FLOPs of a token grow among these runs: 1 where only parameters cost; less
    in small models, whose attention and head cost FLOPs that have no parameters here."""
    n, d, _ = columns(points)
    return float(np.polyfit(np.log(n), np.log(np.array([point.flops for point in points]) / d), 1)[0])


# ---- the other two approaches of Hoffmann et al. ---------------------------------------------------------------------


def envelope(points: Sequence[Point]) -> list[Point]:
    """Approach 1: the runs that no other beats with as many FLOPs or fewer, in order of FLOPs."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.flops, point.loss)):
        if not found or point.loss < found[-1].loss:
            found.append(point)
    return found


def envelope_exponent(points: Sequence[Point]) -> float:
    """Of the best size in FLOPs, by the runs on the envelope; NaN where these are of one budget."""
    best = envelope(points)
    if len({point.flops for point in best}) < 2:
        return math.nan
    return float(np.polyfit(np.log([p.flops for p in best]), np.log([p.parameters for p in best]), 1)[0])


def parabola_exponent(points: Sequence[Point]) -> float:
    """Approach 2: the exponent in FLOPs of the sizes at the lowest points of parabolas; raises as `parabola_minima`."""
    return float(np.polyfit(*parabola_minima(points), 1)[0])


def parabola_minima(points: Sequence[Point], *, within: float = 0.1) -> tuple[Array, Array]:
    """Log FLOPs of each budget, and the log of the size at the lowest point of a parabola in log N through its runs.

    Args:
        within: runs whose FLOPs differ by less than this share have one budget.

    Raises:
        ValueError: fewer than two budgets of three sizes whose parabolas have a lowest point; says what there are.
    """
    budgets: list[list[Point]] = []
    for point in sorted(points, key=lambda point: point.flops):
        if budgets and point.flops <= budgets[-1][0].flops * (1 + within):
            budgets[-1].append(point)
        else:
            budgets.append([point])
    wide = [budget for budget in budgets if len({point.parameters for point in budget}) >= 3]
    flops, sizes = [], []
    for budget in wide:
        logs = np.log([point.parameters for point in budget])
        curve, slope, _ = np.polyfit(logs - logs.mean(), [point.loss for point in budget], 2)
        if curve > 0:
            flops.append(np.log([point.flops for point in budget]).mean())
            sizes.append(logs.mean() - slope / (2 * curve))
    if len(flops) < 2:
        raise ValueError(
            f"they take two budgets of FLOPs, within {within:.0%}, with three sizes each; here {len(wide)} have three, "
            f"and {len(flops)} a lowest point"
        )
    return np.array(flops), np.array(sizes)


def parabola_bias(points: Sequence[Point], law: Law) -> float:
    """By how much approach 2 is off on this grid where the law is exact and nothing is noise: a parabola is not the
    shape of the curve (Czech et al., arXiv 2603.22339). Both exponents are of the FLOPs that the runs took."""
    exact = [
        Point(point.parameters, point.tokens, point.flops, float(law.loss(point.parameters, point.tokens)), point.cell)
        for point in points
    ]
    return parabola_exponent(exact) - float(law.exponent_in(growth_of(points)))
