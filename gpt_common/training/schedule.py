"""The learning rate as a function of the step, and how many steps fit into a given time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from gpt_common.config import OptimConfig


def learning_rate(step: int, optim: OptimConfig, max_steps: int) -> float:
    """Learning rate of the update that follows `step` finished ones.

    All three schedules begin with the same linear warm-up, which ends one step short of the peak, so that no
    step has rate 0. `cosine` is nanoGPT's `get_lr` (train.py); `wsd` is warmup-stable-decay (Hu et al. 2024,
    MiniCPM, section 4) with linear decay. Both reach `min_lr` at the step after the last and stay there.

    Args:
        step: updates already made, from 0.
        optim: peak, minimum, warm-up and shape of the schedule.
        max_steps: updates of the whole run; where a cosine ends unless `decay_steps` says otherwise.
    """
    if step < optim.warmup_steps:
        return optim.learning_rate * (step + 1) / (optim.warmup_steps + 1)
    if optim.schedule == "constant":
        return optim.learning_rate
    if optim.schedule == "cosine":
        end = optim.decay_steps or max_steps
        start = optim.warmup_steps
    else:
        end = max_steps
        # A decay longer than what warm-up leaves begins where warm-up ends.
        start = max(optim.warmup_steps, end - round(optim.decay_fraction * max_steps))
    if step >= end:
        return optim.min_lr
    progress = max(0, step - start) / (end - start) if end > start else 0.0
    share = 0.5 * (1.0 + math.cos(math.pi * progress)) if optim.schedule == "cosine" else 1.0 - progress
    return optim.min_lr + share * (optim.learning_rate - optim.min_lr)


class Pace:
    """Turns minutes of training into a number of steps, by timing the first ones.

    The schedule of the learning rate is made once, for the steps that fit. Should steps become slower than they were
    timed, the run ends when its time is over by a twentieth; the learning rate has not come down all the way then.

    Args:
        minutes: of training, evaluations and checkpoints included, start-up not.
        clock: seconds; for tests.
    """

    TIMED_STEPS = 10
    """Steps that are enough to time,"""
    TIMED_SHARE = 0.02
    """or the share of all the time that is."""
    OVERTIME = 1.05

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds = 60 * minutes
        self._began = math.nan
        self.set = False
        """Whether the number of steps is known."""

    def begin(self) -> None:
        """Training begins now."""
        self._began = self._clock()

    def leave_out(self, seconds: float) -> None:
        """So long nothing was trained, for want of text."""
        self._began += seconds

    def ready(self, timed_steps: int, timed_seconds: float) -> bool:
        """Whether enough was timed to set the number of steps, and it is not set yet."""
        enough = timed_steps >= self.TIMED_STEPS or timed_seconds >= self.TIMED_SHARE * self._seconds
        return not self.set and timed_steps > 0 and enough

    def steps(self, step: int, seconds_per_step: float) -> int:
        """Steps that all the time has room for, if `step` are done and each of the others takes so long."""
        self.set = True
        return step + max(1, int((self._seconds - self.elapsed) / seconds_per_step))

    @property
    def elapsed(self) -> float:
        """Seconds since training began."""
        return self._clock() - self._began

    @property
    def over(self) -> bool:
        """Whether the time is over, and a little more."""
        return self.elapsed > self.OVERTIME * self._seconds
