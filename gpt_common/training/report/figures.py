"""The pictures of runs: of one run for its report, and of several over each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_common.drawing import BAD, SOFT, Draw, colour, logarithmic, narrow
from gpt_common.training.report.curves import Course, Curve, Numbers, thinned
from gpt_common.training.report.past import PastRun
from gpt_common.words import duration, printable, rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_MARKS = 200
"""Lines and triangles in a picture."""
AXES: dict[str, Callable[[Course, Curve], Numbers]] = {
    "step": lambda _, curve: curve.step,
    "tokens": lambda course, curve: curve.step * course.tokens_per_step,
    "time": lambda _, curve: curve.seconds,
}
"""What curves run over, by its name."""
ROUND_TIMES = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400)
"""Seconds between two marks of a time axis."""
LOSS = "loss, nats per token"


def _panels(figure: Figure, count: int, columns: int) -> list[Axes]:
    """So many of them in rows; one beneath the other on a telephone."""
    columns = 1 if narrow(figure) else min(columns, count)
    rows = -(-count // columns)
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.flat)
    for spare in axes[count:]:
        spare.remove()
    return axes[:count]


def _scale_x(axes: Axes, over: str) -> None:
    from matplotlib.ticker import MaxNLocator, MultipleLocator

    axes.set_xlabel(over)
    if over == "time":
        longest = axes.get_xlim()[1]
        apart = next(
            (seconds for seconds in ROUND_TIMES if longest / seconds <= 5), 86400 * math.ceil(longest / 432000)
        )
        axes.xaxis.set_major_locator(MultipleLocator(apart))
        axes.xaxis.set_major_formatter(lambda value, _: duration(value) if value >= 0 else "")
        return
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if over == "tokens":
        axes.xaxis.set_major_formatter(lambda value, _: rate(value) if value >= 0 else "")


def _logarithmic_if_positive(axes: Axes, curves: Sequence[Numbers]) -> None:
    """A logarithmic scale where all that is drawn allows it."""
    numbers = np.concatenate([curve[np.isfinite(curve)] for curve in curves] or [np.array([])])
    if len(numbers) and numbers.min() > 0 and numbers.max() / numbers.min() > 1.5:
        logarithmic(axes.yaxis, text="{:.3g}".format)


def _losses(axes: Axes, course: Course, over: str, *, shade: str, label: str | None, pale: bool = False) -> None:
    """Training losses as a line, validation losses as circles."""
    at = AXES[over]
    style: dict[str, Any] = {"color": shade, "alpha": 0.35 if pale else 1}
    x, y = thinned(at(course, course.steps), course.steps.values["loss"])
    lonely = len(x) == 1
    axes.plot(x, y, marker="x" if lonely else None, label=label, linewidth=5 if pale else 1.2, **style)
    x, y = thinned(at(course, course.evaluations), course.evaluations.values["val_loss"])
    axes.plot(x, y, "o", markersize=9 if pale else 4, **style)


def _floor(axes: Axes, floors: Sequence[float], label: bool = True) -> None:
    for floor in floors:
        text = f"lowest possible loss, {floor:.3f}" if label else None
        axes.axhline(floor, color=SOFT, linewidth=1, linestyle="--", label=text)


def _settle(figure: Figure) -> None:
    """Fix the marks of all axes, which matplotlib else works out anew each time that it measures one."""
    from matplotlib.ticker import FixedLocator

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            axis.set_major_locator(FixedLocator([mark for mark in axis.get_majorticklocs() if low <= mark <= high]))


def losses(course: Course) -> Draw:
    """Both losses over steps and over time, with the floor, alarms, and where the run was taken up again."""

    def draw(figure: Figure) -> None:
        panels = _panels(figure, 2, 2)
        for axes, over in zip(panels, ("step", "time"), strict=True):
            _losses(axes, course, over, shade=colour(0), label="training")
            axes.get_lines()[-1].set(color=colour(1), label="validation", linestyle="-", linewidth=1)
            if len(course.evaluations.finite("train_loss")):
                x, y = AXES[over](course, course.evaluations), course.evaluations.values["train_loss"]
                axes.plot(*thinned(x, y), "o", color=colour(0), markersize=4, label="training, at evaluations")
            _floor(axes, [course.floor] if course.floor is not None else [])
            _scale_x(axes, over)
            _logarithmic_if_positive(axes, [course.steps.values["loss"], course.evaluations.values["val_loss"]])
            if over == "step":
                for first in sorted({session.first_step for session in course.sessions[1:]})[:MOST_MARKS]:
                    axes.axvline(first, color=SOFT, linewidth=1, linestyle=":")
                steps = [step for step, _ in course.alarms][:MOST_MARKS]
                axes.plot(
                    steps, [0.02] * len(steps), "^", color=BAD, markersize=6, transform=axes.get_xaxis_transform()
                )
        panels[0].set_ylabel(LOSS)
        panels[0].legend(fontsize=12)
        _settle(figure)

    return draw


def panels_of_progress(course: Course) -> dict[str, str]:
    """What there is to show beside the loss: titles by the names of the numbers."""
    _, unit = _unit_of_memory(course)
    always = {"lr": "learning rate", "grad_norm": "gradient norm before clipping", "tps": "tokens per second"}
    known = {"memory": f"peak memory, {unit}", "power_watts": "power, watts", "gpu_usage": "GPU, share of time busy"}
    return always | {name: title for name, title in known.items() if len(course.steps.finite(name))}


def _unit_of_memory(course: Course) -> tuple[int, str]:
    return (2**30, "GiB") if (course.memory or 0) >= 2**30 else (2**20, "MiB")


def progress(course: Course) -> Draw:
    """Learning rate, gradient norm, speed with its gaps; memory, power and GPU usage where known; over steps."""
    steps, names = course.steps, panels_of_progress(course)
    size, _ = _unit_of_memory(course)

    def draw(figure: Figure) -> None:
        for i, (axes, (name, title)) in enumerate(zip(_panels(figure, len(names), 2), names.items(), strict=True)):
            values = steps.values[name] / (size if name == "memory" else 1)
            told = np.isfinite(values) if name in ("power_watts", "gpu_usage") else slice(None)
            x, y = thinned(steps.step[told], values[told])
            axes.plot(x, y, color=colour(0), linewidth=1.2, marker="x" if np.isfinite(y).sum() == 1 else None)
            axes.set_title(title)
            _scale_x(axes, "step")
            if len(steps):
                axes.set_xlim(0, max(steps.step[-1], 1))
            if name == "grad_norm":
                _logarithmic_if_positive(axes, [values])
            else:
                axes.set_ylim(0, 1.1 * max(values[np.isfinite(values)], default=0) or 1)
            if name == "lr":
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
            if name == "tps":
                axes.yaxis.set_major_formatter(lambda value, _: rate(value))
                for begin, end in course.untimed[:200]:
                    axes.axvspan(begin, end, color=BAD, alpha=0.5, linewidth=1.5)
            if i < len(names) - (1 if narrow(figure) else 2):
                axes.set_xlabel("")
        _settle(figure)

    return draw


def expert_loads(course: Course) -> Draw | None:
    """Loads of experts: the busiest and the idlest over steps, and each one at the end."""
    if not course.expert_loads:
        return None
    steps = np.array([step for step, _ in course.expert_loads], dtype=np.float64)
    last = course.expert_loads[-1][1]
    bounds = [
        np.array([pick([load for router in loads for load in router]) for _, loads in course.expert_loads])
        for pick in (max, min)
    ]

    def draw(figure: Figure) -> None:
        over, end = _panels(figure, 2, 2)
        for i, (values, label) in enumerate(zip(bounds, ("busiest", "idlest"), strict=True)):
            over.plot(*thinned(steps, values), color=colour(i), linewidth=1.2, label=label)
        over.set_title("load of an expert, in fair shares")
        _scale_x(over, "step")
        over.legend(fontsize=12)
        for router, loads in enumerate(last):
            end.plot([router + 1] * len(loads), loads, "o", color=colour(0), alpha=0.45, markersize=6, linewidth=0)
        end.set_title(f"each expert at step {steps[-1]:.0f}")
        end.set_xlabel("router")
        end.set_xticks(range(1, len(last) + 1, max(1, len(last) // 8)))
        for axes in (over, end):
            axes.axhline(1, color=SOFT, linewidth=1, linestyle="--")
            axes.set_ylim(bottom=0)
        _settle(figure)

    return draw


def shortened(name: str, most: int = 40) -> str:
    """A run's name as a legend has room for it: the end of a long one."""
    name = printable(name)
    name = name if len(name) <= most else f"... {name[4 - most :]}"
    return f" {name}" if name.startswith("_") else name  # _ would keep it out of the legend


def compared(runs: Mapping[str, PastRun], over: Sequence[str] = ("step", "tokens", "time")) -> Draw:
    """Losses of runs over each other; by steps in the first panel, by tokens and time in the next.

    Args:
        runs: by the name that the picture gives them.
    """
    floors = sorted({run.course.floor for run in runs.values() if run.course.floor is not None})

    def draw(figure: Figure) -> None:
        for place, axes in zip(over, _panels(figure, len(over), 1), strict=True):
            for i, (name, run) in enumerate(runs.items()):
                name = shortened(name)
                # The first is drawn wide and pale, so that a second one on the same numbers does not hide it.
                _losses(axes, run.course, place, shade=colour(i), label=name, pale=i == 0 and len(runs) > 1)
            _floor(axes, floors)
            _scale_x(axes, place)
            curves = [run.course.steps.values["loss"] for run in runs.values()]
            _logarithmic_if_positive(
                axes, curves + [run.course.evaluations.values["val_loss"] for run in runs.values()]
            )
            axes.set_ylabel(LOSS)
            if place == over[0]:
                axes.set_title("training (lines) and validation (circles)")
                axes.legend(fontsize=12).set_in_layout(False)
        _settle(figure)

    return draw
