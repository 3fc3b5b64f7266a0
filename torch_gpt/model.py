"""The GPT-2 family in PyTorch. The same text in MLX is mlx_gpt/model.py.

Shape suffixes: B batch, T time, S time with the cached past, D model width, H heads, K head size, V vocabulary.

Precision is explicit: parameters are float32, every module casts them to the dtype of its input, and the
embedding decides that dtype. A dropout key of None means evaluation: nothing is dropped.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gpt_common.config import ModelConfig
from gpt_common.dropout import threefry
from gpt_common.init import initial_weights


class Linear(nn.Module):
    """`x @ weight.T + bias`, weight (out, in), computed in the dtype of x."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        if self.bias is None:
            return F.linear(x, self.weight.to(x.dtype))
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) with an optional bias; statistics in float32."""

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        # In bfloat16 PyTorch's CPU sums the weight's gradient in bfloat16: 6 % off over 4096 tokens.
        y_BTD = F.layer_norm(x_BTD.to(torch.float32), self.weight.shape, self.weight, self.bias, self.eps)
        return y_BTD.to(x_BTD.dtype)


class Embedding(nn.Module):
    """Rows of a table, cast to the compute dtype."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """(...) integer ids -> (..., D) of `dtype`."""
        return F.embedding(ids, self.weight).to(dtype)


class KVCache:
    """Keys and values of the tokens that one attention layer has already seen."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more tokens; returns all keys and values, (B, H, S, K)."""
        B, H, T, K = k_BHTK.shape
        if self.keys is None or self.values is None:
            self.keys = torch.zeros((B, H, self.block_size, K), dtype=k_BHTK.dtype, device=k_BHTK.device)
            self.values = torch.zeros((B, H, self.block_size, K), dtype=k_BHTK.dtype, device=k_BHTK.device)
        start, self.length = self.length, self.length + T
        self.keys[:, :, start : self.length] = k_BHTK
        self.values[:, :, start : self.length] = v_BHTK
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class Attention(nn.Module):
    """Causal multi-head self-attention (Vaswani et al. 2017, section 3.2) with one projection for q, k and v."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.dropout_rng = config.dropout_rng
        self.site = 3 * layer + 1
        self.qkv_proj = Linear(config.n_embd, 3 * config.n_embd, config.bias)
        self.out_proj = Linear(config.n_embd, config.n_embd, config.bias)

    def forward(self, x_BTD: Tensor, key: Tensor | None, cache: KVCache | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        B, T, D = x_BTD.shape
        q_BHTK, k_BHSK, v_BHSK = (
            x.reshape(B, T, self.n_head, -1).transpose(1, 2) for x in self.qkv_proj(x_BTD).chunk(3, dim=-1)
        )
        if cache is not None:
            k_BHSK, v_BHSK = cache.append(k_BHSK, v_BHSK)
        scale = 1 / math.sqrt(q_BHTK.shape[-1])
        if key is None or self.dropout == 0 or self.dropout_rng == "native":
            rate = 0.0 if key is None else self.dropout
            y_BHTK = causal_attention(q_BHTK, k_BHSK, v_BHSK, scale, rate)
        else:
            scores_BHTS = (q_BHTK * scale) @ k_BHSK.transpose(-2, -1)
            causal_TS = torch.ones(T, T, dtype=torch.bool, device=x_BTD.device).tril()
            scores_BHTS = torch.where(causal_TS, scores_BHTS, -math.inf)
            weights_BHTS = torch.softmax(scores_BHTS.to(torch.float32), dim=-1).to(x_BTD.dtype)
            y_BHTK = dropout(weights_BHTS, self.dropout, key, self.site, self.dropout_rng) @ v_BHSK
        return self.out_proj(y_BHTK.transpose(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between (Hendrycks & Gimpel 2016), exact or in the tanh form of GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tanh = config.feed_forward == "gelu_tanh"
        self.up_proj = Linear(config.n_embd, 4 * config.n_embd, config.bias)
        self.down_proj = Linear(4 * config.n_embd, config.n_embd, config.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down_proj(F.gelu(self.up_proj(x_BTD), approximate="tanh" if self.tanh else "none"))


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.dropout_rng = config.dropout_rng
        self.site = 3 * layer + 1
        self.attention_norm = LayerNorm(config.n_embd, config.norm_eps, config.bias)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = LayerNorm(config.n_embd, config.norm_eps, config.bias)
        self.feed_forward = FeedForward(config)

    def forward(self, x_BTD: Tensor, key: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        y_BTD = self.attention(self.attention_norm(x_BTD), key, cache)
        x_BTD = x_BTD + dropout(y_BTD, self.dropout, key, self.site + 1, self.dropout_rng)
        y_BTD = self.feed_forward(self.feed_forward_norm(x_BTD))
        return x_BTD + dropout(y_BTD, self.dropout, key, self.site + 2, self.dropout_rng)


class GPT(nn.Module):
    """Token and position embeddings, blocks, a last norm, and an output layer that may share the embedding.

    Args:
        config: the shape; `vocab_size` must be settled.
        compute_dtype: dtype of activations; parameters stay float32.
        gradient_checkpointing: recompute each block in the backward pass.
    """

    def __init__(
        self,
        config: ModelConfig,
        compute_dtype: torch.dtype = torch.float32,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.gradient_checkpointing = gradient_checkpointing
        self.token_embedding = Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.final_norm = LayerNorm(config.n_embd, config.norm_eps, config.bias)
        if not config.tied_head:
            self.head = Linear(config.n_embd, config.vocab_size, config.head_bias)

    def forward(self, tokens_BT: Tensor, key: Tensor | None = None, caches: list[KVCache] | None = None) -> Tensor:
        """(B, T) token ids -> (B, T, V) logits of the next token, in the compute dtype.

        Args:
            key: dropout key of this micro-step, (2,) words; None drops nothing.
            caches: one per block, from `new_caches`; T new tokens follow what they hold.
        """
        past = caches[0].length if caches else 0
        positions_T = torch.arange(past, past + tokens_BT.shape[1], device=tokens_BT.device)
        x_BTD = self.token_embedding(tokens_BT, self.compute_dtype)
        x_BTD = x_BTD + self.position_embedding(positions_T, self.compute_dtype)
        x_BTD = dropout(x_BTD, self.config.dropout, key, 0, self.config.dropout_rng)
        for layer, block in enumerate(self.blocks):
            if self.gradient_checkpointing and caches is None:
                x_BTD = checkpoint(block, x_BTD, key, use_reentrant=False)
            else:
                x_BTD = block(x_BTD, key, caches[layer] if caches else None)
        x_BTD = self.final_norm(x_BTD)
        if self.config.tied_head:
            return F.linear(x_BTD, self.token_embedding.weight.to(x_BTD.dtype))
        return self.head(x_BTD)

    def new_caches(self) -> list[KVCache]:
        """Empty key-value caches for generation, one per block."""
        return [KVCache(self.config.block_size) for _ in self.blocks]

    def initialise(self, seed: int) -> None:
        """Set every parameter to its initial value, which both twins draw from the same numpy stream."""
        parameters = dict(self.named_parameters())
        with torch.no_grad():
            for name, value in initial_weights(self.config, seed):
                parameters[name].copy_(torch.from_numpy(value))


def loss(model: GPT, tokens_BT: Tensor, labels_BT: Tensor, key: Tensor | None = None) -> Tensor:
    """Mean cross entropy in nats per token, from logits in float32."""
    logits_BTV = model(tokens_BT, key).to(torch.float32)
    return F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten())


def causal_attention(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, scale: float, rate: float) -> Tensor:
    """Fused attention of the last T of S positions, (B, H, T, K); each sees itself and what came before."""
    T, S = q_BHTK.shape[2], k_BHSK.shape[2]
    # PyTorch aligns its causal mask to the upper left; with a cache the lower right is meant.
    mask_TS = None if T in (1, S) else torch.ones(T, S, dtype=torch.bool, device=q_BHTK.device).tril(S - T)
    return F.scaled_dot_product_attention(
        q_BHTK, k_BHSK, v_BHSK, attn_mask=mask_TS, dropout_p=rate, is_causal=T == S and T > 1, scale=scale
    )


def dropout(x: Tensor, rate: float, key: Tensor | None, site: int, rng: str) -> Tensor:
    """Set a share `rate` of x to zero and scale the rest up; `site` numbers the places in execution order."""
    if key is None or rate == 0:
        return x
    if rng == "native":
        return F.dropout(x, rate)
    keep = uniform(key, site, x.shape).to(x.device) < 1 - rate
    return torch.where(keep, x / (1 - rate), torch.zeros_like(x))


def uniform(key: Tensor, site: int, shape: torch.Size) -> Tensor:
    """Numbers in [0, 1] by threefry, the same in both twins bit for bit (gpt_common/dropout.py), of `shape`."""
    size = math.prod(shape)
    words = threefry(key.cpu().numpy() + np.array([0, site], np.uint32), size)
    return torch.from_numpy(words.astype(np.float32) * np.float32(2**-32)).reshape(shape)
