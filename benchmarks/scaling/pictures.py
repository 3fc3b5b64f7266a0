"""The pictures of a grid: losses over compute, the law's contours over size and length, and what it leaves over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.scaling.findings import Findings, count
from benchmarks.scaling.foretelling import Foretold
from benchmarks.scaling.grid import Grid
from benchmarks.scaling.laws import Point, envelope
from benchmarks.scaling.planning import Best, best_of, models_of
from benchmarks.scaling.prediction import Prediction
from benchmarks.scaling.size import SizeFit
from gpt_common.drawing import BAD, GOOD, INK, SOFT, Draw, colour, logarithmic, narrow, write_picture
from gpt_common.files import cannot_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

DEPTHS = "os^DvPX*"
"""Marks of depths, in their order."""
ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
"""Losses of contours, times powers of ten."""
CONTOURS = (5, 10)
"""How many there are, at least and at most."""
PICTURE = (1000, 480)


@dataclass(frozen=True)
class View:
    """What all pictures show."""

    findings: Findings
    best: Best
    """The law's line over compute."""
    foretold: Sequence[Foretold]

    @property
    def widths(self) -> list[int]:
        """Of the runs, in their order."""
        return sorted({point.shape[0] for point in self.findings.points})

    @property
    def depths(self) -> list[int]:
        """Of the runs, in their order."""
        return sorted({point.shape[1] for point in self.findings.points})

    def style(self, shape: tuple[int, int]) -> tuple[str, str]:
        """Colour and mark of runs with a width and a depth."""
        width, depth = self.widths.index(shape[0]), self.depths.index(shape[1])
        return colour(width), DEPTHS[depth % len(DEPTHS)]

    def groups(self) -> list[tuple[tuple[int, int], list[Point]]]:
        """The runs of each shape."""
        shapes = sorted({point.shape for point in self.findings.points})
        return [(shape, [point for point in self.findings.points if point.shape == shape]) for shape in shapes]


def view_of(grid: Grid, findings: Findings, foretold: Sequence[Foretold], vocab_size: int) -> View:
    """What the pictures of a grid show; the law's line goes as far as its runs and those that are foretold."""
    flops = [point.flops for point in findings.points] + [each.flops for each in foretold]
    line = np.geomspace(min(flops), max(flops) * 1.3, 60)
    return View(findings, best_of(models_of(grid, vocab_size), findings.best, line), foretold)


def titles(view: View, tokens: float | None = None) -> dict[str, list[str]]:
    """By gid of the scatter of a shape: what each of its runs says when it is pointed at; of those with so many tokens,
    where only they are drawn."""
    law = view.findings.best.law
    return {
        _gid(shape): [
            f"{point.cell}: {point.loss:.4f}, by the law {float(law.loss(point.parameters, point.tokens)):.4f}"
            for point in points
            if tokens is None or point.tokens == tokens
        ]
        for shape, points in view.groups()
    }


def _gid(shape: tuple[int, int]) -> str:
    return f"runs{shape[0]}by{shape[1]}"


def _logarithmic(axis: XAxis | YAxis, most: int) -> None:
    """Sizes, tokens or FLOPs on an axis."""
    logarithmic(axis, lambda value: count(value) if value < 1e9 else f"{value:.0e}".replace("e+", "e"), most)


def _most(figure: Figure, wide: int = 6) -> int:
    return 4 if narrow(figure) else wide


def _legend(figure: Figure, view: View, lines: Sequence[Line2D]) -> None:
    """Lines, then colours of widths and marks of depths, above all panels."""
    from matplotlib.lines import Line2D

    def mark(shade: str, marker: str, label: str) -> Line2D:
        return Line2D([], [], color=shade, marker=marker, linestyle="", label=label)

    marks = [mark(view.style((width, view.depths[0]))[0], "o", f"width {width}") for width in view.widths]
    marks += [mark(SOFT, view.style((view.widths[0], depth))[1], f"depth {depth}") for depth in view.depths]
    figure.legend(
        handles=[*marks, *lines],
        loc="outside upper left",
        ncols=2 if narrow(figure) else 6,
        fontsize=12,
        handletextpad=0.4,
        columnspacing=1.2,
    )


def _runs(axes: Axes, view: View, x: str, y: str, which: Callable[[Point], bool] = lambda _: True) -> None:
    """A dot for each run."""
    for shape, points in view.groups():
        points = [point for point in points if which(point)]
        shade, marker = view.style(shape)
        dots = axes.scatter(
            [getattr(point, x) for point in points], [getattr(point, y) for point in points],
            color=shade, marker=marker, s=30, zorder=3, linewidths=0,
        )  # fmt: skip
        dots.set_gid(_gid(shape))


def _compute(figure: Figure, axes: Axes, view: View) -> list[Line2D]:
    """Losses over FLOPs, with the envelope, the law's best and what is foretold; the lines for a legend."""
    findings, best = view.findings, view.best
    _runs(axes, view, "flops", "loss")
    edge = envelope(findings.points)
    lines = axes.step(
        [point.flops for point in edge], [point.loss for point in edge],
        where="post", color=SOFT, linewidth=1.2, label="envelope of the runs",
    )  # fmt: skip
    axes.fill_between(best.flops, best.low, best.high, color=SOFT, alpha=0.25, linewidth=0)
    lines += axes.plot(best.flops, best.loss, color=INK, linewidth=1.2, linestyle="--", label="best by the law (90 %)")
    if findings.floor is not None:
        label = f"floor {findings.floor:.4f}"
        lines.append(axes.axhline(findings.floor, color=SOFT, linewidth=1, linestyle=":", label=label))
    for each in view.foretold:
        lines += _foretold(axes, each.flops, each.prediction, each.came)
    _logarithmic(axes.xaxis, _most(figure))
    logarithmic(axes.yaxis, "{:.3g}".format)
    axes.set_xlabel("FLOPs of training")
    axes.set_ylabel("loss, nats per token")
    return list({line.get_label(): line for line in lines}.values())


def _foretold(axes: Axes, x: float, said: Prediction, came: float | None) -> list[Line2D]:
    """A star with its interval, and a cross for what came, green where the interval holds it."""
    reach = [[max(0.0, said.loss - said.low)], [max(0.0, said.high - said.loss)]]
    axes.errorbar([x], [said.loss], yerr=reach, color=INK, capsize=4, linewidth=1.2, zorder=4)
    lines = _star(axes, x, said.loss)
    if came is not None:
        shade = GOOD if said.holds(came) else BAD
        lines += axes.plot([x], [came], "X", color=shade, markersize=8, markeredgewidth=0, zorder=5, label="came")
    return lines


def _star(axes: Axes, x: float, y: float) -> list[Line2D]:
    stars = axes.plot([x], [y], "*", markersize=13, markerfacecolor="none", color=INK, zorder=4, label="foretold")
    return list(stars)


def levels(low: float, high: float) -> list[float]:
    """Round losses between two, CONTOURS of them."""
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    found = [step * 10.0**power for power in powers for step in ROUND if low < step * 10.0**power < high]
    if len(found) < CONTOURS[0]:
        return [float(level) for level in np.geomspace(low, high, CONTOURS[0] + 2)[1:-1]]
    return found[:: -(-len(found) // CONTOURS[1])]


def _contours(figure: Figure, axes: Axes, view: View) -> None:
    """Lines of equal loss over size and length, the runs, and where the loss is lowest for a budget."""
    law, points = view.findings.best.law, view.findings.points
    sizes = [point.parameters for point in points] + [each.parameters for each in view.foretold]
    lengths = [point.tokens for point in points] + [each.tokens for each in view.foretold]
    n = np.geomspace(min(sizes) / 1.5, max(sizes) * 1.5, 80)
    d = np.geomspace(min(lengths) / 1.5, max(lengths) * 1.5, 80)
    losses = law.loss(n[None], d[:, None])
    drawn = axes.contour(n, d, losses, levels=levels(losses.min(), losses.max()), colors=SOFT, linewidths=1)
    axes.clabel(drawn, fmt="%.3g", fontsize=11)
    product = np.geomspace(n[0] * d[0], n[-1] * d[-1], 200)
    best_n = law.best_parameters(product)
    best_d = product / best_n
    inside = (n[0] <= best_n) & (best_n <= n[-1]) & (d[0] <= best_d) & (best_d <= d[-1])
    axes.plot(best_n[inside], best_d[inside], color=INK, linewidth=1.2, linestyle="--")
    _runs(axes, view, "parameters", "tokens")
    for each in view.foretold:
        _star(axes, each.parameters, each.tokens)
    axes.set_xlim(n[0], n[-1])
    axes.set_ylim(d[0], d[-1])
    _logarithmic(axes.xaxis, _most(figure))
    _logarithmic(axes.yaxis, 6)
    axes.set_xlabel("parameters without embeddings")
    axes.set_ylabel("tokens of training")


def _by_size(figure: Figure, axes: Axes, view: View, size: SizeFit) -> list[Line2D]:
    """Losses over size of the runs with the most tokens, with the law of size and depth; the lines for a legend."""
    _runs(axes, view, "parameters", "loss", lambda point: point.tokens == size.tokens)
    said = [(each.parameters, each.by_size, each.came) for each in view.foretold if each.by_size is not None]
    sizes = [point.parameters for point in view.findings.points] + [parameters for parameters, *_ in said]
    n = np.geomspace(min(sizes), max(sizes) * 1.3, 60)
    lines = []
    for depth in view.depths:  # a line each: they differ by gamma
        loss, low, high = np.array([size.law(each, depth) for each in n]).T
        axes.fill_between(n, low, high, color=SOFT, alpha=0.25, linewidth=0)
        label = "law of size and depth (90 %)"
        lines += axes.plot(n, loss, color=INK, linewidth=1.2, linestyle="--", label=label)
    for parameters, prediction, came in said:
        lines += _foretold(axes, parameters, prediction, came)
    _logarithmic(axes.xaxis, _most(figure))
    logarithmic(axes.yaxis, "{:.3g}".format)
    axes.set_xlabel("parameters without embeddings")
    axes.set_ylabel("loss, nats per token")
    return list({line.get_label(): line for line in lines}.values())


def by_size(view: View, size: SizeFit) -> Draw:
    """Losses over size, a line for each depth."""

    def draw(figure: Figure) -> None:
        _legend(figure, view, _by_size(figure, figure.subplots(), view, size))

    return draw


def compute(view: View) -> Draw:
    """Losses over compute."""

    def draw(figure: Figure) -> None:
        _legend(figure, view, _compute(figure, figure.subplots(), view))

    return draw


def contours(view: View) -> Draw:
    """Lines of equal loss."""

    def draw(figure: Figure) -> None:
        _contours(figure, figure.subplots(), view)

    return draw


def overview(view: View) -> Draw:
    """Losses over compute, beside the lines of equal loss, or the law of size and depth where that foretold."""
    size = view.findings.size if any(each.by_size is not None for each in view.foretold) else None

    def draw(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        lines = _compute(figure, left, view)
        left.set_title("loss against compute")
        if size is None:
            _contours(figure, right, view)
            right.set_title("lines of equal loss; dashed: the best size")
        else:
            by_label = {line.get_label(): line for line in (*_by_size(figure, right, view, size), *lines)}
            lines = list(by_label.values())
            right.set_title(f"loss against size, {count(size.tokens)} tokens")
        _legend(figure, view, lines)

    return draw


def residuals(view: View) -> Draw:
    """By how much each run is off the law, over size and over length: a law of the right shape leaves no bend."""
    law = view.findings.best.law

    def draw(figure: Figure) -> None:
        panels = figure.subplots(2, 1) if narrow(figure) else figure.subplots(1, 2, sharey=True)
        said = {"parameters": "parameters without embeddings", "tokens": "tokens of training"}
        for axes, (x, label) in zip(panels, said.items(), strict=True):
            for shape, points in view.groups():
                shade, marker = view.style(shape)
                at = [getattr(point, x) for point in points]
                off = [100 * (point.loss / float(law.loss(point.parameters, point.tokens)) - 1) for point in points]
                dots = axes.scatter(at, off, color=shade, marker=marker, s=30, linewidths=0)
                dots.set_gid(f"{x}{_gid(shape)}")
            axes.axhline(0, color=SOFT, linewidth=1, linestyle="--")
            _logarithmic(axes.xaxis, _most(figure, 5))
            lengths = sorted({point.tokens for point in view.findings.points})
            if x == "tokens" and len(lengths) <= _most(figure):
                axes.set_xticks(lengths)
            axes.set_xlabel(label)
            if axes is panels[0] or narrow(figure):
                axes.set_ylabel("loss above the law, %")

    return draw


def write_overview(view: View, path: Path) -> None:
    """Write the main pictures as one, PNG or SVG by the file's name.

    Raises:
        UserError: the name says neither, or the file cannot be written.
    """
    try:
        write_picture(overview(view), path, PICTURE)
    except OSError as error:
        raise cannot_write(path, error) from None
