"""What a mutant is, and its climb: a small model with everything that it can break."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from convert.parity.climb import Climb
from convert.parity.ladder import climb_ladder
from convert.parity.twins.replaced import replaced
from gpt_common.config import ModelConfig, OptimConfig, RunConfig, TrainConfig
from gpt_common.machine.backends import BACKENDS

Change = AbstractContextManager[Any]
Changes = dict[tuple[str, str], Callable[[], Change]]
"""Wrong twins, by the first rung that rejects each and its name."""
PEAK = 1e-3

_SHAPE = ModelConfig(
    vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=16, bias=True, dropout=0.1, dropout_rng="shared"
)
_MODERN = dataclasses.replace(_SHAPE, bias=False, norm="rmsnorm", positions="rope", tied_head=False)
_LATENT = dataclasses.replace(
    _MODERN,
    q_latent=12,
    kv_latent=12,
    nope_size=8,
    rope_size=4,
    value_size=8,
    feed_forward="moe",
    n_expert=8,
    n_shared_expert=1,
    experts_per_token=2,
    expert_width=16,
)
FAMILIES = {
    "gpt": _SHAPE,
    "untied head": dataclasses.replace(_SHAPE, tied_head=False, head_bias=True),
    "llama": dataclasses.replace(
        _MODERN, n_head=4, n_kv_head=2, head_size=8, attention="grouped_query", qk_norm=True, feed_forward="swiglu"
    ),
    "deepseek": dataclasses.replace(
        _LATENT,
        attention="latent",
        rope_layout="interleaved",
        n_dense_layer=1,
        n_expert_group=4,
        groups_per_token=2,
        router="sigmoid",
        router_scale=2.5,
        balancing="bias",
    ),
    "custom-llm": dataclasses.replace(
        _LATENT, attention="latent_per_head", positions="both", n_expert=7, balancing="loss", balancing_rate=0.01
    ),
}
"""Between them they have everything that a mutant can break."""
WITH_MUON = ("deepseek",)
FAR = 256
"""Position from which the mutants of rung S go wrong."""
REAL: dict[str, Callable[[ModelConfig], ModelConfig]] = {
    "long": lambda model: dataclasses.replace(model, block_size=FAR + 8),
    "many ids": lambda model: dataclasses.replace(model, vocab_size=70_000),
}
"""What rung S climbs beyond the small model."""


@dataclass(frozen=True)
class Mutant:
    """One wrong twin."""

    name: str
    rung: str
    """The first rung that rejects it."""
    change: Callable[[], Change]
    family: str = "gpt"
    """The model that has what it breaks."""
    twin: str = "mlx"
    real: str = "long"
    """Key of REAL."""


def mutants(family: str, changes: Changes) -> list[Mutant]:
    """The wrong twins of a family, in MLX."""
    return [Mutant(name, rung, change, family) for (rung, name), change in changes.items()]


def wrap(owner: Any, name: str, wrong: Callable[[Any], Any]) -> Change:
    """Replace `owner.name` by what `wrong` makes of it."""
    return replaced(owner, name, wrong(getattr(owner, name)))


def mutant_config(family: str = "gpt") -> RunConfig:
    """A small model of a family with dropout, micro-steps, clipping and a schedule."""
    return RunConfig(
        model=FAMILIES[family],
        optim=OptimConfig(
            optimizer="muon" if family in WITH_MUON else "adamw",
            learning_rate=PEAK,
            warmup_steps=10,
            beta2=0.95,
            grad_clip=0.5,
        ),
        train=TrainConfig(batch_size=2, grad_accum_steps=2),
    )


def mutant_climb(family: str = "gpt", real: str = "long") -> Climb:
    """A short climb: what a mutant breaks shows at once.

    Args:
        real: key of REAL.
    """
    config = mutant_config(family)
    return Climb(
        config,
        [BACKENDS["cpu"], BACKENDS["mlx-cpu"]],
        real=dataclasses.replace(config, model=REAL[real](config.model)),
        trajectory_steps=24,
        switch_steps=12,
        optimizer_steps=40,
        tokens=24,
        long_sums=False,
        worlds=(2,),
    )


def first_rejection(mutant: Mutant, rungs: Sequence[str] | None = None) -> str | None:
    """The rung at which the ladder rejects a mutant; None if it climbs to the top."""
    with mutant.change():
        climb = mutant_climb(mutant.family, mutant.real)
        report = climb_ladder(climb, rungs) if rungs else climb_ladder(climb)
    return report.failed.rung.name if report.failed else None
