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
    over: Callable[[], bool]
    """Whether the run ends here, whatever its schedule says. Asked late: an evaluation may have been the last one."""
    urgent: Callable[[], bool]
    """Whether to save out of turn. Asked late: an evaluation may find the best model yet, and a signal may come."""

    @property
    def log(self) -> bool:
        """The loss of this step is wanted: the first, every log_interval, and the last, or what may be the last."""
        last = self.step == self.stop_at or self.over() or (self.train.patience > 0 and self.evaluation)
        return last or self.step == self.first_step + 1 or self.step % self.train.log_interval == 0

    @property
    def evaluation(self) -> bool:
        """Every eval_interval, and at the end."""
        return self.step == self.train.max_steps or self._every(self.train.eval_interval) or self.over()

    @property
    def sample(self) -> bool:
        """Every sample_interval, and at the end."""
        return self.step == self.train.max_steps or self._every(self.train.sample_interval) or self.over()

    @property
    def save(self) -> bool:
        """Every checkpoint_interval, at the end, after a signal, and when this is the best model yet."""
        out_of_turn = self.step == self.stop_at or self.over() or self.urgent()
        return out_of_turn or self._every(self.train.checkpoint_interval)

    @property
    def anything(self) -> bool:
        """The results of this step are needed now."""
        return self.log or self.evaluation or self.sample or self.save

    def _every(self, interval: int) -> bool:
        return interval > 0 and self.step % interval == 0


def gave_up(train: TrainConfig, step: int, best_step: int | None) -> bool:
    """Whether `patience` evaluations have gone by without a better loss than that of `best_step`."""
    return bool(train.patience) and best_step is not None and step - best_step >= train.patience * train.eval_interval
