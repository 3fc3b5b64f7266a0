"""The kinds of feed-forward layer, each a class; a configuration names one. In PyTorch: torch_gpt/feed_forward.py.

Shape suffixes: B batch, T time, D model width, F inner width, E experts, N tokens (B T), K experts of a token,
M pairs of a token and one of its experts (N K).
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from gpt_common.config import ModelConfig
from mlx_gpt.layers import Linear

ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x),
    "gelu_tanh": lambda x: nn.gelu_approx(x),
    "relu2": lambda x: nn.relu(x).square(),
}


class FeedForward(nn.Module):
    """Two linear layers with an activation between: GELU (Hendrycks & Gimpel 2016), exact or in the tanh form of GPT-2,
    or ReLU squared (So et al. 2021)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.feed_forward]
        self.up_proj = Linear(config.n_embd, config.inner_width, config.bias)
        self.down_proj = Linear(config.inner_width, config.n_embd, config.bias)

    def __call__(self, x_BTD: mx.array) -> mx.array:
        """(B, T, D) -> (B, T, D)."""
        return self.down_proj(self.activation(self.up_proj(x_BTD)))


class SwiGLU(nn.Module):
    """A gated layer, `down(silu(gate(x)) * up(x))` (Shazeer 2020), as in Llama."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(config.n_embd, width, config.bias)
        self.up_proj = Linear(config.n_embd, width, config.bias)
        self.down_proj = Linear(width, config.n_embd, config.bias)

    def __call__(self, x_BTD: mx.array) -> mx.array:
        """(B, T, D) -> (B, T, D)."""
        return self.down_proj(nn.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class StackedLinear(nn.Module):
    """One matrix per expert, weight (E, out, in); each row of x is multiplied with the matrix of its expert."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = mx.zeros((experts, outputs, inputs))

    def __call__(self, x_MD: mx.array, expert_M: mx.array) -> mx.array:
        """(M, in) -> (M, out), for rows in the order of their experts, `expert_M`."""
        # On a CPU MLX gathers matrices in float32 only.
        dtype = mx.float32 if mx.default_device() == mx.Device(mx.cpu) else x_MD.dtype
        weight_EDF, x_M1D = self.weight.astype(dtype).swapaxes(1, 2), x_MD[:, None].astype(dtype)
        y_M1F = mx.gather_mm(x_M1D, weight_EDF, rhs_indices=expert_M, sorted_indices=True)
        return y_M1F[:, 0].astype(x_MD.dtype)


class Experts(nn.Module):
    """All routed experts of a block, each a SwiGLU, as three stacked matrices. No token is dropped."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = StackedLinear(config.n_expert, config.n_embd, config.expert_width)
        self.up_proj = StackedLinear(config.n_expert, config.n_embd, config.expert_width)
        self.down_proj = StackedLinear(config.n_expert, config.expert_width, config.n_embd)

    def __call__(self, x_ND: mx.array, gates_NK: mx.array, experts_NK: mx.array) -> mx.array:
        """(N, D) -> (N, D): what the experts `experts_NK` make of each token, weighted by `gates_NK`."""
        N, K = experts_NK.shape
        order_M = mx.argsort(experts_NK.flatten())
        expert_M, x_MD = experts_NK.flatten()[order_M], x_ND[order_M // K]
        h_MF = nn.silu(self.gate_proj(x_MD, expert_M)) * self.up_proj(x_MD, expert_M)
        y_MD = self.down_proj(h_MF, expert_M)[mx.argsort(order_M)]
        return (y_MD.reshape(N, K, -1) * gates_NK[..., None].astype(x_ND.dtype)).sum(axis=1)


@dataclass
class Routing:
    """What a router decided in the forward pass of an objective."""

    load_E: mx.array
    """Tokens sent to each expert, integers."""
    imbalance: mx.array
    """E times the sum of load times mean probability (Fedus et al. 2021, equation 4): 1 if all are equal."""


class MixtureOfExperts(nn.Module):
    """Every token passes the shared experts and the few routed ones that its router prefers (Dai et al. 2024).

    The choice of experts may be limited to the best groups and steered by a bias that no gradient reaches (DeepSeek-V3,
    Liu et al. 2024, sections 2.1.2 and 2.1.3); the gates are the unbiased scores of the chosen.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.router = Linear(config.n_embd, config.n_expert, False)
        if config.balancing == "bias":
            self.routing_bias = mx.zeros(config.n_expert)
            self.freeze(keys="routing_bias", recurse=False)
        self.experts = Experts(config)
        if config.n_shared_expert:
            self.shared_experts = SwiGLU(config, config.n_shared_expert * config.expert_width)
        self.score = SCORES[config.router]
        self.choice = self.biased if config.balancing == "bias" else self.unbiased
        self.among = best_groups if config.n_expert_group > 1 else all_groups
        self.routing: Routing | None = None

    def __call__(self, x_BTD: mx.array) -> mx.array:
        """(B, T, D) -> (B, T, D)."""
        x_ND = x_BTD.flatten(0, 1)
        y_ND = self.experts(x_ND, *self.route(x_ND))
        if self.config.n_shared_expert:
            y_ND = y_ND + self.shared_experts(x_ND)
        return y_ND.reshape(x_BTD.shape)

    def route(self, x_ND: mx.array) -> tuple[mx.array, mx.array]:
        """Gates and numbers of each token's experts, the preferred first, each (N, K)."""
        K, E = self.config.experts_per_token, self.config.n_expert
        # In float32: a router's rounding would send tokens elsewhere.
        scores_NE = self.score(self.router(x_ND.astype(mx.float32)))
        preferred_NE = self.among(self.choice(mx.stop_gradient(scores_NE)), self.config)
        experts_NK = mx.argsort(-preferred_NE, axis=-1)[:, :K]
        gates_NK = mx.take_along_axis(scores_NE, experts_NK, axis=-1)
        if self.config.router_normalise:
            gates_NK = gates_NK / (gates_NK.sum(axis=-1, keepdims=True) + 1e-20)
        load_E = (experts_NK.flatten()[:, None] == mx.arange(E)).sum(axis=0)
        share_E = (scores_NE / scores_NE.sum(axis=-1, keepdims=True)).mean(axis=0)
        routing = Routing(load_E, (load_E / load_E.sum() * share_E).sum() * E)
        # The first forward pass counts: one recomputed for the backward pass would stay in memory with its graph.
        self.routing = self.routing or routing
        return gates_NK * self.config.router_scale, experts_NK

    def unbiased(self, scores_NE: mx.array) -> mx.array:
        """Experts are chosen by their scores."""
        return scores_NE

    def biased(self, scores_NE: mx.array) -> mx.array:
        """Experts are chosen by their scores and what balancing adds."""
        return scores_NE + self.routing_bias

    def balance(self, load_E: mx.array) -> None:
        """Make experts with less than their fair share of the last step's tokens a little more attractive.

        Wang et al. 2024, algorithm 1; a step of `balancing_rate` whatever the distance.
        """
        if self.config.balancing == "bias":
            missing_E = mx.sign(load_E.sum() - self.config.n_expert * load_E).astype(mx.float32)
            self.routing_bias = self.routing_bias + self.config.balancing_rate * missing_E


def all_groups(preferred_NE: mx.array, config: ModelConfig) -> mx.array:  # noqa: ARG001 (as best_groups)
    """A token may go to any expert."""
    return preferred_NE


def best_groups(preferred_NE: mx.array, config: ModelConfig) -> mx.array:
    """Only to experts of the groups whose two best add up to most; the others get minus infinity."""
    preferred_NGE = preferred_NE.reshape(preferred_NE.shape[0], config.n_expert_group, -1)
    strength_NG = mx.sort(preferred_NGE, axis=-1)[..., -2:].sum(axis=-1)
    rank_NG = mx.argsort(mx.argsort(-strength_NG, axis=-1), axis=-1)
    allowed_NG1 = (rank_NG < config.groups_per_token)[..., None]
    return mx.where(allowed_NG1, preferred_NGE, -mx.inf).reshape(preferred_NE.shape)


SCORES = {"softmax": lambda x: mx.softmax(x, axis=-1), "sigmoid": lambda x: mx.sigmoid(x)}


def feed_forward(config: ModelConfig, layer: int) -> FeedForward | SwiGLU | MixtureOfExperts:
    """The feed-forward layer of block number `layer`."""
    if config.has_experts(layer):
        return MixtureOfExperts(config)
    if config.feed_forward in ("swiglu", "moe"):
        return SwiGLU(config, config.inner_width)
    return FeedForward(config)
