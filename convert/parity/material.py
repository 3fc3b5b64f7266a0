"""What the ladder is climbed with: a model of manageable size, two states of its weights, tokens that can be learnt."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.parity.compare import Arrays, Tokens
from convert.parity.twins.twin import Batches
from gpt_common.config import ModelConfig, RunConfig
from gpt_common.data.batches import Batch, Examples, Rows, training_batch
from gpt_common.keyed import keyed_generator
from gpt_common.network.init import initial_weights
from gpt_common.network.parameters import buffer_shapes, parameter_shapes

WIDENED_STD = 0.2
"""At GPT-2's 0.02 most wrong models pass: attention is near uniform and GELU near linear."""
WIDENED_WIDTH = 64
"""Wider models get less, so that a matrix amplifies by 1.6 at most: saturated attention would amplify rounding."""
ROUTING_BIAS_STD = 0.05
STREAM_LENGTH = 20_000
LEAST_MICRO_STEPS = 5
"""At real size: enough for what begins after two, three or four."""
SHORT = 32
"""Positions of all micro-steps but the first at real size."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Upper bounds on a configuration, so that a climb ends in reasonable time; what is smaller stays as it is."""

    n_layer: int
    n_head: int
    head_size: int
    block_size: int
    vocab_size: int
    batch_size: int
    grad_accum_steps: int
    n_expert: int


SIZES = {
    "quick": Size(
        n_layer=2, n_head=2, head_size=16, block_size=32, vocab_size=96, batch_size=4, grad_accum_steps=2, n_expert=8
    ),
    "standard": Size(
        n_layer=4, n_head=4, head_size=32, block_size=64, vocab_size=256, batch_size=4, grad_accum_steps=2, n_expert=8
    ),
}


def shrink(config: RunConfig, size: Size) -> RunConfig:
    """The same family within `size`: kinds, biases, tying, dropout rate and optimiser stay, dimensions give way."""
    model, train = config.model, config.train
    # Two key heads at least, each with all its query heads: with one, every order of sharing is right.
    shared = model.n_head // (model.n_kv_head or model.n_head)
    groups = min(model.n_head // shared, max(2, size.n_head // shared))
    n_head = groups * shared
    n_embd = n_head * min(max(1, model.n_embd // model.n_head), size.head_size)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            model,
            n_layer=min(model.n_layer, size.n_layer),
            n_head=n_head,
            n_kv_head=groups if model.n_kv_head else 0,
            n_embd=n_embd,
            head_size=min(model.head_size, size.head_size),
            q_latent=min(model.q_latent, 3 * size.head_size),
            kv_latent=min(model.kv_latent, 2 * size.head_size),
            nope_size=min(model.nope_size, size.head_size),
            rope_size=min(model.rope_size, size.head_size // 2),
            value_size=min(model.value_size, size.head_size),
            feed_forward_width=model.feed_forward_width * n_embd // model.n_embd,
            **(_fewer_experts(model, size) if model.feed_forward == "moe" else {}),
            block_size=min(model.block_size, size.block_size),
            vocab_size=min(model.vocab_size or size.vocab_size, size.vocab_size),
        ),
        train=dataclasses.replace(
            train,
            batch_size=min(train.batch_size, size.batch_size),
            grad_accum_steps=min(train.grad_accum_steps, size.grad_accum_steps),
        ),
    )


def _fewer_experts(model: ModelConfig, size: Size) -> dict[str, Any]:
    """Experts, their groups and their width within `size`; every kind of choice that there was is still there."""
    n_group = min(model.n_expert_group, size.n_expert // 2)
    per_group = min(model.n_expert // model.n_expert_group, size.n_expert // n_group)
    groups_per_token = min(model.groups_per_token, max(1, n_group // 2)) if n_group > 1 else 1
    return {
        "n_dense_layer": min(model.n_dense_layer, min(model.n_layer, size.n_layer) - 1),
        "n_expert": n_group * per_group,
        "n_expert_group": n_group,
        "groups_per_token": groups_per_token,
        "n_shared_expert": min(model.n_shared_expert, 2),
        "experts_per_token": min(model.experts_per_token, max(1, groups_per_token * per_group // 2)),
        "expert_width": min(model.expert_width, 4 * size.head_size),
    }


def at_real_size(config: RunConfig) -> RunConfig:
    """A configuration's own width, block, vocabulary and micro-steps; what is repeated alike is cut.

    That is depth, to the first layer of each kind and two at least, and sequences, to one of a micro-step. Fewer than
    five micro-steps become five.
    """
    model, train = config.model, config.train
    first_kinds = max(2, model.n_dense_layer + 1)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(model, n_layer=min(model.n_layer, first_kinds)),
        train=dataclasses.replace(train, batch_size=1, grad_accum_steps=max(train.grad_accum_steps, LEAST_MICRO_STEPS)),
    )


def spread_batches(config: RunConfig) -> Batches:
    """One batch per micro-step, with ids from all over the vocabulary, its first and its last.

    The first has whole blocks, (B, T), the others (B, SHORT): that many micro-steps cost little more than one.
    """
    vocab_size, found = config.model.vocab_size, []
    for micro_step in range(config.train.grad_accum_steps):
        length = config.model.block_size if micro_step == 0 else min(SHORT, config.model.block_size)
        generator = keyed_generator(config.train.seed, "spread tokens", micro_step)
        ids = np.linspace(0, vocab_size - 1, length).astype(np.int32)
        tokens = np.stack([generator.permutation(ids) for _ in range(config.train.batch_size)])
        found.append(Batch(tokens, np.stack([generator.permutation(row) for row in tokens])))
    return found


def fresh(config: RunConfig) -> Arrays:
    """Weights before training."""
    return dict(initial_weights(config.model, config.train.seed))


def widened(config: RunConfig) -> Arrays:
    """Weights that look trained: matrices and biases of standard deviation 0.2 or a little less, norms around 1.

    What balancing adds to a router's scores decides some choices, and is small beside the scores.
    """
    weights = {}
    std = np.float32(WIDENED_STD * min(1, WIDENED_WIDTH / config.model.n_embd) ** 0.5)
    for name, shape in parameter_shapes(config.model).items():
        noise = keyed_generator(config.train.seed, "widened", name).standard_normal(shape, np.float32)
        centre = 1.0 if "norm" in name and name.endswith(".weight") else 0.0
        weights[name] = np.float32(centre) + noise * std
    for name, shape in buffer_shapes(config.model).items():
        noise = keyed_generator(config.train.seed, "widened", name).standard_normal(shape, np.float32)
        weights[name] = noise * np.float32(ROUTING_BIAS_STD)
    return weights


def nudged(weights: Arrays, seed: int) -> Arrays:
    """The same weights, each moved by one unit in the last place, up or down by chance."""
    moved = {}
    for name, value in weights.items():
        up = keyed_generator(seed, "one ulp", name).random(value.shape) < 0.5
        # The words of a quantised matrix are no numbers.
        moved[name] = (
            value
            if value.dtype == np.uint32
            else np.nextafter(value, np.where(up, np.float32(np.inf), np.float32(-np.inf)))
        )
    return moved


def coarsened(weights: Arrays, seed: int) -> Arrays:
    """The same weights in bfloat16, each rounded up or down by chance."""
    moved = {}
    for name, value in weights.items():
        up = keyed_generator(seed, "one ulp", name).random(value.shape) < 0.5
        # Its upper 16 bits, or the next number that has only those.
        bits = (value.view(np.uint32) >> 16) + up.astype(np.uint32)
        moved[name] = (bits << 16).view(np.float32)
    return moved


@functools.cache
def token_stream(vocab_size: int, seed: int) -> Tokens:
    """(N,) ids that a model can learn from: mostly a fixed successor of the token before, sometimes a Zipf draw."""
    generator = keyed_generator(seed, "parity tokens")
    successor = generator.permutation(vocab_size)
    draws = (generator.zipf(1.3, STREAM_LENGTH) - 1) % vocab_size
    follows = generator.random(STREAM_LENGTH) < 0.7
    tokens = np.empty(STREAM_LENGTH, np.int32)
    token = 0
    for i in range(STREAM_LENGTH):
        token = int(successor[token]) if follows[i] else int(draws[i])
        tokens[i] = token
    return tokens


def batches(config: RunConfig, step: int) -> Batches:
    """The batch of every micro-step, as the trainer takes them from a corpus."""
    return [
        training_batch(
            token_stream(config.model.vocab_size, config.train.seed),
            block_size=config.model.block_size,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            step=step,
            micro_step=micro_step,
        )
        for micro_step in range(config.train.grad_accum_steps)
    ]


def packed(config: RunConfig) -> Batches:
    """One batch per micro-step of examples that share rows: not all of their tokens count, and no two count alike."""
    draw, train, room = keyed_generator(config.train.seed, "packed"), config.train, config.model.block_size + 1
    lengths = draw.integers(2, max(3, room // 2) + 1, 4 * train.batch_size * train.grad_accum_steps)
    tokens = draw.integers(0, config.model.vocab_size, int(lengths.sum()))
    ends = np.cumsum(lengths)
    counted = (draw.random(len(tokens)) < 0.5).astype(np.uint8)
    counted[ends - lengths], counted[ends - 1] = 0, 1
    rows = Rows(Examples(tokens, counted, ends), config.model.block_size, packing=True)
    numbers = np.arange(train.grad_accum_steps * train.batch_size).reshape(train.grad_accum_steps, -1) % len(rows)
    return [rows.batch(part) for part in numbers]


def with_dropout(config: RunConfig, rate: float) -> RunConfig:
    """The same with dropout by shared masks."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=rate, dropout_rng="shared"))
