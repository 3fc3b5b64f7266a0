"""AdamW with decoupled weight decay on matrices only, and global gradient clipping.

The state has one scheme in both twins: `exp_avg.<parameter>`, `exp_avg_sq.<parameter>` and the number of steps done.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gpt_common.config import OptimConfig
from torch_gpt.model import GPT


def build_optimizer(model: GPT, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with zero moments; `set_step` gives it its learning rate."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, eps=config.adam_eps, fused=True)


def set_step(optimizer: torch.optim.AdamW, step: int, learning_rate: float) -> None:  # noqa: ARG001 (PyTorch counts)
    """Prepare update number `step` (from 1)."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def clip_gradients(model: GPT, largest: float) -> torch.Tensor:
    """Scale all gradients so that their global norm is at most `largest` (0: leave them); returns the norm before."""
    return torch.nn.utils.clip_grad_norm_(model.parameters(), largest or float("inf"))


def optimizer_tensors(model: GPT, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """Both moments of every parameter by name; zeros before the first update."""
    tensors = {}
    for moment in ("exp_avg", "exp_avg_sq"):
        for name, parameter in model.named_parameters():
            state = optimizer.state.get(parameter)
            tensors[f"{moment}.{name}"] = state[moment] if state else torch.zeros_like(parameter)
    return tensors


def load_optimizer_tensors(
    model: GPT, optimizer: torch.optim.AdamW, tensors: Mapping[str, torch.Tensor], step: int
) -> None:
    """Put back what `optimizer_tensors` gave after `step` updates."""
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step), device=parameter.device),
            "exp_avg": tensors[f"exp_avg.{name}"].to(parameter.device, torch.float32, copy=True),
            "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter.device, torch.float32, copy=True),
        }
