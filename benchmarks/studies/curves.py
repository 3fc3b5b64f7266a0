"""`python benchmarks/studies/curves.py RUN...`: the loss curves of runs in one picture, with the lowest possible loss.

Lines are the losses of training steps as they were logged, circles the validation losses, and the dashed line is the
corpus's floor where it is known (`stories`). Reads metrics.jsonl, so a run that is still going can be drawn too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpt_common.cli import parse
from gpt_common.errors import UserError, run_main
from gpt_common.training.runlog import read_metrics


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Draw the loss curves of runs in one picture."""

    runs: Annotated[list[Path], tyro.conf.Positional] = field(default_factory=list)
    """Folders of runs."""
    out: Path = Path("curves.png")
    """The picture: .png, .svg or .pdf."""


def draw(runs: Sequence[Path], out: Path) -> None:
    """Write the picture.

    Raises:
        UserError: a run without logged losses, or `out` cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure, axes = pyplot.subplots(figsize=(7.5, 3.6), dpi=120, layout="constrained")
    floors = set()
    for i, run in enumerate(runs):
        rows = read_metrics(run)
        steps = [row for row in rows if row.get("loss") is not None]
        if not steps:
            raise UserError(f"{run} has no logged losses yet")
        evaluations = [row for row in rows if row.get("val_loss") is not None]
        floors |= {row["floor"] for row in evaluations if row["floor"] is not None}
        # The first is drawn wide and pale, so that a second one on the same numbers does not hide it.
        style = {"color": f"C{i}", "linewidth": 1.2 if i else 5, "alpha": 1 if i else 0.35}
        axes.plot([row["step"] for row in steps], [row["loss"] for row in steps], label=run.name, **style)
        axes.plot(
            [row["step"] for row in evaluations],
            [row["val_loss"] for row in evaluations],
            marker="o",
            markersize=4 if i else 9,
            linestyle="",
            color=style["color"],
            alpha=style["alpha"],
        )
    for floor in floors:
        axes.axhline(floor, color="0.4", linewidth=1, linestyle="--", label=f"lowest possible loss, {floor:.3f}")
    axes.set(yscale="log", xlabel="step", ylabel="loss, nats per token")
    axes.set_title("training (lines) and validation (circles)", fontsize="medium")
    axes.set_yticks([0.05, 0.1, 0.2, 0.5, 1, 2, 5])
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    try:
        figure.savefig(out)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {out}: {error}") from None
    pyplot.close(figure)


def main(argv: Sequence[str]) -> None:
    """The command."""
    command = parse(Curves, argv, prog="python benchmarks/studies/curves.py")
    if not command.runs:
        raise UserError("missing argument: RUN, the folder of a run")
    draw(command.runs, command.out)
    print(command.out)


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
