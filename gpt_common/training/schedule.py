"""The learning rate as a function of the step: cosine, warmup-stable-decay, constant."""

from __future__ import annotations

import math

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
