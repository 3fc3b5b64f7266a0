"""`python -m gpt_common.runs list | show | report | compare`: the runs that there are, and how they went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from gpt_common.cli import parse_subcommand
from gpt_common.errors import run_main
from gpt_common.words import one_line

PROG = "python -m gpt_common.runs"


def _plain(metavar: str) -> object:
    return tyro.conf.arg(metavar=metavar)


@dataclass(frozen=True, kw_only=True)
class List:
    """Which runs there are, the newest first, and how well each did."""

    runs_dir: Path = Path("runs")
    """Folder of runs."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """What a run is and how it went."""

    run: Annotated[tyro.conf.Positional[Path | None], _plain("[RUN]")] = None
    """Folder of the run, or its name in runs/; the newest run if not given."""
    runs_dir: Path = Path("runs")
    """Folder of runs."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write the page of a run: curves, samples, configuration, environment."""

    run: Annotated[tyro.conf.Positional[Path | None], _plain("[RUN]")] = None
    """Folder of the run, or its name in runs/; the newest run if not given. It may still be going."""
    out: Annotated[Path | None, _plain("FILE")] = None
    """The page; report.html in the run's folder if not given."""
    runs_dir: Path = Path("runs")
    """Folder of runs."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Write a page with the losses of runs over each other."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], _plain("RUN RUN...")] = ()
    """Folders of runs of either twin, or their names in runs/."""
    out: Annotated[Path | None, _plain("FILE")] = None
    """The page; compare.html in the folder of runs if not given."""
    png: Annotated[Path | None, _plain("FILE")] = None
    """Write one picture, by steps, instead of the page."""
    runs_dir: Path = Path("runs")
    """Folder of runs."""


COMMANDS: dict[str, Any] = {"list": List, "show": Show, "report": Report, "compare": Compare}


def main(argv: Sequence[str]) -> None:
    """The command."""
    command: List | Show | Report | Compare | None = parse_subcommand(COMMANDS, argv, prog=PROG)
    if command is None:
        return
    # Not for --help: matplotlib, numpy and jinja2 take their time.
    from gpt_common.training.report import listing

    match command:
        case List():
            listing.print_runs(command.runs_dir)
        case Show():
            listing.print_run(command.run, command.runs_dir)
        case Report():
            print(one_line(str(listing.make_report(command.run, command.runs_dir, command.out))))
        case Compare():
            print(one_line(str(listing.compare(command.runs, command.runs_dir, command.out, command.png))))


if __name__ == "__main__":
    run_main(main)
