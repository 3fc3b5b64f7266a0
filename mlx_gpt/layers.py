"""What every family is built of: linear, norms, embeddings, rotary positions, dropout. In PyTorch: torch_gpt/layers.py.

Shape suffixes: X any leading dimensions, B batch, T time, D width, I inputs, O outputs, V rows of a table, H heads,
K head size, E experts, M rows with one expert each.

Precision is explicit: parameters are float32, every module casts them to the dtype of its input, and the
embedding decides that dtype. A dropout key of None means evaluation: nothing is dropped.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from gpt_common.config import ModelConfig
from gpt_common.network.rope import rotary_tables
from mlx_gpt.kernels import linear, on_cpu, upcast


class Linear(nn.Module):
    """`x @ weight.T + bias`, weight (O, I), computed in the dtype of x.

    Nothing outside this class reads its weight: an adapter or a quantised layer in its place is used everywhere.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = mx.zeros((outputs, inputs))
        self.bias = mx.zeros(outputs) if bias else None

    def __call__(self, x_XI: mx.array) -> mx.array:
        """(X, I) -> (X, O)."""
        return self.product(x_XI, self.bias)

    def product(self, x_XI: mx.array, bias_O: mx.array | None = None) -> mx.array:
        """(X, I) -> (X, O), with this bias."""
        return linear(x_XI, self.matrix(x_XI.dtype), bias_O)

    def matrix(self, dtype: mx.Dtype) -> mx.array:
        """The weight (O, I)."""
        return self.weight.astype(dtype)

    def per_head(self, x_BHTI: mx.array, first: int = 0) -> mx.array:
        """(B, H, T, I) -> (B, H, T, O / H - first): each head by its own rows of the weight, from `first` on."""
        return x_BHTI @ self.rows_of_heads(x_BHTI)[:, first:].swapaxes(-2, -1)

    def per_head_transposed(self, x_BHTO: mx.array) -> mx.array:
        """(B, H, T, O) -> (B, H, T, I): from each head's first O outputs back to inputs, with the transposed weight."""
        return x_BHTO @ self.rows_of_heads(x_BHTO)[:, : x_BHTO.shape[-1]]

    def rows_of_heads(self, x_BHTI: mx.array) -> mx.array:
        """The weight (H, O / H, I) in the dtype of x: its rows belong to the heads in turn."""
        weight_OI, H = self.matrix(x_BHTI.dtype), x_BHTI.shape[1]
        return weight_OI.reshape(H, weight_OI.shape[0] // H, -1)


class StackedLinear(nn.Module):
    """One matrix per expert, weight (E, O, I); each row of x is multiplied with the matrix of its expert."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = mx.zeros((experts, outputs, inputs))

    def __call__(self, x_MI: mx.array, expert_M: mx.array) -> mx.array:
        """(M, I) -> (M, O), for rows in the order of their experts, `expert_M`."""
        return self.product(x_MI, expert_M)

    def product(self, x_MI: mx.array, expert_M: mx.array) -> mx.array:
        """(M, I) -> (M, O), each row with the matrix of its expert."""
        return self.grouped(x_MI, self.weight, expert_M)

    def grouped(self, x_MI: mx.array, weight_EOI: mx.array, expert_M: mx.array) -> mx.array:
        """(M, I) -> (M, O), each row with that matrix of these (E, O, I) that is its expert's."""
        # On a CPU MLX gathers matrices in float32 only.
        dtype = mx.float32 if on_cpu() else x_MI.dtype
        weight_EIO, x_M1I = weight_EOI.astype(dtype).swapaxes(1, 2), x_MI[:, None].astype(dtype)
        y_M1O = mx.gather_mm(x_M1I, weight_EIO, rhs_indices=expert_M, sorted_indices=True)
        return y_M1O[:, 0].astype(x_MI.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) with an optional bias; statistics in float32."""

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = mx.ones(width)
        self.bias = mx.zeros(width) if bias else None

    def __call__(self, x_XD: mx.array) -> mx.array:
        """(X, D) -> (X, D)."""
        # In bfloat16 Metal would sum the weight's gradient in bfloat16: about 1 % off over 16384 tokens, by emulation.
        y_XD = mx.fast.layer_norm(upcast(x_XD), self.weight, self.bias, self.eps)
        return y_XD.astype(x_XD.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang & Sennrich 2019): no mean, no bias; statistics in float32."""

    def __init__(self, width: int, eps: float, bias: bool = False) -> None:  # noqa: ARG002 (as LayerNorm)
        super().__init__()
        self.eps = eps
        self.weight = mx.ones(width)

    def __call__(self, x_XD: mx.array) -> mx.array:
        """(X, D) -> (X, D)."""
        return mx.fast.rms_norm(upcast(x_XD), self.weight, self.eps).astype(x_XD.dtype)


NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


class Embedding(nn.Module):
    """Rows of a table, cast to the compute dtype. Nothing outside this class reads its weight (see Linear)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = mx.zeros((rows, width))

    def __call__(self, ids_X: mx.array, dtype: mx.Dtype) -> mx.array:
        """(X) integer ids -> (X, D) of `dtype`."""
        return self.weight[ids_X].astype(dtype)

    def as_linear(self, x_XD: mx.array) -> mx.array:
        """(X, D) -> (X, V): the table as an output layer, for a head that is tied to it."""
        return self.product(x_XD)

    def product(self, x_XD: mx.array) -> mx.array:
        """(X, D) -> (X, V)."""
        return linear(x_XD, self.matrix(x_XD.dtype))

    def matrix(self, dtype: mx.Dtype) -> mx.array:
        """The table (V, D)."""
        return self.weight.astype(dtype)


class Rotary:
    """Cosine and sine of every position's rotary angles; nothing of it is trained or saved."""

    def __init__(self, config: ModelConfig) -> None:
        cos_TK, sin_TK = rotary_tables(config)
        self.cos_TK = mx.array(cos_TK)
        self.sin_TK = mx.array(sin_TK)

    def angles(self, start: int, end: int) -> Angles:
        """Cosine and sine for the positions from `start` to before `end`, each (T, K/2)."""
        return self.cos_TK[start:end], self.sin_TK[start:end]

    def angles_at(self, positions_BT: mx.array) -> Angles:
        """Cosine and sine of these positions, each (B, 1, T, K/2): the same for all heads."""
        return self.cos_TK[positions_BT][:, None], self.sin_TK[positions_BT][:, None]


Angles = tuple[mx.array, mx.array]


def restarted(starts_BT: mx.array) -> mx.array:
    """Positions (B, T) that begin at 0 in every example; each begins at its `starts_BT` of the row."""
    return mx.arange(starts_BT.shape[1]) - starts_BT


def rotate_halves(x_BHTK: mx.array, angles: Angles | None) -> mx.array:
    """Rotate number i together with number i + K/2 (Llama)."""
    assert angles is not None
    cos_TK, sin_TK = angles
    a_BHTK, b_BHTK = upcast(x_BHTK).split(2, axis=-1)
    y_BHTK = mx.concatenate([a_BHTK * cos_TK - b_BHTK * sin_TK, b_BHTK * cos_TK + a_BHTK * sin_TK], axis=-1)
    return y_BHTK.astype(x_BHTK.dtype)


def rotate_interleaved(x_BHTK: mx.array, angles: Angles | None) -> mx.array:
    """Rotate number 2i together with number 2i + 1 (RoFormer, section 3.4.2; DeepSeek)."""
    assert angles is not None
    cos_TK, sin_TK = angles
    pairs_BHTK2 = upcast(x_BHTK).reshape(*x_BHTK.shape[:-1], -1, 2)
    a_BHTK, b_BHTK = pairs_BHTK2[..., 0], pairs_BHTK2[..., 1]
    y_BHTK2 = mx.stack([a_BHTK * cos_TK - b_BHTK * sin_TK, b_BHTK * cos_TK + a_BHTK * sin_TK], axis=-1)
    return y_BHTK2.reshape(x_BHTK.shape).astype(x_BHTK.dtype)


def unrotated(x_BHTK: mx.array, angles: Angles | None) -> mx.array:  # noqa: ARG001 (as the others)
    """Positions that are learned rotate nothing."""
    return x_BHTK


ROTATIONS = {"halves": rotate_halves, "interleaved": rotate_interleaved}


def dropout(x: mx.array, rate: float, key: mx.array | None, site: int, rng: str) -> mx.array:  # noqa: ARG001
    """Set a share `rate` of x to zero and scale the rest up; `site` numbers the places in execution order."""
    if key is None or rate == 0:
        return x
    # MLX's own generator is threefry: `native` and `shared` masks are the same.
    keep = uniform(key, site, x.shape) < 1 - rate
    return mx.where(keep, x / (1 - rate), mx.zeros_like(x))


def as_key(words: npt.NDArray[np.uint32], rng: str) -> mx.array:  # noqa: ARG001 (its twin seeds its own generator)
    """The words of a dropout key (gpt_common/keyed.py) as the model takes them."""
    return mx.array(words)


def uniform(key: mx.array, site: int, shape: tuple[int, ...]) -> mx.array:
    """Numbers in [0, 1] by threefry, the same in both twins bit for bit (gpt_common/network/dropout.py), of `shape`."""
    size = math.prod(shape)
    # An odd number of words is laid out in another way; one more makes it even.
    words = mx.random.uniform(shape=(size + size % 2,), key=key + mx.array([0, site], dtype=mx.uint32))
    return words[:size].reshape(shape)
