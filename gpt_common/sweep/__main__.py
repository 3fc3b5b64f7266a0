"""`python -m gpt_common.sweep run | list | stop | page FILE.toml`: many runs from one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt_common.cli import parse_subcommand
from gpt_common.errors import run_main
from gpt_common.sweep.command import Run, Which, train
from gpt_common.words import one_line

PROG = "python -m gpt_common.sweep"


@dataclass(frozen=True, kw_only=True)
class List(Which):
    """How far each run is, and how well it did."""


@dataclass(frozen=True, kw_only=True)
class Stop(Which):
    """End what works at it on this machine; each run is saved."""


@dataclass(frozen=True, kw_only=True)
class Page(Which):
    """Write a page: losses over what was changed, and over each other."""


COMMANDS: dict[str, Any] = {"run": Run, "list": List, "stop": Stop, "page": Page}


def main(argv: Sequence[str]) -> None:
    """The command."""
    command: Run | List | Stop | Page | None = parse_subcommand(COMMANDS, argv, prog=PROG, takes="FILE")
    if command is None:
        return
    # Not for --help: what reads runs takes its time to import.
    from gpt_common.sweep.definition import read_sweep
    from gpt_common.sweep.page import write_sweep
    from gpt_common.sweep.processes import ask_to_end
    from gpt_common.sweep.table import print_sweep

    sweep = read_sweep(command.file, twin=command.twin, out=command.out)
    match command:
        case Run():
            train(sweep, command, again=[*PROG.split(), *argv])
        case List():
            print_sweep(sweep)
        case Stop():
            print(one_line(ask_to_end(sweep.folder).said(sweep.folder)))
        case Page():
            print(one_line(str(write_sweep(sweep))))


if __name__ == "__main__":
    run_main(main)
