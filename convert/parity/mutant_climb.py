"""The climb of a mutant: a small model with everything that a mutant can break."""

from __future__ import annotations

from collections.abc import Sequence

from convert.parity.backends import BACKENDS
from convert.parity.climb import Climb
from convert.parity.ladder import climb_ladder
from convert.parity.mutants import PEAK, Mutant
from gpt_common.config import ModelConfig, OptimConfig, RunConfig, TrainConfig


def mutant_config(*, untied: bool) -> RunConfig:
    """A small model that has everything a mutant can break: biases, dropout, micro-steps, clipping, a schedule."""
    return RunConfig(
        model=ModelConfig(
            vocab_size=64,
            block_size=16,
            n_layer=2,
            n_head=2,
            n_embd=16,
            bias=True,
            dropout=0.1,
            dropout_rng="shared",
            tied_head=not untied,
            head_bias=untied,
        ),
        optim=OptimConfig(learning_rate=PEAK, warmup_steps=10, beta2=0.95, grad_clip=0.5),
        train=TrainConfig(batch_size=2, grad_accum_steps=2),
    )


def mutant_climb(*, untied: bool) -> Climb:
    """A short climb: what a mutant breaks shows at once."""
    return Climb(
        mutant_config(untied=untied),
        [BACKENDS["cpu"], BACKENDS["mlx-cpu"]],
        trajectory_steps=24,
        switch_steps=12,
        optimizer_steps=40,
        tokens=24,
        long_sums=False,
    )


def first_rejection(mutant: Mutant, rungs: Sequence[str] | None = None) -> str | None:
    """The rung at which the ladder rejects a mutant; None if it climbs to the top."""
    with mutant.change():
        climb = mutant_climb(untied=mutant.untied)
        report = climb_ladder(climb, rungs) if rungs else climb_ladder(climb)
    return report.failed.rung.name if report.failed else None
