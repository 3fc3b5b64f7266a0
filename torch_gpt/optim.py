"""AdamW with decoupled weight decay on matrices only, Muon, and global gradient clipping.

The state has one scheme in both twins: `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`, or `momentum.<parameter>`
where Muon is at work, and the number of steps done.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import torch

from gpt_common.config import OptimConfig
from gpt_common.network.parameters import is_block_matrix
from torch_gpt.model import GPT

Optimizer = torch.optim.Optimizer
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024, "Muon": steepest at zero, and no more than 1.2 beyond
NEWTON_SCHULZ_STEPS = 5


class Muon(Optimizer):
    """Muon (Jordan et al. 2024) for matrices, and another optimiser for the rest.

    The momentum of a matrix is replaced by the nearest orthogonal one, scaled so that an entry moves as far as AdamW
    would move it, 0.2 sqrt(max(out, in)) (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2): learning
    rate and weight decay of AdamW serve both. Experts are orthogonalised one by one.
    """

    def __init__(self, matrices: Sequence[torch.Tensor], rest: torch.optim.AdamW, config: OptimConfig) -> None:
        super().__init__(matrices, {"lr": config.learning_rate})
        self.momentum = config.muon_momentum
        self.weight_decay = config.weight_decay
        self.rest = rest
        # The same dictionaries: whoever sets the learning rate sets both.
        self.param_groups += rest.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002 (no closure)
        """Update every parameter that has a gradient."""
        group = self.param_groups[0]
        for parameter in group["params"]:
            if parameter.grad is not None:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                m = state["momentum"] = torch.lerp(state["momentum"], parameter.grad, 1 - self.momentum)
                direction = orthogonal(torch.lerp(parameter.grad, m, self.momentum))
                scale = 0.2 * math.sqrt(max(parameter.shape[-2:]))
                parameter.mul_(1 - group["lr"] * self.weight_decay)
                parameter.sub_(direction * (group["lr"] * scale))
        self.rest.step()


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """About U V^T for a matrix U S V^T, or a stack of them, by Newton-Schulz iteration in float32."""
    a, b, c = NEWTON_SCHULZ
    wide = x.shape[-2] <= x.shape[-1]
    y = x if wide else x.transpose(-2, -1)
    y = y / (y.square().sum(dim=-1, keepdim=True).sum(dim=-2, keepdim=True).sqrt() + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = y @ y.transpose(-2, -1)
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return y if wide else y.transpose(-2, -1)


def build_optimizer(model: GPT, config: OptimConfig) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019), or Muon beside it, with zero moments; `set_step` gives it its learning rate."""
    muon = config.optimizer == "muon"
    matrices = [p for name, p in model.named_parameters() if muon and is_block_matrix(name, p.ndim)]
    parameters = [p for name, p in model.named_parameters() if not (muon and is_block_matrix(name, p.ndim))]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    # CUDA's fused kernel takes 1 - beta2 in float32: second moments are 1e-6 (0.99) to 1.3e-5 (0.999) off (measured).
    fused = model.device.type != "cuda"
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_eps, fused=fused)
    return Muon(matrices, adamw, config) if muon else adamw


def set_step(optimizer: Optimizer, step: int, learning_rate: float) -> None:  # noqa: ARG001 (it counts)
    """Prepare update number `step` (from 1)."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_gradients(model: GPT, largest: float) -> torch.Tensor:
    """Scale all gradients so that their global norm is at most `largest` (0: leave them); returns the norm before."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if model.device.type == "cpu":
        # Row by row: there numbers are added one after the other, and 40 million in one go come out 0.3 % off.
        gradients = [torch.linalg.vector_norm(gradient, dim=-1) for gradient in gradients]
    norm = torch.nn.utils.get_total_norm(gradients)
    if largest:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
    return norm


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
        self.model = GPT(model.config, model.compute_dtype).to(model.device) if self.decay else model

    @torch.no_grad()
    def restart(self) -> None:
        """The mean is the weights as they are."""
        if self.decay:
            self.model.load_state_dict(self.source.state_dict())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` updates; what no gradient trains is taken as it is."""
        if not self.decay:
            return
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for mean, value in zip(self.model.parameters(), self.source.parameters(), strict=True):
            mean.lerp_(value, share)
        for copy, buffer in zip(self.model.buffers(), self.source.buffers(), strict=True):
            copy.copy_(buffer)


def optimizer_tensors(model: GPT, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """Both moments, or the momentum, of every parameter whose state is here, by name; zeros before the first update."""
    tensors, here = {}, updated(optimizer)
    for moment in ("exp_avg", "exp_avg_sq", "momentum"):
        for name, parameter in model.named_parameters():
            owner, moments = owner_of(optimizer, name, parameter)
            state = owner.state.get(parameter)
            if moment in moments and (state or parameter in here):
                tensors[f"{moment}.{name}"] = state[moment] if state else torch.zeros_like(parameter)
    return tensors


def load_optimizer_tensors(model: GPT, optimizer: Optimizer, tensors: Mapping[str, torch.Tensor], step: int) -> None:
    """Put back what `optimizer_tensors` gave after `step` updates."""
    here = updated(optimizer)
    for name, parameter in model.named_parameters():
        owner, moments = owner_of(optimizer, name, parameter)
        if parameter in here:
            owner.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device),
                **{m: tensors[f"{m}.{name}"].to(parameter.device, torch.float32, copy=True) for m in moments},
            }


def keep_share(model: GPT, optimizer: Optimizer, names: Container[str]) -> None:
    """Leave all parameters but these to other ranks: here they are not updated, and nothing is remembered of them."""
    kept = {parameter for name, parameter in model.named_parameters() if name in names}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if parameter in kept]
    for name, parameter in model.named_parameters():
        if name not in names:
            owner_of(optimizer, name, parameter)[0].state.pop(parameter, None)


def lend_state(model: GPT, optimizer: Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put in what other ranks remember of their parameters, until `keep_share`: to be saved, not to be worked with."""
    for name, parameter in model.named_parameters():
        owner, moments = owner_of(optimizer, name, parameter)
        if f"{moments[0]}.{name}" in tensors:
            owner.state[parameter] = {moment: tensors[f"{moment}.{name}"] for moment in moments}


def updated(optimizer: Optimizer) -> set[torch.Tensor]:
    """The parameters that are updated here; where ranks share the optimiser's state, not all."""
    return {parameter for group in optimizer.param_groups for parameter in group["params"]}


def owner_of(optimizer: Optimizer, name: str, parameter: torch.Tensor) -> tuple[Optimizer, tuple[str, ...]]:
    """Which optimiser updates a parameter, and what it remembers of it."""
    if not isinstance(optimizer, Muon):
        return optimizer, ("exp_avg", "exp_avg_sq")
    if is_block_matrix(name, parameter.ndim):
        return optimizer, ("momentum",)
    return optimizer.rest, ("exp_avg", "exp_avg_sq")
