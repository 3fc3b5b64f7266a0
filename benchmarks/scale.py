"""`python benchmarks/scale.py run | fit | plan GRID.toml`: what a bigger model will reach, from smaller ones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpt_common.cli import parse
from gpt_common.errors import UserError, WorkFailed, nearest, run_main
from gpt_common.words import one_line, say

PROG = "python benchmarks/scale.py"
File = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="GRID")]


@dataclass(frozen=True, kw_only=True)
class Which:
    """Which grid."""

    file: File
    """The grid (TOML): widths, depths, tokens."""
    twin: Literal["torch_gpt", "mlx_gpt"] | None = None
    """Which twin trains, if the file does not say it."""
    out: Path | None = None
    """Folder of the runs, if not runs/NAME."""


@dataclass(frozen=True, kw_only=True)
class Run(Which):
    """Train the runs that are not done yet, the cheapest first. Ctrl-C stops; the same command goes on."""

    examples: ClassVar[tuple[str, ...]] = ("stories.toml --jobs 2 --threads 1",)
    jobs: int = 1
    """Runs side by side."""
    threads: int | None = None
    """Of each run, on a CPU."""


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
    if not argv or argv[0] in ("-h", "--help", "--help-all"):
        lines = [f"  {name:<8} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in COMMANDS.items()]
        print("\n".join([f"usage: {PROG} COMMAND GRID", "", *lines, "", "Each has a --help of its own."]))
        return
    name, *arguments = argv
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}': {nearest(name, COMMANDS)}")
    command = parse(COMMANDS[name], arguments, prog=f"{PROG} {name}")
    # Not for --help: what reads runs takes its time to import.
    from benchmarks.scaling.grid import floor_of, points_of, read_grid, seconds_of, vocabulary_of
    from gpt_common.sweep.queue import Queue
    from gpt_common.sweep.table import print_sweep

    grid = read_grid(command.file, twin=command.twin)
    sweep = grid.sweep(command.out)
    if isinstance(command, Run):
        queue = Queue(sweep, command.jobs, command.threads, lambda line: say(line, flush=True))
        done = queue.work()
        print_sweep(sweep)
        if queue.failed:
            raise WorkFailed(f"{len(queue.failed)} runs failed: their last words are in {sweep.folder / 'logs'}")
        if not done:
            print(f"go on with: {one_line(' '.join([PROG, *argv]))}")
        return
    from benchmarks.scaling.findings import find, foretell, plan, plan_lines, published_lines, write_findings

    floor = floor_of(sweep)
    try:
        findings = find(points_of(sweep), floor)
    except ValueError as error:
        raise UserError(f"{sweep.folder}: {error}; {PROG} run trains more") from None
    for line in findings.lines():
        say(line)
    match command:
        case FitCommand():
            foretold = None
            if command.predict is not None:
                config = grid.asked(command.predict).with_vocabulary(vocabulary_of(sweep))
                foretold = foretell(config, findings.best)
                say(f"  foretold for {command.predict}: {foretold.said(floor)}")
            for line in published_lines(findings.best):
                say(line)
            if command.json is not None:
                write_findings(command.json, findings, foretold)
        case Plan():
            planned = plan(grid, findings.best, seconds_of(sweep), 3600 * command.hours, vocabulary_of(sweep))
            if planned is None:
                raise UserError(f"no run of {sweep.folder} says how fast this machine is")
            for line in plan_lines(planned, floor):
                say(line)


if __name__ == "__main__":
    run_main(main)
