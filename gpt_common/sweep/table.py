"""What the runs of a sweep reached: what is known of each, and a table."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from gpt_common.errors import UserError
from gpt_common.sweep.definition import SECTION_OF, Cell, Sweep
from gpt_common.sweep.processes import is_locked
from gpt_common.sweep.queue import FAILED, is_done, last_words, log_of, run_of
from gpt_common.training.report.listing import print_table
from gpt_common.training.report.page import loss
from gpt_common.training.report.past import PastRun
from gpt_common.words import WIDTH, printable, rate

HEADS = ("state", "steps", "best loss", "above floor", "tokens/s")
BEST = "*"
"""Stands at the lowest loss."""


@dataclass(frozen=True)
class Row:
    """What is known of a run."""

    cell: Cell
    state: str
    """waiting, starting, running, stopped, done, failed, or refused: its folder holds another one."""
    run: PastRun | None = None
    why: str = ""
    """Why it failed or was refused."""

    @property
    def best(self) -> float:
        """Its lowest validation loss; NaN where it was not evaluated."""
        return math.nan if self.run is None or self.run.course.best is None else self.run.course.best[1]

    def figures(self, best: bool = False) -> list[str]:
        """Under HEADS."""
        run = self.run
        if run is None:
            return [self.state, f"0/{self.cell.config.train.max_steps}", "-", "-", "-"]
        above = loss(run.course.excess) if run.course.excess is not None else "-"
        steps = f"{run.course.last_step}/{run.max_steps}"
        return [self.state, steps, loss(self.best) + BEST * best, above, rate(run.course.tokens_per_second)]


def rows_of(sweep: Sweep) -> list[Row]:
    """What is known of each run, in the order of the file; one that cannot be read is refused, and the others told."""
    return [_row(sweep, cell) for cell in sweep.cells]


def _row(sweep: Sweep, cell: Cell) -> Row:
    log = log_of(sweep, cell)
    try:
        run = run_of(sweep, cell)
    except UserError as error:
        return Row(cell, "refused", why=str(error))
    if run is not None and (run.going or is_done(run, log)):
        return Row(cell, run.state, run)
    if is_locked(log):
        return Row(cell, "starting", run)
    if (words := last_words(log)).startswith(FAILED):
        return Row(cell, "failed", run, words.removeprefix(FAILED))
    return Row(cell, "waiting" if run is None else "stopped", run)


def best_of(rows: list[Row]) -> Row | None:
    """The run with the lowest loss; None where there are not two, or not of one text, whose losses compare."""
    judged = [row for row in rows if not math.isnan(row.best)]
    if len(judged) < 2 or len({row.cell.config.data.dataset for row in rows}) > 1:
        return None
    return min(judged, key=lambda row: row.best)


def fields_of(sweep: Sweep) -> list[str]:
    """What the runs differ in; of a single one, what it has."""
    fields = list(dict.fromkeys(field for cell in sweep.cells for field in cell.values))
    differing = [field for field in fields if len({str(value_of(cell, field)) for cell in sweep.cells}) > 1]
    return differing or fields


def value_of(cell: Cell, field: str) -> Any:
    """What a run has in a field, whether the file says it of this run or of all."""
    if field in cell.values or field not in SECTION_OF:
        return cell.values.get(field, "")
    return getattr(getattr(cell.config, SECTION_OF[field]), field)


def print_sweep(sweep: Sweep) -> None:
    """A line for each run, in the order of the file, and why some failed."""
    rows, fields = rows_of(sweep), fields_of(sweep)
    best = best_of(rows)
    values = [[str(value_of(row.cell, field)) for field in fields] for row in rows]
    figures = [row.figures(row is best) for row in rows]
    taken = sum(max(map(len, column)) + 1 for column in zip(HEADS, *figures, strict=True))
    needed = sum(max(map(len, column)) + 1 for column in zip(fields, *values, strict=True))
    if taken + needed > (shutil.get_terminal_size((WIDTH, 24)).columns if sys.stdout.isatty() else WIDTH):
        # One column that is folded, for many that would be folded letter by letter.
        values = [[" ".join(f"{f}={v}" for f, v in zip(fields, line, strict=True))] for line in values]
        fields = ["run"]
    print_table((*fields, *HEADS), [a + b for a, b in zip(values, figures, strict=True)], left=len(fields) + 1)
    if best is not None:
        print(f"{BEST} best: {printable(best.cell.name)}")
    for line in failures(rows):
        print(line)


def failures(rows: list[Row]) -> Iterator[str]:
    """Why each run failed, or was refused, in lines."""
    for row in rows:
        if row.why:
            said = f"{row.cell.name} {row.state}: {row.why}"
            yield from wrap(printable(said), WIDTH, subsequent_indent="  ", break_long_words=False)
