"""The kinds of attention, each a class; a configuration names one. In PyTorch: torch_gpt/attention.py.

Shape suffixes: B batch, T time, S time with the cached past, D model width, H heads, G key heads, K head size,
V value head size, C the numbers of all heads (H K, G K or H V), R latent width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from gpt_common.config import ModelConfig
from mlx_gpt.kernels import attention_by_rows, is_plain, softmax, upcast
from mlx_gpt.layers import ROTATIONS, Angles, Linear, RMSNorm, dropout, unrotated

LATENT_NORM_EPS = 1e-6  # DeepSeek's, whatever the other norms have


class KVCache:
    """What one attention layer keeps of the tokens it has already seen: keys and values, or latents and rotary keys."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.length = 0
        self.lengths: list[int] = []  # of the sequences where they are not equally long; see sample.py
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    def append(self, k_BHTK: mx.array, v_BHTV: mx.array) -> tuple[mx.array, mx.array]:
        """Store T more tokens; returns all keys (B, H, S, K) and values (B, H, S, V)."""
        T = k_BHTK.shape[2]
        if self.keys is None or self.values is None:
            self.keys = self.room_for(k_BHTK)
            self.values = self.room_for(v_BHTV)
        start, self.length = self.length, self.length + T
        self.keys[:, :, start : self.length] = k_BHTK
        self.values[:, :, start : self.length] = v_BHTV
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def room_for(self, x_BHTK: mx.array) -> mx.array:
        """Zeros for a whole block of tokens like these."""
        B, H, _, K = x_BHTK.shape
        return mx.zeros((B, H, self.block_size, K), dtype=x_BHTK.dtype)

    def repeat(self, rows: int) -> None:
        """What one sequence has seen, for so many that go on from there."""
        assert self.keys is not None
        assert self.values is not None
        self.keys = mx.repeat(self.keys, rows, axis=0)
        self.values = mx.repeat(self.values, rows, axis=0)

    @property
    def bytes_per_token(self) -> float:
        """Memory that is kept for one token of one sequence in this layer."""
        kept = [x_BHSK for x_BHSK in (self.keys, self.values) if x_BHSK is not None]
        return sum(x_BHSK.nbytes / x_BHSK.shape[0] / self.block_size for x_BHSK in kept)


class Attention(nn.Module):
    """Causal attention of queries over keys, and the projection of what it finds; the kinds differ in what they attend.

    Queries are (B, H, T, K), keys (B, G, S, K), values (B, G, S, V); H / G query heads share a key head.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.dropout_rng = config.dropout_rng
        self.site = 3 * layer + 1  # of its dropout; see Block
        # A product of K pairs of size 1 has size sqrt(K): not scaled back, softmax would give nearly all weight to one
        # key, and hardly a gradient to any.
        self.scale = 1 / math.sqrt(config.key_size)
        self.rotate = unrotated if config.positions == "learned" else ROTATIONS[config.rope_layout]

    def heads(self, x_BTC: mx.array) -> mx.array:
        """(B, T, H K) -> (B, H, T, K)."""
        return x_BTC.reshape(*x_BTC.shape[:2], self.n_head, -1).swapaxes(1, 2)

    def joined(self, y_BHTV: mx.array) -> mx.array:
        """(B, H, T, V) -> (B, T, H V)."""
        return y_BHTV.swapaxes(1, 2).flatten(2)

    def attend(
        self,
        q_BHTK: mx.array,
        k_BGSK: mx.array,
        v_BGSV: mx.array,
        key: mx.array | None,
        sees_B1TT: mx.array | None = None,
    ) -> mx.array:
        """What each query finds, (B, H, T, V), in what `sees_B1TT` lets it see; None: itself and all before it."""
        if key is None or self.dropout == 0:
            if sees_B1TT is not None:
                return attention_within(q_BHTK, k_BGSK, v_BGSV, self.scale, sees_B1TT)
            return causal_attention(q_BHTK, k_BGSK, v_BGSV, self.scale)
        T, shared = q_BHTK.shape[2], q_BHTK.shape[1] // k_BGSK.shape[1]
        k_BHSK, v_BHSV = mx.repeat(k_BGSK, shared, axis=1), mx.repeat(v_BGSV, shared, axis=1)
        scores_BHTS = (q_BHTK * self.scale) @ k_BHSK.swapaxes(-2, -1)
        # A position sees itself and what came before; the rest becomes minus infinity, of which softmax makes 0.
        causal_TS = mx.tri(T, T, dtype=mx.bool_)
        scores_BHTS = mx.where(causal_TS if sees_B1TT is None else sees_B1TT, scores_BHTS, -math.inf)
        weights_BHTS = softmax(upcast(scores_BHTS)).astype(q_BHTK.dtype)
        return dropout(weights_BHTS, self.dropout, key, self.site, self.dropout_rng) @ v_BHSV

    def attend_latents(
        self,
        q_BHTR: mx.array,
        q_rope_BHTK: mx.array,
        latent_B1SR: mx.array,
        k_rope_BGSK: mx.array,
        sees_B1TS: mx.array | None = None,
    ) -> mx.array:
        """Which latents each query finds, (B, H, T, R): the latents are keys and values of all heads at once."""
        T, S = q_BHTR.shape[2], latent_B1SR.shape[2]
        scores_BHTS = q_BHTR @ latent_B1SR.swapaxes(-2, -1) + q_rope_BHTK @ k_rope_BGSK.swapaxes(-2, -1)
        causal_TS = mx.tri(T, S, S - T, dtype=mx.bool_)
        scores_BHTS = mx.where(causal_TS if sees_B1TS is None else sees_B1TS, scores_BHTS * self.scale, -math.inf)
        return softmax(upcast(scores_BHTS)).astype(q_BHTR.dtype) @ latent_B1SR


class MultiHeadAttention(Attention):
    """Causal multi-head self-attention (Vaswani et al. 2017, section 3.2) with one projection for q, k and v."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        width, bias = config.n_head * config.key_size, config.has_attention_biases
        self.qkv_proj = Linear(config.n_embd, 3 * width, bias)
        self.q_norm = RMSNorm(config.key_size, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.key_size, config.norm_eps) if config.qk_norm else None
        self.out_proj = Linear(width, config.n_embd, bias)

    def __call__(
        self,
        x_BTD: mx.array,
        key: mx.array | None,
        cache: KVCache | None,
        angles: Angles | None = None,
        sees_B1TT: mx.array | None = None,
    ) -> mx.array:
        """(B, T, D) -> (B, T, D)."""
        q_BHTK, k_BHSK, v_BHSV = (self.heads(x) for x in self.qkv_proj(x_BTD).split(3, axis=-1))
        if self.q_norm is not None and self.k_norm is not None:
            q_BHTK, k_BHSK = self.q_norm(q_BHTK), self.k_norm(k_BHSK)
        q_BHTK, k_BHSK = self.rotate(q_BHTK, angles), self.rotate(k_BHSK, angles)
        if cache is not None:
            k_BHSK, v_BHSV = cache.append(k_BHSK, v_BHSV)
        return self.out_proj(self.joined(self.attend(q_BHTK, k_BHSK, v_BHSV, key, sees_B1TT)))


class GroupedQueryAttention(Attention):
    """Several query heads share a key and value head (Ainslie et al. 2023), as in Llama."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.n_kv_head = config.n_kv_head or config.n_head
        width, kv_width = config.n_head * config.key_size, self.n_kv_head * config.key_size
        bias = config.has_attention_biases
        self.q_proj = Linear(config.n_embd, width, bias)
        self.k_proj = Linear(config.n_embd, kv_width, bias)
        self.v_proj = Linear(config.n_embd, kv_width, bias)
        self.q_norm = RMSNorm(config.key_size, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.key_size, config.norm_eps) if config.qk_norm else None
        self.out_proj = Linear(width, config.n_embd, bias)

    def __call__(
        self,
        x_BTD: mx.array,
        key: mx.array | None,
        cache: KVCache | None,
        angles: Angles | None = None,
        sees_B1TT: mx.array | None = None,
    ) -> mx.array:
        """(B, T, D) -> (B, T, D)."""
        q_BHTK = self.heads(self.q_proj(x_BTD))
        k_BGSK, v_BGSV = self.kv_heads(self.k_proj(x_BTD)), self.kv_heads(self.v_proj(x_BTD))
        if self.q_norm is not None and self.k_norm is not None:
            q_BHTK, k_BGSK = self.q_norm(q_BHTK), self.k_norm(k_BGSK)
        q_BHTK, k_BGSK = self.rotate(q_BHTK, angles), self.rotate(k_BGSK, angles)
        if cache is not None:
            k_BGSK, v_BGSV = cache.append(k_BGSK, v_BGSV)
        return self.out_proj(self.joined(self.attend(q_BHTK, k_BGSK, v_BGSV, key, sees_B1TT)))

    def kv_heads(self, x_BTC: mx.array) -> mx.array:
        """(B, T, G K) -> (B, G, T, K)."""
        return x_BTC.reshape(*x_BTC.shape[:2], self.n_kv_head, -1).swapaxes(1, 2)


class LatentAttention(Attention):
    """Multi-head latent attention (DeepSeek-V2, Liu et al. 2024, section 2.1).

    Keys and values are made from one latent per token, and one rotary key is shared by all heads. With a cache only
    these two are kept: the up-projections move over to the queries and to the result, and the latents themselves are
    attended as one key head (section 2.1.2).
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        D, H, Q, R = config.n_embd, config.n_head, config.q_latent, config.kv_latent
        bias = config.has_attention_biases
        self.q_latent = Q
        self.nope, self.rope = config.nope_size, config.rope_size
        if Q:
            self.q_down_proj = Linear(D, Q, bias)
            self.q_latent_norm = RMSNorm(Q, LATENT_NORM_EPS)
            self.q_up_proj = Linear(Q, H * config.key_size, False)
        else:
            self.q_proj = Linear(D, H * config.key_size, False)
        self.kv_down_proj = Linear(D, R + config.rope_size, bias)
        self.kv_latent_norm = RMSNorm(R, LATENT_NORM_EPS)
        self.kv_up_proj = Linear(R, H * (config.nope_size + config.value_size), False)
        self.out_proj = Linear(H * config.value_size, D, bias)

    def queries(self, x_BTD: mx.array) -> mx.array:
        """Queries of all heads, (B, T, H K), by way of a latent of their own if there is one."""
        if not self.q_latent:
            return self.q_proj(x_BTD)
        return self.q_up_proj(self.q_latent_norm(self.q_down_proj(x_BTD)))

    def __call__(
        self,
        x_BTD: mx.array,
        key: mx.array | None,
        cache: KVCache | None,
        angles: Angles | None = None,
        sees_B1TT: mx.array | None = None,
    ) -> mx.array:
        """(B, T, D) -> (B, T, D)."""
        nope, rope = self.nope, self.rope
        q_BHTK = self.heads(self.queries(x_BTD))
        q_nope_BHTK, q_rope_BHTK = q_BHTK[..., :nope], self.rotate(q_BHTK[..., nope:], angles)
        latent_BTR = self.kv_down_proj(x_BTD)
        k_rope_B1TK = self.rotate(latent_BTR[:, None, :, -rope:], angles)
        latent_BTR = self.kv_latent_norm(latent_BTR[..., :-rope])
        if cache is None:
            kv_BHSK = self.heads(self.kv_up_proj(latent_BTR))
            k_rope_BHSK = mx.repeat(k_rope_B1TK, self.n_head, axis=1)
            k_BHSK = mx.concatenate([kv_BHSK[..., :nope], k_rope_BHSK], axis=-1)
            q_BHTK = mx.concatenate([q_nope_BHTK, q_rope_BHTK], axis=-1)
            y_BHTV = self.attend(q_BHTK, k_BHSK, kv_BHSK[..., nope:], key, sees_B1TT)
        else:
            latent_B1SR, k_rope_B1SK = cache.append(latent_BTR[:, None], k_rope_B1TK)
            q_BHTR = self.kv_up_proj.per_head_transposed(q_nope_BHTK)
            y_BHTR = self.attend_latents(q_BHTR, q_rope_BHTK, latent_B1SR, k_rope_B1SK, sees_B1TT)
            y_BHTV = self.kv_up_proj.per_head(y_BHTR, first=nope)
        return self.out_proj(self.joined(y_BHTV))


class PerHeadLatentAttention(Attention):
    """CustomLLM's latent attention: no norms, and every head has a rotary key of its own, made from the hidden state.

    The cache keeps the latent and all heads' rotary keys.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        D, H, Q, R = config.n_embd, config.n_head, config.q_latent, config.kv_latent
        bias = config.has_attention_biases
        self.q_down_proj = Linear(D, Q, bias)
        self.q_up_proj = Linear(Q, H * config.nope_size, False)
        self.q_rope_proj = Linear(Q, H * config.rope_size, False)
        self.kv_down_proj = Linear(D, R, bias)
        self.k_up_proj = Linear(R, H * config.nope_size, False)
        self.k_rope_proj = Linear(D, H * config.rope_size, bias)
        self.v_up_proj = Linear(R, H * config.value_size, False)
        self.out_proj = Linear(H * config.value_size, D, bias)

    def __call__(
        self,
        x_BTD: mx.array,
        key: mx.array | None,
        cache: KVCache | None,
        angles: Angles | None = None,
        sees_B1TT: mx.array | None = None,
    ) -> mx.array:
        """(B, T, D) -> (B, T, D)."""
        q_latent_BTR, latent_BTR = self.q_down_proj(x_BTD), self.kv_down_proj(x_BTD)
        q_nope_BHTK = self.heads(self.q_up_proj(q_latent_BTR))
        q_rope_BHTK = self.rotate(self.heads(self.q_rope_proj(q_latent_BTR)), angles)
        k_rope_BHSK = self.rotate(self.heads(self.k_rope_proj(x_BTD)), angles)
        if cache is None:
            k_BHSK = mx.concatenate([self.heads(self.k_up_proj(latent_BTR)), k_rope_BHSK], axis=-1)
            v_BHSV = self.heads(self.v_up_proj(latent_BTR))
            q_BHTK = mx.concatenate([q_nope_BHTK, q_rope_BHTK], axis=-1)
            y_BHTV = self.attend(q_BHTK, k_BHSK, v_BHSV, key, sees_B1TT)
        else:
            latent_B1SR, k_rope_BHSK = cache.append(latent_BTR[:, None], k_rope_BHSK)
            q_BHTR = self.k_up_proj.per_head_transposed(q_nope_BHTK)
            y_BHTR = self.attend_latents(q_BHTR, q_rope_BHTK, latent_B1SR, k_rope_BHSK, sees_B1TT)
            y_BHTV = self.v_up_proj.per_head(y_BHTR)
        return self.out_proj(self.joined(y_BHTV))


ATTENTION = {
    "multi_head": MultiHeadAttention,
    "grouped_query": GroupedQueryAttention,
    "latent": LatentAttention,
    "latent_per_head": PerHeadLatentAttention,
}


def causal_attention(q_BHTK: mx.array, k_BGSK: mx.array, v_BGSV: mx.array, scale: float) -> mx.array:
    """Fused attention of the last T of S positions, (B, H, T, V); each sees itself and what came before."""
    T, S = q_BHTK.shape[2], k_BGSK.shape[2]
    if 1 < T == S and is_plain(q_BHTK):
        return attention_by_rows(q_BHTK, k_BGSK, v_BGSV, scale)
    mask_TS = None if T == 1 else "causal"
    return mx.fast.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSV, scale=scale, mask=mask_TS)


def attention_within(
    q_BHTK: mx.array, k_BGTK: mx.array, v_BGTV: mx.array, scale: float, sees_B1TT: mx.array
) -> mx.array:
    """Fused attention (B, H, T, V) of each query over the keys that it may see."""
    if is_plain(q_BHTK) and q_BHTK.shape[2] == k_BGTK.shape[2]:
        return attention_by_rows(q_BHTK, k_BGTK, v_BGTV, scale, sees_B1TT)
    return mx.fast.scaled_dot_product_attention(q_BHTK, k_BGTK, v_BGTV, scale=scale, mask=sees_B1TT)


def within_examples(starts_BT: mx.array) -> mx.array:
    """(B, 1, T, T): whether a query may see a key, which is its own example's and not after it."""
    T = starts_BT.shape[1]
    causal_TT = mx.tri(T, T, dtype=mx.bool_)
    return (causal_TT & (starts_BT[:, :, None] == starts_BT[:, None, :]))[:, None]


def behind_each(lengths: Sequence[int], device: mx.Device) -> tuple[mx.array, mx.array]:  # noqa: ARG001 (as its twin)
    """Where the next token of each sequence stands, (B, 1), and the keys it may see, (B, 1, 1, S): its own sequence's,
    and itself."""
    positions_B1 = mx.array(list(lengths))[:, None]
    return positions_B1, (mx.arange(max(lengths) + 1) <= positions_B1)[:, None, None]
