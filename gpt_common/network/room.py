"""Does a run fit this machine? Asked before anything is allocated, since a system that runs out of memory kills."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from gpt_common.adapting.placement import block_of
from gpt_common.adapting.quantisation import NOT_QUANTISED, Grids
from gpt_common.config import Device, RunConfig
from gpt_common.errors import UserError
from gpt_common.network.memory import Twin, memory_plan
from gpt_common.network.together import ALONE, Together
from gpt_common.words import in_memory

LAYERS_COUNTED = 64
"""Beyond so many layers the plan is worked out for these and scaled: a mistyped depth gets its answer at once."""


def planned_bytes(
    config: RunConfig,
    twin: Twin,
    device: Device = "cpu",
    grids: Grids = NOT_QUANTISED,
    together: Together = ALONE,
) -> int:
    """Peak memory of a training step by the plan; for very deep models scaled from fewer layers."""
    layers = config.model.n_layer
    if layers <= LAYERS_COUNTED:
        return memory_plan(config, twin, device, grids, together).total
    shorter = dataclasses.replace(config, model=dataclasses.replace(config.model, n_layer=LAYERS_COUNTED))
    plan = memory_plan(shorter, twin, device, within(grids, LAYERS_COUNTED), together)
    return plan.total * layers // LAYERS_COUNTED


def within(grids: Grids, layers: int) -> Grids:
    """Those of a model with only its first layers."""
    return {name: grid for name, grid in grids.items() if block_of(name, 0) < layers}


def check_room(
    config: RunConfig,
    twin: Twin,
    memory_bytes: int | None,
    device: Device = "cpu",
    grids: Grids = NOT_QUANTISED,
    together: Together = ALONE,
) -> None:
    """Refuse a run that needs more memory than the machine has.

    Args:
        config: with the vocabulary settled; dtype auto counts as float32.
        memory_bytes: the machine's memory; None where it is not known, and nothing is refused.
        device: where the twin computes.
        grids: matrices of the base that are quantised.
        together: the ranks of the run; each is taken to have this memory to itself.

    Raises:
        UserError: says what the run needs, what there is, and what would fit.
    """
    if memory_bytes is None or (needed := planned_bytes(config, twin, device, grids, together)) <= memory_bytes:
        return
    train = config.train
    too_much = f"the run needs about {in_memory(needed)}, this machine has {in_memory(memory_bytes)}"

    def fits(other: RunConfig) -> bool:
        return planned_bytes(other, twin, device, within(grids, other.model.n_layer), together) <= memory_bytes

    batch = _largest_batch(config, fits)
    if batch:
        sequences = train.batch_size * train.grad_accum_steps
        # Of what fits the largest part of a step that leaves no rest, unless that is far smaller.
        parts = max(part for part in range(1, batch + 1) if sequences % part == 0)
        batch, keeps = (parts, "keeps") if 2 * parts > batch else (batch, "about keeps")
        steps = round(sequences / batch)
        remedy = f"--batch-size {batch} fits (--grad-accum-steps {steps} {keeps} the tokens per step)"
    else:
        layer = config.model.n_layer
        while layer > 1 and not fits(_with(config, batch=1, layers=layer)):
            layer //= 2
        enough = fits(_with(config, batch=1, layers=layer))
        remedy = f"--n-layer {layer} --batch-size 1 fits" if enough else "make the model narrower"
    raise UserError(f"{too_much}: {remedy}; --force tries all the same")


def _with(config: RunConfig, *, batch: int, layers: int | None = None) -> RunConfig:
    model = dataclasses.replace(config.model, n_layer=layers or config.model.n_layer)
    return dataclasses.replace(config, model=model, train=dataclasses.replace(config.train, batch_size=batch))


def _largest_batch(config: RunConfig, fits: Callable[[RunConfig], bool]) -> int:
    """The largest power of two of a micro-batch that fits; 0 if not even one sequence does."""
    batch = 1 << (max(config.train.batch_size, 1).bit_length() - 1)
    while batch and not fits(_with(config, batch=batch)):
        batch //= 2
    return batch
