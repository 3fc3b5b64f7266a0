"""The GPT-2 family in MLX. The same text in PyTorch is torch_gpt/model.py.

Shape suffixes: B batch, T time, S time with the cached past, D model width, H heads, K head size, V vocabulary.

Precision is explicit: parameters are float32, every module casts them to the dtype of its input, and the
embedding decides that dtype. A dropout key of None means evaluation: nothing is dropped.
"""

from __future__ import annotations

import math
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from gpt_common.config import ModelConfig
from gpt_common.init import initial_weights


class Linear(nn.Module):
    """`x @ weight.T + bias`, weight (out, in), computed in the dtype of x."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, inputs))
        self.bias = mx.zeros(outputs) if bias else None

    def __call__(self, x: mx.array) -> mx.array:
        """(..., in) -> (..., out)."""
        if self.bias is None:
            return x @ self.weight.astype(x.dtype).T
        return mx.addmm(self.bias.astype(x.dtype), x, self.weight.astype(x.dtype).T)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) with an optional bias; statistics in float32."""

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = mx.ones(width)
        self.bias = mx.zeros(width) if bias else None

    def __call__(self, x_BTD: mx.array) -> mx.array:
        """(B, T, D) -> (B, T, D)."""
        weight = self.weight.astype(x_BTD.dtype)
        bias = None if self.bias is None else self.bias.astype(x_BTD.dtype)
        return mx.fast.layer_norm(x_BTD, weight, bias, self.eps)


class Embedding(nn.Module):
    """Rows of a table, cast to the compute dtype."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = mx.zeros((rows, width))

    def __call__(self, ids: mx.array, dtype: mx.Dtype) -> mx.array:
        """(...) integer ids -> (..., D) of `dtype`."""
        return self.weight[ids].astype(dtype)


class KVCache:
    """Keys and values of the tokens that one attention layer has already seen."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.length = 0
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def append(self, k_BHTK: mx.array, v_BHTK: mx.array) -> tuple[mx.array, mx.array]:
        """Store T more tokens; returns all keys and values, (B, H, S, K)."""
        B, H, T, K = k_BHTK.shape
        if self.keys is None or self.values is None:
            self.keys = mx.zeros((B, H, self.block_size, K), dtype=k_BHTK.dtype)
            self.values = mx.zeros((B, H, self.block_size, K), dtype=k_BHTK.dtype)
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

    def __call__(self, x_BTD: mx.array, key: mx.array | None, cache: KVCache | None) -> mx.array:
        """(B, T, D) -> (B, T, D)."""
        B, T, D = x_BTD.shape
        q_BHTK, k_BHSK, v_BHSK = (
            x.reshape(B, T, self.n_head, -1).swapaxes(1, 2) for x in self.qkv_proj(x_BTD).split(3, axis=-1)
        )
        if cache is not None:
            k_BHSK, v_BHSK = cache.append(k_BHSK, v_BHSK)
        scale = 1 / math.sqrt(q_BHTK.shape[-1])
        if key is None or self.dropout == 0:
            y_BHTK = causal_attention(q_BHTK, k_BHSK, v_BHSK, scale)
        else:
            scores_BHTS = (q_BHTK * scale) @ k_BHSK.swapaxes(-2, -1)
            causal_TS = mx.tri(T, T, dtype=mx.bool_)
            scores_BHTS = mx.where(causal_TS, scores_BHTS, -math.inf)
            weights_BHTS = mx.softmax(scores_BHTS.astype(mx.float32), axis=-1).astype(x_BTD.dtype)
            y_BHTK = dropout(weights_BHTS, self.dropout, key, self.site, self.dropout_rng) @ v_BHSK
        return self.out_proj(y_BHTK.swapaxes(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between (Hendrycks & Gimpel 2016), exact or in the tanh form of GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tanh = config.feed_forward == "gelu_tanh"
        self.up_proj = Linear(config.n_embd, 4 * config.n_embd, config.bias)
        self.down_proj = Linear(4 * config.n_embd, config.n_embd, config.bias)

    def __call__(self, x_BTD: mx.array) -> mx.array:
        """(B, T, D) -> (B, T, D)."""
        return self.down_proj((nn.gelu_approx if self.tanh else nn.gelu)(self.up_proj(x_BTD)))


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

    def __call__(self, x_BTD: mx.array, key: mx.array | None = None, cache: KVCache | None = None) -> mx.array:
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
        compute_dtype: mx.Dtype = mx.float32,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.gradient_checkpointing = gradient_checkpointing
        self.token_embedding = Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = Embedding(config.block_size, config.n_embd)
        self.blocks = [Block(config, layer) for layer in range(config.n_layer)]
        self.final_norm = LayerNorm(config.n_embd, config.norm_eps, config.bias)
        if not config.tied_head:
            self.head = Linear(config.n_embd, config.vocab_size, config.head_bias)

    def __call__(
        self, tokens_BT: mx.array, key: mx.array | None = None, caches: list[KVCache] | None = None
    ) -> mx.array:
        """(B, T) token ids -> (B, T, V) logits of the next token, in the compute dtype.

        Args:
            key: dropout key of this micro-step, (2,) words; None drops nothing.
            caches: one per block, from `new_caches`; T new tokens follow what they hold.
        """
        past = caches[0].length if caches else 0
        positions_T = mx.arange(past, past + tokens_BT.shape[1])
        x_BTD = self.token_embedding(tokens_BT, self.compute_dtype)
        x_BTD = x_BTD + self.position_embedding(positions_T, self.compute_dtype)
        x_BTD = dropout(x_BTD, self.config.dropout, key, 0, self.config.dropout_rng)
        for layer, block in enumerate(self.blocks):
            if self.gradient_checkpointing and caches is None:
                # The key goes in by a closure: MLX would differentiate an argument, and random bits have no gradient.
                x_BTD = nn.utils.checkpoint(block, partial(block, key=key))(x_BTD)
            else:
                x_BTD = block(x_BTD, key, caches[layer] if caches else None)
        x_BTD = self.final_norm(x_BTD)
        if self.config.tied_head:
            return x_BTD @ self.token_embedding.weight.astype(x_BTD.dtype).T
        return self.head(x_BTD)

    def new_caches(self) -> list[KVCache]:
        """Empty key-value caches for generation, one per block."""
        return [KVCache(self.config.block_size) for _ in self.blocks]

    def named_parameters(self) -> list[tuple[str, mx.array]]:
        """Every parameter with its canonical name, as PyTorch's modules have it."""
        return list(tree_flatten(self.parameters()))  # type: ignore[arg-type]

    def initialise(self, seed: int) -> None:
        """Set every parameter to its initial value, which both twins draw from the same numpy stream."""
        weights = [(name, mx.array(value)) for name, value in initial_weights(self.config, seed)]
        self.update(tree_unflatten(weights))


def loss(model: GPT, tokens_BT: mx.array, labels_BT: mx.array, key: mx.array | None = None) -> mx.array:
    """Mean cross entropy in nats per token, from logits in float32."""
    logits_BTV = model(tokens_BT, key).astype(mx.float32)
    return nn.losses.cross_entropy(logits_BTV, labels_BT, reduction="mean")


def causal_attention(q_BHTK: mx.array, k_BHSK: mx.array, v_BHSK: mx.array, scale: float) -> mx.array:
    """Fused attention of the last T of S positions, (B, H, T, K); each sees itself and what came before."""
    mask_TS = None if q_BHTK.shape[2] == 1 else "causal"
    return mx.fast.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, scale=scale, mask=mask_TS)


def dropout(x: mx.array, rate: float, key: mx.array | None, site: int, rng: str) -> mx.array:  # noqa: ARG001
    """Set a share `rate` of x to zero and scale the rest up; `site` numbers the places in execution order."""
    if key is None or rate == 0:
        return x
    # MLX's own generator is threefry: `native` and `shared` masks are the same.
    keep = uniform(key, site, x.shape) < 1 - rate
    return mx.where(keep, x / (1 - rate), mx.zeros_like(x))


def uniform(key: mx.array, site: int, shape: tuple[int, ...]) -> mx.array:
    """Numbers in [0, 1] by threefry, the same in both twins bit for bit (gpt_common/dropout.py), of `shape`."""
    size = math.prod(shape)
    # An odd number of words is laid out in another way; one more makes it even.
    words = mx.random.uniform(shape=(size + size % 2,), key=key + mx.array([0, site], dtype=mx.uint32))
    return words[:size].reshape(shape)
