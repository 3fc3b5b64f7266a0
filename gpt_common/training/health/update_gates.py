"""Gates on what a step does with its gradient: the rule of the optimiser, and whether it is a derivative at all."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.config import ModelConfig, OptimConfig
from gpt_common.data.batches import NumpyBatch
from gpt_common.network.parameters import is_block_matrix
from gpt_common.training.health.asked import Arrays, Asked, distance, rms, square_of
from gpt_common.training.health.gates import GateFailed, check_first_update
from gpt_common.training.schedule import learning_rate

Distances = tuple[tuple[float, ...], float, float]
"""Changes of the loss that a step along the gradient is to make, the least that tells anything, and how far off the
change may be."""
# A trained model is straight over the least of these alone.
EXACT: Distances = ((0.02, 0.005, 0.00125, 0.0003, 0.0001), 1e-4, 0.05)
ROUNDED: Distances = ((0.3, 0.1), 0.05, 0.4)


def check_update(asked: Asked) -> str:
    """The step's update is AdamW's rule (Loshchilov & Hutter 2019), recomputed in float64 for a few tensors.

    Of several micro-steps: what is counted by them, or stays of them, shows in the norm, or in the gradient afterwards.
    """
    optim, parts = asked.config.optim, asked.micro_batches()
    _, gradients = asked.probe.step_gradients(parts, asked.step)
    _check_reached(asked, gradients)
    norm = math.sqrt(square_of(gradients))
    # A gradient that is clipped says nothing of one that is not, nor the other way round: once above its norm, once
    # below. A step that is compiled has its own clipping in it.
    both = optim.grad_clip and not asked.probe.compiled
    for clip in (2 * norm, norm / 2) if both else (optim.grad_clip,):
        _check_rule(asked, parts, gradients, norm, clip)
    _, again = asked.probe.step_gradients(parts, asked.step)
    if not distance(again, gradients) <= (1e-3 if asked.exact else 0.1):
        ratio = math.sqrt(square_of(again) / max(square_of(gradients), 1e-30))
        raise GateFailed(
            "update",
            f"the same step a second time has another gradient, {ratio:.3f} times as long",
            "What an update leaves behind, its gradient or its weights, gets into the next one",
        )
    return "the update is the optimiser's rule"


def _check_rule(asked: Asked, parts: Sequence[NumpyBatch], gradients: Arrays, norm: float, clip: float) -> None:
    """The step with this gradient of this norm, clipped to `clip`, moves weights and moments as it should."""
    optim, moments, rate = asked.config.optim, asked.probe.moments(), asked.config.optim.learning_rate
    tried = asked.probe.try_step(parts, asked.step, rate, clip)
    check_first_update(_checksums(tried.before), _checksums(tried.after), rate)
    if not abs(tried.norm - norm) <= (1e-3 if asked.exact else 5e-2) * norm:
        raise GateFailed(
            "update",
            f"the step reports a gradient norm of {tried.norm:.4f}, its gradient has {norm:.4f}",
            "It is of something else: of a part of the gradient, or multiplied, as by the number of micro-steps",
        )
    scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
    names = [
        name
        for name in gradients
        if name in tried.before and (optim.optimizer == "adamw" or not is_block_matrix(name, gradients[name].ndim))
    ]
    for name in {*names[:2], *names[len(names) // 2 :][:2], *names[-2:]}:
        first, second = (moments.get(f"{kind}.{name}", np.zeros(1)) for kind in ("exp_avg", "exp_avg_sq"))
        found = {
            "moves": tried.after[name] - tried.before[name].astype(np.float64),
            "has a first moment": tried.moments[f"exp_avg.{name}"],
            "has a second moment": tried.moments[f"exp_avg_sq.{name}"],
        }
        after, *kept = adamw(tried.before[name], scale * gradients[name], first, second, asked.step + 1, rate, optim)
        expected = [after - tried.before[name], *kept]
        for (what, value), right in zip(found.items(), expected, strict=True):
            error, size = rms(value - right), rms(right)
            # What moved is a difference of float32 numbers, rounded by a part of their own size.
            rounded = 6e-8 * rms(tried.before[name]) if what == "moves" else 0.0
            if not error <= (1e-3 if asked.exact else 0.3) * size + rounded:
                raise GateFailed(
                    "update",
                    f"{name} {what} otherwise than by AdamW's rule: {error / max(size, 1e-30):.1%} off",
                    "Clipping, moments, bias correction, weight decay or the learning rate are not what they should be",
                )


def check_schedule(asked: Asked) -> str:
    """The learning rate warms up to its peak, passes it never, and comes down to where it should end.

    Asked of the function that the loop asks, by what a schedule is (gpt_common/training/schedule.py) and not by its
    formula.
    """
    optim, last = asked.config.optim, asked.config.train.max_steps
    end = optim.decay_steps if optim.schedule == "cosine" and optim.decay_steps else last
    steps = np.unique(np.linspace(0, max(end, last), 500).astype(int))
    asked_for = {*steps, optim.warmup_steps, max(0, end - 1), end}
    rates = {int(step): learning_rate(int(step), optim, last) for step in asked_for}
    peak, low, warmup = optim.learning_rate, optim.min_lr, optim.warmup_steps
    after = [rates[step] for step in sorted(rates) if step >= warmup]
    down = peak if optim.schedule == "constant" else low
    # (what is, what should be, in words)
    figures = [(max([0.0, *np.diff(after)]), 0.0, "rises again, after its warm-up, by")] if low <= peak else []
    if warmup < end:
        highest = max(rates, key=rates.__getitem__)
        decay = optim.decay_fraction * last if optim.schedule == "wsd" else end - warmup
        step_down = abs(peak - low) * 2 / max(1.0, min(decay, end - warmup))
        figures += [
            (rates[0], peak / (warmup + 1), "begins with"),
            (rates[warmup], peak, f"is after its warm-up at step {warmup}"),
            (rates[highest], peak, f"rises, at step {highest}, to"),
            (rates[end], down, f"ends at step {end} with"),
            (max(0.0, rates[end - 1] - down - step_down), 0.0, "falls at its last step by"),
        ]
    for found, expected, what in figures:
        if abs(found - expected) > 1e-6 * peak:
            raise GateFailed(
                "schedule",
                f"the learning rate {what} {found:.3g}, which should be {expected:.3g}",
                "The schedule is not the one that was asked for",
            )
    if warmup >= end:
        return f"the learning rate warms up to the end, to {rates[end]:.3g}"
    return f"the learning rate goes up to {peak:g} in {warmup} steps and ends at {down:g}"


def _check_reached(asked: Asked, gradients: Arrays) -> None:
    """A gradient arrives everywhere, on the path that trains: at every parameter, and at every position's embedding."""
    nothing = [name for name, value in gradients.items() if not value.any() and not name.endswith("k_proj.bias")]
    nothing += [name for name in asked.probe.parameter_names() if name not in gradients]
    if nothing:
        raise GateFailed(
            "gradients in training",
            f"{', '.join(nothing[:3])} {'receives' if len(nothing) == 1 else 'receive'} no gradient in the step",
            "The training path skips them or cuts them off from the loss",
        )
    embedding = gradients.get("position_embedding.weight")
    length = max(part.tokens.shape[1] for part in asked.micro_batches())
    if embedding is not None and len(without := np.flatnonzero(~embedding[:length].any(axis=1))):
        raise GateFailed(
            "positions",
            f"the embeddings of {len(without)} of {length} positions, the first {without[0]}, receive no gradient",
            "Positions share an embedding, or are left out",
        )


def check_derivative(asked: Asked, *, each: bool = False) -> str:
    """The gradient is the derivative of the loss: a step along it changes the loss by what it says.

    By central differences with the masks held; with `each`, along every parameter's gradient alone too. Where tokens
    are sent to experts, these are the parameters that do not decide where to: their small part of the loss would drown
    in its jumps.
    """
    _, gradients = asked.probe.step_gradients([asked.batch], asked.step)
    kept = asked.probe.weights()
    draw = asked.draw("direction")
    weighed = {
        name: value * draw.uniform(0.5, 1.5, value.shape).astype(np.float32) for name, value in gradients.items()
    }
    names = [name for name in kept if name in weighed and not _is_detached(name, asked.config.adapter)]
    alone = [name for name in names if each and not _decides_where_to(name, asked.config.model)]
    try:
        for what, along in [("the gradient", names), *((name, [name]) for name in alone)]:
            _check_along(asked, {name: weighed[name] for name in along}, gradients, kept, what)
    finally:
        asked.probe.set_weights(kept)
    return "the gradient is the derivative of the training loss"


def _is_detached(name: str, adapter: AdapterConfig) -> bool:
    """Whether the gradient of a tensor is not a derivative: DoRA's leaves out what A and B do to the rows' lengths."""
    return adapter.adapter == "dora" and name.endswith((".lora_a", ".lora_b"))


def _decides_where_to(name: str, model: ModelConfig) -> bool:
    """Whether a router is after this parameter, or it is one: all but the experts of the last block and the head."""
    after = (f"blocks.{model.n_layer - 1}.feed_forward.", "final_norm.", "head.")
    return model.feed_forward == "moe" and (".router." in name or not name.startswith(after))


def _check_along(asked: Asked, direction: Arrays, gradients: Arrays, kept: Arrays, what: str) -> None:
    slope = sum(float((gradients[name].astype(np.float64) * value).sum()) for name, value in direction.items())
    if slope <= 0:  # a gradient of zero: a gate of its own looks for those
        return
    # So far that the loss changes by much more than it is rounded; if that is not straight, by less: a gradient that is
    # wrong is wrong at every distance. Weights are moved by a twentieth at most; where that changes the loss by no more
    # than it is rounded, nothing can be told.
    wanted, least, tolerance = EXACT if asked.exact else ROUNDED
    if asked.config.model.feed_forward == "moe":
        # A token that is sent to another expert changes the loss by a jump: by 0.036 at most along the gradient of 42
        # models.
        tolerance = max(tolerance, 0.1)
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
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A tensor and its moments after update number `step` (from 1), in float64; matrices decay, vectors do not."""
    beta1, beta2 = optim.beta1, optim.beta2
    g = gradient.astype(np.float64)
    m = beta1 * first.astype(np.float64) + (1 - beta1) * g
    v = beta2 * second.astype(np.float64) + (1 - beta2) * g * g
    decay = rate * optim.weight_decay if weights.ndim >= 2 else 0.0
    direction = m / (1 - beta1**step) / (np.sqrt(v / (1 - beta2**step)) + optim.adam_eps)
    return np.asarray(weights.astype(np.float64) * (1 - decay) - rate * direction), np.asarray(m), np.asarray(v)


def _checksums(arrays: Arrays) -> dict[str, int]:
    return {name: zlib.crc32(value.tobytes()) for name, value in arrays.items()}
