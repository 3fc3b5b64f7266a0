"""Alarms on relations between losses: each fault rings within so many steps, and 200 healthy runs are left in peace."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from gpt_common.training.health.alarms import WINDOW, Alarms

STEPS, EVERY = 600, 50
Curve = NDArray[np.float64]


class Drawn:
    """A made-up run: training losses of every step, and losses on training and validation text now and then."""

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.draw = draw
        self.vocab_size = int(draw.choice([27, 65, 300, 2000, 50257]))
        uniform = math.log(self.vocab_size)
        self.plateau = uniform * draw.uniform(0.7, 0.95)
        self.floor = self.plateau * draw.uniform(0.02, 0.6) if draw.random() < 0.5 else None
        end = max((self.floor or 0.0) * 1.05, self.plateau * draw.uniform(0.05, 0.7))
        steps = np.arange(STEPS + 1)
        self.curve: Curve = end + (uniform - end) * np.exp(-steps / draw.uniform(10, 60))
        self.noise = draw.uniform(0.01, 0.08)
        self.dropout = draw.uniform(0.0, 0.15)
        self.gap = draw.uniform(0.0, 0.05) * self.plateau

    def watch(
        self,
        steps: Callable[[Curve], Curve] = lambda curve: curve,
        train: Callable[[Curve], Curve] = lambda curve: curve,
        val: Callable[[Curve], Curve] = lambda curve: curve,
    ) -> list[tuple[int, str]]:
        """All alarms, with their steps; the three kinds of loss as changed."""
        alarms = Alarms(
            vocab_size=self.vocab_size,
            max_steps=STEPS,
            warmup_steps=20,
            unigram_entropy=self.plateau,
            floor=self.floor,
            floor_error=0.002,
            steps_per_epoch=2 * STEPS,
        )
        noisy = steps(self.curve * (1 + self.dropout)) + self.draw.normal(0, self.noise, STEPS + 1)
        trained, validated = train(self.curve), val(self.curve + self.gap)
        said = []
        for step in range(STEPS + 1):
            if step:
                said += [(step, text) for text in alarms.on_step(step, max(float(noisy[step]), 0.0), 1.0)]
            if step % EVERY == 0:
                found = alarms.on_evaluation(step, float(validated[step]), float(trained[step]))
                said += [(step, text) for text in found]
        return said


@pytest.mark.parametrize("seed", range(200))
def test_a_healthy_run_is_left_in_peace(seed: int) -> None:
    assert Drawn(seed).watch() == []


def after(step: int, value: Callable[[Curve], Curve]) -> Callable[[Curve], Curve]:
    """A curve that is another from a step on."""

    def changed(curve: Curve) -> Curve:
        return np.where(np.arange(len(curve)) < step, curve, value(curve))

    return changed


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("step", [150, 400])
def test_a_collapse_rings_at_any_step(seed: int, step: int) -> None:
    run = Drawn(seed)
    said = run.watch(steps=after(step, lambda curve: np.full_like(curve, run.plateau * 1.01)))
    assert said
    assert step < said[0][0] <= step + 2 * WINDOW
    assert "twice" in said[0][1] or "back at the plateau" in said[0][1]


@pytest.mark.parametrize("seed", range(40))
def test_training_that_reads_the_future_rings_at_the_first_evaluation(seed: int) -> None:
    run = Drawn(seed)
    # Its own loss falls to nearly nothing; both texts, evaluated without the fault, stay as bad as they were.
    bad = lambda curve: np.full_like(curve, curve[0] * 1.01)  # noqa: E731
    said = run.watch(steps=lambda curve: 0.3 * curve * np.exp(-np.arange(len(curve)) / 20), train=bad, val=bad)
    assert said[0][0] <= 2 * EVERY
    assert any("the step trains on something else" in text for _, text in said)
    if run.floor is not None:
        assert any("below the corpus's floor" in text and "training loss" in text for _, text in said)


@pytest.mark.parametrize("seed", range(40))
def test_a_gap_that_no_repetition_explains_rings(seed: int) -> None:
    run = Drawn(seed)
    said = run.watch(val=lambda curve: curve + 0.3 * run.plateau)
    assert any("training text that was hardly seen" in text for _, text in said)


@pytest.mark.parametrize("seed", range(40))
def test_losses_that_part_ring_after_three_evaluations(seed: int) -> None:
    run = Drawn(seed)
    said = run.watch(val=after(200, lambda curve: curve + np.maximum(0, np.arange(len(curve)) - 200) * 0.002))
    assert any("and training loss falls" in text for step, text in said if step <= 400)
