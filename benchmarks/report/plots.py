"""The result as PNG files: speed, every step, the session, and how things grow over a sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring.samples import INVALID
from benchmarks.report.page import every_sample
from benchmarks.report.table import comparison, fastest, headline, memory_key, parameters

COLOURS = ("#2f6fd0", "#c4681b", "#2c8a57", "#8a4fbf", "#b83a6b", "#6b7280")
STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e5e6",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}
BAD = "#b3261e"


def write_plots(stem: Path, result: dict[str, Any]) -> list[Path]:
    """Write `stem`-speed.png, -steps.png, -session.png, in a sweep -sweep.png; returns the paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    case = result["cases"][0]
    rows = measured(case)
    if not rows:
        return []
    drawn = {"speed": _speed, "steps": _steps, "session": _session}
    paths = []
    with pyplot.rc_context(STYLE):
        for name, draw in drawn.items():
            figure, axes = pyplot.subplots(figsize=(8, 1.6 + 0.55 * len(rows) if name != "session" else 4), dpi=150)
            draw(axes, case, rows)
            paths.append(_save(figure, stem, name))
        if len(result["cases"]) > 1:
            figure, panels = pyplot.subplots(1, 3, figsize=(11, 3.6), dpi=150)
            _sweep(panels, result["cases"])
            paths.append(_save(figure, stem, "sweep"))
    return paths


def measured(case: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with figures, the fastest first."""
    rows = (row for row in case["rows"] if row["summary"] and not row["control"])
    return sorted(rows, key=lambda row: row["summary"]["seconds_per_step"])


def _save(figure: Any, stem: Path, name: str) -> Path:
    from matplotlib import pyplot

    path = stem.with_name(f"{stem.name}-{name}.png")
    figure.savefig(path)
    pyplot.close(figure)
    return path


def _speed(axes: Any, case: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    best = fastest(case)
    for i, row in enumerate(rows):
        speed = row["summary"]["tokens_per_second"]
        axes.barh(i, speed, color=COLOURS[i % len(COLOURS)], height=0.6)
        text = f" {speed:,.0f}"
        found = comparison(case, row["backend"], best["backend"]) if best else None
        if found and found["low"] and row["backend"] == found["slower"]:
            text += f"  ({found['ratio']:.2f} times as long, {found['low']:.2f} to {found['high']:.2f})"
        axes.text(speed, i, text, va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.55 * rows[0]["summary"]["tokens_per_second"])
    axes.set_xlabel("tokens per second")
    axes.set_title(headline(case), wrap=True)


def _steps(axes: Any, case: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    series = [[1000 * s for s, marks in every_sample(row, "latency") if not set(marks) & set(INVALID)] for row in rows]
    parts = axes.boxplot(
        series, orientation="horizontal", whis=(5, 95), widths=0.55, patch_artist=True, flierprops={"markersize": 2}
    )
    for i, box in enumerate(parts["boxes"]):
        box.set(facecolor=COLOURS[i % len(COLOURS)], alpha=0.45)
    for median in parts["medians"]:
        median.set(color="black", linewidth=1.5)
    axes.set_yticks(range(1, len(rows) + 1), [row["label"] for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds per step, waited for; box: middle half, whiskers: 5 to 95 %")
    axes.set_title(f"Every step: {parameters(case['work'])}, {case['work']['tokens_per_step']:,} tokens")


def _session(axes: Any, _: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    first = min(p["throughput"]["began"] for row in rows for p in row["processes"])
    for i, row in enumerate(rows):
        label: str | None = row["label"]
        for process in row["processes"]:
            series = process["throughput"]
            x = [series["began"] + start - first for start in series["start"]]
            y = [1000 * s / series["steps_per_sample"] for s in series["seconds"]]
            axes.plot(x, y, ".", color=COLOURS[i % len(COLOURS)], label=label, markersize=5)
            label = None
            bad = [j for j in range(len(x)) if set(series["marks"].get(str(j), ())) & set(INVALID)]
            axes.plot([x[j] for j in bad], [y[j] for j in bad], "x", color=BAD, markersize=7)
    axes.set_yscale("log")
    axes.set_xlabel("seconds since the first sample; x: throttled or asleep, not counted")
    axes.set_ylabel("milliseconds per step")
    axes.set_title("Over the session")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def _sweep(panels: Any, cases: list[dict[str, Any]]) -> None:
    name, key = next(iter(cases[0]["changes"])), memory_key(cases)
    title = "peak memory, MiB" if key == "peak" else "peak memory of the process, MiB"
    figures: dict[str, Callable[[dict[str, Any]], float]] = {
        "milliseconds per step": lambda s: 1000 * s["seconds_per_step"],
        title: lambda s: (s["memory"][key] or 0) / 2**20,
        "MFU of the measured peak, %": lambda s: 100 * (s["mfu"]["measured"] or float("nan")),
    }
    labels = list(dict.fromkeys(row["label"] for case in cases for row in measured(case)))
    for axes, (title, figure) in zip(panels, figures.items(), strict=True):
        for i, label in enumerate(labels):
            points = [
                (case["changes"][name], figure(row["summary"]))
                for case in cases
                for row in measured(case)
                if row["label"] == label
            ]
            axes.plot(
                [x for x, _ in points], [y for _, y in points], "o-", color=COLOURS[i % len(COLOURS)], label=label
            )
        axes.set_xlabel(name)
        axes.set_title(title)
        axes.set_ylim(bottom=0)
    panels[0].legend(frameon=False)
