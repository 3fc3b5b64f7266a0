"""A sweep for the page: how time, memory and MFU grow with the value that was changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.report.axes import Axis, around, tick_text
from benchmarks.report.table import memory_key, size
from gpt_common.training.console import milliseconds, rate, share

Figures = dict[str, Any]


def growth(cases: list[dict[str, Any]], colours: int = 6) -> dict[str, Any] | None:
    """Panels of lines and their numbers as tables; None if there was no sweep.

    Args:
        colours: how many the page has for backends.
    """
    if len(cases) < 2:
        return None
    name = next(iter(cases[0]["changes"]))
    key = memory_key(cases)
    figures: list[tuple[str, Callable[[Figures], float | None], Callable[[Any], str]]] = [
        ("milliseconds per step", lambda s: s["seconds_per_step"], milliseconds),
        ("tokens per second", lambda s: s["tokens_per_second"], rate),
        ("peak memory" if key == "peak" else "peak memory of the process", lambda s: s["memory"][key], size),
        ("MFU of the measured peak", lambda s: s["mfu"]["measured"], share),
    ]
    values = [case["changes"][name] for case in cases]
    rows = [{row["label"]: row["summary"] for row in case["rows"] if not row["control"]} for case in cases]
    labels = [label for label in rows[0] if any(case.get(label) for case in rows)]
    panels = []
    for title, figure, text in figures:
        lines = {label: [figure(case[label]) if case.get(label) else None for case in rows] for label in labels}
        panels.append(panel(title, values, lines, text, colours))
    return {"name": name, "values": values, "panels": panels}


def panel(
    title: str,
    values: Sequence[int],
    lines: Mapping[str, Sequence[float | None]],
    text: Callable[[Any], str],
    colours: int = 6,
) -> dict[str, Any]:
    """One figure against the swept value, from zero upwards, every backend a line."""
    highest = max((y for line in lines.values() for y in line if y is not None), default=1.0)
    up, across = Axis(0.0, 1.08 * highest, logarithmic=False), around(values)
    return {
        "title": title,
        "across": [(across.at(value), tick_text(value)) for value in values],
        "up": [(up.at(tick), text(tick)) for tick in up.ticks(4) if tick > 0],
        "lines": [
            {
                "label": label,
                "colour": i % colours,
                "points": [(across.at(x), 100 - up.at(y)) for x, y in zip(values, line, strict=True) if y is not None],
                "cells": ["-" if y is None else text(y) for y in line],
            }
            for i, (label, line) in enumerate(lines.items())
        ],
    }
