"""Layers whose matrices are kept in a few bits. In PyTorch: torch_gpt/quantised.py.

The layout is gpt_common/adapting/quantisation.py. A matrix is made from its words where it is used, forward and once
more backward: no float32 is kept between the two, and beside an adapter the model takes the room of its words.

Shape suffixes: X any leading dimensions, I inputs, O outputs, W words of a row, G groups of a row, K inputs of a group,
V rows of a table, D width, N all leading dimensions in one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from gpt_common.adapting.quantisation import Grid, Grids
from mlx_gpt.adapters import part
from mlx_gpt.kernels import linear, on_cpu
from mlx_gpt.layers import Embedding

KERNEL_ROWS = 2
"""On a CPU, MLX's product with words is the faster one for so few rows: a plain loop, and no matrix is made."""


class Quantised:
    """What a layer is beside its kind: its weight is the words of a matrix, and scales and biases are two tensors more.

    Those are not trained: an adapter beside them is.
    """

    grid: Grid
    weight: mx.array
    scales: mx.array
    biases: mx.array

    def take(self: Any, grid: Grid) -> None:
        """Make room for the words in place of the weight."""
        self.grid = grid
        shapes = grid.shapes(tuple(self.weight.shape))
        self.weight = mx.zeros(shapes["weight"], dtype=mx.uint32)
        self.scales = mx.zeros(shapes["scales"])
        self.biases = mx.zeros(shapes["biases"])
        self.freeze(recurse=False, keys=["weight", "scales", "biases"])

    def matrix(self, dtype: mx.Dtype) -> mx.array:
        """The weight that the words stand for."""
        return dequantised(self.weight, self.scales, self.biases, self.grid).astype(dtype)

    def product(self, x_XI: mx.array, bias_O: mx.array | None = None) -> mx.array:
        """(X, I) -> (X, O), with this bias."""
        y_XO = quantised_linear(x_XI, self.weight, self.scales, self.biases, self.grid)
        return y_XO if bias_O is None else y_XO + bias_O.astype(x_XI.dtype)


class QuantisedStack(Quantised):
    """The same, of a matrix for each expert."""

    def product(self: Any, x_MI: mx.array, expert_M: mx.array) -> mx.array:  # type: ignore[override]
        """(M, I) -> (M, O), each row with the matrix of its expert."""
        if on_cpu():
            return self.grouped(x_MI, self.matrix(x_MI.dtype), expert_M)
        parts = (self.weight, self.scales.astype(x_MI.dtype), self.biases.astype(x_MI.dtype))
        sizes = {"group_size": self.grid.group_size, "bits": self.grid.bits}
        y_M1O = mx.gather_qmm(x_MI[:, None], *parts, rhs_indices=expert_M, sorted_indices=True, **sizes)
        return y_M1O[:, 0]


class QuantisedTable(Quantised):
    """The same, of an embedding: the rows that are asked for are made, and no others."""

    def __call__(self, ids_X: mx.array, dtype: mx.Dtype) -> mx.array:
        """(X) integer ids -> (X, D) of `dtype`."""
        return dequantised(self.weight[ids_X], self.scales[ids_X], self.biases[ids_X], self.grid).astype(dtype)


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


def dequantised(words_XW: mx.array, scales_XG: mx.array, biases_XG: mx.array, grid: Grid) -> mx.array:
    """The matrix (X, I) that words stand for, float32."""
    scales_XG, biases_XG = scales_XG.astype(mx.float32), biases_XG.astype(mx.float32)
    return mx.dequantize(words_XW, scales_XG, biases_XG, grid.group_size, grid.bits)


def quantised_linear(
    x_XI: mx.array, words_OW: mx.array, scales_OG: mx.array, biases_OG: mx.array, grid: Grid
) -> mx.array:
    """`x @ matrix.T`, (X, I) -> (X, O)."""
    if on_cpu() and (x_XI.size > KERNEL_ROWS * x_XI.shape[-1] or x_XI.dtype != mx.float32):
        y_XO: Any = _product(grid)(x_XI, words_OW, scales_OG, biases_OG)
        return y_XO
    parts = (words_OW, scales_OG.astype(x_XI.dtype), biases_OG.astype(x_XI.dtype))
    return mx.quantized_matmul(x_XI, *parts, group_size=grid.group_size, bits=grid.bits)


@lru_cache
def _product(grid: Grid) -> Callable[..., Any]:
    """A product with a matrix that is made again for the backward pass."""

    @mx.custom_function
    def product(x_XI: mx.array, words_OW: mx.array, scales_OG: mx.array, biases_OG: mx.array) -> mx.array:
        return linear(x_XI, dequantised(words_OW, scales_OG, biases_OG, grid).astype(x_XI.dtype))

    @product.vjp
    def gradients(primals: tuple[mx.array, ...], slope_XO: mx.array, _: mx.array) -> tuple[mx.array, ...]:
        x_XI, words_OW, scales_OG, biases_OG = primals
        x_slope = slope_XO @ dequantised(words_OW, scales_OG, biases_OG, grid).astype(slope_XO.dtype)
        slope_OI = (slope_XO.flatten(0, -2).T @ x_XI.flatten(0, -2)).astype(mx.float32)
        slope_OGK = slope_OI.reshape(*scales_OG.shape, grid.group_size)
        ones, zeros = mx.ones_like(scales_OG), mx.zeros_like(biases_OG)
        codes_OGK = dequantised(words_OW, ones, zeros, grid).reshape(slope_OGK.shape)
        return x_slope, mx.zeros_like(words_OW), (slope_OGK * codes_OGK).sum(axis=-1), slope_OGK.sum(axis=-1)

    return product
