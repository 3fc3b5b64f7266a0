"""The result as one self-contained HTML page: opens from a disk, without a network, light or dark, wide or narrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import figures, published
from benchmarks.report.beside import beside_floats
from benchmarks.report.findings import (
    Panels,
    course,
    doubts,
    generation,
    growth,
    headline,
    machine_doubts,
    measured,
    noise,
    size,
    times,
)
from benchmarks.results import BackendRow, CaseResult, Result
from gpt_common.drawing import css, page_colour, svg
from gpt_common.words import in_bytes, milliseconds, rate, share

TEMPLATE = "page.html.jinja"


def render_page(result: Result) -> str:
    """The page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"ms": milliseconds, "rate": rate, "share": share, "size": size, "bytes": in_bytes}
    found = growth(result.cases)
    return environment.get_template(TEMPLATE).render(
        result=result,
        environment=result.environment,
        hardware=result.environment.hardware,
        css=css(),
        cases=[describe_case(case, f"case{i}") for i, case in enumerate(result.cases)],
        machine_doubts=machine_doubts,
        growth=found,
        growth_picture=found and _panels(found, "growth", figures.sweep_colours(result.cases)),
        published=published,
        same_work=any(published.same_work(case.run_config) for case in result.cases),
    )


def describe_case(case: CaseResult, name: str) -> dict[str, Any]:
    """What the page shows of a case.

    Args:
        name: begins the names of its pictures.
    """
    rows, shades = measured(case), figures.colours(case)
    sustained = {row.label: [row.sustained.process] for row, _ in rows if row.sustained}
    session, written = course({row.label: row.processes for row, _ in rows}), generation(case)

    found = {
        "certainty": (figures.certainty(case) if rows else None, "How sure", 60 + 38 * len(rows), None),
        "steps": (figures.steps(case), "Milliseconds of every step", 60 + 48 * len(rows), None),
        "course": (figures.over_time(session, shades), "Milliseconds per step over the session", 320, 300),
        "sustained": (
            figures.over_time(course(sustained, from_zero=True), shades),
            "Milliseconds per step of the sustained runs",
            320,
            300,
        ),
    }
    pictures = {
        kind: svg(draw, f"{name}-{kind}", label, height=height, narrow_height=on_a_telephone) if draw else ""
        for kind, (draw, label, height, on_a_telephone) in found.items()
    }
    return {
        "case": case,
        "work": case.work,
        "model": case.run_config.model,
        "headline": headline(case),
        "rows": [
            {
                "row": row,
                "summary": summary,
                "colour": page_colour(shades[row.label]),
                "percent": round(100 * rows[0][1].seconds_per_step / summary.seconds_per_step, 2),
                "times": times(case, row),
                "doubts": doubts(row),
            }
            for row, summary in rows
        ],
        "missing": [row for row in case.rows if not row.summary and not (row.control and not row.reason)],
        "noise": noise(case),
        **pictures,
        "invalid": sum(not point.counts for points in session.values() for point in points),
        "generation": written,
        "generation_picture": written and _panels(written, f"{name}-generation", shades),
        "beside_floats": beside_floats(case),
        "same_text": same_text([row for row, _ in rows]),
        "new_tokens": next((row.generation.new_tokens for row, _ in rows if row.generation), None),
    }


def same_text(rows: Sequence[BackendRow]) -> bool:
    """Whether all wrote the same tokens; quantised rows are other models than float ones, and write their own."""
    found = {(row.bits, row.generation.greedy_sha256) for row in rows if row.generation}
    return bool(found) and len(found) == len({bits for bits, _ in found})


def _panels(found: Panels, name: str, shades: dict[str, str]) -> str:
    across, each = (len(found.panels) + 1) // 2, 250
    label = ", ".join(panel.title for panel in found.panels) + f" by {found.name}"
    draw = figures.panels(found, shades)
    return svg(draw, name, label, height=40 + each * across, narrow_height=70 + 220 * len(found.panels))
