"""The best use of a budget: of all models of a grid's kind, the one whose loss is foretold to be lowest."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.scaling.findings import Findings
from benchmarks.scaling.foretelling import Foretold, foretell
from benchmarks.scaling.grid import Grid, Pace, flops_per_token, sizes_of, tokens_of
from benchmarks.scaling.laws import Array, Fit
from gpt_common.config import RunConfig, to_toml
from gpt_common.errors import UserError
from gpt_common.files import cannot_write, write_atomically
from gpt_common.sweep.definition import Sweep
from gpt_common.words import duration, in_joules, one_line, rate, watts

PLAN = "plan.toml"
"""The configuration that was planned, in the folder of the runs."""
LARGER = 8
"""How many times the grid's widest and deepest model is looked at."""
WIDTHS_APART = 8


@dataclass(frozen=True)
class Budget:
    """What may be spent: time or energy."""

    seconds: float | None = None
    joules: float | None = None
    watts: float | None = None
    """Power that is assumed; None: as it was measured. Beside seconds it tells the energy."""

    def seconds_at(self, power: float | None) -> float:
        """How long it lasts at a power in watts."""
        if self.joules is None:
            assert self.seconds is not None
            return self.seconds
        assert power
        return self.joules / power


@dataclass(frozen=True)
class Planned:
    """The best use of a budget."""

    config: RunConfig
    run: Foretold
    seconds: float
    joules: float | None
    power: str
    """Where the power is from; nothing where none is known."""
    sizes: tuple[float, float]
    """Parameters between which the best size lies, in 90 % of the law's resamples."""
    beyond: float
    """FLOPs, as a multiple of the largest run that the law was fitted to."""
    shapes: tuple[float, float]
    """Least and largest width for each layer that the grid has tried, and the plan keeps to."""


@dataclass(frozen=True)
class Models:
    """Of a grid's kind, (M,) each."""

    shapes: Sequence[tuple[int, int]]
    """Width and depth."""
    parameters: Array
    """Without embeddings."""
    flops: Array
    """Of a token."""


def slenderness(grid: Grid) -> tuple[float, float]:
    """Least and largest width for each layer in a grid."""
    return min(grid.widths) / max(grid.depths), max(grid.widths) / min(grid.depths)


def models_of(grid: Grid, vocab_size: int) -> Models:
    """Models from the grid's smallest up to LARGER times its widest and deepest, as slender as those that it has.

    A law sees sizes alone, so it would think one endless layer as good as many.
    """
    low, high = slenderness(grid)
    deepest = max(grid.depths)
    depths = sorted({*grid.depths, *(deepest * 2**i for i in range(1, int(math.log2(LARGER)) + 1))})
    widths = range(min(grid.widths), LARGER * max(grid.widths) + 1, WIDTHS_APART)
    shapes = [(width, depth) for depth in depths for width in widths if low <= width / depth <= high]
    models = [grid.cell(*shape, 1, grid.seed).config.with_vocabulary(vocab_size).model for shape in shapes]
    sizes = np.array([sizes_of(model)[0] for model in models], np.float64)
    return Models(shapes, sizes, np.array([flops_per_token(model) for model in models], np.float64))


@dataclass(frozen=True)
class Best:
    """The best that each budget of FLOPs allows, (C,) each, by the law and the models that there are."""

    flops: Array
    parameters: Array
    tokens: Array
    loss: Array
    low: Array
    high: Array
    """Of the law; a single run is off by its noise besides."""


def best_of(models: Models, fit: Fit, flops: Array) -> Best:
    """The best of some models in each budget."""
    tokens_CM = flops[:, None] / models.flops
    losses_CM = fit.law.loss(models.parameters, tokens_CM)
    row, best = np.arange(len(flops)), losses_CM.argmin(axis=1)
    n, d = models.parameters[best], tokens_CM[row, best]
    bounds = np.array([fit.interval(fit.resampled.loss(*pair)) for pair in zip(n, d, strict=True)])
    return Best(flops, n, d, losses_CM[row, best], bounds[:, 0], bounds[:, 1])


def plan(grid: Grid, findings: Findings, paces: Sequence[Pace], budget: Budget, vocab_size: int) -> Planned:
    """The model and the tokens with the lowest loss that a budget holds.

    Args:
        paces: of runs on this machine; a model is as fast, and takes as much power, as that with the most similar
            FLOPs per token.

    Raises:
        UserError: nothing says how fast this machine is, or what power it takes, or the budget is too small.
    """
    fit = findings.best
    if not paces:
        raise UserError("no run says how fast this machine is")
    if budget.joules is not None and budget.watts is None:
        paces = [pace for pace in paces if pace.watts]
        if not paces:
            raise UserError("no run says what power it took (none had a meter): --watts W assumes one")
    models = models_of(grid, vocab_size)
    near = [min(paces, key=lambda pace: abs(math.log(pace.flops_per_token / flops))) for flops in models.flops]
    powers = [pace.watts if budget.watts is None else budget.watts for pace in near]
    seconds = np.array([budget.seconds_at(power) for power in powers])
    tokens = np.array([pace.flops_per_second for pace in near]) * seconds / models.flops
    step = tokens_of(grid.cell(*models.shapes[0], 1, grid.seed).config)
    fits = tokens >= step
    if not fits.any():
        raise UserError("the budget is too small for a single step")
    losses = np.where(fits, fit.law.loss(models.parameters, tokens), np.inf)
    best = int(losses.argmin())
    resampled_MR = fit.resampled.loss(models.parameters[fits, None], tokens[fits, None])
    low, high = np.exp(fit.interval(np.log(models.parameters[fits][resampled_MR.argmin(axis=0)])))
    # Not more than the budget holds, so rounded down to whole steps.
    config = grid.cell(*models.shapes[best], int(tokens[best]) // step * step, grid.seed).config
    config = config.with_vocabulary(vocab_size)
    power, pace, run = powers[best], near[best], foretell(config, findings)
    takes = run.flops / pace.flops_per_second
    basis = "" if power is None else "assumed" if budget.watts is not None else f"as measured by {pace.meter}"
    return Planned(
        config=config,
        run=run,
        seconds=takes,
        joules=None if power is None else takes * power,
        power=f"{watts(power)} W, {basis}" if power is not None else "",
        sizes=(float(low), float(high)),
        beyond=run.flops / max(point.flops for point in findings.points),
        shapes=slenderness(grid),
    )


def plan_lines(planned: Planned, floor: float | None) -> Iterator[str]:
    """What to train, 80 columns at most."""
    model, steps, run = planned.config.model, planned.config.train.max_steps, planned.run
    energy = f", {in_joules(planned.joules)}" if planned.joules is not None else ""
    yield f"in {duration(planned.seconds)} of steps{energy}: {model.n_layer} layers x {model.n_embd}"
    if planned.power:
        yield f"  power: {planned.power}"
    yield f"  {run.parameters:,} parameters without embeddings, {rate(run.tokens)} tokens, {steps:,} steps"
    if run.repeats:
        yield f"    {run.repeats}"
    yield f"  {run.flops:.2e} FLOPs, loss {run.prediction.said(floor)}"
    yield f"  best size: {planned.sizes[0]:,.0f} to {planned.sizes[1]:,.0f} parameters (90 %)"
    low, high = planned.shapes
    yield f"  the law sees no shape: widths of {low:.3g} to {high:.3g} a layer, as in the grid"
    if planned.beyond > 1:
        yield f"  {planned.beyond:.1f} times the FLOPs of the largest run: the law was not tried so far out"


def training_lines(config: RunConfig, sweep: Sweep, name: str) -> Iterator[str]:
    """Where the configuration of a plan is written, and the command that trains it.

    Raises:
        UserError: it cannot be written.
    """
    path = sweep.folder / PLAN
    # The vocabulary is that of the text, as for the runs of the grid.
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=0))
    try:
        write_atomically(path, to_toml(config))
    except OSError as error:
        raise cannot_write(path, error) from None
    yield "  trains it:"
    yield f"    {one_line(shlex.join(['python', '-m', f'{sweep.twin}.train', '--config', str(path)]))} \\"
    yield f"      {one_line(shlex.join(['--out', f'runs/{name}-planned']))}"
