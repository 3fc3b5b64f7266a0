"""Layers whose matrices are kept in a few bits. In MLX: mlx_gpt/quantised.py.

The layout is gpt_common/adapting/quantisation.py. A matrix is made from its words where it is used, forward and once
more backward: no float32 is kept between the two, and beside an adapter the model takes the room of its words.

Shape suffixes: X any leading dimensions, I inputs, O outputs, W words of a row, G groups of a row, K inputs of a group,
V rows of a table, D width, N all leading dimensions in one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from gpt_common.adapting.quantisation import Grid, Grids
from torch_gpt.adapters import part
from torch_gpt.kernels import linear
from torch_gpt.layers import Embedding


class Quantised:
    """What a layer is beside its kind: its weight is the words of a matrix, and scales and biases are two tensors more.

    Those are not trained: an adapter beside them is.
    """

    grid: Grid
    weight: Tensor
    scales: Tensor
    biases: Tensor

    def take(self: Any, grid: Grid) -> None:
        """Make room for the words in place of the weight."""
        self.grid = grid
        shapes = grid.shapes(tuple(self.weight.shape))
        del self.weight
        self.register_buffer("weight", torch.zeros(shapes["weight"], dtype=torch.int32))
        self.register_buffer("scales", torch.zeros(shapes["scales"]))
        self.register_buffer("biases", torch.zeros(shapes["biases"]))

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The weight that the words stand for."""
        return dequantised(self.weight, self.scales, self.biases, self.grid).to(dtype)

    def product(self, x_XI: Tensor, bias_O: Tensor | None = None) -> Tensor:
        """(X, I) -> (X, O), with this bias."""
        y_XO = quantised_linear(x_XI, self.weight, self.scales, self.biases, self.grid)
        return y_XO if bias_O is None else y_XO + bias_O.to(x_XI.dtype)


class QuantisedStack(Quantised):
    """The same, of a matrix for each expert."""

    def product(self: Any, x_MI: Tensor, expert_M: Tensor) -> Tensor:  # type: ignore[override]
        """(M, I) -> (M, O), each row with the matrix of its expert."""
        return self.grouped(x_MI, self.matrix(x_MI.dtype), expert_M)


class QuantisedTable(Quantised):
    """The same, of an embedding: the rows that are asked for are made, and no others."""

    def forward(self, ids_X: Tensor, dtype: torch.dtype) -> Tensor:
        """(X) integer ids -> (X, D) of `dtype`."""
        return dequantised(self.weight[ids_X], self.scales[ids_X], self.biases[ids_X], self.grid).to(dtype)


@lru_cache
def quantised_kind(kind: type[Any]) -> type[Any]:
    """What a kind of layer is with quantised matrices, adapters' kinds too."""
    parts = QuantisedTable if issubclass(kind, Embedding) else QuantisedStack if hasattr(kind, "grouped") else Quantised
    return type(f"Quantised{kind.__name__}", (parts, kind), {"__doc__": parts.__doc__})


class QuantisedLayers:
    """All layers of a model whose matrices are quantised, put in place of those that it has. Often there are none.

    Args:
        model: changed in place; its adapters are there already.
        grids: which layers, and how.
    """

    def __init__(self, model: nn.Module, grids: Grids) -> None:
        self.grids = grids
        for name, grid in grids.items():
            layer = part(model, name)
            kind: Any = type(layer)
            # It stays the layer that an adapter, its dropout and its site know, and has its matrix elsewhere.
            layer.__class__ = quantised_kind(kind)
            layer.take(grid)


def dequantised(words_XW: Tensor, scales_XG: Tensor, biases_XG: Tensor, grid: Grid) -> Tensor:
    """The matrix (X, I) that words stand for, float32."""
    codes_XGK = unpacked(words_XW, grid.bits).view(*scales_XG.shape, grid.group_size).float()
    scales_XG1, biases_XG1 = scales_XG.float()[..., None], biases_XG.float()[..., None]
    if scales_XG.requires_grad:
        return (codes_XGK * scales_XG1 + biases_XG1).flatten(-2)
    # In place: two new matrices more took a CPU ten times as long.
    return codes_XGK.mul_(scales_XG1).add_(biases_XG1).flatten(-2)


def unpacked(words_XW: Tensor, bits: int) -> Tensor:
    """Words as codes (X, I), uint8."""
    bytes_XB = words_XW.view(torch.uint8)
    if 8 % bits == 0:
        codes = [(bytes_XB >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
        return torch.stack(codes, dim=-1).flatten(-2)
    # Eight codes lie in as many bytes as a code has bits; each in one byte of them, or in two that are neighbours.
    bytes_XNB, codes = bytes_XB.unflatten(-1, (-1, bits)), []
    for first, shift in (divmod(code * bits, 8) for code in range(8)):
        low = bytes_XNB[..., first] >> shift
        if shift + bits > 8:
            low = low | (bytes_XNB[..., first + 1] << (8 - shift))
        codes.append(low & (2**bits - 1))
    return torch.stack(codes, dim=-1).flatten(-2)


def quantised_linear(x_XI: Tensor, words_OW: Tensor, scales_OG: Tensor, biases_OG: Tensor, grid: Grid) -> Tensor:
    """`x @ matrix.T`, (X, I) -> (X, O)."""
    y_XO: Tensor = QuantisedProduct.apply(x_XI, words_OW, scales_OG, biases_OG, grid)
    return y_XO


class QuantisedProduct(torch.autograd.Function):
    """A product with a matrix that is made again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_XI: Tensor, words_OW: Tensor, scales_OG: Tensor, biases_OG: Tensor, grid: Grid) -> Tensor:
        """(X, I) -> (X, O)."""
        tuned = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        ctx.save_for_backward(x_XI if tuned else None, words_OW, scales_OG, biases_OG)
        ctx.grid = grid
        return linear(x_XI, dequantised(words_OW, scales_OG, biases_OG, grid).to(x_XI.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        """Gradients of x, and of scales and biases where they are tuned."""
        (slope_XO,) = gradients
        x_XI, words_OW, scales_OG, biases_OG = ctx.saved_tensors
        x_slope = scale_slope = bias_slope = None
        if ctx.needs_input_grad[0]:
            x_slope = slope_XO @ dequantised(words_OW, scales_OG, biases_OG, ctx.grid).to(slope_XO.dtype)
        if x_XI is not None:
            slope_OI = (slope_XO.flatten(0, -2).t() @ x_XI.flatten(0, -2)).float()
            slope_OGK = slope_OI.view(*scales_OG.shape, ctx.grid.group_size)
            codes_OGK = unpacked(words_OW, ctx.grid.bits).view(slope_OGK.shape)
            scale_slope, bias_slope = (slope_OGK * codes_OGK).sum(dim=-1), slope_OGK.sum(dim=-1)
        return x_slope, None, scale_slope, bias_slope, None
