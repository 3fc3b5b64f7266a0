"""What a grid says: its laws, and how well they foretell what they did not see."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np

from benchmarks.scaling.laws import (
    Fit,
    Law,
    Point,
    envelope_exponent,
    fit_law,
    growth_of,
    parabola_bias,
    parabola_exponent,
)
from benchmarks.scaling.prediction import Prediction
from benchmarks.scaling.size import SizeFit, fit_size
from gpt_common.files import cannot_write, write_atomically
from gpt_common.words import WIDTH, rate

PUBLISHED = {
    "Hoffmann et al. 2022": Law(*map(np.array, (1.69, 406.4, 0.34, 410.7, 0.28))),
    "Besiroglu et al. 2024": Law(*map(np.array, (1.8172, 482.01, 0.3478, 2085.43, 0.3658))),
}
"""Of the same large models on web text, nats per token: approach 3 as it was published, and as it was fitted anew."""
BENT = 2.0
"""From how many times the noise of seeds on residuals are said not to be noise,"""
POOR = 0.03
"""and from which share of a loss on, where no cell has a second seed."""
HELD_OUT = 0.2
"""Share of the runs, those with the most FLOPs, that a law is to foretell from the others."""


@dataclass(frozen=True)
class HeldOut:
    """How well a law that was fitted to the smaller runs foretells the larger ones."""

    runs: list[tuple[Point, Prediction]]
    """In order of FLOPs."""

    @property
    def worst(self) -> float:
        """The largest error of a loss, as a share of its excess over the floor."""
        return max(abs(said.error(point.loss)) for point, said in self.runs)

    @property
    def inside(self) -> int:
        """How many losses lie in their interval of 90 %."""
        return sum(said.holds(point.loss) for point, said in self.runs)


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
    without_parabolas: str
    """Why there are none; else nothing."""
    held_out: HeldOut | None
    size: SizeFit | None = None
    """Of the longest runs, by size and depth."""
    embedded: Law | None = None
    """The law where embeddings count as parameters."""
    length: int | None = None
    """Tokens of the training split, where they are known."""

    @property
    def growth(self) -> float:
        """The power of its size with which the FLOPs of a token grow among the runs."""
        return growth_of(self.points)

    @property
    def exponent(self) -> tuple[float, float, float]:
        """Of the best size in FLOPs as the runs took them, and its interval of 90 %."""
        fit, growth = self.best, self.growth
        return float(fit.law.exponent_in(growth)), *fit.interval(fit.resampled.exponent_in(growth))

    @property
    def best(self) -> Fit:
        """The fit that is believed: with the floor, where it is known."""
        return self.known or self.free

    @property
    def noise(self) -> float | None:
        """By how much the seeds of a cell are off its mean, RMS; None without second seeds."""
        cells: dict[str, list[float]] = {}
        for point in self.points:
            cells.setdefault(point.cell, []).append(point.loss)
        found = [(np.std(seen, ddof=1) / np.mean(seen)) ** 2 for seen in cells.values() if len(seen) > 1]
        return float(np.sqrt(np.mean(found))) if found else None

    @property
    def bent(self) -> str | None:
        """That the law does not fit: it misses the runs by more than their noise, or finds no exponents."""
        residual, noise = self.best.residual, self.noise
        if self.best.at_an_edge:
            return "the law does not fit: an exponent lies at the edge of where it is looked for"
        if residual < (POOR if noise is None else BENT * noise):
            return None
        beside = "" if noise is None else f", where the seeds of a cell differ by {noise:.1%}"
        return f"the law does not fit, residuals of {residual:.1%}{beside}: believe it within the grid at most"

    @property
    def repeating(self) -> str | None:
        """How many runs read a part of their text again; or that this cannot be told."""
        if self.length is None:
            return "the length of the training text is not known here, so nothing is said of epochs"
        again = [point.tokens / self.length for point in self.points if point.tokens > self.length]
        if not again:
            return None
        return f"{len(again)} runs read text again, up to {max(again):.1f} epochs: it counts less than the law says"

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
        exponent, low, high = self.exponent
        yield f"  best size in a budget of FLOPs: N ~ C^{exponent:.3f} ({low:.3f} to {high:.3f})"
        plain = float(self.best.law.exponent)
        yield f"    a token's FLOPs grow as N^{self.growth:.2f} here; were they 6 N, C^{plain:.3f}"
        if not math.isnan(self.envelope):
            yield f"    by the envelope of the runs C^{self.envelope:.3f}"
        if self.parabolas is not None and self.bias is not None:
            yield f"    by parabolas C^{self.parabolas:.3f}, of which {self.bias:+.3f} is their bias on this grid"
        else:
            yield from wrap(
                f"no parabolas: {self.without_parabolas}", WIDTH, initial_indent="    ", subsequent_indent=" " * 6
            )
        if self.embedded is not None:
            law = self.embedded
            yield f"  if embeddings count as parameters: alpha {float(law.alpha):.3f}, beta {float(law.beta):.3f}"
        if self.held_out is not None:
            held = self.held_out
            yield f"  the {len(held.runs)} largest runs, from the others: at most {held.worst:.1%} of the excess off"
            yield f"    {held.inside} of them in their interval of 90 %"
        for said in (self.bent, self.repeating):
            if said:
                yield from wrap(said, WIDTH, initial_indent="  ", subsequent_indent="    ")
        if self.size is not None:
            size = self.size
            yield f"  by size and depth, the {size.points} runs of {rate(size.tokens)} tokens:"
            rest, power, deeper = (float(each[0]) for each in (size.floor, size.alpha, size.gamma))
            yield f"    floor {rest:.4f}, alpha {power:.3f}, gamma {deeper:.2f}, residual {size.residual:.2%}"
            if size.at_an_edge:
                yield "    it does not fit: an exponent lies at the edge of where it is looked for"


def _interval(low: float, high: float) -> str:
    return f"{low:.3f} to {high:.3f}"


def find(
    points: Sequence[Point], floor: float | None, *, embedded: Sequence[Point] = (), length: int | None = None
) -> Findings:
    """Fit everything.

    Args:
        floor: nats per token, where it is known.
        embedded: the same runs, their sizes with embeddings.
        length: tokens of the training split, where they are known.

    Raises:
        ValueError: there are too few runs.
    """
    points = list(points)
    known = fit_law(points, floor) if floor is not None else None
    free = fit_law(points)
    parabolas, bias, why = None, None, ""
    try:
        parabolas = parabola_exponent(points)
        bias = parabola_bias(points, (known or free).law)
    except ValueError as error:
        why = str(error)
    try:
        size: SizeFit | None = fit_size(points)
    except ValueError:
        size = None
    return Findings(
        points=points,
        floor=floor,
        known=known,
        free=free,
        envelope=envelope_exponent(points),
        parabolas=parabolas,
        bias=bias,
        without_parabolas=why,
        held_out=_held_out(points, floor),
        size=size,
        embedded=fit_law(embedded, floor, resamples=1).law if embedded else None,
        length=length,
    )


def predicted(fit: Fit, parameters: float, tokens: float) -> Prediction:
    """What a law says of one size and length."""
    return Prediction(*fit.predict(parameters, tokens), float(fit.law.floor))


def _held_out(points: Sequence[Point], floor: float | None) -> HeldOut | None:
    ordered = sorted(points, key=lambda point: (point.flops, point.cell))
    count = max(1, round(HELD_OUT * len(ordered)))
    # The seeds of a cell stay together: the law is not to have seen one of them.
    while count < len(ordered) and ordered[-count].cell and ordered[-count - 1].cell == ordered[-count].cell:
        count += 1
    try:
        fit = fit_law(ordered[:-count], floor)
    except ValueError:
        return None
    return HeldOut([(point, predicted(fit, point.parameters, point.tokens)) for point in ordered[-count:]])


def published_lines(fit: Fit) -> Iterator[str]:
    """The best sizes of Hoffmann et al., parameters on tokens, from their constants; their exponents beside this law's.

    Their text and vocabulary are others: sizes do not compare, and exponents barely.
    """
    exponents = {name: float(law.exponent) for name, law in PUBLISHED.items()} | {"here": float(fit.law.exponent)}
    yield "  where C = 6 N D, the best size grows as C^x:"
    yield "    " + ", ".join(f"{name} {value:.3f}" for name, value in exponents.items())
    yield f"  {'FLOPs':>8}" + "".join(f" {name:>22}" for name in PUBLISHED)
    for flops, cells in published_rows():
        yield f"  {flops:>8}" + "".join(f" {cell:>22}" for cell in cells)


def published_rows() -> Iterator[tuple[str, list[str]]]:
    """FLOPs, and the best size by each of the published laws, `645M on 12.9B`."""
    for flops in (1e18, 1e20, 1e22, 1e24):
        cells = []
        for law in PUBLISHED.values():
            n = float(law.best_parameters(flops / 6))
            cells.append(f"{count(n)} on {count(flops / 6 / n)}")
        yield f"{flops:.0e}", cells


def count(number: float) -> str:
    """`25k`, `645M`, `25.8B`, `4.04T`."""
    number = float(f"{number:.3g}")
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def write_findings(path: Path, findings: Findings, foretold: Sequence[Mapping[str, Any]]) -> None:
    """Write points, laws and what was foretold (records) to a JSON file.

    Raises:
        UserError: it cannot be written.
    """
    held = findings.held_out

    def by_size(size: SizeFit) -> dict[str, float]:
        fields = {name: float(getattr(size, name)[0]) for name in ("floor", "a", "alpha", "gamma")}
        return {"tokens": size.tokens, "runs": size.points, **fields, "residual": size.residual}

    def law_of(law: Law) -> dict[str, float]:
        fields = {field.name: float(getattr(law, field.name)) for field in dataclasses.fields(Law)}
        return {**fields, "exponent": float(law.exponent)}

    def law(fit: Fit | None) -> dict[str, Any] | None:
        if fit is None:
            return None
        sure = {name: list(fit.interval(getattr(fit.resampled, name))) for name in ("alpha", "beta", "exponent")}
        return {**law_of(fit.law), "interval_90": sure, "residual": fit.residual}

    exponent, low, high = findings.exponent
    document = {
        "points": [asdict(point) for point in findings.points],
        "floor": findings.floor,
        "floor_known": law(findings.known),
        "floor_fitted": law(findings.free),
        "flops_per_token_growth": findings.growth,
        "exponent_in_flops": {"exponent": exponent, "interval_90": [low, high]},
        "envelope_exponent": None if math.isnan(findings.envelope) else findings.envelope,
        "parabola_exponent": findings.parabolas,
        "parabola_bias": findings.bias,
        "without_parabolas": findings.without_parabolas or None,
        "by_size": by_size(findings.size) if findings.size else None,
        "embeddings_counted": law_of(findings.embedded) if findings.embedded else None,
        "noise_of_seeds": findings.noise,
        "training_tokens": findings.length,
        "held_out": {"runs": len(held.runs), "worst": held.worst, "inside": held.inside} if held else None,
        "foretold": [*foretold],
    }
    try:
        write_atomically(path, json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from None
