"""What is due after a step, besides the next one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpt_common.config import TrainConfig


@dataclass(frozen=True)
class Due:
    """What a run wants after `step` steps."""

    step: int
    train: TrainConfig
    first_step: int
    stop_at: int
    urgent: Callable[[], bool]
    """Whether to save out of turn. Asked late: an evaluation may find the best model yet, and a signal may come."""

    @property
    def log(self) -> bool:
        """The loss of this step is wanted: the first, every log_interval, and the last."""
        return self.step in (self.first_step + 1, self.stop_at) or self.step % self.train.log_interval == 0

    @property
    def evaluation(self) -> bool:
        """Every eval_interval, and at the end of the schedule."""
        return self.step == self.train.max_steps or self._every(self.train.eval_interval)

    @property
    def sample(self) -> bool:
        """Every sample_interval, and at the end of the schedule."""
        return self.step == self.train.max_steps or self._every(self.train.sample_interval)

    @property
    def save(self) -> bool:
        """Every checkpoint_interval, at the end, after a signal, and when this is the best model yet."""
        return self.step == self.stop_at or self.urgent() or self._every(self.train.checkpoint_interval)

    @property
    def anything(self) -> bool:
        """The results of this step are needed now."""
        return self.log or self.evaluation or self.sample or self.save

    def _every(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0
