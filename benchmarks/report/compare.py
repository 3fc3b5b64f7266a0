"""Two results side by side: two machines, or one machine before and after a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report.pairs import Ratio, differs, unpaired_ratio
from benchmarks.report.schema import read_result
from gpt_common.config import differences, from_dict
from gpt_common.errors import UserError
from gpt_common.training.console import milliseconds

SAME_WORK = ("model.", "optim.", "train.batch_size", "train.grad_accum_steps", "train.gradient_checkpointing")
"""Fields that must be equal, because they decide what one step does."""


def print_comparison(first: Path, second: Path) -> None:
    """Print both results' times per step, their ratio, and in what else the two differ.

    Raises:
        UserError: a file that is no result, or results of different work.
    """
    from rich.console import Console
    from rich.table import Table

    a, b = read_result(first), read_result(second)
    console = Console(width=80, highlight=False)
    for case_a, case_b in pair_cases(a, b):
        table = Table(title=case_a["name"], title_justify="left", box=None, padding=(0, 1), pad_edge=False)
        table.add_column("backend", no_wrap=True)
        for name in ("A ms/step", "B ms/step", "A / B", "95 % interval", ""):
            table.add_column(name, justify="right", no_wrap=True)
        for row in compare_cases(case_a, case_b):
            ratio = row["ratio"]
            interval = "-" if ratio.low is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
            table.add_row(
                row["backend"],
                milliseconds(row["a"]),
                milliseconds(row["b"]),
                f"{ratio.value:.3f}",
                interval,
                row["verdict"],
            )
        console.print(table)
    for line in differences_of(a, b):
        console.print(line, markup=False)


def pair_cases(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Cases of equal work.

    Raises:
        UserError: there are none.
    """
    pairs, why = [], "the second has no case"
    for case in a["cases"]:
        for other in b["cases"]:
            changed = differences(from_dict(case["config"]), from_dict(other["config"]))
            changed = {key: values for key, values in changed.items() if key.startswith(SAME_WORK)}
            if not changed:
                pairs.append((case, other))
            else:
                key, (mine, theirs) = next(iter(changed.items()))
                why = f"{key} is {mine} in the one and {theirs} in the other"
    if not pairs:
        raise UserError(f"the two results measured different work: {why}")
    return pairs


def compare_cases(a: dict[str, Any], b: dict[str, Any]) -> list[dict[str, Any]]:
    """Every backend that both measured, with the ratio of its times."""
    rows_b = {row["label"]: row for row in b["rows"] if row["summary"]}
    found = []
    for row in a["rows"]:
        other = rows_b.get(row["label"])
        if row["summary"] is None or other is None or row["control"]:
            continue
        ratio = unpaired_ratio(_rounds(row), _rounds(other))
        if ratio is not None:
            found.append(
                {
                    "backend": row["label"],
                    "a": row["summary"]["seconds_per_step"],
                    "b": other["summary"]["seconds_per_step"],
                    "ratio": ratio,
                    "verdict": verdict(ratio, [control_of(a), control_of(b)]),
                }
            )
    return found


def _rounds(row: dict[str, Any]) -> list[float]:
    return [seconds for seconds in row["summary"]["rounds"] if seconds is not None]


def control_of(case: dict[str, Any]) -> Ratio | None:
    """The A/A control of a case."""
    control = case["control"]
    return None if control is None else Ratio(control["ratio"], control["low"], control["high"], control["rounds"])


def verdict(ratio: Ratio, controls: list[Ratio | None]) -> str:
    """Which is faster, if the interval excludes 1 and the difference is beyond what both sessions' controls show."""
    if not all(differs(ratio, control) for control in controls):
        return "no difference shown"
    return "A is faster" if ratio.value < 1 else "B is faster"


def differences_of(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What else differs: hardware, versions, variables, dtype."""
    mine, theirs = _facts(a), _facts(b)
    return [
        f"{name}: {mine.get(name)} (A), {theirs.get(name)} (B)"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]


def _facts(result: dict[str, Any]) -> dict[str, Any]:
    environment = result["environment"]
    flat = {
        f"{part}.{key}": value
        for part in ("hardware", "versions", "variables")
        for key, value in environment[part].items()
    }
    return flat | {"git": environment["git"], "dtype": result["cases"][0]["config"]["train"]["dtype"]}
