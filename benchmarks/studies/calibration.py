"""`python benchmarks/studies/calibration.py runs/NAME`: how sure a model is, beside how sure it may be, as it learns.

Asks checkpoints of a run that learns the built-in stories about every next character of new ones, prints what came
of it, also with the last one's logits times 1.3, and draws a picture.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import numpy.typing as npt

from gpt_common.cli import parse
from gpt_common.data.batches import Tokens
from gpt_common.drawing import SOFT, Draw, colour, logarithmic, write_png
from gpt_common.errors import UserError, run_main
from gpt_common.judging.probes.calibration import Calibration, calibration
from gpt_common.judging.probes.measure import SEED
from gpt_common.judging.probes.told import stories
from gpt_common.training.report.probes import reliability
from gpt_common.training.source import open_source

TOO_SURE = 1.3
"""By which logits are multiplied: the probe must name it."""


@dataclass(frozen=True, kw_only=True)
class CalibrationStudy:
    """Calibration of checkpoints of a run on the built-in stories, in PyTorch on the CPU."""

    steps: tuple[int, ...] = (100, 200, 500, 1000, 2000)
    """Checkpoints that the run has kept (--checkpoint-interval 100 --keep-checkpoints 20)."""
    stories: int = 200
    """New stories, every character of which is looked at."""
    png: Path | None = None
    """Draw them into this file."""


def asked(run: Path, step: int, told: Sequence[str], factor: float = 1.0) -> Calibration:
    """What a checkpoint says of every character, with its logits times a factor."""
    import torch

    from torch_gpt.checkpoint import build_model
    from torch_gpt.evaluate import Scorer

    source = open_source(run / "checkpoints" / f"step-{step:06d}", latest=False)
    if source.tokenizer.kind != "char":
        raise UserError(f"{run} has a vocabulary of {source.tokenizer.kind}: the true one is of characters")

    class Scaled(Scorer):
        def logits(self, tokens: Tokens) -> npt.NDArray[np.float32]:
            return np.asarray(super().logits(tokens) * np.float32(factor))

    model = build_model(source.checkpoint, source.model, torch.float32)
    return calibration(told, source.tokenizer, Scaled(model))


def drawing(found: Mapping[int, Calibration]) -> Draw:
    """Reliability at each step on the left; on the right what it comes to over steps."""

    def draw(figure: object) -> None:
        from matplotlib.figure import Figure

        assert isinstance(figure, Figure)
        places = figure.subplot_mosaic("ab;ac")
        for i, (step, each) in enumerate(found.items()):
            points = [(point.predicted, point.true) for point in each.bins]
            reliability(places["a"], points, shade=colour(i), label=f"step {step:,}")
        places["a"].set_title("true probability, where the model says ...")
        places["a"].set_xlabel("probability that it says")
        places["a"].legend(fontsize=12)
        steps = list(found)
        scales = [each.scale for each in found.values()]
        errors = np.array([[each.scale - low, high - each.scale] for each in found.values()
                           for low, high in [each.scale_interval]]).T  # fmt: skip
        places["b"].errorbar(steps, scales, yerr=errors, fmt="o-", color=colour(0), markersize=5)
        places["b"].axhline(1, color=SOFT, linewidth=1, linestyle="--")
        places["b"].set_title("logits: how many times too large")
        for name, label in (("divergence", "divergence, nats per character"), ("misplaced", "misplaced probability")):
            values = [getattr(each, name) for each in found.values()]
            places["c"].plot(steps, values, "o-", color=colour(name == "misplaced"), markersize=5, label=label)
        logarithmic(places["c"].yaxis)
        places["c"].set_title("distance from the truth")
        places["c"].legend(fontsize=12)
        for place in "bc":
            logarithmic(places[place].xaxis, text="{:.0f}".format)
        places["c"].set_xlabel("step")

    return draw


def main(argv: Sequence[str]) -> None:
    """The command."""
    if not argv or argv[0].startswith("-"):
        parse(CalibrationStudy, list(argv), prog="python benchmarks/studies/calibration.py RUN")
        raise UserError("which run? python benchmarks/studies/calibration.py runs/NAME")
    run, *flags = argv
    study = parse(CalibrationStudy, flags, prog="python benchmarks/studies/calibration.py RUN")
    told = [one.text for one in islice(stories(SEED, "calibration"), study.stories)]
    print("   step  divergence  cal. error  misplaced  logits times too large      verdict")
    found: dict[int, Calibration] = {}
    for step in study.steps:
        found[step] = asked(Path(run), step, told)
        print(_row(f"{step}", found[step]), flush=True)
    print(_row(f"x {TOO_SURE}", asked(Path(run), study.steps[-1], told, TOO_SURE)))
    if study.png is not None:
        write_png(drawing(found), study.png, (900, 460))


def _row(name: str, found: Calibration) -> str:
    low, high = found.scale_interval
    return (
        f"{name:>7}  {found.divergence:10.4f}  {found.expected_calibration_error:10.4f}  {found.misplaced:9.4f}  "
        f"{found.scale:.3f} ({low:.3f} to {high:.3f})  {found.verdict:>14}"
    )


if __name__ == "__main__":
    run_main(main)
