"""What a law says of a run that it has not seen, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from textwrap import wrap
from typing import Any

from benchmarks.scaling.findings import Findings, predicted
from benchmarks.scaling.grid import Grid, flops_of, loss_of, repeated, sizes_of, tokens_of
from benchmarks.scaling.prediction import Prediction
from gpt_common.config import RunConfig
from gpt_common.errors import UserError
from gpt_common.sweep.queue import unlike
from gpt_common.training.report.past import find_run, read_run
from gpt_common.words import WIDTH, rate

DECIDING = ("data.dataset", "train.max_steps", "train.batch_size", "train.grad_accum_steps")
"""Fields beside those of model and optimiser in which a run must be as the grid would have it."""


@dataclass(frozen=True)
class Foretold:
    """A run that is not of the grid, as the law foretells it; and what came of it, where it was trained since."""

    shape: tuple[int, int]
    """Width and depth."""
    parameters: int
    """Without embeddings."""
    tokens: int
    flops: float
    prediction: Prediction
    """By the law of size and tokens: of a single run."""
    by_size: Prediction | None
    """By the law of size and depth, if it is as long as the runs that that law is of."""
    repeats: str | None
    """That it reads some of its text again, if it does."""
    came: float | None = None
    """Its loss, once it was trained; the mean over seeds."""
    seeds: int = 0
    """How many it was trained with."""
    unlike: str = ""
    """Where its configuration is not the grid's, so that the law does not speak of it."""

    @property
    def name(self) -> str:
        """`192 x 4 on 8M`."""
        return f"{self.shape[0]} x {self.shape[1]} on {rate(self.tokens)}"

    @property
    def laws(self) -> dict[str, Prediction]:
        """What is foretold, by the law that says it."""
        said = {"size and tokens": self.prediction}
        return said if self.by_size is None else {**said, "size and depth": self.by_size}

    def lines(self, floor: float | None) -> Iterator[str]:
        """For people, 80 columns at most."""
        yield f"  foretold for {self.name}:"
        for law, said in self.laws.items():
            yield f"    by {law}:"
            yield f"      {said.said(floor)}"
        if self.repeats:
            yield f"    {self.repeats}"
        if self.came is not None:
            yield f"    came: {self.came:.4f}" + (f", the mean of {self.seeds} seeds" if self.seeds > 1 else "")
            for law, said in self.laws.items():
                place = "in" if said.holds(self.came) else "outside of"
                yield f"      {place} the interval by {law}; {said.error(self.came):+.1%} of its excess off"
        if self.unlike:
            yield from wrap(f"not a run of this grid: {self.unlike}", WIDTH, initial_indent="    ")

    def record(self) -> dict[str, Any]:
        """For a file."""
        fields = asdict(self)
        prediction, by_size = fields.pop("prediction"), fields.pop("by_size")
        if self.came is not None:
            prediction["error_of_excess"] = self.prediction.error(self.came)
        if self.came is not None and self.by_size is not None:
            by_size["error_of_excess"] = self.by_size.error(self.came)
        return {**fields, "by_size_and_tokens": prediction, "by_size": by_size}


def foretell(config: RunConfig, findings: Findings) -> Foretold:
    """What the laws say of a run whose vocabulary is settled."""
    (parameters, _), tokens, size = sizes_of(config.model), tokens_of(config), findings.size
    by_size = None
    if size is not None and size.tokens == tokens:
        floor = float(size.floor[0]) if findings.floor is None else findings.floor
        by_size = Prediction(*size.predict(parameters, config.model.n_layer), floor)
    return Foretold(
        shape=(config.model.n_embd, config.model.n_layer),
        parameters=parameters,
        tokens=tokens,
        flops=flops_of(config),
        prediction=predicted(findings.best, parameters, tokens),
        by_size=by_size,
        repeats=repeated(tokens, findings.length),
    )


def compared(grid: Grid, folder: Path, findings: Findings) -> Foretold:
    """A run that was trained since, foretold by its configuration, and what came of it.

    Raises:
        UserError: there is no such run, it is damaged, it has not ended, or it is of the grid itself.
    """
    run = read_run(find_run(folder))
    if not run.finished or run.going or not math.isfinite(came := loss_of(run)):
        raise UserError(f"{folder} has not come to its end: {run.course.last_step} of {run.max_steps} steps")
    shape, tokens = (run.config.model.n_embd, run.config.model.n_layer), tokens_of(run.config)
    cells = [cell.config for cell in grid.sweep().cells]
    if any((one.model.n_embd, one.model.n_layer) == shape and tokens_of(one) == tokens for one in cells):
        raise UserError(f"{folder} is a run of the grid, to which the law is fitted: it is not foretold")
    changed = {
        name: values
        for name, values in unlike(grid.cell(*shape, tokens, run.config.train.seed).config, run.config).items()
        if name.startswith(("model.", "optim.")) or name in DECIDING
    }
    said = ", ".join(f"{name} is {found!r}, the grid's {wanted!r}" for name, (wanted, found) in [*changed.items()][:3])
    return replace(foretell(run.config, findings), came=came, seeds=1, unlike=said)


def foretold_by(
    grid: Grid, findings: Findings, vocab_size: int, asked: Sequence[str], trained: Sequence[Path]
) -> list[Foretold]:
    """Runs that are asked for as `192,4,8M`, and those that were trained since, each once and with all its seeds.

    Raises:
        UserError: one means no run; or as `compared`.
    """
    came: dict[Foretold, list[float]] = {}
    for folder in dict.fromkeys(trained):
        one = compared(grid, folder, findings)
        assert one.came is not None
        came.setdefault(replace(one, came=None, seeds=0), []).append(one.came)
    known = {(each.shape, each.tokens) for each in came}
    open_ones = [foretell(grid.asked(written).with_vocabulary(vocab_size), findings) for written in asked]
    ended = [replace(one, came=mean(losses), seeds=len(losses)) for one, losses in came.items()]
    return [*(each for each in open_ones if (each.shape, each.tokens) not in known), *ended]
