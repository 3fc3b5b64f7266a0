"""The kinds of feed-forward layer, each a class; a configuration names one. In MLX: mlx_gpt/feed_forward.py.

Shape suffixes: X any leading dimensions, D model width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gpt_common.config import ModelConfig
from torch_gpt.experts import MixtureOfExperts
from torch_gpt.kernels import gelu, silu
from torch_gpt.layers import Linear

ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu2": lambda x: F.relu(x).square(),
}


class FeedForward(nn.Module):
    """Two linear layers with an activation between: GELU (Hendrycks & Gimpel 2016), exact or in the tanh form of GPT-2,
    or ReLU squared (So et al. 2021)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.feed_forward]
        self.up_proj = Linear(config.n_embd, config.inner_width, config.bias)
        self.down_proj = Linear(config.inner_width, config.n_embd, config.bias)

    def forward(self, x_XD: Tensor) -> Tensor:
        """(X, D) -> (X, D)."""
        return self.down_proj(self.activation(self.up_proj(x_XD)))


class SwiGLU(nn.Module):
    """A gated layer, `down(silu(gate(x)) * up(x))` (Shazeer 2020), as in Llama."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(config.n_embd, width, config.bias)
        self.up_proj = Linear(config.n_embd, width, config.bias)
        self.down_proj = Linear(width, config.n_embd, config.bias)

    def forward(self, x_XD: Tensor) -> Tensor:
        """(X, D) -> (X, D)."""
        return self.down_proj(silu(self.gate_proj(x_XD)) * self.up_proj(x_XD))


def feed_forward(config: ModelConfig, layer: int) -> FeedForward | SwiGLU | MixtureOfExperts:
    """The feed-forward layer of block number `layer`."""
    if config.has_experts(layer):
        shared = config.n_shared_expert * config.expert_width
        return MixtureOfExperts(config, SwiGLU(config, shared) if shared else None)
    if config.feed_forward in ("swiglu", "moe"):
        return SwiGLU(config, config.inner_width)
    return FeedForward(config)
