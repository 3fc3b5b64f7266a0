"""Mixture of experts: routed feed-forward layers and their router. In MLX: mlx_gpt/experts.py.

Shape suffixes: B batch, T time, D model width, F inner width, E experts, G groups of experts, N tokens (B T),
K experts of a token, M pairs of a token and one of its experts (N K).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpt_common.config import ModelConfig
from torch_gpt.kernels import silu, upcast
from torch_gpt.layers import Linear, StackedLinear


class Experts(nn.Module):
    """All routed experts of a block, each a SwiGLU, as three stacked matrices. No token is dropped."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = StackedLinear(config.n_expert, config.n_embd, config.expert_width)
        self.up_proj = StackedLinear(config.n_expert, config.n_embd, config.expert_width)
        self.down_proj = StackedLinear(config.n_expert, config.expert_width, config.n_embd)

    def forward(self, x_ND: Tensor, gates_NK: Tensor, experts_NK: Tensor) -> Tensor:
        """(N, D) -> (N, D): what the experts `experts_NK` make of each token, weighted by `gates_NK`."""
        N, K = experts_NK.shape
        order_M = torch.argsort(experts_NK.flatten(), stable=True)
        expert_M, x_MD = experts_NK.flatten()[order_M], x_ND[order_M // K]
        h_MF = silu(self.gate_proj(x_MD, expert_M)) * self.up_proj(x_MD, expert_M)
        y_MD = self.down_proj(h_MF, expert_M)[torch.argsort(order_M)]
        return (y_MD.reshape(N, K, -1) * gates_NK[..., None].to(x_ND.dtype)).sum(dim=1)


@dataclass
class Routing:
    """What a router decided in the forward pass of an objective."""

    load_E: Tensor
    """Tokens sent to each expert, integers."""
    imbalance: Tensor
    """E times the sum of load times mean probability (Fedus et al. 2021, equation 4): 1 if all are equal."""


class MixtureOfExperts(nn.Module):
    """Every token passes the shared experts and the few routed ones that its router prefers (Dai et al. 2024).

    The choice of experts may be limited to the best groups and steered by a bias that no gradient reaches (DeepSeek-V3,
    Liu et al. 2024, sections 2.1.2 and 2.1.3); the gates are the unbiased scores of the chosen.
    """

    def __init__(self, config: ModelConfig, shared_experts: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.router = Linear(config.n_embd, config.n_expert, False)
        if config.balancing == "bias":
            self.routing_bias = nn.Buffer(torch.zeros(config.n_expert))
        self.experts = Experts(config)
        if shared_experts is not None:
            self.shared_experts = shared_experts
        self.score = SCORES[config.router]
        self.choice = self.biased if config.balancing == "bias" else self.unbiased
        self.among = best_groups if config.n_expert_group > 1 else all_groups
        self.routing: Routing | None = None
        self.balances = config.balancing == "bias"  # not beside an adapter, where the model's own tensors stay
        # Not persistent: never saved, but state that moves with the module.
        self._step_load_E: Tensor = nn.Buffer(torch.zeros(config.n_expert, dtype=torch.int64), persistent=False)
        self._load_E: Tensor = nn.Buffer(torch.zeros(config.n_expert, dtype=torch.int64), persistent=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x_ND = x_BTD.flatten(0, 1)
        y_ND = self.experts(x_ND, *self.route(x_ND))
        if self.config.n_shared_expert:
            y_ND = y_ND + self.shared_experts(x_ND)
        return y_ND.reshape(x_BTD.shape)

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Gates and numbers of each token's experts, the preferred first, each (N, K)."""
        K, E = self.config.experts_per_token, self.config.n_expert
        # In float32: a router's rounding would send tokens elsewhere.
        scores_NE = self.score(self.router(upcast(x_ND)))
        preferred_NE = self.among(self.choice(scores_NE.detach()), self.config)
        experts_NK = torch.argsort(-preferred_NE, dim=-1, stable=True)[:, :K]
        gates_NK = torch.take_along_dim(scores_NE, experts_NK, dim=-1)
        if self.config.router_normalise:
            gates_NK = gates_NK / (gates_NK.sum(dim=-1, keepdim=True) + 1e-20)
        load_E = (experts_NK.flatten()[:, None] == torch.arange(E, device=x_ND.device)).sum(dim=0)
        share_E = (scores_NE / scores_NE.sum(dim=-1, keepdim=True)).mean(dim=0)
        routing = Routing(load_E, (load_E / load_E.sum() * share_E).sum() * E)
        # The first forward pass counts: one recomputed for the backward pass would stay in memory with its graph.
        self.routing = self.routing or routing
        return gates_NK * self.config.router_scale, experts_NK

    def unbiased(self, scores_NE: Tensor) -> Tensor:
        """Experts are chosen by their scores."""
        return scores_NE

    def biased(self, scores_NE: Tensor) -> Tensor:
        """Experts are chosen by their scores and what balancing adds."""
        return scores_NE + self.routing_bias

    @torch.no_grad()
    def balance(self) -> None:
        """Make experts with less than their fair share of this step's tokens a little more attractive.

        Wang et al. 2024, algorithm 1; a step of `balancing_rate` whatever the distance.
        """
        load_E = self._step_load_E
        if self.balances:
            missing_E = torch.sign(load_E.sum() - self.config.n_expert * load_E).to(self.routing_bias.dtype)
            self.routing_bias.add_(self.config.balancing_rate * missing_E)
        self._step_load_E, self._load_E = torch.zeros_like(load_E), self._load_E + load_E


def all_groups(preferred_NE: Tensor, config: ModelConfig) -> Tensor:  # noqa: ARG001 (as best_groups)
    """A token may go to any expert."""
    return preferred_NE


def best_groups(preferred_NE: Tensor, config: ModelConfig) -> Tensor:
    """Only to experts of the groups whose two best add up to most; the others get minus infinity."""
    preferred_NGE = preferred_NE.reshape(preferred_NE.shape[0], config.n_expert_group, -1)
    strength_NG = torch.sort(preferred_NGE, dim=-1).values[..., -2:].sum(dim=-1)
    rank_NG = torch.argsort(torch.argsort(-strength_NG, dim=-1, stable=True), dim=-1)
    allowed_NG1 = (rank_NG < config.groups_per_token)[..., None]
    return torch.where(allowed_NG1, preferred_NGE, -torch.inf).reshape(preferred_NE.shape)


SCORES = {"softmax": lambda x: torch.softmax(x, dim=-1), "sigmoid": lambda x: torch.sigmoid(x)}


class Routers:
    """All routers of a model: what they decide in a pass, and how many tokens each expert gets. Often there are none.

    Args:
        config: how experts are kept busy.
        blocks: the blocks of the model.
    """

    def __init__(self, config: ModelConfig, blocks: Iterable[nn.Module]) -> None:
        self.config = config
        self.layers = [layer for block in blocks if isinstance(layer := block.feed_forward, MixtureOfExperts)]

    def new_pass(self) -> None:
        """Forget what was decided for other tokens."""
        for layer in self.layers:
            layer.routing = None

    def counted(self, mean_loss: Tensor) -> Tensor:
        """Count the pass that gave a loss; returns the loss with a penalty for uneven loads, if there is to be one."""
        routings = []
        for layer in self.layers:
            assert layer.routing is not None
            layer._step_load_E = layer._step_load_E + layer.routing.load_E
            routings.append(layer.routing)
        if self.config.balancing == "loss":
            return mean_loss + self.config.balancing_rate * sum(routing.imbalance for routing in routings)
        return mean_loss

    def balance(self) -> None:
        """After an update: steer every router by the tokens that its experts got in this step."""
        for layer in self.layers:
            layer.balance()

    @property
    def step_loads(self) -> list[Tensor]:
        """Tokens that each expert of each router got since the last update, (E,) each."""
        return [layer._step_load_E for layer in self.layers]

    def take_step_loads(self, loads: Sequence[Tensor]) -> None:
        """Put what was counted elsewhere too, in the same step, in the place of `step_loads`."""
        for layer, load_E in zip(self.layers, loads, strict=True):
            layer._step_load_E = load_E.to(layer._step_load_E.dtype)

    def forget(self) -> None:
        """What was counted since the last update was of no training step."""
        for layer in self.layers:
            layer._step_load_E = torch.zeros_like(layer._step_load_E)

    def take_loads(self) -> list[list[int]]:
        """Tokens that each expert of each router got in the steps since this was last asked."""
        loads_LE: Any = [layer._load_E.tolist() for layer in self.layers]
        for layer in self.layers:
            layer._step_load_E, layer._load_E = torch.zeros_like(layer._load_E), torch.zeros_like(layer._load_E)
        return list(loads_LE)
