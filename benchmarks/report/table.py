"""The result as a table of 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.report.beside import beside
from benchmarks.report.findings import extras, findings, machine_doubts, measured, memory_key, parameters, size, times
from benchmarks.results import BackendRow, CaseResult, Result, Summary
from gpt_common.words import WIDTH, milliseconds, rate, share

if TYPE_CHECKING:
    from rich.console import Console


def print_result(result: Result) -> None:
    """Table and findings of every case."""
    from rich.console import Console

    # A pipe has no width of its own; rich would take 80 then, and so do wider terminals, for one look everywhere.
    console = Console(width=WIDTH, highlight=False, soft_wrap=False)
    for case in result.cases:
        print_case(console, case)
    for line in machine_doubts(result.environment):
        console.print(f"warning: {line}", style="yellow", markup=False)


def print_case(console: Console, case: CaseResult) -> None:
    """One table, and below it what it means."""
    from rich.table import Table

    title = f"{parameters(case.work)}, {case.work.tokens_per_step:,} tokens per step, {case.work.dtype}"
    if case.work.adapter:
        title += f", {case.work.adapter}"
    if case.changes:
        title = f"{case.name}: {title}"
    table = Table(title=title, title_style="bold", title_justify="left", box=None, padding=(0, 1), pad_edge=False)
    table.add_column("backend", no_wrap=True, max_width=18)
    for name in ("ms/step", "p95", "tokens/s", "MFU", "memory", "J/ktok", "x fastest"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, figures in measured(case):
        table.add_row(*_cells(row, figures, case))
    console.print()
    console.print(table)
    for line in [*findings(case), *extras(case), *beside(case)]:
        console.print(line, markup=False)


def _cells(row: BackendRow, figures: Summary, case: CaseResult) -> list[str]:
    return [
        row.label + ("" if row.verified != "unverified" else " (?)"),
        milliseconds(figures.seconds_per_step),
        milliseconds(figures.latency.p95) if figures.latency else "-",
        rate(figures.tokens_per_second),
        share(figures.mfu.measured),
        size(getattr(figures.memory, memory_key([case]))),
        f"{1000 * figures.energy.joules_per_token:.3g}" if figures.energy else "-",
        _times(row, case),
    ]


def _times(row: BackendRow, case: CaseResult) -> str:
    if row.backend == measured(case)[0][0].backend:
        return "1"
    found = times(case, row)
    if found is None:
        return "-"
    return f"{found.ratio.value:.2f}" if found.claimed else f"({found.ratio.value:.2f})"
