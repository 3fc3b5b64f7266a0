"""AdamW with decoupled weight decay on matrices only, and global gradient clipping.

The state has one scheme in both twins: `exp_avg.<parameter>`, `exp_avg_sq.<parameter>` and the number of steps done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx import optimizers
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from gpt_common.config import OptimConfig
from mlx_gpt.model import GPT

MOMENTS = {"exp_avg": "m", "exp_avg_sq": "v"}


class AdamW(optimizers.Adam):
    """AdamW in PyTorch's order of operations.

    MLX's own takes the bias corrections from float32 powers, which are off by up to 3e-5; these are exact.
    """

    def __init__(self, config: OptimConfig) -> None:
        super().__init__(config.learning_rate, [config.beta1, config.beta2], config.adam_eps)
        self.weight_decay = config.weight_decay
        self.set_step(1, config.learning_rate)

    def set_step(self, step: int, learning_rate: float) -> None:
        """What changes from step to step, as state: a compiled step follows it."""
        beta1, beta2 = self.betas
        self.state["step"] = mx.array(step - 1, mx.uint64)
        self.state["decay"] = mx.array(1 - learning_rate * self.weight_decay)
        self.state["step_size"] = mx.array(learning_rate / (1 - beta1**step))
        self.state["root_correction"] = mx.array(math.sqrt(1 - beta2**step))

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        """One parameter after the update."""
        beta1, beta2 = self.betas
        # As torch.lerp: from the nearer end, so that a tiny gradient is not lost beside a large moment.
        change = gradient - state["m"]
        m = state["m"] = state["m"] + (1 - beta1) * change if beta1 > 0.5 else gradient - beta1 * change
        v = state["v"] = beta2 * state["v"] + (1 - beta2) * gradient * gradient
        if parameter.ndim >= 2:
            parameter = parameter * self.state["decay"]
        return parameter - self.state["step_size"] * m / (mx.sqrt(v) / self.state["root_correction"] + self.eps)


def build_optimizer(model: GPT, config: OptimConfig) -> AdamW:
    """AdamW (Loshchilov & Hutter 2019) with zero moments; `set_step` gives it its learning rate."""
    optimizer = AdamW(config)
    optimizer.init(model.trainable_parameters())
    return optimizer


def set_step(optimizer: AdamW, step: int, learning_rate: float) -> None:
    """Prepare update number `step` (from 1)."""
    optimizer.set_step(step, learning_rate)


def clip_gradients(gradients: Any, largest: float) -> tuple[Any, mx.array]:
    """Scale all gradients so that their global norm is at most `largest` (0: leave them); returns the norm before."""
    # Row by row: MLX's CPU adds one number after the other, and 40 million in one go come out 10 % too small.
    rows = [gradient.square().sum(axis=-1) for gradient in dict(tree_flatten(gradients)).values()]
    norm = mx.sqrt(mx.stack([row.sum() for row in rows]).sum())
    scale = mx.minimum(largest / (norm + 1e-6), 1.0)
    return tree_map(lambda gradient: gradient * scale, gradients) if largest else gradients, norm


def optimizer_tensors(model: GPT, optimizer: AdamW) -> dict[str, mx.array]:
    """Both moments of every parameter by name; zeros before the first update."""
    names = [name for name, _ in model.named_parameters()]
    state = dict(tree_flatten(optimizer.state))
    return {f"{moment}.{name}": state[f"{name}.{key}"] for moment, key in MOMENTS.items() for name in names}


def load_optimizer_tensors(model: GPT, optimizer: AdamW, tensors: Mapping[str, mx.array], step: int) -> None:
    """Put back what `optimizer_tensors` gave after `step` updates."""
    names = [name for name, _ in model.named_parameters()]
    state = [
        (f"{name}.{key}", tensors[f"{moment}.{name}"].astype(mx.float32))
        for moment, key in MOMENTS.items()
        for name in names
    ]
    scalars = {name: value for name, value in optimizer.state.items() if isinstance(value, mx.array)}
    optimizer.state = {**tree_unflatten(state), **scalars}
    optimizer.init(model.trainable_parameters())
    optimizer.set_step(step + 1, 0.0)
