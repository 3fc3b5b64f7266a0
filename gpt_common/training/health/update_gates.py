"""Gates on what a step does with its gradient: dropout, derivative, the rule of the optimiser; asked of the step."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.config import OptimConfig
from gpt_common.data.batches import Batch
from gpt_common.network.parameters import is_block_matrix
from gpt_common.training.health.asked import Arrays, Asked, rms, square_of
from gpt_common.training.health.gates import GateFailed, check_first_update

DROPPED_AT_LEAST, HEADS_AT_LEAST = 1500, 240
"""Activations, and heads, that are counted at each site of dropout."""
PROJECTIONS = ("attention.out_proj.weight", "feed_forward.down_proj.weight", "shared_experts.down_proj.weight")
"""What dropout follows in every block."""


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
    dropped: dict[str, list[float]] = {}
    model = asked.config.model
    draws = -(-DROPPED_AT_LEAST // model.n_embd)
    if not asked.probe.compiled:  # one token takes no time
        draws = max(draws, HEADS_AT_LEAST // model.n_head)
    for step in range(asked.step, asked.step + draws):
        _, gradients = asked.probe.step_gradients([batch], step)
        for site, row in _sites(gradients, asked.config.model.n_head):
            dropped.setdefault(site, []).extend((row == 0).tolist())
    for site, zeros in dropped.items():
        share, count = float(np.mean(zeros)), len(zeros)
        if abs(share - rate) > 5 * math.sqrt(rate * (1 - rate) / count) + 1 / count:
            what = "nothing is" if share == 0 else f"{share:.3f} of {count} activations are"
            raise GateFailed(
                "dropout",
                f"{what} dropped after {site}, and dropout is {rate:g}",
                "The step does not drop what it should",
            )
    return f"{rate:g} of the activations are dropped at {len(dropped)} sites"


def check_update(asked: Asked) -> str:
    """The step's update is AdamW's rule (Loshchilov & Hutter 2019), recomputed in float64 for a few tensors."""
    optim = asked.config.optim
    _, gradients = asked.probe.step_gradients([asked.batch], asked.step)
    moments, rate = asked.probe.moments(), optim.learning_rate
    tried = asked.probe.try_step([asked.batch], asked.step, rate)
    check_first_update(_checksums(tried.before), _checksums(tried.after), rate)
    norm = math.sqrt(square_of(gradients))
    if not abs(tried.norm - norm) <= (1e-3 if asked.exact else 5e-2) * norm:
        raise GateFailed(
            "update",
            f"the step reports a gradient norm of {tried.norm:.4f}, its gradient has {norm:.4f}",
            "It is of something else",
        )
    scale = min(1.0, optim.grad_clip / (norm + 1e-6)) if optim.grad_clip else 1.0
    names = [
        name for name in gradients if optim.optimizer == "adamw" or not is_block_matrix(name, gradients[name].ndim)
    ]
    for name in {*names[:2], *names[len(names) // 2 :][:2], *names[-2:]}:
        first, second = (moments.get(f"{kind}.{name}", np.zeros(1)) for kind in ("exp_avg", "exp_avg_sq"))
        expected = adamw(tried.before[name], scale * gradients[name], first, second, asked.step + 1, rate, optim)
        error = rms(tried.after[name] - expected)
        moved = rms(expected - tried.before[name])
        if not error <= (1e-3 if asked.exact else 0.3) * moved + 1e-9:
            raise GateFailed(
                "update",
                f"{name} moves otherwise than by AdamW's rule: {error / max(moved, 1e-30):.1%} of the way off",
                "Clipping, moments, bias correction, weight decay or the learning rate are not what they should be",
            )
    return "the update is the optimiser's rule"


def check_derivative(asked: Asked, *, each: bool = False) -> str:
    """The gradient is the derivative of the loss: a step along it changes the loss by what it says.

    By central differences with the masks held; with `each`, along every parameter's gradient alone too.
    """
    _, gradients = asked.probe.step_gradients([asked.batch], asked.step)
    kept = asked.probe.weights()
    draw = asked.draw("direction")
    weighed = {
        name: value * draw.uniform(0.5, 1.5, value.shape).astype(np.float32) for name, value in gradients.items()
    }
    whole = [("the gradient", [name for name in kept if name in weighed])]
    try:
        for what, names in whole + ([(name, [name]) for name in kept if name in weighed] if each else []):
            _check_along(asked, {name: weighed[name] for name in names}, gradients, kept, what)
    finally:
        asked.probe.set_weights(kept)
    return "the gradient is the derivative of the training loss"


def _check_along(asked: Asked, direction: Arrays, gradients: Arrays, kept: Arrays, what: str) -> None:
    slope = sum(float((gradients[name].astype(np.float64) * value).sum()) for name, value in direction.items())
    if slope <= 0:  # a gradient of zero: a gate of its own looks for those
        return
    # So far that the loss changes by much more than it is rounded; if that is not straight, by less: a gradient that is
    # wrong is wrong at every distance. Weights are moved by a twentieth at most; where that changes the loss by no more
    # than it is rounded, nothing can be told.
    wanted, least, tolerance = ((0.02, 0.005, 0.00125), 2e-4, 0.05) if asked.exact else ((0.3, 0.1), 0.05, 0.4)
    most = 0.05 * slope * math.sqrt(square_of({name: kept[name] for name in direction}) / square_of(direction))
    changes = [change for change in wanted if change <= most] or [most] * (most >= least)
    ratio = 1.0
    for change in changes:
        losses = []
        for sign in (1, -1):
            far = sign * change / slope
            moved = {name: (kept[name] + far * value).astype(np.float32) for name, value in direction.items()}
            asked.probe.set_weights({**kept, **moved})
            losses.append(asked.probe.step_loss([asked.batch], asked.step))
        ratio = (losses[0] - losses[1]) / (2 * change)
        if abs(ratio - 1) <= tolerance:
            return
    if changes:
        raise GateFailed(
            "derivative",
            f"along {what} the loss changes by {ratio:.3f} of what the gradient says",
            "Backward is not the derivative of forward: something is cut off, scaled or counted twice",
        )


def adamw(
    weights: npt.NDArray[Any],
    gradient: npt.NDArray[Any],
    first: npt.NDArray[Any],
    second: npt.NDArray[Any],
    step: int,
    rate: float,
    optim: OptimConfig,
) -> npt.NDArray[np.float64]:
    """A tensor after update number `step` (from 1), in float64; matrices decay, vectors do not."""
    beta1, beta2 = optim.beta1, optim.beta2
    g = gradient.astype(np.float64)
    m = beta1 * first.astype(np.float64) + (1 - beta1) * g
    v = beta2 * second.astype(np.float64) + (1 - beta2) * g * g
    decay = rate * optim.weight_decay if weights.ndim >= 2 else 0.0
    direction = m / (1 - beta1**step) / (np.sqrt(v / (1 - beta2**step)) + optim.adam_eps)
    return np.asarray(weights.astype(np.float64) * (1 - decay) - rate * direction)


def _sites(gradients: Arrays, n_head: int) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """(what was dropped after, largest entry of the gradient of every output) where dropout follows a product."""
    for name, value in gradients.items():
        if not value.any():  # every head was dropped at once: nothing can be told
            continue
        if name.endswith(PROJECTIONS) and value.ndim == 2:
            yield name.removesuffix(".weight"), np.abs(value).max(axis=1)
        elif name.endswith("attention.qkv_proj.weight"):
            # A first position attends to itself alone: that weight dropped, its head's values have no gradient.
            heads = value.reshape(3, n_head, -1)[2]
            yield name.removesuffix("qkv_proj.weight") + "weights", np.abs(heads).max(axis=1)


def _checksums(arrays: Arrays) -> dict[str, int]:
    return {name: zlib.crc32(value.tobytes()) for name, value in arrays.items()}
