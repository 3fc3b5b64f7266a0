"""`python benchmarks/scale.py run | fit | plan GRID.toml`: what a bigger model will reach, from smaller ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpt_common.cli import parse_subcommand
from gpt_common.errors import UserError, run_main
from gpt_common.sweep import command as sweeping
from gpt_common.sweep.command import Which
from gpt_common.words import say

PROG = "python benchmarks/scale.py"


@dataclass(frozen=True, kw_only=True)
class Run(sweeping.Run):
    """Train the runs that are not done yet, the cheapest first.

    Ctrl-C stops, each run saved; the same command goes on.
    """

    examples: ClassVar[tuple[str, ...]] = ("stories.toml --jobs 2 --threads 1",)


@dataclass(frozen=True, kw_only=True)
class FitCommand(Which):
    """Fit the laws to the runs that are done, and foretell one."""

    examples: ClassVar[tuple[str, ...]] = ("stories.toml --predict 192,4,8M",)
    predict: str | None = None
    """A run to foretell: width,depth,tokens."""
    json: Path | None = None
    """Write points, laws and prediction to this file as well."""


@dataclass(frozen=True, kw_only=True)
class Plan(Which):
    """The best model for a budget of hours on this machine."""

    hours: float = 1.0
    """The budget."""


COMMANDS: dict[str, Any] = {"run": Run, "fit": FitCommand, "plan": Plan}


def main(argv: Sequence[str]) -> None:
    """The command."""
    command: Run | FitCommand | Plan | None = parse_subcommand(COMMANDS, argv, prog=PROG, takes="GRID")
    if command is None:
        return
    # Not for --help: what reads runs takes its time to import.
    from benchmarks.scaling.grid import finished_runs, floor_of, points_of, read_grid, seconds_of, vocabulary_of

    grid = read_grid(command.file, twin=command.twin)
    sweep = grid.sweep(command.out)
    if isinstance(command, Run):
        sweeping.train(sweep, command, again=" ".join([PROG, *argv]))
        return
    from benchmarks.scaling.findings import (
        find,
        foretell,
        foretell_by_size,
        plan,
        plan_lines,
        published_lines,
        write_findings,
    )

    runs = finished_runs(sweep)
    floor = floor_of(runs)
    try:
        findings = find(points_of(runs), floor)
    except ValueError as error:
        raise UserError(f"{sweep.folder}: {error}; {PROG} run trains more") from None
    for line in findings.lines():
        say(line)
    match command:
        case FitCommand():
            foretold = by_size = None
            if command.predict is not None:
                config = grid.asked(command.predict).with_vocabulary(vocabulary_of(runs))
                foretold = foretell(config, findings.best)
                say(f"  foretold for {command.predict}: {foretold.said(floor)}")
                by_size = foretell_by_size(config, findings.size)
                if by_size is not None:
                    say(f"    by size alone: {by_size.said(floor)}")
            for line in published_lines(findings.best):
                say(line)
            if command.json is not None:
                write_findings(command.json, findings, foretold, by_size)
        case Plan():
            planned = plan(grid, findings.best, seconds_of(runs), 3600 * command.hours, vocabulary_of(runs))
            if planned is None:
                raise UserError(f"no run of {sweep.folder} says how fast this machine is")
            for line in plan_lines(planned, floor):
                say(line)


if __name__ == "__main__":
    run_main(main)
