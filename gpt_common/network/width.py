"""What follows from the width of a model where nobody says otherwise: the number of heads, and a learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from gpt_common.config import RunConfig

SCALED_PRESETS = ("tinystories",)
"""Presets for models of any width: heads and learning rate follow --n-embd."""
RATE_TIMES_WIDTH = 0.4
"""Peak learning rate times width. nanoGPT's 1e-3 at 384 and 6e-4 at 768 are 0.38 and 0.46; docs/results.md measures."""


def rate_for(n_embd: int) -> float:
    """A peak learning rate for a text that nobody has tuned for: in inverse proportion to the width, two digits."""
    return float(f"{RATE_TIMES_WIDTH / n_embd:.1e}")


def heads_for(n_embd: int) -> int:
    """How many heads: 32 wide up to a model of width 256 and 64 wide above, and at least 4, as far as that divides."""
    wanted = max(4, n_embd // (32 if n_embd <= 256 else 64))
    return max(heads for heads in range(1, wanted + 1) if n_embd % heads == 0)


def with_rate(config: RunConfig, rate: float) -> RunConfig:
    """`config` with this peak learning rate, and with an end of the schedule that is at most a tenth of it."""
    optim = dataclasses.replace(config.optim, learning_rate=rate, min_lr=min(config.optim.min_lr, rate / 10))
    return dataclasses.replace(config, optim=optim)


def width_of(config: RunConfig, given: Mapping[str, str]) -> int:
    """The width that will be trained: the one on the command line, if there is one that makes sense."""
    text = given.get("n_embd", "")
    return int(text) if text.isdecimal() and int(text) > 0 else config.model.n_embd


def scaled(preset: str | None, config: RunConfig, given: Mapping[str, str]) -> RunConfig:
    """The configuration of a preset for models of any width, with heads and learning rate by the width asked for.

    Args:
        given: values on the command line by field name; what is given is not decided here.
    """
    if preset not in SCALED_PRESETS:
        return config
    width = width_of(config, given)
    if "n_head" not in given:
        model = dataclasses.replace(config.model, n_embd=width, n_head=heads_for(width))
        config = dataclasses.replace(config, model=model)
    return config if "learning_rate" in given else with_rate(config, rate_for(width))
