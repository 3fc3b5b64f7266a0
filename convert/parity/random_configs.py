"""Configurations by chance, from one number: every field that changes what a model computes."""

from __future__ import annotations

import dataclasses
from typing import Any

from convert.parity.gates import Precision
from gpt_common.config import ModelConfig, OptimConfig, RunConfig, TrainConfig
from gpt_common.keyed import keyed_generator

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

    def pick(*choices: str) -> str:
        return choices[generator.integers(len(choices))]

    def latents(shared_rotary_key: bool) -> dict[str, Any]:
        least = 16 if coarse else 4
        return {
            "positions": pick("rope", "both"),
            "q_latent": 0 if shared_rotary_key and chance(0.3) else between(least, 32),
            "kv_latent": between(least, 32),
            "nope_size": between(least, 20),
            "rope_size": between(1, 6) * 2,
            "value_size": between(least, 20),
        }

    def experts(n_layer: int) -> dict[str, Any]:
        n_group = between(1, 3)
        per_group = between(2, 4)
        groups_per_token = between(1, n_group)
        drawn: dict[str, Any] = {
            "n_dense_layer": between(0, n_layer - 1),
            "n_expert": n_group * per_group,
            "n_expert_group": n_group,
            "groups_per_token": groups_per_token,
            "experts_per_token": between(1, min(4, groups_per_token * per_group)),
            "n_shared_expert": between(0, 2),
            "expert_width": between(1, 6) * 8,
            "router": pick("softmax", "sigmoid"),
            "router_normalise": chance(),
            "router_scale": one_of(1, 2.5),
            "balancing": pick("none", "bias", "loss"),
            "balancing_rate": log_between(1e-3, 1e-1),
        }
        # The only gate of a token, normalised, is one: nothing would reach the router but rounding.
        drawn["router_normalise"] &= drawn["experts_per_token"] > 1
        return drawn

    precision: Precision = "bf16" if chance(0.2) else "strict"
    # Gates of bf16 are for means over many numbers: a norm over five channels, or a loss over ten tokens, is noise.
    coarse = precision == "bf16"
    tied = chance()
    n_head = between(1, 4)
    shape: dict[str, Any] = {
        "n_head": n_head,
        "n_embd": n_head * (between(32 // n_head + 1, 36) if coarse else between(4, 16)),
        "positions": pick("learned", "rope", "both"),
        "attention": pick("multi_head", "grouped_query", "latent", "latent_per_head"),
        "feed_forward": pick("gelu", "gelu_tanh", "relu2", "swiglu", "moe"),
        "n_layer": between(1, 3),
    }
    if shape["attention"] in ("latent", "latent_per_head"):
        shape |= latents(shape["attention"] == "latent")
    else:
        shape |= {"head_size": chance() * between(2, 8) * 2, "qk_norm": chance(0.3)}
        if shape["attention"] == "grouped_query":
            divisors = [heads for heads in range(n_head + 1) if heads == 0 or n_head % heads == 0]
            shape["n_kv_head"] = divisors[between(0, len(divisors) - 1)]
        if shape["positions"] != "learned" and not shape["head_size"] and shape["n_embd"] // n_head % 2:
            shape["head_size"] = shape["n_embd"] // n_head + 1
    if shape["feed_forward"] == "moe":
        # PyTorch's grouped product wants rows of whole 16 bytes.
        shape["n_embd"] = -(-shape["n_embd"] // (8 * n_head)) * 8 * n_head
        shape |= experts(shape["n_layer"])
    elif chance(0.3):
        shape["feed_forward_width"] = between(16, 100)
    model = ModelConfig(
        vocab_size=between(8, 120),
        # A saturated query over two keys has a gradient of differences: PyTorch alone is 1.2e-5 off, L2 allows 1e-5.
        block_size=between(32 if coarse else 8, 40),
        bias=chance(),
        norm="layernorm" if chance() else "rmsnorm",
        final_norm=chance(0.7),
        attention_bias=chance(0.3),
        rope_theta=log_between(100, 1e6),
        rope_layout="halves" if chance() else "interleaved",
        tied_head=tied,
        head_bias=not tied and chance(),
        norm_eps=log_between(1e-6, 1e-4),
        dropout=one_of(0, 0, 0.1, 0.2, 0.5),
        dropout_rng="shared",
        **shape,
    )
    rate = log_between(1e-5, 1e-2)
    optim = OptimConfig(
        optimizer="muon" if chance(0.3) else "adamw",
        muon_momentum=one_of(0.8, 0.9, 0.95),
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
