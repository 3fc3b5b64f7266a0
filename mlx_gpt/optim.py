"""AdamW with decoupled weight decay on matrices only, Muon, and global gradient clipping.

The state has one scheme in both twins: `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, or `momentum.<parameter>`
where Muon is at work, and the number of steps done.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Any

import mlx.core as mx
from mlx import optimizers
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from gpt_common.config import OptimConfig
from gpt_common.network.parameters import is_block_matrix
from mlx_gpt.model import GPT

ELSEWHERE = "elsewhere"
"""In the place of a state that another rank has."""
MOMENTS = {"exp_avg": "m", "exp_avg_sq": "v", "momentum": "momentum"}
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, "Muon": steepest at zero, and no more than 1.2 beyond
NEWTON_SCHULZ_STEPS = 5


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
        if ELSEWHERE in state:
            return parameter
        beta1, beta2 = self.betas
        # As torch.lerp: from the nearer end, so that a tiny gradient is not lost beside a large moment.
        change = gradient - state["m"]
        m = state["m"] = state["m"] + (1 - beta1) * change if beta1 > 0.5 else gradient - beta1 * change
        v = state["v"] = beta2 * state["v"] + (1 - beta2) * gradient * gradient
        if parameter.ndim >= 2:
            parameter = parameter * self.state["decay"]
        return parameter - self.state["step_size"] * m / (mx.sqrt(v) / self.state["root_correction"] + self.eps)


class Muon(AdamW):
    """Muon (Jordan et al. 2024) for matrices, and AdamW for the rest.

    The momentum of a matrix is replaced by the nearest orthogonal one, scaled so that an entry moves as far as AdamW
    would move it, 0.2 sqrt(max(out, in)) (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2): learning
    rate and weight decay of AdamW serve both. Experts are orthogonalised one by one.
    """

    def __init__(self, config: OptimConfig) -> None:
        super().__init__(config)
        self.momentum = config.muon_momentum

    def set_step(self, step: int, learning_rate: float) -> None:
        """What changes from step to step, as state: a compiled step follows it."""
        super().set_step(step, learning_rate)
        self.state["rate"] = mx.array(learning_rate)

    def init(self, parameters: Any) -> None:
        """Zero moments for every parameter, or a zero momentum."""
        super().init(parameters)
        shapes: Any = tree_flatten(parameters)
        for name, parameter in shapes:
            place, leaf = place_of(self, name)
            if is_block_matrix(name, parameter.ndim) and not {"momentum", ELSEWHERE} & place[leaf].keys():
                place[leaf] = {"momentum": mx.zeros_like(parameter)}

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        """One parameter after the update."""
        if "momentum" not in state:
            return super().apply_single(gradient, parameter, state)
        # As torch.lerp: from the nearer end.
        m = state["momentum"] = state["momentum"] + (1 - self.momentum) * (gradient - state["momentum"])
        direction = orthogonal(m - (1 - self.momentum) * (m - gradient))
        scale = 0.2 * math.sqrt(max(parameter.shape[-2:]))
        return parameter * self.state["decay"] - direction * (self.state["rate"] * scale)


Optimizer = AdamW  # Muon is one too


def orthogonal(x: mx.array) -> mx.array:
    """About U V^T for a matrix U S V^T, or a stack of them, by Newton-Schulz iteration in float32."""
    a, b, c = NEWTON_SCHULZ
    wide = x.shape[-2] <= x.shape[-1]
    y = x if wide else x.swapaxes(-2, -1)
    y = y / (y.square().sum(axis=-1, keepdims=True).sum(axis=-2, keepdims=True).sqrt() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = y @ y.swapaxes(-2, -1)
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return y if wide else y.swapaxes(-2, -1)


def build_optimizer(model: GPT, config: OptimConfig) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019), or Muon beside it, with zero moments; `set_step` gives it its learning rate."""
    optimizer = Muon(config) if config.optimizer == "muon" else AdamW(config)
    optimizer.init(model.trainable_parameters())
    return optimizer


def set_step(optimizer: Optimizer, step: int, learning_rate: float) -> None:
    """Prepare update number `step` (from 1)."""
    optimizer.set_step(step, learning_rate)


ROWS = 256
"""So many rows of a gradient are added up together for its norm."""


def clip_gradients(gradients: Any, largest: float) -> tuple[Any, mx.array]:
    """Scale all gradients so that their global norm is at most `largest` (0: leave them); returns the norm before."""
    # Row by row: MLX's CPU adds one number after the other, and 40 million in one go come out 10 % too small.
    rows = [gradient.square().sum(axis=-1).flatten() for gradient in dict(tree_flatten(gradients)).values()]
    # And rows in groups: 70 thousand in one go are 3e-5 off.
    groups = [mx.pad(row, (0, -row.size % ROWS)).reshape(-1, ROWS).sum(axis=-1) for row in rows]
    norm = mx.sqrt(mx.stack([group.sum() for group in groups]).sum())
    scale = mx.minimum(largest / (norm + 1e-6), 1.0)
    return tree_map(lambda gradient: gradient * scale, gradients) if largest else gradients, norm


class Average:
    """A running mean of the weights, whose noise of the last steps is gone; without `ema_decay` the weights themselves.

    Its weights are evaluated, sampled and saved; those of the model are what training goes on with. Early on, when the
    mean would still be of the initial weights, it forgets faster, min(decay, (1 + step) / (10 + step)) (TensorFlow's
    ExponentialMovingAverage).

    Args:
        model: whose weights are averaged, from what they are at `restart`.
    """

    def __init__(self, model: GPT, config: OptimConfig) -> None:
        self.source = model
        self.decay = config.ema_decay
        self.model = GPT(model.config, model.compute_dtype) if self.decay else model

    def restart(self) -> None:
        """The mean is the weights as they are."""
        if self.decay:
            self.model.update(self.source.parameters())

    def update(self, step: int) -> None:
        """Take in the weights after `step` updates; what no gradient trains is taken as it is."""
        if not self.decay:
            return
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        means, values = self.model.state_dict(), self.source.state_dict()
        for name, value in self.source.named_parameters():
            change = value - means[name]
            # As torch.lerp: from the nearer end.
            values[name] = means[name] + share * change if share < 0.5 else value - (1 - share) * change
        self.model.update(tree_unflatten(list(values.items())))
        mx.async_eval(self.model.state)


def optimizer_tensors(model: GPT, optimizer: Optimizer) -> dict[str, mx.array]:
    """Both moments, or the momentum, of every parameter whose state is here, by name; zeros before the first update."""
    names = [name for name, _ in model.named_parameters()]
    state = dict(tree_flatten(optimizer.state))
    return {
        f"{moment}.{name}": state[f"{name}.{key}"]
        for moment, key in MOMENTS.items()
        for name in names
        if f"{name}.{key}" in state
    }


def load_optimizer_tensors(model: GPT, optimizer: Optimizer, tensors: Mapping[str, mx.array], step: int) -> None:
    """Put back what `optimizer_tensors` gave after `step` updates."""
    state = dict(tree_flatten(optimizer.state))
    for moment, key in MOMENTS.items():
        for name, _ in model.named_parameters():
            if f"{name}.{key}" in state:
                state[f"{name}.{key}"] = tensors[f"{moment}.{name}"].astype(mx.float32)
    optimizer.state = tree_unflatten(list(state.items()))
    optimizer.set_step(step + 1, 0.0)


def keep_share(model: GPT, optimizer: Optimizer, names: Container[str]) -> None:
    """Leave all parameters but these to other ranks: here they are not updated, and nothing is remembered of them."""
    for name, _ in model.named_parameters():
        if name not in names:
            place, leaf = place_of(optimizer, name)
            place[leaf] = {ELSEWHERE: mx.array(0.0)}


def lend_state(model: GPT, optimizer: Optimizer, tensors: Mapping[str, mx.array]) -> None:
    """Put in what other ranks remember of their parameters, until `keep_share`: to be saved, not to be worked with."""
    for name, _ in model.named_parameters():
        state = {key: tensors[f"{moment}.{name}"] for moment, key in MOMENTS.items() if f"{moment}.{name}" in tensors}
        if state:
            place, leaf = place_of(optimizer, name)
            place[leaf] = state


def place_of(optimizer: Optimizer, name: str) -> tuple[Any, str]:
    """Where the state of a parameter is kept, to be changed there: flattened, it would lose the places of what is
    frozen."""
    *path, leaf = name.split(".")
    place: Any = optimizer.state
    for word in path:
        place = place[int(word) if word.isdigit() else word]
    return place, leaf
