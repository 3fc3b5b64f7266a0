"""Fits find the law that made the runs, and say truly how sure they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.scaling.laws import (
    Fit,
    Law,
    Point,
    envelope,
    envelope_exponent,
    fit_law,
    growth_of,
    parabola_bias,
    parabola_exponent,
    parabola_minima,
)
from benchmarks.scaling.size import SizeFit, fit_size

TRUTH = Law(*map(np.array, (0.0769, 48.0, 0.34, 160.0, 0.42)))
SIZES = np.geomspace(2e4, 2e6, 6)
LENGTHS = np.geomspace(1e6, 6e7, 5)


def runs(noise: float, seed: int, *, embedding: float = 0.0) -> list[Point]:
    rng = np.random.default_rng(seed)
    found = []
    for n in SIZES:
        for d in LENGTHS:
            loss = float(TRUTH.loss(n, d)) * (1 + noise * rng.normal())
            found.append(Point(n + embedding * n**0.5, d, 6 * n * d, loss))
    return found


@pytest.mark.parametrize("floor", [None, 0.0769])
def test_without_noise_the_law_is_found(floor: float | None) -> None:
    law = fit_law(runs(0, 0), floor, resamples=1).law
    assert law.alpha == pytest.approx(0.34, abs=2e-4)
    assert law.beta == pytest.approx(0.42, abs=2e-4)
    assert law.floor == pytest.approx(0.0769, abs=5e-4)
    assert law.a == pytest.approx(48, rel=2e-3)
    assert law.b == pytest.approx(160, rel=3e-3)
    assert law.exponent == pytest.approx(0.42 / 0.76, abs=1e-4)
    product = 3e12
    best = float(law.best_parameters(product))
    losses = [float(TRUTH.loss(best * by, product / best / by)) for by in (0.9, 1.0, 1.1)]
    assert losses[1] == min(losses)


def many(floor: float | None, trials: int, noise: float = 0.01) -> tuple[list[Fit], np.ndarray]:
    fits = [fit_law(runs(noise, 1000 + seed), floor, seed=seed, resamples=200) for seed in range(trials)]
    return fits, np.array([[fit.law.alpha, fit.law.beta, fit.law.exponent] for fit in fits])


def bias_and_coverage(floor: float | None, trials: int, noise: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Relative bias of both exponents and of the best size's, and how often the interval of each holds the truth; and
    the interval of a run four times as large and as long as the largest, with noise of its own."""
    truth = np.array([0.34, 0.42, 0.42 / 0.76])
    fits, found = many(floor, trials, noise)
    rng = np.random.default_rng(7)
    held = []
    for fit in fits:
        law = fit.resampled
        pairs = zip((law.alpha, law.beta, law.exponent), truth, strict=True)
        _, low, high = fit.predict(8e6, 2.4e8)
        came = float(TRUTH.loss(8e6, 2.4e8)) * (1 + noise * rng.normal())
        intervals = [low <= value <= high for (low, high), value in ((fit.interval(v), t) for v, t in pairs)]
        held.append([*intervals, low <= came <= high])
    return found.mean(axis=0) / truth - 1, np.mean(held, axis=0)


def test_a_few_trials_are_near_the_truth() -> None:
    bias, held = bias_and_coverage(0.0769, 12)
    assert np.abs(bias).max() < 0.04  # 12 trials of a spread of 0.04: three standard errors
    assert held.min() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("floor", [None, 0.0769])
def test_bias_is_under_a_hundredth_and_intervals_hold_the_truth(floor: float | None) -> None:
    bias, held = bias_and_coverage(floor, 200)
    print(f"floor {floor}: bias {bias.round(4)}, held {held}")
    assert np.abs(bias).max() < 0.01
    assert held.min() > 0.85
    assert held.max() < 0.95


def test_embeddings_counted_twice_are_noticed() -> None:
    """The mutant: sizes that count a part twice bend the law, and what is left over shows it."""
    right = fit_law(runs(0.002, 1), 0.0769, resamples=1)
    wrong = fit_law(runs(0.002, 1, embedding=60.0), 0.0769, resamples=1)
    assert abs(right.law.alpha / 0.34 - 1) < 0.01
    assert abs(wrong.law.alpha / 0.34 - 1) > 0.05


def test_resamples_draw_cells_and_their_seeds() -> None:
    from benchmarks.scaling.laws import resampled_weights

    points = [Point(n, d, n * d, 1.0, cell=f"{n}") for n, d in ((1, 1), (1, 1), (2, 1), (3, 1))]
    weights = resampled_weights(points, 500, 0)
    cells = np.array([weights[:, :2].sum(axis=1) / 2, weights[:, 2], weights[:, 3]])
    assert (cells.sum(axis=0) == 3).all(), "as many cells as there are, a cell with all its seeds"
    assert len({tuple(row) for row in weights[:, :2]}) > 3, "and seeds are drawn within"


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="5 runs"):
        fit_law(runs(0, 0)[:5])
    with pytest.raises(ValueError, match="1 sizes"):
        fit_law([Point(1e4, d, d, 1.0) for d in range(1, 9)])


def iso_flop(*, sizes_follow: bool) -> list[Point]:
    """Runs of five budgets, each with nine sizes: around the best one of the budget, or the same sizes in all."""
    found = []
    for product in np.geomspace(1e11, 1e13, 5):
        middle = float(TRUTH.best_parameters(product if sizes_follow else 1e12))
        for n in middle * np.geomspace(1 / 12, 12, 9):
            found.append(Point(n, product / n, 6 * product, float(TRUTH.loss(n, product / n))))
    return found


def test_parabolas_are_biased_even_without_noise_and_say_by_how_much() -> None:
    truth = 0.42 / 0.76
    follow, fixed = (parabola_exponent(iso_flop(sizes_follow=each)) for each in (True, False))
    assert abs(follow - truth) < 1e-6, "the same shape around each best size: what is off is off by a factor"
    assert abs(fixed - truth) > 0.01, "sizes that do not follow the budget are off by an exponent"
    assert parabola_bias(iso_flop(sizes_follow=False), TRUTH) == pytest.approx(fixed - truth, abs=1e-9)
    with pytest.raises(ValueError, match="two budgets"):
        parabola_exponent(iso_flop(sizes_follow=True)[:9])


@pytest.mark.parametrize(("alpha", "beta"), [(0.34, 0.42), (0.34, 0.28), (0.38, 0.38)])
def test_where_parabolas_are_off_is_what_algebra_says(alpha: float, beta: float) -> None:
    """Three sizes around the best one: a parabola meets all three, and its lowest point is known in closed form. It is
    off where the exponents differ, the more the wider the grid (Czech et al.), and never where they are one."""
    law = Law(*map(np.array, (0.0769, 48.0, alpha, 160.0, beta)))
    shifts = []
    for reach in (2.0, 8.0):
        points = []
        for product in (1e11, 1e12, 1e13):
            best = float(law.best_parameters(product))
            for n in (best / reach, best, best * reach):
                points.append(Point(n, product / n, 6 * product, float(law.loss(n, product / n))))
        h = np.log(reach)
        # Around the best size both terms fall and rise alike: alpha A / N^alpha = beta B / D^beta.
        low, middle, high = (np.exp(-alpha * x) / alpha + np.exp(beta * x) / beta for x in (-h, 0.0, h))
        expected = h / 2 * (low - high) / (low - 2 * middle + high)
        flops, sizes = parabola_minima(points)
        assert flops == pytest.approx(np.log([6e11, 6e12, 6e13]), abs=1e-9)
        assert sizes - np.log([float(law.best_parameters(np.exp(f) / 6)) for f in flops]) == pytest.approx(
            np.full(3, expected), abs=1e-6
        )
        assert parabola_exponent(points) == pytest.approx(float(law.exponent), abs=1e-6)
        shifts.append(expected)
    if alpha == beta:
        assert shifts == pytest.approx([0, 0], abs=1e-12)
    else:
        assert abs(shifts[1]) > 4 * abs(shifts[0]) > 0.01
        assert (shifts[0] < 0) == (beta > alpha), "towards where the curve is flatter"


def test_the_envelope_has_the_runs_that_none_beats() -> None:
    points = iso_flop(sizes_follow=True)
    best = envelope(points)
    assert [point.loss for point in best] == sorted((point.loss for point in best), reverse=True)
    assert envelope_exponent(points) == pytest.approx(0.42 / 0.76, abs=0.03)


def size_runs(noise: float, seed: int) -> list[Point]:
    """Fourteen of 2 layers and of 4, by the law 0.16 + 40 / (N^0.6 depth^0.3), and three shorter ones, off it."""
    rng = np.random.default_rng(seed)
    sizes = np.geomspace(2e4, 1e6, 7)
    shorter = [Point(n, 1e6, 6e6 * n, 9.0, shape=(32, 2)) for n in sizes[:3]]
    return shorter + [
        Point(n * depth, 4e6, 2.4e7 * n, size_truth(n * depth, depth) * (1 + noise * rng.normal()), shape=(32, depth))
        for n in sizes
        for depth in (2, 4)
    ]


def size_truth(parameters: float, depth: int) -> float:
    return 0.16 + 40 * parameters**-0.6 * depth**-0.3


def test_size_and_depth_are_read_off_the_longest_runs() -> None:
    fit = fit_size(size_runs(0.0, 0), resamples=1)
    assert (fit.tokens, fit.points, fit.depths) == (4e6, 14, (2, 4))
    assert float(fit.alpha[0]) == pytest.approx(0.6, rel=0.02)
    assert float(fit.gamma[0]) == pytest.approx(0.3, abs=0.026), "half of what is between two that are tried"
    for depth in (2, 4):
        assert fit.predict(8e6, depth)[0] == pytest.approx(size_truth(8e6, depth), rel=1e-3)
    with pytest.raises(ValueError, match="4 sizes"):
        fit_size(size_runs(0.0, 0)[:6])


def test_depth_counts_for_nothing_in_a_grid_of_one() -> None:
    fit = fit_size([point for point in size_runs(0.0, 0) if point.shape[1] == 4], resamples=1)
    assert (fit.depths, fit.fitted, float(fit.gamma[0])) == ((4,), 3, 0.0)
    assert fit.predict(8e6, 4)[0] == pytest.approx(size_truth(8e6, 4), rel=1e-3)


def test_size_without_depth_is_bent() -> None:
    """The mutant: with depth left out, runs of the same law are off."""
    flat = [replace(point, shape=(32, 2)) for point in size_runs(0.0, 0)]
    assert fit_size(flat, resamples=1).residual > 20 * fit_size(size_runs(0.0, 0), resamples=1).residual


def test_the_interval_of_a_larger_model_holds_it() -> None:
    """The law's interval holds the law, and the wider one of a run holds a run, which has noise of its own."""
    size, rng = 4e6, np.random.default_rng(11)
    truth = size_truth(size, 4)
    fits = [fit_size(size_runs(0.01, seed), seed=seed) for seed in range(100)]
    laws, runs_ = [fit.law(size, 4) for fit in fits], [fit.predict(size, 4) for fit in fits]
    came = truth * (1 + 0.01 * rng.normal(size=len(fits)))
    law_holds = np.mean([low <= truth <= high for _, low, high in laws])
    holds = np.mean([low <= one <= high for (_, low, high), one in zip(runs_, came, strict=True)])
    without = np.mean([low <= one <= high for (_, low, high), one in zip(laws, came, strict=True)])
    assert 0.81 <= law_holds <= 0.99, law_holds  # 90 %, by 100 draws: three standard errors
    assert 0.81 <= holds <= 0.99, holds
    assert without < 0.75, "the mutant: the law's own interval, for a run"


def test_a_law_of_size_that_the_runs_do_not_tell_says_so() -> None:
    def fit(loss: Callable[[float], float]) -> SizeFit:
        return fit_size([Point(n, 4e6, 2.4e7 * n, loss(n)) for n in np.geomspace(2e4, 1e6, 8)], resamples=2)

    assert not fit(lambda n: 0.16 + 40 * n**-0.6).at_an_edge
    assert fit(lambda n: 0.5 - 0.01 * np.log(n)).at_an_edge, "a straight line in log N: the exponent runs to its least"
    assert fit(lambda n: 0.1 + 1e-7 * n).at_an_edge, "larger ones are worse"


def test_exponents_are_of_the_flops_that_the_runs_took() -> None:
    """Where a token's FLOPs grow as N^0.85, the best size of a budget grows faster than 6 N D would have it; searched
    for by hand, and by parabolas whose bias is then what is left."""
    growth = 0.85
    points = [replace(one, flops=6e2 * one.parameters**growth * one.tokens) for one in runs(0, 0)]
    assert growth_of(points) == pytest.approx(growth, abs=1e-9)
    assert growth_of(runs(0, 0)) == pytest.approx(1, abs=1e-9)
    assert float(TRUTH.exponent_in(1)) == float(TRUTH.exponent)
    n, best = np.geomspace(1e3, 1e8, 200_000), []
    for flops in (1e12, 1e14):
        best.append(n[TRUTH.loss(n, flops / (6e2 * n**growth)).argmin()])
    assert np.log(best[1] / best[0]) / np.log(100) == pytest.approx(float(TRUTH.exponent_in(growth)), abs=1e-3)
    follow = []
    for flops in np.geomspace(1e12, 1e14, 5):
        middle = n[TRUTH.loss(n, flops / (6e2 * n**growth)).argmin()]
        for size in middle * np.geomspace(1 / 4, 4, 7):
            tokens = flops / (6e2 * size**growth)
            follow.append(Point(size, tokens, flops, float(TRUTH.loss(size, tokens))))
    assert parabola_bias(follow, TRUTH) == pytest.approx(0, abs=2e-3), "the mutant, C ~ N D, finds 0.05"


def test_seeds_of_a_cell_are_held_out_together() -> None:
    from benchmarks.scaling.findings import find

    points = [replace(one, cell=f"{one.parameters:.0f} {one.tokens:.0f}") for one in runs(0.003, 2)]
    points += [replace(one, loss=one.loss * 1.001) for one in points]
    held = find(points, 0.0769).held_out
    assert held is not None
    cells = [point.cell for point, _ in held.runs]
    assert sorted(cells) == sorted(2 * list(dict.fromkeys(cells)))
    uneven = find(points[:-1], 0.0769).held_out  # 59 runs: a fifth of them would end in the middle of a cell
    assert uneven is not None
    seen = {id(point) for point, _ in uneven.runs}
    others = {point.cell for point in points[:-1] if id(point) not in seen}
    assert not others & {point.cell for point, _ in uneven.runs}


def test_an_envelope_of_one_budget_has_no_exponent() -> None:
    worse = [replace(one, loss=1 + one.flops * 1e-16) for one in runs(0, 0)]
    assert np.isnan(envelope_exponent(worse)), "the cheapest run beats all"
