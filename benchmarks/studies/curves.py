"""`python benchmarks/studies/curves.py RUN...`: the loss curves of runs in one picture, with the lowest possible loss.

Lines are the losses of training steps as they were logged, circles the validation losses, and the dashed line is the
corpus's floor where it is known (`stories`). Reads metrics.jsonl, so a run that is still going can be drawn too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpt_common.cli import parse
from gpt_common.drawing import SOFT, colour, logarithmic, write_png
from gpt_common.errors import UserError, run_main
from gpt_common.files import cannot_write
from gpt_common.training.runlog import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (640, 330)


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Draw the loss curves of runs in one picture."""

    runs: Annotated[list[Path], tyro.conf.Positional] = field(default_factory=list)
    """Folders of runs."""
    out: Path = Path("curves.png")
    """The picture."""


def draw(figure: Figure, runs: dict[str, list[dict[str, Any]]]) -> None:
    """Draw the rows of metrics.jsonl by name of the run."""
    axes = figure.subplots()
    floors = set()
    for i, (name, rows) in enumerate(runs.items()):
        training, validation = (
            [(row["step"], row[loss]) for row in rows if row.get(loss) is not None] for loss in ("loss", "val_loss")
        )
        floors |= {row["floor"] for row in rows if row.get("floor") is not None}
        # The first is drawn wide and pale, so that a second one on the same numbers does not hide it.
        style: dict[str, Any] = {"color": colour(i), "alpha": 1 if i else 0.35}
        axes.plot(*zip(*training, strict=True), label=name, linewidth=1.2 if i else 5, **style)
        axes.plot(*zip(*validation, strict=True), "o", markersize=4 if i else 9, **style)
    for floor in floors:
        axes.axhline(floor, color=SOFT, linewidth=1, linestyle="--", label=f"lowest possible loss, {floor:.3f}")
    axes.set(xlabel="step", ylabel="loss, nats per token", title="training (lines) and validation (circles)")
    logarithmic(axes.yaxis)
    axes.legend()


def main(argv: Sequence[str]) -> None:
    """The command."""
    command = parse(Curves, argv, prog="python benchmarks/studies/curves.py")
    if not command.runs:
        raise UserError("missing argument: RUN, the folder of a run")
    runs = {run.name: read_metrics(run) for run in command.runs}
    for name, rows in runs.items():
        if not all(any(loss in row for row in rows) for loss in ("loss", "val_loss")):
            raise UserError(f"{name} has no logged losses yet")
    try:
        write_png(lambda figure: draw(figure, runs), command.out, SIZE)
    except OSError as error:
        raise cannot_write(command.out, error) from None
    print(command.out)


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
