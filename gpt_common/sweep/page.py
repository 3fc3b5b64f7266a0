"""A sweep as a page: one self-contained file beside its runs, without scripts or network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpt_common.drawing import INK, SOFT, Draw, colour, logarithmic, narrow, page_colour, svg
from gpt_common.errors import UserError
from gpt_common.sweep.definition import Sweep
from gpt_common.sweep.table import HEADS, Row, best_of, fields_of, rows_of, value_of
from gpt_common.training.report import figures
from gpt_common.training.report.page import loss, render, shown, write_page
from gpt_common.words import duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = "sweep.html"
"""Its name in the folder of the runs."""
MOST_CURVES = 6
"""Losses over steps that are drawn over each other: so many colours there are."""
WIDE_RANGE = 8
"""From how many times its least value on a field has a logarithmic axis."""


def write_sweep(sweep: Sweep) -> Path:
    """Write the page into the folder of the runs; returns where.

    Raises:
        UserError: no run was evaluated yet, the page cannot be written, or a package is missing.
    """
    rows = rows_of(sweep)
    if all(row.run is None for row in rows):
        raise UserError(f"no run of {sweep.folder} has begun: python -m gpt_common.sweep run begins them")
    if all(math.isnan(row.best) for row in rows):
        raise UserError(f"no run of {sweep.folder} was evaluated yet: python -m gpt_common.sweep list shows them")
    return write_page(render_sweep(sweep, rows), sweep.folder / PAGE)


def render_sweep(sweep: Sweep, rows: Sequence[Row]) -> str:
    """The page."""
    rows, fields = list(rows), fields_of(sweep)
    best = best_of(rows)
    judged = sorted((row for row in rows if not math.isnan(row.best)), key=lambda row: row.best)
    # The first is drawn pale: the worst of them, not the best.
    curves = {row.cell.name: row.run for row in reversed(judged[:MOST_CURVES]) if row.run is not None}
    shades = {name: page_colour(colour(i)) for i, name in enumerate(curves)}
    numbers = numeric(fields, judged)
    return render(
        "page.html.jinja",
        folder=Path(__file__).parent,
        name=sweep.folder.name,
        facts=facts(rows, best),
        best=best,
        heads=[*fields, *HEADS[:-1], "time", HEADS[-1]],
        words=len(fields) + 1,
        rows=[
            (
                shades.get(row.cell.name, ""),
                row is best,
                [*(shown(value_of(row.cell, field)) for field in fields), *_figures(row)],
            )
            for row in [*judged, *(row for row in rows if math.isnan(row.best))]
        ],
        failed=[row for row in rows if row.why],
        over_fields=svg(
            over_fields(judged, numbers), "fields", "Best loss over " + ", ".join(numbers),
            height=320 * -(-len(numbers) // 2), narrow_height=260 * len(numbers),
            titles={f"over-{field}": [f"{row.cell.name}: {loss(row.best)}" for row in judged] for field in numbers},
        ) if numbers else "",
        curves=svg(
            figures.compared(curves, ("step",)), "curves", "Losses over steps", height=420, narrow_height=420,
        ),
        left_out=len(judged) - len(curves),
    )  # fmt: skip


def _figures(row: Row) -> list[str]:
    *before, speed = row.figures()
    return [*before, duration(row.run.course.seconds) if row.run is not None else "-", speed]


def facts(rows: Sequence[Row], best: Row | None) -> list[tuple[str, str]]:
    """(what, figure) of the first row."""
    states = [row.state for row in rows]
    found = [("runs", f"{len(rows)}")] + [(state, f"{states.count(state)}") for state in dict.fromkeys(states)]
    if best is not None and best.run is not None:
        found.append(("best loss, nats per token", loss(best.best)))
        if best.run.course.excess is not None:
            found.append(("above the floor", loss(best.run.course.excess)))
    hours = sum(row.run.course.seconds for row in rows if row.run is not None)
    return [*found, ("training in all", duration(hours))]


def numeric(fields: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Fields over whose numbers losses are drawn; a seed is none of them, it has no order."""

    def is_number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)

    return [
        field
        for field in fields
        if field != "seed"
        and all(is_number(value_of(row.cell, field)) for row in rows)
        and len({value_of(row.cell, field) for row in rows}) > 1
    ]


def over_fields(rows: Sequence[Row], fields: Sequence[str]) -> Draw:
    """The best loss of each run over each field, with a line through the lowest at each value."""

    def draw(figure: Figure) -> None:
        most = 4 if narrow(figure) else 6
        columns = 1 if narrow(figure) or len(fields) == 1 else 2
        grid = figure.subplots(-(-len(fields) // columns), columns, squeeze=False)
        panels: list[Axes] = list(grid.flat)
        for spare in panels[len(fields) :]:
            spare.remove()
        for axes, field in zip(panels, fields, strict=False):
            x = [float(value_of(row.cell, field)) for row in rows]
            lowest = {at: min(row.best for row, here in zip(rows, x, strict=True) if here == at) for at in sorted(x)}
            axes.plot([*lowest], [*lowest.values()], color=SOFT, linewidth=1.2)
            axes.scatter(x, [row.best for row in rows], color=INK, s=26, linewidths=0, zorder=3).set_gid(
                f"over-{field}"
            )
            if min(x) > 0 and max(x) / min(x) >= WIDE_RANGE:
                logarithmic(axes.xaxis, "{:.3g}".format, most)
            if len(lowest) <= most:
                axes.set_xticks([*lowest])
            axes.set_xlabel(field)
            axes.set_ylabel("best loss, nats per token")

    return draw
