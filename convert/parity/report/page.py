"""The report as one self-contained page: plots drawn here as SVG, no script, no network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.parity.gates import ENVELOPE
from gpt_common.errors import UserError

TEMPLATE = Path(__file__).with_name("page.html.jinja")
STRAIN_RANGE = (-4.0, 2.0)
"""Powers of ten on the axis of errors as shares of their gates."""
LISTED = 12
"""Worst tensors that a rung's table lists."""


def render(report: dict[str, Any]) -> str:
    """The page of a report, as `report.as_dict` or L9 alone make it.

    Raises:
        UserError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
    except ImportError:
        raise UserError("--html needs jinja2: pip install 'mlx-torch-gpt[benchmarks]'") from None
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["short"] = short
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        rungs=[Panel(rung) for rung in report.get("rungs", [])],
        trajectory=trajectory_plot(report),
        switches=switch_plot(report),
        rung_names=[rung["name"] for rung in report.get("rungs", [])],
        quality=quality_plot(report.get("L9")),
    )


def short(value: float | None) -> str:
    """A figure in few characters."""
    if value is None:
        return "∞"
    if value == 0:
        return "0"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


@dataclass(frozen=True)
class Dot:
    """One tensor in the plot of a rung."""

    x: float
    """Percent of the width."""
    y: float
    """Percent of the height."""
    passed: bool
    label: str


class Panel:
    """A rung with its dots: every tensor's worst error as a share of its gate, on a logarithmic axis."""

    gate_x = 100 * (0 - STRAIN_RANGE[0]) / (STRAIN_RANGE[1] - STRAIN_RANGE[0])
    ticks = tuple(range(int(STRAIN_RANGE[0]), int(STRAIN_RANGE[1]) + 1))

    def __init__(self, rung: dict[str, Any]) -> None:
        self.rung = rung
        worst: dict[str, dict[str, Any]] = {}
        for m in rung["measurements"]:
            if m["tensor"] not in worst or _strain(m) > _strain(worst[m["tensor"]]):
                worst[m["tensor"]] = m
        self.worst = sorted(worst.values(), key=_strain, reverse=True)[:LISTED]
        self.count = len(worst)
        self.dots = list(_dots(list(worst.values())))
        times = [m for m in rung["measurements"] if m["times"]]
        self.times = max(times, key=_strain, default=None)

    @staticmethod
    def tick_x(power: int) -> float:
        """Where a power of ten lies, in percent."""
        return _percent(float(power))


def _strain(m: dict[str, Any]) -> float:
    """Error over gate; infinite where it is not finite, or nothing was allowed."""
    if m["error"] is None:
        return math.inf
    if m["gate"] == 0:
        return 0.0 if m["error"] == 0 else math.inf
    return float(m["error"] / m["gate"])


def _percent(power: float) -> float:
    low, high = STRAIN_RANGE
    return 100 * (min(max(power, low), high) - low) / (high - low)


def _dots(measurements: Sequence[dict[str, Any]]) -> Iterator[Dot]:
    """Spread over the height in the order of measurement, so that a long rung reads from top to bottom."""
    for i, m in enumerate(measurements):
        strain = _strain(m)
        power = -math.inf if strain == 0 else math.log10(strain) if math.isfinite(strain) else math.inf
        label = f"{m['tensor']} ({m['between']}): error {short(m['error'])}, gate {short(m['gate'])}"
        yield Dot(_percent(power), 100 * (i + 0.5) / len(measurements), m["passed"], label)


@dataclass(frozen=True)
class Curve:
    """One line of a plot, as points of a 1000 x 100 drawing."""

    name: str
    points: str
    kind: str


@dataclass(frozen=True)
class Plot:
    """Curves over steps on a logarithmic axis."""

    curves: list[Curve]
    ticks: list[tuple[float, str]]
    """Percent from the top, and label."""
    steps: int


def _largest_so_far(values: Sequence[float]) -> list[float]:
    return list(itertools.accumulate(values, max))


def _plot(curves: dict[str, tuple[Sequence[float], str]]) -> Plot | None:
    """A plot of named curves of small positive numbers; zeros lie on the floor."""
    if not curves:
        return None
    highest = max(max(values) for values, _ in curves.values())
    low, high = -8, math.ceil(math.log10(max(highest, 1e-8)))
    steps = max(len(values) for values, _ in curves.values())

    def y(value: float) -> float:
        return 100 * (high - max(low, math.log10(value) if value > 0 else low)) / (high - low)

    lines = []
    for name, (values, kind) in curves.items():
        points = " ".join(f"{1000 * i / max(1, steps - 1):.1f},{y(v):.2f}" for i, v in enumerate(values))
        lines.append(Curve(name, points, kind))
    every = 1 if high - low <= 6 else 2
    ticks = [(100 * (high - power) / (high - low), f"1e{power}") for power in range(high, low - 1, -every)]
    return Plot(lines, ticks, steps)


def trajectory_plot(report: dict[str, Any]) -> Plot | None:
    """L7: the difference of the losses beside the drift of one unit in the last place, its tenfold, and the gate."""
    curves: dict[str, list[float]] = report.get("curves", {})
    envelope = curves.get("one unit in the last place")
    if envelope is None:
        return None
    gate = _gate(report, "L7", "loss, step")
    lines: dict[str, tuple[Sequence[float], str]] = {
        "one unit in the last place": (envelope, "noise"),
        f"{ENVELOPE:.0f} times that": ([ENVELOPE * value for value in envelope], "envelope"),
        "gate": ([gate] * len(envelope), "gate"),
    }
    lines |= {name: (_largest_so_far(values), "difference") for name, values in curves.items() if " ~ " in name}
    return _plot(lines)


def switch_plot(report: dict[str, Any]) -> Plot | None:
    """L8: the difference from an uninterrupted run, for every plan of changes."""
    runs = {name: values for name, values in report.get("curves", {}).items() if " > " in name}
    if not runs:
        return None
    steps = len(next(iter(runs.values())))
    lines: dict[str, tuple[Sequence[float], str]] = {"gate": ([_gate(report, "L8", "loss, step")] * steps, "gate")}
    return _plot(
        lines | {name: (_largest_so_far(values), f"switch{i % 3}") for i, (name, values) in enumerate(runs.items())}
    )


def _gate(report: dict[str, Any], rung: str, tensor: str) -> float:
    found = next(r for r in report["rungs"] if r["name"] == rung)["measurements"]
    return float(next(m["gate"] for m in found if m["tensor"].startswith(tensor)))


def quality_plot(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    """L9: every pair's difference, the mean's confidence interval, and the margin, as percent of the width."""
    if found is None:
        return []
    margin = found["margin_nats"]
    plots = []
    for between, test in found["tests"].items():
        reach = 1.2 * max(margin, *(abs(d) for d in test["differences"]))

        def x(value: float, reach: float = reach) -> float:
            return 50 + 50 * value / reach

        plots.append(
            {
                "between": between,
                "test": test,
                "dots": [(x(d), seed, d) for d, seed in zip(test["differences"], found["seeds"], strict=True)],
                "interval": [x(value) for value in test["confidence_interval_90"]],
                "margin": [x(-margin), x(margin)],
            }
        )
    return plots
