"""Gates on dropout, asked of the step: how much is dropped where, and that it is not the same every time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.data.batches import Batch, NumpyBatch
from gpt_common.training.health.asked import Arrays, Asked
from gpt_common.training.health.gates import GateFailed

DROPPED_AT_LEAST, HEADS_AT_LEAST = 1500, 1000
"""Activations that are counted at each site of dropout, and heads that are in all blocks: half a rate is seen."""
WEIGHTS = "attention.weights"
PROJECTIONS = ("attention.out_proj.weight", "feed_forward.down_proj.weight", "shared_experts.down_proj.weight")
"""What dropout follows in every block."""
DROPPED_TO_TELL = 100
"""Masks of a batch are told apart if so many activations are dropped in it."""


def check_dropout(asked: Asked) -> str | None:
    """The share of activations that are dropped is the rate, at every site that a gradient shows.

    If only the first position of one sequence counts, the gradient of a projection is one outer product, with a
    zero row for every output that was dropped. 5 standard deviations of a binomial: one false alarm in a million.
    """
    rate = asked.config.model.dropout
    if not rate:
        return None
    rows, length = asked.batch.tokens.shape
    weights = np.zeros((rows, length), np.float32)
    weights[0, 0] = 1
    batch = Batch(asked.batch.tokens, asked.batch.labels, weights)
    if not asked.probe.compiled:
        batch = Batch(asked.batch.tokens[:1, :1], asked.batch.labels[:1, :1])
    dropped: dict[str, list[bool]] = {}
    model = asked.config.model
    draws = -(-DROPPED_AT_LEAST // model.n_embd)
    if not asked.probe.compiled:  # one token takes no time
        draws = max(draws, HEADS_AT_LEAST // (model.n_head * model.n_layer))
    _check_masks(asked)
    for step in range(asked.step, asked.step + draws):
        _, gradients = asked.probe.step_gradients([batch], step)
        for site, row in _sites(gradients, asked.config.model.n_head):
            dropped.setdefault(site, []).extend((row == 0).tolist())
    heads = [zero for site, zeros in dropped.items() if site.endswith(WEIGHTS) for zero in zeros]
    for site, zeros in {**dropped, **({f"{WEIGHTS} of all blocks": heads} if heads else {})}.items():
        share, count = float(np.mean(zeros)), len(zeros)
        if abs(share - rate) > 5 * math.sqrt(rate * (1 - rate) / count) + 1 / count:
            what = "nothing is" if share == 0 else f"{share:.3f} of {count} activations are"
            raise GateFailed(
                "dropout",
                f"{what} dropped after {site}, and dropout is {rate:g}",
                "The step does not drop what it should",
            )
    for (one, zeros), (other, others) in itertools.combinations(dropped.items(), 2):
        if zeros == others and sum(zeros) >= DROPPED_TO_TELL:
            raise GateFailed(
                "dropout",
                f"the same activations are dropped after {one} and after {other}, in {draws} steps",
                "The masks do not depend on the place",
            )
    return f"{rate:g} of the activations are dropped at {len(dropped)} sites"


def _check_masks(asked: Asked) -> None:
    """A step done again drops the same, so that a run can be taken up; its micro-steps, and the next step, do not."""
    batch: NumpyBatch = asked.batch
    if not asked.probe.compiled:
        batch = Batch(batch.tokens[:1, :64], batch.labels[:1, :64])
    if asked.config.model.dropout * batch.tokens.size * asked.config.model.n_embd < DROPPED_TO_TELL:
        return
    still = asked.probe.step_loss([batch], asked.step)

    def same(batches: list[NumpyBatch], step: int) -> bool:
        return abs(asked.probe.step_loss(batches, step) - still) <= 1e-6 * max(1.0, still)

    if abs(asked.probe.step_loss([batch], asked.step, dropout=False) - still) <= 1e-6 * max(1.0, still):
        raise GateFailed(
            "dropout",
            f"nothing is dropped, and dropout is {asked.config.model.dropout:g}",
            "The step has the loss that it has without dropout",
        )
    for wrong, what, meaning in (
        (not same([batch], asked.step), "drops other activations when it is done again", "A run cannot be taken up"),
        (same([batch, batch], asked.step), "has the same masks in its micro-steps", "The micro-step is not in the key"),
        (same([batch], asked.step + 1), "has the same masks as the next", "The step is not in the key of dropout"),
    ):
        if wrong:
            raise GateFailed("dropout", f"step {asked.step} {what}", meaning)


def _sites(gradients: Arrays, n_head: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """(what was dropped after, largest entry of the gradient of every output) where dropout follows a product."""
    embedding = gradients.get("position_embedding.weight")
    if embedding is not None:  # the first position adds to the sum that is dropped, and nothing else comes to it
        yield "the embedding", np.abs(embedding[0])
    for name, value in gradients.items():
        if not value.any():  # every head was dropped at once: nothing can be told
            continue
        if name.endswith(PROJECTIONS) and value.ndim == 2:
            yield name.removesuffix(".weight"), np.abs(value).max(axis=1)
        elif name.endswith("attention.qkv_proj.weight"):
            # A first position attends to itself alone: that weight dropped, its head's values have no gradient.
            heads = value.reshape(3, n_head, -1)[2]
            yield name.removesuffix("attention.qkv_proj.weight") + WEIGHTS, np.abs(heads).max(axis=1)
