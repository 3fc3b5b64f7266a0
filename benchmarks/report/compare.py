"""Two results side by side: two machines, or one machine before and after a change."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from benchmarks.report.findings import measured, ratio_of
from benchmarks.report.pairs import Ratio, differs, unpaired_ratio
from benchmarks.results import CaseResult, Result, read_result
from gpt_common.config import differences
from gpt_common.errors import UserError
from gpt_common.words import WIDTH, milliseconds

SAME_WORK = (
    "model.",
    "optim.",
    "adapter.",
    "train.batch_size",
    "train.grad_accum_steps",
    "train.gradient_checkpointing",
)
"""Fields that must be equal, because they decide what one step does."""


def print_comparison(first: Path, second: Path) -> None:
    """Print both results' times per step, their ratio, and in what else the two differ.

    Raises:
        UserError: a file that is no result, or results of different work.
    """
    from rich.console import Console
    from rich.table import Table

    a, b = read_result(first), read_result(second)
    console = Console(width=WIDTH, highlight=False)
    for case_a, case_b in pair_cases(a, b):
        table = Table(title=case_a.name, title_justify="left", box=None, padding=(0, 1), pad_edge=False)
        table.add_column("backend", no_wrap=True)
        for name in ("A ms/step", "B ms/step", "A / B", "95 % interval", ""):
            table.add_column(name, justify="right", no_wrap=True)
        for row in compare_cases(case_a, case_b):
            ratio = row.ratio
            interval = "-" if ratio.low is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
            table.add_row(
                row.backend,
                milliseconds(row.a),
                milliseconds(row.b),
                f"{ratio.value:.3f}",
                interval,
                row.verdict,
            )
        console.print(table)
    for line in differences_of(a, b):
        console.print(line, markup=False)


def pair_cases(a: Result, b: Result) -> list[tuple[CaseResult, CaseResult]]:
    """Cases of equal work.

    Raises:
        UserError: there are none.
    """
    pairs, why = [], "the second has no case"
    for case in a.cases:
        for other in b.cases:
            changed = differences(case.run_config, other.run_config)
            changed = {key: values for key, values in changed.items() if key.startswith(SAME_WORK)}
            if not changed:
                pairs.append((case, other))
            else:
                key, (mine, theirs) = next(iter(changed.items()))
                why = f"{key} is {mine} in the one and {theirs} in the other"
    if not pairs:
        raise UserError(f"the two results measured different work: {why}")
    return pairs


class Compared(NamedTuple):
    """One backend in both results."""

    backend: str
    a: float
    """Seconds per step."""
    b: float
    ratio: Ratio
    verdict: str


def compare_cases(a: CaseResult, b: CaseResult) -> list[Compared]:
    """Every backend that both measured, with the ratio of its times."""
    others = {row.label: summary for row, summary in measured(b)}
    controls = [None if case.control is None else ratio_of(case.control) for case in (a, b)]
    found = []
    for row in a.rows:
        mine, other = row.summary, others.get(row.label)
        if mine is None or other is None or row.control:
            continue
        ratio = unpaired_ratio(*([s for s in one.rounds if s is not None] for one in (mine, other)))
        if ratio is not None:
            said = verdict(ratio, controls)
            found.append(Compared(row.label, mine.seconds_per_step, other.seconds_per_step, ratio, said))
    return found


def verdict(ratio: Ratio, controls: list[Ratio | None]) -> str:
    """Which is faster, if the interval excludes 1 and the difference is beyond what both sessions' controls show."""
    if not all(differs(ratio, control) for control in controls):
        return "no difference shown"
    return "A is faster" if ratio.value < 1 else "B is faster"


def differences_of(a: Result, b: Result) -> list[str]:
    """What else differs: hardware, versions, variables, dtype."""
    mine, theirs = _facts(a), _facts(b)
    return [
        f"{name}: {mine.get(name)} (A), {theirs.get(name)} (B)"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]


def _facts(result: Result) -> dict[str, object]:
    environment = result.environment
    parts = {
        "hardware": asdict(environment.hardware),
        "versions": environment.versions,
        "variables": environment.variables,
    }
    flat = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
    return flat | {"git": environment.git, "dtype": result.cases[0].run_config.train.dtype}
