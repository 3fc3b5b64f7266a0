"""Experimental: ranks that take steps of their own, and meet every H steps to average what has come of them.

Little travels: every H steps the weights and the optimiser's moments, in place of every step's gradients. Moments are
averaged too, so that after an average all ranks are equal in everything: what is saved there is the whole state, which
any number of ranks may take up. So a run evaluates, saves and stops at averages only.

With an outer rate and momentum the mean is not taken as it is: what it has moved since the last average is the gradient
of an outer step of Nesterov's (DiLoCo, Douillard et al. 2023, algorithm 1). It is computed here, in numpy, once for
both twins: after it all ranks have the same bits, whatever they compute with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.config import TrainConfig
from gpt_common.training.health.asked import StepProbe
from gpt_common.training.manifest import OUTER_FILE
from gpt_common.training.ranks.agreement import Agreement


class Averaging:
    """What ranks do at an average; the weights that they start with are the first.

    Args:
        probe: of what is trained.
        resumed: the checkpoint that is taken up.
    """

    def __init__(self, train: TrainConfig, ranks: Agreement, probe: StepProbe, resumed: Path | None = None) -> None:
        self.train, self.ranks, self.probe = train, ranks, probe
        self.anchor = probe.weights()
        self.velocity = {name: np.zeros_like(value) for name, value in self.anchor.items()}
        if resumed is not None and (resumed / OUTER_FILE).exists():
            from safetensors.numpy import load_file

            self.velocity = load_file(resumed / OUTER_FILE)

    def due(self, step: int, stop_at: int) -> bool:
        """Whether ranks meet after so many steps."""
        return step % self.train.average_every == 0 or step == stop_at

    def average(self, step: int) -> None:
        """Give all ranks the same weights and moments after `step` steps; what any of them wishes is known then."""
        weights, moments = self.probe.weights(), self.probe.moments()
        mine = {**weights, **moments}
        self.ranks.check_layout(mine)
        wished = np.array(self.ranks.wished, np.float32)
        total = self.ranks.added(np.concatenate([*(value.ravel() for value in mine.values()), wished]))
        self.ranks.agreed = total[-len(wished) :].tolist()
        ends = np.cumsum([value.size for value in mine.values()])
        parts = np.split(total[: -len(wished)] / np.float32(self.ranks.world), ends[:-1])
        mean = {name: part.reshape(mine[name].shape) for name, part in zip(mine, parts, strict=True)}
        self.anchor = {name: self.outer_step(name, mean[name]) for name in weights}
        self.probe.set_weights(self.anchor)
        self.probe.set_moments({name: mean[name] for name in moments}, step)

    def outer_step(self, name: str, mean: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A tensor after the average, from its mean over ranks."""
        rate, momentum = np.float32(self.train.outer_rate), np.float32(self.train.outer_momentum)
        if rate == 1 and not momentum:
            return mean.copy()  # to the bit
        moved = self.anchor[name] - mean
        self.velocity[name] = momentum * self.velocity[name] + moved
        found: npt.NDArray[Any] = self.anchor[name] - rate * (moved + momentum * self.velocity[name])
        return found

    def save(self, folder: Path) -> None:
        """Write the outer momentum beside a checkpoint's tensors, where there is one."""
        if self.train.outer_momentum:
            from safetensors.numpy import save_file

            save_file(self.velocity, folder / OUTER_FILE)
