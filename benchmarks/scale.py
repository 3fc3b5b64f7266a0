"""`python benchmarks/scale.py run | fit | plan | page GRID.toml`: what a bigger model will reach, from smaller ones."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
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
class Fitted(Which):
    """A fit, and runs beyond it."""

    predict: tuple[str, ...] = ()
    """Runs to foretell: width,depth,tokens each."""
    trained: tuple[Path, ...] = ()
    """Folders of runs that were trained since, to see what came of them."""


@dataclass(frozen=True, kw_only=True)
class FitCommand(Fitted):
    """Fit the laws to the runs that are done, and foretell others."""

    examples: ClassVar[tuple[str, ...]] = ("stories.toml --predict 192,4,8M",)
    json: Path | None = None
    """Write points, laws and predictions to this file as well."""


@dataclass(frozen=True, kw_only=True)
class Plan(Which):
    """The best model for a budget of hours or joules on this machine."""

    examples: ClassVar[tuple[str, ...]] = ("stories.toml --hours 2", "stories.toml --joules 1e6 --watts 45")
    hours: float | None = None
    """The budget; 1, if there is no other."""
    joules: float | None = None
    """The budget, in place of hours; 3.6e6 are a kWh."""
    watts: float | None = None
    """Power to assume, in place of what meters told of the runs."""

    def __post_init__(self) -> None:
        for name in ("hours", "joules", "watts"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name} is {value:g}: it must be above 0")
        if self.hours is not None and self.joules is not None:
            raise UserError("--hours and --joules are two budgets: leave one out")

    @property
    def seconds(self) -> float | None:
        """The budget, where it is one of time."""
        return None if self.joules is not None else 3600 * (1.0 if self.hours is None else self.hours)


@dataclass(frozen=True, kw_only=True)
class Page(Fitted):
    """Write a page of the grid beside its runs: pictures, tables, laws."""

    examples: ClassVar[tuple[str, ...]] = ("stories.toml --picture scaling.png",)
    picture: Path | None = None
    """Write the main pictures as one, too: a .png or an .svg."""


COMMANDS: dict[str, Any] = {"run": Run, "fit": FitCommand, "plan": Plan, "page": Page}


def gathered(argv: Sequence[str]) -> list[str]:
    """A command line with the values of a flag that stands several times behind its first: else the last would win."""
    words, several = list(argv), dict[str, list[str]]()
    for flag in ("--predict", "--trained"):
        while words.count(flag) > 1:
            at = len(words) - 1 - words[::-1].index(flag)
            end = next((i for i in range(at + 1, len(words)) if words[i].startswith("--")), len(words))
            several[flag] = words[at + 1 : end] + several.get(flag, [])
            del words[at:end]
        if flag in several:
            at = words.index(flag)
            end = next((i for i in range(at + 1, len(words)) if words[i].startswith("--")), len(words))
            words[end:end] = several[flag]
    return words


def main(argv: Sequence[str]) -> None:
    """The command."""
    command: Run | FitCommand | Plan | Page | None = parse_subcommand(COMMANDS, gathered(argv), prog=PROG, takes="GRID")
    if command is None:
        return
    # Not for --help: what reads runs takes its time to import.
    from benchmarks.scaling.grid import finished_runs, floor_of, points_of, read_grid, training_tokens, vocabulary_of

    grid = read_grid(command.file, twin=command.twin)
    sweep = grid.sweep(command.out)
    if isinstance(command, Run):
        sweeping.train(sweep, command, again=[*PROG.split(), *argv])
        return
    from benchmarks.scaling.findings import find

    runs = finished_runs(sweep)
    floor, length = floor_of(runs), training_tokens(grid.base.data)
    try:
        findings = find(points_of(runs), floor, embedded=points_of(runs, embeddings=True), length=length)
    except ValueError as error:
        raise UserError(f"{sweep.folder}: {error}; {PROG} run trains more") from None
    if len(findings.points) < len(sweep.cells):
        ended, whole = len(findings.points), len(sweep.cells)
        say(f"{ended} of the grid's {whole} runs have ended with a loss; the others are left out")
    _say(findings.lines())
    if isinstance(command, Plan):
        from benchmarks.scaling.grid import paces_of
        from benchmarks.scaling.planning import Budget, plan, plan_lines, training_lines

        budget = Budget(command.seconds, command.joules, command.watts)
        planned = plan(grid, findings, paces_of(runs), budget, vocabulary_of(runs))
        _say(plan_lines(planned, floor))
        _say(training_lines(planned.config, sweep, grid.name))
        return
    from benchmarks.scaling.foretelling import foretold_by

    vocabulary = vocabulary_of(runs)
    foretold = foretold_by(grid, findings, vocabulary, command.predict, command.trained)
    _say(line for each in foretold for line in each.lines(floor))
    if isinstance(command, FitCommand):
        from benchmarks.scaling.findings import published_lines, write_findings

        _say(published_lines(findings.best))
        if command.json is not None:
            write_findings(command.json, findings, [each.record() for each in foretold])
        return
    from benchmarks.scaling.page import told, write_scaling
    from benchmarks.scaling.pictures import view_of, write_overview

    view = view_of(grid, findings, foretold, vocabulary)
    if command.picture is not None:
        write_overview(view, command.picture)
    say(str(write_scaling(view, grid.name, told(runs, " ".join([PROG, *argv])), sweep.folder)))


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        say(line)


if __name__ == "__main__":
    run_main(main)
