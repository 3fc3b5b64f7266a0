"""`python -m gpt_common.sweep run | list | stop | page FILE.toml`: many runs from one file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from gpt_common.cli import parse
from gpt_common.errors import UserError, WorkFailed, nearest, run_main
from gpt_common.words import one_line, say

PROG = "python -m gpt_common.sweep"
File = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True, kw_only=True)
class Which:
    """Which sweep."""

    file: File
    """The sweep (TOML)."""
    twin: Literal["torch_gpt", "mlx_gpt"] | None = None
    """Which twin trains, if the file does not say it."""
    out: Path | None = None
    """Folder of the runs, if not runs/NAME."""


@dataclass(frozen=True, kw_only=True)
class Run(Which):
    """Train what is not done yet. Ctrl-C stops, each run saved; the same command goes on."""

    examples: ClassVar[tuple[str, ...]] = ("rates.toml --jobs 2 --threads 1",)
    jobs: int = 1
    """Runs side by side."""
    threads: int | None = None
    """Of each run, on a CPU."""

    def __post_init__(self) -> None:
        for name in ("jobs", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class List(Which):
    """How far each run is, and how well it did."""


@dataclass(frozen=True, kw_only=True)
class Stop(Which):
    """End the queues of this machine that work at it; each run is saved."""


@dataclass(frozen=True, kw_only=True)
class Page(Which):
    """Write a page with the losses of all its runs over each other."""


COMMANDS: dict[str, Any] = {"run": Run, "list": List, "stop": Stop, "page": Page}


def main(argv: Sequence[str]) -> None:
    """The command."""
    if not argv or argv[0] in ("-h", "--help", "--help-all"):
        lines = [f"  {name:<8} {(kind.__doc__ or '').splitlines()[0]}" for name, kind in COMMANDS.items()]
        print("\n".join([f"usage: {PROG} COMMAND FILE", "", *lines, "", "Each has a --help of its own."]))
        return
    name, *arguments = argv
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}': {nearest(name, COMMANDS)}")
    command: Run | List | Stop | Page = parse(COMMANDS[name], arguments, prog=f"{PROG} {name}")
    # Not for --help: what reads runs takes its time to import.
    from gpt_common.sweep.definition import read_sweep
    from gpt_common.sweep.queue import Queue, stop
    from gpt_common.sweep.table import print_sweep, write_page

    sweep = read_sweep(command.file, twin=command.twin, out=command.out)
    match command:
        case Run():
            queue = Queue(sweep, command.jobs, command.threads, lambda line: say(line, flush=True))
            done = queue.work()
            print_sweep(sweep)
            if queue.failed:
                raise WorkFailed(f"{len(queue.failed)} runs failed: their last words are in {sweep.folder / 'logs'}")
            if not done:
                again = one_line(" ".join([PROG, *sys.argv[1:]]))
                print(f"go on with: {again}")
        case List():
            print_sweep(sweep)
        case Stop():
            print(f"{stop(sweep)} queues are asked to end")
        case Page():
            print(one_line(str(write_page(sweep))))


if __name__ == "__main__":
    run_main(main)
