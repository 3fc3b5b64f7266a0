"""Learning-rate schedules: nanoGPT's numbers, and shapes that hold for every configuration."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_common.config import OptimConfig
from gpt_common.training.schedule import learning_rate


def nanogpt_rate(it: int, peak: float, low: float, warmup_iters: int, decay_iters: int) -> float:
    """nanoGPT's rule in its own words: linear to the peak, half a cosine to the minimum, then flat."""
    if it < warmup_iters:
        return peak * (it + 1) / (warmup_iters + 1)
    if it > decay_iters:
        return low
    ratio = (it - warmup_iters) / (decay_iters - warmup_iters)
    return low + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (peak - low)


@given(
    peak=st.floats(1e-5, 1e-1),
    share=st.floats(0, 1),
    warmup=st.integers(0, 50),
    decay=st.integers(51, 400),
    step=st.integers(0, 500),
)
def test_cosine_is_nanogpts_to_the_last_bit(peak: float, share: float, warmup: int, decay: int, step: int) -> None:
    optim = OptimConfig(learning_rate=peak, min_lr=share * peak, warmup_steps=warmup, decay_steps=decay)
    assert learning_rate(step, optim, max_steps=1000) == nanogpt_rate(step, peak, share * peak, warmup, decay)


def test_shakespeare_char_by_hand() -> None:
    optim = OptimConfig(learning_rate=1e-3, min_lr=1e-4, warmup_steps=100)
    assert learning_rate(0, optim, 5000) == 1e-3 / 101
    assert learning_rate(99, optim, 5000) == 1e-3 * 100 / 101
    assert learning_rate(100, optim, 5000) == 1e-3
    assert learning_rate(2550, optim, 5000) == pytest.approx(5.5e-4, rel=1e-12)  # half-way: the mean of both ends
    assert learning_rate(5000, optim, 5000) == 1e-4
    assert learning_rate(9999, optim, 5000) == 1e-4


def test_decay_steps_zero_means_max_steps() -> None:
    follow = OptimConfig(decay_steps=0)
    fixed = OptimConfig(decay_steps=700)
    assert [learning_rate(s, follow, 700) for s in range(800)] == [learning_rate(s, fixed, 9) for s in range(800)]


def test_wsd_by_hand() -> None:
    optim = OptimConfig(learning_rate=1.0, min_lr=0.0, schedule="wsd", warmup_steps=3, decay_fraction=0.4)
    rates = [learning_rate(step, optim, max_steps=10) for step in range(11)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_wsd_whose_decay_would_begin_in_the_warmup() -> None:
    optim = OptimConfig(learning_rate=1.0, min_lr=0.0, schedule="wsd", warmup_steps=6, decay_fraction=1.0)
    assert learning_rate(6, optim, max_steps=10) == 1.0
    assert learning_rate(8, optim, max_steps=10) == 0.5


def test_constant_after_warmup() -> None:
    optim = OptimConfig(learning_rate=2e-3, min_lr=1e-4, schedule="constant", warmup_steps=1)
    assert [learning_rate(step, optim, 2) for step in range(5)] == [1e-3, 2e-3, 2e-3, 2e-3, 2e-3]


@given(
    schedule=st.sampled_from(["cosine", "wsd", "constant"]),
    warmup=st.integers(0, 60),
    decay_steps=st.integers(0, 60),
    fraction=st.floats(0, 1),
    max_steps=st.integers(1, 60),
)
def test_every_configuration_rises_then_never_rises_again(
    schedule: str, warmup: int, decay_steps: int, fraction: float, max_steps: int
) -> None:
    optim = OptimConfig(
        schedule=schedule,  # type: ignore[arg-type]
        warmup_steps=warmup,
        decay_steps=decay_steps,
        decay_fraction=fraction,
    )
    rates = [learning_rate(step, optim, max_steps) for step in range(130)]
    assert all(0 < rate <= optim.learning_rate for rate in rates)
    assert all(a < b for a, b in itertools.pairwise(rates[:warmup]))
    assert all(a >= b for a, b in itertools.pairwise(rates[warmup:]))
    assert rates[-1] == (optim.learning_rate if schedule == "constant" else optim.min_lr)
