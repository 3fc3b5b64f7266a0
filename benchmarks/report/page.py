"""The result as one self-contained HTML page: opens from a disk, without a network, light or dark, wide or narrow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.measuring.samples import INVALID, median_of
from benchmarks.report.axes import Axis, around, tick_text
from benchmarks.report.growth import growth, panel
from benchmarks.report.published import published_rows, same_work
from benchmarks.report.result import restless
from benchmarks.report.table import comparison, doubts, fastest, headline, machine_doubts, size
from gpt_common.training.console import milliseconds, rate, share

TEMPLATE = "page.html.jinja"
DRAWN_SAMPLES = 400
"""Samples drawn per backend; of more, an even choice."""
COLOURS = 6
"""How many colours the page's style has for backends."""


def render_page(result: dict[str, Any]) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ms": milliseconds, "rate": rate, "share": share, "size": size}
    cases = [describe_case(case) for case in result["cases"]]
    return environment.get_template(TEMPLATE).render(
        result=result,
        environment=result["environment"],
        hardware=result["environment"]["hardware"],
        cases=cases,
        warnings=machine_doubts(result["environment"]),
        growth=growth(result["cases"]),
        published=published_rows(),
        same_work=any(same_work(case["config"]) for case in result["cases"]),
    )


def describe_case(case: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a case."""
    rows = sorted(
        (row for row in case["rows"] if row["summary"] and not row["control"]),
        key=lambda row: row["summary"]["seconds_per_step"],
    )
    colours = {row["label"]: i % COLOURS for i, row in enumerate(rows)}
    return {
        **case,
        "headline": headline(case),
        "measured": [bar(row, rows[0], case) | {"colour": colours[row["label"]]} for row in rows],
        "missing": [row for row in case["rows"] if not row["summary"] and not (row["control"] and not row["reason"])],
        "certainty": certainty(case),
        "noise": restless(case["control"]),
        "steps": step_plot(rows, colours),
        "course": course_plot({label: _processes(case, label) for label in colours}, colours),
        "endurance": course_plot(
            {row["label"]: [row["sustained"]["process"]] for row in rows if row["sustained"]}, colours, together=True
        ),
        "generation": generation_plot(rows),
        "overhead": [row for row in rows if row["overhead"]],
        "sustained": [row for row in rows if row["sustained"]],
    }


def bar(row: dict[str, Any], best: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """One backend in the first plot: a bar as long as its speed is high."""
    figures = row["summary"]
    found = comparison(case, row["backend"], best["backend"])
    times = None
    if found is not None:
        upright = found["slower"] == row["backend"]
        low, high = found["low"], found["high"]
        times = {
            "ratio": found["ratio"] if upright else 1 / found["ratio"],
            "low": low if upright or low is None else 1 / found["high"],
            "high": high if upright or high is None else 1 / found["low"],
            "claimed": found["claimed"],
        }
    return {
        "row": row,
        "summary": figures,
        "percent": round(100 * best["summary"]["seconds_per_step"] / figures["seconds_per_step"], 2),
        "times": times,
        "doubts": doubts(row),
    }


def certainty(case: dict[str, Any]) -> dict[str, Any] | None:
    """Intervals of how many times as long each backend takes as the fastest, beside the A/A control."""
    best = fastest(case)
    found = [c for c in case["comparisons"] if best and best["backend"] in (c["slower"], c["faster"]) and c["low"]]
    control = case["control"]
    if best is None or not found or control is None or control["low"] is None:
        return None
    lines = []
    for c in found:
        upright = c["faster"] == best["backend"]
        low, middle, high = (
            (c["low"], c["ratio"], c["high"]) if upright else (1 / c["high"], 1 / c["ratio"], 1 / c["low"])
        )
        lines.append((c["slower"] if upright else c["faster"], low, middle, high, c["claimed"]))
    lines.sort(key=lambda line: line[2])
    reach = math.exp(max(abs(math.log(control["low"])), abs(math.log(control["high"]))))
    axis = around([1 / reach, reach, *(line[1] for line in lines), *(line[3] for line in lines), 1 / 1.02, 1.02])
    return {
        "best": best["label"],
        "control": {"name": control["backend"], "low": control["low"], "high": control["high"]},
        "band": [axis.at(1 / reach), axis.at(reach)],
        "one": axis.at(1),
        "ticks": [(axis.at(t), tick_text(t)) for t in axis.ticks()],
        "lines": [
            {"label": name, "low": low, "ratio": middle, "high": high, "claimed": claimed}
            | {"left": axis.at(low), "at": axis.at(middle), "right": axis.at(high)}
            for name, low, middle, high, claimed in lines
        ],
    }


def step_plot(rows: list[dict[str, Any]], colours: dict[str, int]) -> dict[str, Any] | None:
    """Every step of the latency series on one axis of milliseconds, with the middle half and the median."""
    samples = {row["label"]: every_sample(row, "latency") for row in rows}
    flat = [1000 * s for found in samples.values() for s, _ in found]
    if not flat:
        return None
    axis = around(flat)
    return {
        "ticks": [(axis.at(t), tick_text(t)) for t in axis.ticks()],
        "lines": [
            {
                "label": row["label"],
                "colour": colours[row["label"]],
                "latency": row["summary"]["latency"],
                "box": [axis.at(1000 * row["summary"]["latency"][key]) for key in ("p25", "median", "p75", "p95")],
                "marks": [(axis.at(1000 * s), _invalid(marks)) for s, marks in thinned(samples[row["label"]])],
            }
            for row in rows
            if row["summary"]["latency"]
        ],
    }


def course_plot(
    runs: dict[str, list[dict[str, Any]]], colours: dict[str, int], *, together: bool = False
) -> dict[str, Any] | None:
    """Every sample of the throughput series at the time when it was taken.

    Args:
        runs: processes by backend.
        together: let every process begin at zero, and not the session.
    """
    points = [
        (label, (0.0 if together else s["began"]) + start, 1000 * seconds / s["steps_per_sample"], _bad(s, i))
        for label, processes in runs.items()
        for s in (process["throughput"] for process in processes)
        for i, (start, seconds) in enumerate(zip(s["start"], s["seconds"], strict=True))
    ]
    if not points:
        return None
    first, last = min(p[1] for p in points), max(p[1] for p in points)
    across = Axis(0.0, max(1.0, (last - first) * 1.02), logarithmic=False)
    up = around([p[2] for p in points])
    lines = [
        {
            "label": label,
            "colour": colours[label],
            "points": thinned(
                [(across.at(t - first), 100 - up.at(ms), bad) for name, t, ms, bad in points if name == label]
            ),
        }
        for label in runs
    ]
    return {
        "lines": lines,
        "across": [(across.at(t), tick_text(t)) for t in across.ticks()],
        "up": [(up.at(t), tick_text(t)) for t in up.ticks(5)],
        "invalid": sum(p[3] for p in points),
    }


def _processes(case: dict[str, Any], label: str) -> list[dict[str, Any]]:
    return next(row["processes"] for row in case["rows"] if row["label"] == label)


def _bad(series: dict[str, Any], index: int) -> bool:
    return _invalid(series["marks"].get(str(index), []))


def every_sample(row: dict[str, Any], name: str) -> list[tuple[float, list[str]]]:
    """Seconds per step and marks of all samples of a row's complete processes."""
    return [
        (seconds / process[name]["steps_per_sample"], process[name]["marks"].get(str(i), []))
        for process in row["processes"]
        if process["complete"]
        for i, seconds in enumerate(process[name]["seconds"])
    ]


def thinned(points: list[Any]) -> list[Any]:
    """At most DRAWN_SAMPLES of them, evenly chosen."""
    stride = max(1, math.ceil(len(points) / DRAWN_SAMPLES))
    return points[::stride]


def _invalid(marks: list[str]) -> bool:
    return any(mark in INVALID for mark in marks)


def generation_plot(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Prompt tokens read and new tokens written per second, by length of the prompt."""
    found = {row["label"]: row["generation"] for row in rows if row["generation"]}
    if not found:
        return None
    first = next(iter(found.values()))
    prompts = [length["prompt"] for length in first["lengths"]]
    reading = {
        label: [length["prompt"] / (median_of(length["prompt_seconds"]) or math.nan) for length in run["lengths"]]
        for label, run in found.items()
    }
    writing = {
        label: [_per_second(length["token_seconds"]) for length in run["lengths"]] for label, run in found.items()
    }
    return {
        "prompts": prompts,
        "panels": [
            panel("prompt tokens read per second", prompts, reading, rate),
            panel("new tokens per second", prompts, writing, rate),
        ],
        "same_text": len({run["greedy_sha256"] for run in found.values()}) == 1,
        "new_tokens": first["new_tokens"],
    }


def _per_second(seconds: list[float | None]) -> float | None:
    middle = median_of([s for s in seconds if s is not None])
    return None if middle is None else 1 / middle
