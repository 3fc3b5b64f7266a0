"""What commands over a sweep are told, whatever file describes it, and the one way of training what is not done."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from gpt_common.errors import Stopped, UserError, WorkFailed, nobody_listens
from gpt_common.sweep.processes import LOGS
from gpt_common.words import one_line, say

if TYPE_CHECKING:
    from gpt_common.sweep.definition import Sweep

# The packages' names are understood as well.
Twin = Annotated[Literal["torch", "mlx", "torch_gpt", "mlx_gpt"] | None, tyro.conf.arg(metavar="torch|mlx")]
File = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True, kw_only=True)
class Which:
    """Which sweep."""

    file: File
    """What to train (TOML)."""
    twin: Twin = None
    """Which twin trains, whatever the file says; else PyTorch's."""
    out: Path | None = None
    """Folder of the runs, if not runs/NAME."""


@dataclass(frozen=True, kw_only=True)
class Run(Which):
    """Train what is not done yet; the same command goes on.

    Ctrl-C stops, each run saved.
    """

    examples: ClassVar[tuple[str, ...]] = ("rates.toml --jobs 2 --threads 1",)
    jobs: int = 1
    """Runs side by side."""
    threads: int | None = None
    """Of each run, on a CPU."""

    def __post_init__(self) -> None:
        for name in ("jobs", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")


def train(sweep: Sweep, command: Run, again: Sequence[str]) -> None:
    """Train what is not done, and print the table.

    Args:
        again: the words of the command line, which goes on where this ends.

    Raises:
        WorkFailed: runs failed; the others were trained.
        Stopped: a signal ended it; each run is saved.
    """
    # Not for --help: what reads runs takes its time to import.
    from gpt_common.sweep.queue import Queue
    from gpt_common.sweep.table import print_sweep

    queue = Queue(sweep, command.jobs, command.threads, _tell)
    done = queue.work()
    print_sweep(sweep)
    go_on = f"go on with: {one_line(shlex.join(again))}"
    if queue.stopped_by is not None:
        _tell(go_on)
        raise Stopped(queue.stopped_by)
    if queue.failed:
        count = f"{len(queue.failed)} run" + ("s" if len(queue.failed) > 1 else "")
        logs = sweep.folder / LOGS
        raise WorkFailed(f"{count} failed: their words are in {logs}; the same command tries them again")
    if not done:
        _tell(f"another queue trains the rest; {go_on}")


def _tell(line: str) -> None:
    """Print a line; where whoever read it has gone, the work goes on."""
    try:
        say(line, flush=True)
    except BrokenPipeError:
        nobody_listens()
