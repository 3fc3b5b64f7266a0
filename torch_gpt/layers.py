"""What every family is built of: linear, norms, embeddings, rotary positions, dropout. In MLX: mlx_gpt/layers.py.

Shape suffixes: X any leading dimensions, B batch, T time, D width, I inputs, O outputs, V rows of a table, H heads,
K head size, E experts, M rows with one expert each.

Precision is explicit: parameters are float32, every module casts them to the dtype of its input, and the
embedding decides that dtype. A dropout key of None means evaluation: nothing is dropped.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt_common.config import ModelConfig
from gpt_common.network.dropout import threefry
from gpt_common.network.rope import rotary_tables
from torch_gpt.kernels import linear, upcast


class Linear(nn.Module):
    """`x @ weight.T + bias`, weight (O, I), computed in the dtype of x.

    Nothing outside this class reads its weight: an adapter or a quantised layer in its place is used everywhere.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x_XI: Tensor) -> Tensor:
        """(X, I) -> (X, O)."""
        return self.product(x_XI, self.bias)

    def product(self, x_XI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """(X, I) -> (X, O), with this bias."""
        return linear(x_XI, self.matrix(x_XI.dtype), bias_O)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weight (O, I)."""
        return self.weight.to(dtype)

    def per_head(self, x_BHTI: Tensor, first: int = 0) -> Tensor:
        """(B, H, T, I) -> (B, H, T, O / H - first): each head by its own rows of the weight, from `first` on."""
        return x_BHTI @ self.rows_of_heads(x_BHTI)[:, first:].transpose(-2, -1)

    def per_head_transposed(self, x_BHTO: Tensor) -> Tensor:
        """(B, H, T, O) -> (B, H, T, I): from each head's first O outputs back to inputs, with the transposed weight."""
        return x_BHTO @ self.rows_of_heads(x_BHTO)[:, : x_BHTO.shape[-1]]

    def rows_of_heads(self, x_BHTI: Tensor) -> Tensor:
        """The weight (H, O / H, I) in the dtype of x: its rows belong to the heads in turn."""
        weight_OI, H = self.matrix(x_BHTI.dtype), x_BHTI.shape[1]
        return weight_OI.reshape(H, weight_OI.shape[0] // H, -1)


class StackedLinear(nn.Module):
    """One matrix per expert, weight (E, O, I); each row of x is multiplied with the matrix of its expert."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(experts, outputs, inputs))

    def forward(self, x_MI: Tensor, expert_M: Tensor) -> Tensor:
        """(M, I) -> (M, O), for rows in the order of their experts, `expert_M`."""
        return self.product(x_MI, expert_M)

    def product(self, x_MI: Tensor, expert_M: Tensor) -> Tensor:
        """(M, I) -> (M, O), each row with the matrix of its expert."""
        return self.grouped(x_MI, self.weight, expert_M)

    # PyTorch 2.13 compiles grouped products in bfloat16 on CUDA only: they stay eager between compiled parts.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def grouped(self, x_MI: Tensor, weight_EOI: Tensor, expert_M: Tensor) -> Tensor:
        """(M, I) -> (M, O), each row with that matrix of these (E, O, I) that is its expert's."""
        ends_E = torch.bincount(expert_M, minlength=weight_EOI.shape[0]).cumsum(0)
        weight_EIO = weight_EOI.to(x_MI.dtype).transpose(1, 2)
        # PyTorch 2.13 has no grouped product in float64, nor of rows that are no multiple of 16 bytes.
        aligned = all(size * x_MI.element_size() % 16 == 0 for size in weight_EOI.shape[1:])
        if x_MI.dtype == torch.float64 or not aligned:
            parts = torch.tensor_split(x_MI, ends_E[:-1].tolist())
            return torch.cat([x_NI @ weight_IO for x_NI, weight_IO in zip(parts, weight_EIO, strict=True)])
        return F.grouped_mm(x_MI, weight_EIO, offs=ends_E.to(torch.int32))


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) with an optional bias; statistics in float32."""

    def __init__(self, width: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x_XD: Tensor) -> Tensor:
        """(X, D) -> (X, D)."""
        # In bfloat16 PyTorch's CPU sums the weight's gradient in bfloat16: 6 % off over 4096 tokens.
        y_XD = F.layer_norm(upcast(x_XD), self.weight.shape, self.weight, self.bias, self.eps)
        return y_XD.to(x_XD.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang & Sennrich 2019): no mean, no bias; statistics in float32."""

    def __init__(self, width: int, eps: float, bias: bool = False) -> None:  # noqa: ARG002 (as LayerNorm)
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_XD: Tensor) -> Tensor:
        """(X, D) -> (X, D)."""
        y_XD = F.rms_norm(upcast(x_XD), self.weight.shape, self.weight, self.eps)
        return y_XD.to(x_XD.dtype)


NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


class Embedding(nn.Module):
    """Rows of a table, cast to the compute dtype. Nothing outside this class reads its weight (see Linear)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows, width))

    def forward(self, ids_X: Tensor, dtype: torch.dtype) -> Tensor:
        """(X) integer ids -> (X, D) of `dtype`."""
        return F.embedding(ids_X, self.weight).to(dtype)

    def as_linear(self, x_XD: Tensor) -> Tensor:
        """(X, D) -> (X, V): the table as an output layer, for a head that is tied to it."""
        return self.product(x_XD)

    def product(self, x_XD: Tensor) -> Tensor:
        """(X, D) -> (X, V)."""
        return linear(x_XD, self.matrix(x_XD.dtype))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The table (V, D)."""
        return self.weight.to(dtype)


class Rotary(nn.Module):
    """Cosine and sine of every position's rotary angles; nothing of it is trained or saved."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        cos_TK, sin_TK = rotary_tables(config)
        self.cos_TK = nn.Buffer(torch.from_numpy(cos_TK), persistent=False)
        self.sin_TK = nn.Buffer(torch.from_numpy(sin_TK), persistent=False)

    def angles(self, start: int, end: int) -> Angles:
        """Cosine and sine for the positions from `start` to before `end`, each (T, K/2)."""
        return self.cos_TK[start:end], self.sin_TK[start:end]

    def angles_at(self, positions_BT: Tensor) -> Angles:
        """Cosine and sine of these positions, each (B, 1, T, K/2): the same for all heads."""
        return self.cos_TK[positions_BT][:, None], self.sin_TK[positions_BT][:, None]


Angles = tuple[Tensor, Tensor]


def restarted(starts_BT: Tensor) -> Tensor:
    """Positions (B, T) that begin at 0 in every example; each begins at its `starts_BT` of the row."""
    return torch.arange(starts_BT.shape[1], device=starts_BT.device) - starts_BT


def rotate_halves(x_BHTK: Tensor, angles: Angles | None) -> Tensor:
    """Rotate number i together with number i + K/2 (Llama)."""
    assert angles is not None
    cos_TK, sin_TK = angles
    a_BHTK, b_BHTK = upcast(x_BHTK).chunk(2, dim=-1)
    y_BHTK = torch.cat([a_BHTK * cos_TK - b_BHTK * sin_TK, b_BHTK * cos_TK + a_BHTK * sin_TK], dim=-1)
    return y_BHTK.to(x_BHTK.dtype)


def rotate_interleaved(x_BHTK: Tensor, angles: Angles | None) -> Tensor:
    """Rotate number 2i together with number 2i + 1 (RoFormer, section 3.4.2; DeepSeek)."""
    assert angles is not None
    cos_TK, sin_TK = angles
    pairs_BHTK2 = upcast(x_BHTK).reshape(*x_BHTK.shape[:-1], -1, 2)
    a_BHTK, b_BHTK = pairs_BHTK2[..., 0], pairs_BHTK2[..., 1]
    y_BHTK2 = torch.stack([a_BHTK * cos_TK - b_BHTK * sin_TK, b_BHTK * cos_TK + a_BHTK * sin_TK], dim=-1)
    return y_BHTK2.reshape(x_BHTK.shape).to(x_BHTK.dtype)


def unrotated(x_BHTK: Tensor, angles: Angles | None) -> Tensor:  # noqa: ARG001 (as the others)
    """Positions that are learned rotate nothing."""
    return x_BHTK


ROTATIONS = {"halves": rotate_halves, "interleaved": rotate_interleaved}


def dropout(x: Tensor, rate: float, key: Tensor | None, site: int, rng: str) -> Tensor:
    """Set a share `rate` of x to zero and scale the rest up; `site` numbers the places in execution order."""
    if key is None or rate == 0:
        return x
    if rng == "native":
        return F.dropout(x, rate)
    keep = uniform(key, site, x.shape).to(x.device) < 1 - rate
    return torch.where(keep, x / (1 - rate), torch.zeros_like(x))


def as_key(words: npt.NDArray[np.uint32], rng: str) -> Tensor:
    """The words of a dropout key (gpt_common/keyed.py) as the model takes them."""
    if rng == "native":  # masks are PyTorch's own
        torch.manual_seed(int(words[0]) << 32 | int(words[1]))
    return torch.from_numpy(words)


def uniform(key: Tensor, site: int, shape: torch.Size) -> Tensor:
    """Numbers in [0, 1] by threefry, the same in both twins bit for bit (gpt_common/network/dropout.py), of `shape`."""
    size = math.prod(shape)
    words = threefry(key.cpu().numpy() + np.array([0, site], np.uint32), size)
    return torch.from_numpy(words.astype(np.float32) * np.float32(2**-32)).reshape(shape)
