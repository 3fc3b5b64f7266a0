"""The training step seen from outside, and what the gates on it share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gpt_common.config import RunConfig
from gpt_common.data.batches import Batch, NumpyBatch
from gpt_common.keyed import keyed_generator
from gpt_common.training.health.gates import TrainedProbe

Arrays = Mapping[str, npt.NDArray[Any]]
MICRO_STEPS = 8
"""Micro-steps that a gate does at most."""


@dataclass(frozen=True)
class Tried:
    """A step that was done and undone."""

    norm: float
    """Of the gradient, as the step reports it."""
    before: Arrays
    """What this process updates, before it."""
    after: Arrays
    moments: Arrays
    """The optimiser's state after it, by name, as in a checkpoint."""


class StepProbe(TrainedProbe, Protocol):
    """The training step, asked without being taken: weights and moments are the same afterwards, bit by bit."""

    compiled: bool

    def step_loss(self, batches: Sequence[NumpyBatch], step: int, *, dropout: bool = True) -> float:
        """The loss that the step reports, nats per token."""

    def step_gradients(
        self, batches: Sequence[NumpyBatch], step: int, *, dropout: bool = True, dealt: bool = False
    ) -> tuple[float, Arrays]:
        """The same, and the gradient that would have been clipped and applied; `dealt`: to all ranks that train."""

    def try_step(self, batches: Sequence[NumpyBatch], step: int, rate: float, clip: float) -> Tried:
        """Take the step, remember what it did to the weights, and undo it."""

    def seconds_alone(self, batches: Sequence[NumpyBatch], step: int) -> float:
        """Seconds of a step that this rank makes alone; nothing stays of it."""

    def weights(self) -> Arrays:
        """A copy of every parameter."""

    def set_weights(self, weights: Arrays) -> None:
        """Put parameters back."""

    def moments(self) -> Arrays:
        """The optimiser's state by name, as in a checkpoint."""

    def set_moments(self, moments: Arrays, step: int) -> None:
        """Put it back, after `step` updates."""


@dataclass
class Asked:
    """What is asked of whom."""

    probe: StepProbe
    config: RunConfig
    batch: NumpyBatch
    """(B, T); the same for every gate."""
    step: int
    """Updates done."""
    exact: bool
    """Half precision rounds where sums are made in another order; the same sums come out the same in it too."""

    again: bool = True
    """Ask again in the middle of a run: not where compiling the question took too long already."""
    cuts_asked: int = 0
    """How many positions were asked already whether they see the future."""

    def draw(self, what: str) -> np.random.Generator:
        """Random numbers of one gate at one step."""
        return keyed_generator(self.config.train.seed, f"gate {what}", self.step)

    def micro_batches(self) -> list[NumpyBatch]:
        """The batch in as many micro-batches as the run has, within reason: two at least.

        A compiled step keeps its shape and is given the same batch again.
        """
        rows, length = self.batch.tokens.shape
        count = max(2, min(self.config.train.grad_accum_steps, MICRO_STEPS))
        if self.probe.compiled or rows * length < count:
            return [self.batch] * 2
        cuts = -(-count // rows)  # pieces of a sequence
        whole = (rows * cuts // count) * count
        tokens, labels = (
            value[:, : length // cuts * cuts].reshape(rows * cuts, -1)[:whole]
            for value in (self.batch.tokens, self.batch.labels)
        )
        parts = zip(np.split(tokens, count), np.split(labels, count), strict=True)
        return [Batch(np.ascontiguousarray(mine), np.ascontiguousarray(theirs)) for mine, theirs in parts]


def square_of(arrays: Arrays) -> float:
    """The squared norm of all tensors together."""
    return float(sum(np.square(value.astype(np.float64)).sum() for value in arrays.values()))


def distance(one: Arrays, other: Arrays) -> float:
    """Relative L2 over all tensors."""
    apart = {name: one[name].astype(np.float64) - other[name] for name in other}
    return math.sqrt(square_of(apart) / max(square_of(other), 1e-30))


def rms(value: npt.NDArray[Any]) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.square(value).mean()))
