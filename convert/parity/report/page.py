"""The report as one self-contained page: figures as SVG, no script, no network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convert.parity.gates import ENVELOPE
from gpt_common.drawing import BAD, GOOD, INK, SERIES, css, svg
from gpt_common.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEMPLATE = Path(__file__).with_name("page.html.jinja")
STRAIN_RANGE = (-4, 2)
"""Powers of ten on the axis of errors as shares of their gates."""
LISTED = 12
"""Worst tensors that a rung's table lists."""
MARK, NOISE, *_ = SERIES
RANKS = " ranks"
"""In the names of curves of rung R."""
FLOOR = -8
"""Power of ten at which curves of differences end: smaller ones, and none at all, lie on it."""


def render(report: dict[str, Any]) -> str:
    """The page of a report, as `report.as_dict` or L9 alone make it.

    Raises:
        UserError: jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment
    except ImportError:
        raise UserError("--html needs jinja2: pip install jinja2") from None
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["short"] = short
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        css=css(),
        rungs=[Panel(rung) for rung in report.get("rungs", [])],
        trajectory=trajectory(report),
        switches=switches(report),
        ranks=ranks(report),
        rung_names=[rung["name"] for rung in report.get("rungs", [])],
        quality=list(quality(report.get("L9"))),
    )


def short(value: float | None) -> str:
    """A figure in few characters."""
    if value is None:
        return "∞"
    if value == 0:
        return "0"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


class Panel:
    """A rung with its dots: every tensor's worst error as a share of its gate, on a logarithmic axis."""

    def __init__(self, rung: dict[str, Any]) -> None:
        self.rung = rung
        worst: dict[str, dict[str, Any]] = {}
        for m in rung["measurements"]:
            if m["tensor"] not in worst or _strain(m) > _strain(worst[m["tensor"]]):
                worst[m["tensor"]] = m
        self.tensors = list(worst.values())
        """The worst measurement of each tensor, in the order of measurement."""
        self.worst = sorted(self.tensors, key=_strain, reverse=True)[:LISTED]
        times = [m for m in rung["measurements"] if m["times"]]
        self.times = max(times, key=_strain, default=None)

    def picture(self) -> str:
        """Dots spread over the height in the order of measurement, so that a long rung reads from top to bottom."""
        points = [(_power(m), i, m["passed"]) for i, m in enumerate(self.tensors)]
        titles = {
            gid: [_title(m) for m in self.tensors if m["passed"] is passed]
            for gid, passed in (("dot", True), ("failed", False))
        }

        def draw(figure: Figure) -> None:
            axes = figure.subplots()
            axes.axvline(0, color=BAD, linewidth=1.5).set_gid("gate")
            for gid, passed, shade in (("dot", True, MARK), ("failed", False, BAD)):
                dots = [(x, y) for x, y, good in points if good is passed]
                if dots:
                    x, y = zip(*dots, strict=True)
                    axes.scatter(x, y, s=36, color=shade, alpha=0.55 if passed else 1, linewidth=0).set_gid(gid)
            low, high = STRAIN_RANGE
            axes.set_xlim(low - 0.05, high + 0.05)
            axes.set_xticks(range(low, high + 1), ["gate" if p == 0 else f"1e{p}" for p in range(low, high + 1)])
            axes.set_ylim(len(points) - 0.5, -0.5)
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)

        name, count = self.rung["name"], len(self.tensors)
        label = f"Errors of rung {name} as shares of their gates"
        return svg(draw, name, label, height=110 if count > 40 else 78 if count > 5 else 54, titles=titles)


def _strain(m: dict[str, Any]) -> float:
    """Error over gate; infinite where it is not finite, or nothing was allowed."""
    if m["error"] is None:
        return math.inf
    if m["gate"] == 0:
        return 0.0 if m["error"] == 0 else math.inf
    return float(m["error"] / m["gate"])


def _power(m: dict[str, Any]) -> float:
    """The strain as a power of ten, kept within the axis."""
    low, high = STRAIN_RANGE
    strain = _strain(m)
    return min(max(math.log10(strain) if strain > 0 else low, low), high)


def _title(m: dict[str, Any]) -> str:
    return f"{m['tensor']} ({m['between']}): error {short(m['error'])}, gate {short(m['gate'])}"


def curves(name: str, label: str, lines: Mapping[str, Sequence[float]], styles: Mapping[str, dict[str, Any]]) -> str:
    """Named curves of small positive numbers over the steps, on a logarithmic axis."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (line, values) in enumerate(lines.items()):
            powers = [max(FLOOR, math.log10(value)) if value > 0 else FLOOR for value in values]
            axes.plot(powers, label=line, gid=f"curve{i}", **styles[line])
        high = math.ceil(math.log10(max(1e-8, *(max(values) for values in lines.values()))))
        axes.set_ylim(FLOOR, high)
        ticks = range(FLOOR, high + 1, 1 if high - FLOOR <= 6 else 2)
        axes.set_yticks(ticks, [f"1e{power}" for power in ticks])
        axes.margins(x=0)
        axes.set_xlabel("step")
        figure.legend(loc="outside lower left", ncols=1)

    extra = 22 * len(lines)
    return svg(draw, name, label, height=250 + extra, narrow_height=230 + extra)


def _largest_so_far(values: Sequence[float]) -> list[float]:
    return list(itertools.accumulate(values, max))


def trajectory(report: dict[str, Any]) -> str | None:
    """L7: the difference of the losses beside the drift of one unit in the last place, its tenfold, and the gate."""
    found: dict[str, list[float]] = report.get("curves", {})
    envelope = found.get("one unit in the last place")
    if envelope is None:
        return None
    gate = _gate(report, "L7", "loss, step")
    lines = {
        "one unit in the last place": envelope,
        f"{ENVELOPE:.0f} times that": [ENVELOPE * value for value in envelope],
        "gate": [gate] * len(envelope),
    }
    shades = [{"color": NOISE}, {"color": NOISE, "linestyle": "--"}, {"color": BAD}]
    styles: dict[str, dict[str, Any]] = dict(zip(lines, shades, strict=True))
    for name, values in found.items():
        if " ~ " in name:
            lines[name], styles[name] = _largest_so_far(values), {"color": MARK}
    return curves("L7-curves", "Difference of losses over steps, against the noise envelope", lines, styles)


def switches(report: dict[str, Any]) -> str | None:
    """L8: the difference from an uninterrupted run, for every plan of changes."""
    runs = {name: _largest_so_far(v) for name, v in report.get("curves", {}).items() if " > " in name}
    if not runs:
        return None
    gate = [_gate(report, "L8", "loss, step")] * len(next(iter(runs.values())))
    shades = itertools.cycle((MARK, GOOD, SERIES[3]))
    styles = {"gate": {"color": BAD}, **{name: {"color": next(shades)} for name in runs}}
    return curves("L8-curves", "Difference of losses of runs that change framework", {"gate": gate, **runs}, styles)


def ranks(report: dict[str, Any]) -> str | None:
    """R: the difference of the losses of several processes from those of one."""
    found = {name: _largest_so_far(v) for name, v in report.get("curves", {}).items() if RANKS in name and v}
    if not found:
        return None
    gate = [_gate(report, "R", "loss, step")] * max(map(len, found.values()))
    shades = itertools.cycle((MARK, GOOD, SERIES[3], NOISE))
    styles = {"gate": {"color": BAD}, **{name: {"color": next(shades)} for name in found}}
    return curves("R-curves", "Difference of losses of several processes from one", {"gate": gate, **found}, styles)


def _gate(report: dict[str, Any], rung: str, tensor: str) -> float:
    found = next(r for r in report["rungs"] if r["name"] == rung)["measurements"]
    return float(next(m["gate"] for m in found if m["tensor"].startswith(tensor)))


def quality(found: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """L9: every pair's difference, the mean's confidence interval, and the margin."""
    for i, (between, test) in enumerate(found["tests"].items() if found else ()):
        assert found is not None
        titles = [f"seed {s}: {short(d)}" for s, d in zip(found["seeds"], test["differences"], strict=True)]

        def draw(figure: Figure, test: dict[str, Any] = test, margin: float = found["margin_nats"]) -> None:
            axes = figure.subplots()
            _differences(axes, test["differences"], test["confidence_interval_90"], margin)

        picture = svg(draw, f"L9-{i}", "Differences of final losses", height=90, titles={"seed": titles})
        yield {"between": between, "test": test, "picture": picture}


def _differences(axes: Axes, differences: Sequence[float], interval: Sequence[float], margin: float) -> None:
    for side in (-margin, margin):
        axes.axvline(side, color=BAD, linewidth=1.5)
    axes.plot(interval, [1, 1], color=INK, linewidth=3)
    axes.scatter(differences, [0] * len(differences), s=64, color=MARK, alpha=0.55, linewidth=0).set_gid("seed")
    reach = 1.2 * max(margin, *(abs(d) for d in differences))
    axes.set_xlim(-reach, reach)
    axes.set_ylim(1.6, -0.8)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("nats per token")
