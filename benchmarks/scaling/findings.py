"""What a grid says: its laws, how well they foretell what they did not see, and the best use of a budget."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scaling.grid import Grid, flops_of, sizes_of, tokens_of
from benchmarks.scaling.laws import (
    Fit,
    Law,
    Point,
    envelope_exponent,
    fit_law,
    parabola_bias,
    parabola_exponent,
)
from benchmarks.scaling.size import SizeFit, fit_size
from gpt_common.config import RunConfig
from gpt_common.files import write_atomically
from gpt_common.words import duration, rate

PUBLISHED = {
    "Hoffmann et al. 2022": Law(*map(np.array, (1.69, 406.4, 0.34, 410.7, 0.28))),
    "Besiroglu et al. 2024": Law(*map(np.array, (1.8172, 482.01, 0.3478, 2085.43, 0.3658))),
}
"""Of the same large models on web text, nats per token: approach 3 as it was published, and as it was fitted anew."""
POOR = 0.03
"""Residuals beyond this share of a loss are no noise: seeds differ by a hundredth or two."""
HELD_OUT = 0.2
"""Share of the runs, those with the most FLOPs, that a law is to foretell from the others."""


@dataclass(frozen=True)
class HeldOut:
    """How well a law that was fitted to the smaller runs foretells the larger ones."""

    runs: int
    worst: float
    """The largest error of a loss, as a share of its excess over the floor."""
    inside: int
    """How many losses lie in their interval of 90 %."""


@dataclass(frozen=True)
class Findings:
    """Of one grid."""

    points: list[Point]
    floor: float | None
    known: Fit | None
    """With the floor as it is known."""
    free: Fit
    """With a floor that is fitted."""
    envelope: float
    parabolas: float | None
    bias: float | None
    """Of the parabolas on this grid, by the law."""
    held_out: HeldOut | None
    size: SizeFit | None
    """Of the longest runs, by size alone."""

    @property
    def best(self) -> Fit:
        """The fit that is believed: with the floor, where it is known."""
        return self.known or self.free

    def lines(self) -> Iterator[str]:
        """For people, 80 columns at most."""
        yield f"{len(self.points)} runs; loss = floor + A / N^alpha + B / D^beta, N without embeddings"
        yield f"  {'':<13} {'floor':>7} {'alpha':>6} {'90 %':>14} {'beta':>6} {'90 %':>14} {'residual':>9}"
        for name, fit in (("floor known", self.known), ("floor fitted", self.free)):
            if fit is not None:
                alpha, beta = (_interval(*fit.interval(v)) for v in (fit.resampled.alpha, fit.resampled.beta))
                law = fit.law
                yield (
                    f"  {name:<13} {float(law.floor):>7.4f} {float(law.alpha):>6.3f} {alpha:>14} "
                    f"{float(law.beta):>6.3f} {beta:>14} {fit.residual:>9.2%}"
                )
        low, high = self.best.interval(self.best.resampled.exponent)
        yield f"  best size in a budget of FLOPs: N ~ C^{float(self.best.law.exponent):.3f} ({low:.3f} to {high:.3f})"
        yield f"    by the envelope of the runs C^{self.envelope:.3f}"
        if self.parabolas is not None and self.bias is not None:
            yield f"    by parabolas C^{self.parabolas:.3f}, of which {self.bias:+.3f} is their bias on this grid"
        if self.held_out is not None:
            held = self.held_out
            yield f"  the {held.runs} largest runs, from the others: at most {held.worst:.1%} of the excess off"
            yield f"    {held.inside} of them in their interval of 90 %"
        if self.best.residual > POOR:
            yield f"  the law does not fit: residuals of {self.best.residual:.1%}, where seeds differ by less;"
            yield "    believe it within the grid at most"
        if self.size is not None:
            size = self.size
            rest, power = float(size.floor[0]), float(size.alpha[0])
            yield f"  by size alone, the {size.points} runs of {rate(size.tokens)} tokens:"
            yield f"    floor {rest:.4f}, alpha {power:.3f}, residual {size.residual:.2%}"


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}"


def find(points: Sequence[Point], floor: float | None) -> Findings:
    """Fit everything; raises ValueError where there are too few runs."""
    points = list(points)
    known = fit_law(points, floor) if floor is not None else None
    free = fit_law(points)
    best = known or free
    try:
        parabolas: float | None = parabola_exponent(points)
        bias: float | None = parabola_bias(points, best.law)
    except ValueError:
        parabolas, bias = None, None
    try:
        size: SizeFit | None = fit_size(points)
    except ValueError:
        size = None
    held_out = _held_out(points, floor)
    return Findings(points, floor, known, free, envelope_exponent(points), parabolas, bias, held_out, size)


def _held_out(points: Sequence[Point], floor: float | None) -> HeldOut | None:
    ordered = sorted(points, key=lambda point: point.flops)
    count = max(1, round(HELD_OUT * len(ordered)))
    try:
        fit = fit_law(ordered[:-count], floor)
    except ValueError:
        return None
    worst, inside = 0.0, 0
    for point in ordered[-count:]:
        loss, low, high = fit.predict(point.parameters, point.tokens)
        excess = point.loss - (float(fit.law.floor) if floor is None else floor)
        worst = max(worst, abs(loss - point.loss) / excess if excess > 0 else math.inf)
        inside += low <= point.loss <= high
    return HeldOut(count, worst, inside)


@dataclass(frozen=True)
class Foretold:
    """What a law says of a run that nobody has made."""

    parameters: int
    """Without embeddings."""
    tokens: int
    flops: float
    loss: float
    low: float
    high: float

    def said(self, floor: float | None) -> str:
        """For people."""
        above = f", {self.loss - floor:.4f} above the floor" if floor is not None else ""
        return f"{self.loss:.4f} ({self.low:.4f} to {self.high:.4f}, 90 %){above}"


def foretell(config: RunConfig, fit: Fit) -> Foretold:
    """What the law says of a run whose vocabulary is settled."""
    parameters, tokens = sizes_of(config.model)[0], tokens_of(config)
    return Foretold(parameters, tokens, flops_of(config), *fit.predict(parameters, tokens))


@dataclass(frozen=True)
class Planned:
    """The best use of a budget."""

    config: RunConfig
    seconds: float
    run: Foretold


def foretell_by_size(config: RunConfig, size: SizeFit | None) -> Foretold | None:
    """What the law of size says of a run, if it is as long as those that the law is of."""
    if size is None or tokens_of(config) != size.tokens:
        return None
    parameters = sizes_of(config.model)[0]
    return Foretold(parameters, tokens_of(config), flops_of(config), *size.predict(parameters))


def plan(
    grid: Grid, fit: Fit, measured: Sequence[tuple[float, float]], seconds: float, vocab_size: int
) -> Planned | None:
    """Of models of the grid's kind, up to eight times its width and depth, the one whose loss is foretold to be lowest.

    Args:
        measured: FLOPs and seconds of runs on this machine; speed is that of the runs that took nearest as many FLOPs.
    """
    if not measured:
        return None
    speeds = sorted((flops, flops / took) for flops, took in measured)
    found: Planned | None = None
    for depth in sorted({*grid.depths, *(2**i for i in range(5))}):
        for width in range(16, 8 * max(grid.widths) + 1, 16):
            one = grid.cell(width, depth, 1_000_000, grid.seed).config.with_vocabulary(vocab_size)
            per_token = flops_of(one) / tokens_of(one)
            # The speed of a run depends on its size, which its tokens decide: two rounds settle it.
            speed = speeds[-1][1]
            for _ in range(3):
                flops = seconds * speed
                speed = min(speeds, key=lambda pair: abs(math.log(pair[0] / flops)))[1]
            tokens = int(seconds * speed / per_token)
            if tokens == 0:
                continue
            config = grid.cell(width, depth, tokens, grid.seed).config.with_vocabulary(vocab_size)
            run = foretell(config, fit)
            if found is None or run.loss < found.run.loss:
                found = Planned(config, seconds, run)
    return found


def plan_lines(planned: Planned, floor: float | None) -> Iterator[str]:
    """What to train."""
    model, steps, run = planned.config.model, planned.config.train.max_steps, planned.run
    yield f"in {duration(planned.seconds)}: {model.n_layer} layers x {model.n_embd}"
    yield f"  {run.parameters:,} parameters without embeddings, {rate(run.tokens)} tokens, {steps:,} steps"
    yield f"  {run.flops:.2e} FLOPs, loss {run.said(floor)}"


def published_lines(fit: Fit) -> Iterator[str]:
    """The best sizes of Hoffmann et al., parameters on tokens, from their constants; their exponents beside this law's.

    Their text and vocabulary are others: sizes do not compare, and exponents barely.
    """
    exponents = {name: float(law.exponent) for name, law in PUBLISHED.items()} | {"here": float(fit.law.exponent)}
    yield "  N ~ C^x: " + ", ".join(f"{name} {value:.3f}" for name, value in exponents.items())
    yield f"  {'FLOPs':>8}" + "".join(f" {name:>22}" for name in PUBLISHED)
    for flops in (1e18, 1e20, 1e22, 1e24):
        cells = []
        for law in PUBLISHED.values():
            n = float(law.best_parameters(flops / 6))
            cells.append(f"{_count(n)} on {_count(flops / 6 / n)}")
        yield f"  {flops:>8.0e}" + "".join(f" {cell:>22}" for cell in cells)


def _count(number: float) -> str:
    """`645M`, `25.8B`, `4.04T`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def write_findings(path: Path, findings: Findings, foretold: Foretold | None, by_size: Foretold | None = None) -> None:
    """Write points, laws and what was foretold, by both laws, to a JSON file."""

    def law(fit: Fit | None) -> dict[str, Any] | None:
        if fit is None:
            return None
        fields = {field.name: float(getattr(fit.law, field.name)) for field in dataclasses.fields(Law)}
        sure = {name: list(fit.interval(getattr(fit.resampled, name))) for name in ("alpha", "beta", "exponent")}
        return {**fields, "exponent": float(fit.law.exponent), "interval_90": sure, "residual": fit.residual}

    document = {
        "points": [asdict(point) for point in findings.points],
        "floor": findings.floor,
        "floor_known": law(findings.known),
        "floor_fitted": law(findings.free),
        "envelope_exponent": findings.envelope,
        "parabola_exponent": findings.parabolas,
        "parabola_bias": findings.bias,
        "held_out": asdict(findings.held_out) if findings.held_out else None,
        "foretold": asdict(foretold) if foretold else None,
        "foretold_by_size": asdict(by_size) if by_size else None,
    }
    write_atomically(path, json.dumps(document, indent=1) + "\n")
