"""The pictures of a result: of the page as SVG, and beside it as PNG. What they show is worked out in findings.py."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report.findings import (
    Panel,
    Panels,
    Point,
    course,
    every_step,
    growth,
    headline,
    measured,
    parameters,
    ratio_of,
    times,
)
from benchmarks.results import CaseResult, Result
from gpt_common.drawing import BAD, INK, LINE, SOFT, WIDE, Draw, colour, logarithmic, narrow, write_png
from gpt_common.words import milliseconds, rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DRAWN_SAMPLES = 250
"""Samples drawn per backend; of more, an even choice."""


def colours(case: CaseResult) -> dict[str, str]:
    """Every measured backend's own, the same in all pictures."""
    return {row.label: colour(i) for i, (row, _) in enumerate(measured(case))}


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most DRAWN_SAMPLES of them, evenly chosen."""
    return points[:: max(1, math.ceil(len(points) / DRAWN_SAMPLES))]


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    for label in axes.get_yticklabels():
        label.set_color(INK)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def speed(case: CaseResult) -> Draw:
    """Tokens per second of every backend."""

    def draw(figure: Figure) -> None:
        axes, rows = figure.subplots(), measured(case)
        for i, (row, summary) in enumerate(rows):
            axes.barh(i, summary.tokens_per_second, color=colour(i), height=0.6)
            text, found = f" {summary.tokens_per_second:,.0f}", times(case, row)
            if found and found.ratio.low and found.ratio.value >= 1:
                ratio = found.ratio
                text += f"  ({ratio.value:.2f} times as long, {ratio.low:.2f} to {ratio.high:.2f})"
            axes.text(summary.tokens_per_second, i, text, va="center")
        _label_rows(axes, [row.label for row, _ in rows])
        axes.set_xlim(0, 1.55 * rows[0][1].tokens_per_second)
        axes.xaxis.set_major_formatter(lambda value, _: rate(value))
        axes.set_xlabel("tokens per second")
        axes.set_title(headline(case), wrap=True)

    return draw


def certainty(case: CaseResult) -> Draw | None:
    """Intervals of how many times as long each backend takes as the fastest, beside the A/A control."""
    lines = [(row.label, found) for row, _ in measured(case) if (found := times(case, row)) and found.ratio.low]
    if not lines or case.control is None or case.control.low is None:
        return None
    reach = math.exp(ratio_of(case.control).reach)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvspan(1 / reach, reach, color=LINE, alpha=0.6, linewidth=0)
        axes.axvline(1, color=SOFT, linewidth=1)
        for i, (_, (ratio, claimed)) in enumerate(lines):
            assert ratio.low is not None
            assert ratio.high is not None
            shade = INK if claimed else SOFT
            axes.plot([ratio.low, ratio.high], [i, i], color=shade, linewidth=3, solid_capstyle="round")
            axes.plot([ratio.value], [i], "o", color=shade, markersize=9)
        intervals = (f"{r.value:.2f} ({r.low:.2f} to {r.high:.2f})" for _, (r, _) in lines)
        _label_rows(axes, [f"{label}\n{said}" for (label, _), said in zip(lines, intervals, strict=True)])
        logarithmic(axes.xaxis, most=4 if narrow(figure) else 7)
        axes.set_xlabel("times as long")

    return draw


def steps(case: CaseResult, *, titled: bool = False) -> Draw | None:
    """Every step of the latency series, with the middle half and the median.

    Args:
        titled: say what is seen, for a picture that no page surrounds.
    """
    rows = [(row.label, summary.latency, every_step(row)) for row, summary in measured(case) if summary.latency]
    if not rows:
        return None
    shades = colours(case)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (label, latency, points) in enumerate(rows):
            shade = shades[label]
            for counts, one in ((True, shade), (False, BAD)):
                strokes = [p.milliseconds for p in thinned(points) if p.counts is counts]
                # One path for all strokes, broken by NaN.
                x = [value for ms in strokes for value in (ms, ms, math.nan)]
                y = [value for _ in strokes for value in (i - 0.2, i + 0.2, math.nan)]
                axes.plot(x, y, color=one, alpha=0.4 if counts else 1, linewidth=1)
            low, middle, high = 1000 * latency.p25, 1000 * latency.median, 1000 * latency.p75
            axes.barh(i, high - low, left=low, height=0.6, fill=False, edgecolor=shade, linewidth=1.5)
            axes.plot([middle, middle], [i - 0.4, i + 0.4], color=shade, linewidth=3)
        _label_rows(
            axes,
            [f"{name}\n{milliseconds(q.median)} ms (95 %: {milliseconds(q.p95)})" for name, q, _ in rows],
        )
        logarithmic(axes.xaxis, most=4 if narrow(figure) else 7)
        axes.set_xlabel("milliseconds per step")
        if titled:
            title = f"Every step: {parameters(case.work)}, {case.work.tokens_per_step:,} tokens"
            axes.set_title(f"{title}\nbox: middle half; thick line: median")

    return draw


def over_time(lines: Mapping[str, Sequence[Point]], shades: Mapping[str, str]) -> Draw | None:
    """Samples at the times when they were taken."""
    if not any(lines.values()):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for label, points in lines.items():
            chosen = thinned(points)
            good, bad = ([p for p in chosen if p.counts is counts] for counts in (True, False))
            for found, shade, marker, name in ((good, shades[label], "o", label), (bad, BAD, "X", None)):
                x, y = [p.when for p in found], [p.milliseconds for p in found]
                axes.plot(x, y, marker, color=shade, label=name, markersize=5, markeredgewidth=0, alpha=0.8)
        logarithmic(axes.yaxis, most=5)
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds")
        axes.set_ylabel("milliseconds per step")
        _legend(figure)

    return draw


def panels(found: Panels, shades: Mapping[str, str]) -> Draw:
    """Small multiples: one figure each against the value that was changed, from zero upwards."""

    def draw(figure: Figure) -> None:
        across = 1 if narrow(figure) else 2
        grid = figure.subplots(math.ceil(len(found.panels) / across), across, squeeze=False)
        for axes, panel in zip(grid.flat, found.panels, strict=True):
            _panel(axes, found, panel, shades)
        _legend(figure)

    return draw


def _panel(axes: Axes, found: Panels, panel: Panel, shades: Mapping[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    for label, line in panel.lines.items():
        points = [(x, y) for x, y in zip(found.values, line, strict=True) if y is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=shades[label], label=label)
    axes.set_title(panel.title)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda value, _: panel.text(value) if value else "0")
    axes.set_xscale("log")
    axes.set_xticks(found.values, [str(value) for value in found.values])
    axes.minorticks_off()
    axes.set_xlabel(found.name)


def _legend(figure: Figure) -> None:
    """One for all panels, above them."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2 if narrow(figure) else 6, markerscale=1.5)


def pictures(result: Result) -> Iterator[tuple[str, Draw, float]]:
    """Name, drawing and height of each picture that lies beside the page."""
    case = result.cases[0]
    rows, shades = measured(case), colours(case)
    drawn: list[tuple[str, Draw | None, float]] = [
        ("speed", speed(case) if rows else None, 90 + 45 * len(rows)),
        ("steps", steps(case, titled=True), 90 + 55 * len(rows)),
        ("session", over_time(course({row.label: row.processes for row, _ in rows}), shades), 360),
    ]
    if rows and (found := growth(result.cases)) is not None:
        drawn.append(("sweep", panels(found, sweep_colours(result.cases)), 620))
    yield from ((name, draw, height) for name, draw, height in drawn if draw is not None)


def sweep_colours(cases: Sequence[CaseResult]) -> dict[str, str]:
    """A colour for every backend that any case measured."""
    labels = dict.fromkeys(row.label for case in cases for row, _ in measured(case))
    return {label: colour(i) for i, label in enumerate(labels)}


def write_pictures(stem: Path, result: Result) -> list[Path]:
    """Write `stem`-speed.png, -steps.png, -session.png, in a sweep -sweep.png; returns the paths."""
    paths = []
    for name, draw, height in pictures(result):
        paths.append(stem.with_name(f"{stem.name}-{name}.png"))
        write_png(draw, paths[-1], (WIDE, height))
    return paths
