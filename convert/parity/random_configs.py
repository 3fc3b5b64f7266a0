"""Configurations by chance, from one number: every field that changes what a model computes."""

from __future__ import annotations

import dataclasses

from convert.parity.gates import Precision
from gpt_common.config import ModelConfig, OptimConfig, RunConfig, TrainConfig
from gpt_common.init import keyed_generator

RUNGS = ("L0", "L1", "L2", "L3", "L4", "L5", "L6a", "L6b")
"""What random configurations climb."""


def random_config(seed: int) -> tuple[RunConfig, Precision]:
    """The configuration that `seed` stands for, small enough for seconds, and its class of arithmetic."""
    generator = keyed_generator(seed, "random configuration")

    def chance(probability: float = 0.5) -> bool:
        return bool(generator.random() < probability)

    def one_of(*choices: float) -> float:
        return float(choices[generator.integers(len(choices))])

    def between(low: int, high: int) -> int:
        return int(generator.integers(low, high + 1))

    def log_between(low: float, high: float) -> float:
        return float(low * (high / low) ** generator.random())

    precision: Precision = "bf16" if chance(0.2) else "strict"
    # Gates of bf16 are for means over many numbers: a norm over five channels, or a loss over ten tokens, is noise.
    coarse = precision == "bf16"
    tied = chance()
    n_head = between(1, 4)
    model = ModelConfig(
        vocab_size=between(8, 120),
        block_size=between(32 if coarse else 2, 40),
        n_layer=between(1, 3),
        n_head=n_head,
        n_embd=n_head * (between(32 // n_head + 1, 36) if coarse else between(4, 16)),
        bias=chance(),
        feed_forward="gelu" if chance() else "gelu_tanh",
        tied_head=tied,
        head_bias=not tied and chance(),
        norm_eps=log_between(1e-6, 1e-4),
        dropout=one_of(0, 0, 0.1, 0.2, 0.5),
        dropout_rng="shared",
    )
    rate = log_between(1e-5, 1e-2)
    optim = OptimConfig(
        learning_rate=rate,
        min_lr=rate * one_of(0, 0.1),
        schedule="cosine" if chance() else "wsd" if chance() else "constant",
        warmup_steps=between(0, 50),
        decay_steps=between(0, 1) * between(60, 300),
        decay_fraction=float(generator.random()),
        weight_decay=one_of(0, 0.01, 0.1, 0.5),
        beta1=one_of(0, 0.8, 0.9, 0.95),
        beta2=one_of(0.9, 0.95, 0.99, 0.999),
        adam_eps=one_of(1e-10, 1e-8, 1e-6),
        grad_clip=one_of(0, 0.1, 1, 10),
    )
    train = TrainConfig(
        batch_size=between(4 if coarse else 1, 5),
        grad_accum_steps=between(1, 3),
        gradient_checkpointing=chance(0.3),
        seed=between(0, 10_000),
    )
    return dataclasses.replace(RunConfig(), model=model, optim=optim, train=train), precision
