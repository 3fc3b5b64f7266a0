"""What the runs of a sweep reached: a table, and a page with their losses over each other."""

from __future__ import annotations

from pathlib import Path

from gpt_common.errors import UserError
from gpt_common.sweep.definition import Cell, Sweep
from gpt_common.sweep.queue import run_of
from gpt_common.training.report.listing import compare, print_table
from gpt_common.training.report.page import loss
from gpt_common.words import rate


def print_sweep(sweep: Sweep) -> None:
    """A line for each run, in the order of the file."""
    fields = list(dict.fromkeys(field for cell in sweep.cells for field in cell.values))
    heads = (*fields, "state", "steps", "best loss", "above floor", "tokens/s")
    print_table(heads, [_row(sweep, cell, fields) for cell in sweep.cells], left=len(fields) + 1)


def _row(sweep: Sweep, cell: Cell, fields: list[str]) -> list[str]:
    values = [str(cell.values.get(field, "")) for field in fields]
    run = run_of(sweep, cell)
    if run is None:
        return [*values, "waiting", f"0/{cell.config.train.max_steps}", "-", "-", "-"]
    course = run.course
    return [
        *values,
        run.state,
        f"{course.last_step}/{run.max_steps}",
        loss(course.best[1]) if course.best else "-",
        loss(course.excess) if course.excess is not None else "-",
        rate(course.tokens_per_second),
    ]


def write_page(sweep: Sweep) -> Path:
    """A page of the runs that there are; returns its path.

    Raises:
        UserError: there is none yet.
    """
    folders = [sweep.folder_of(cell) for cell in sweep.cells if run_of(sweep, cell) is not None]
    if not folders:
        raise UserError(f"no run of {sweep.folder} has begun: python -m gpt_common.sweep run begins them")
    return compare(folders, sweep.folder, sweep.folder / "sweep.html", None)
