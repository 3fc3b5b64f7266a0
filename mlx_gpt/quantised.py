"""Layers whose matrices are kept in a few bits. In PyTorch: torch_gpt/quantised.py.

The layout is gpt_common/adapting/quantisation.py. A matrix is made from its words where it is used, forward and once
more backward: no float32 is kept between the two, and beside an adapter the model takes the room of its words.

Shape suffixes: X any leading dimensions, I inputs, O outputs, W words of a row, G groups of a row, K inputs of a group,
V rows of a table, D width, N all leading dimensions in one.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from gpt_common.adapting.quantisation import Grid, Grids
from mlx_gpt.adapters import part
from mlx_gpt.kernels import dequantised, on_cpu, quantised_linear
from mlx_gpt.layers import Embedding


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
            # Made again for the backward pass.
            by_experts = mx.checkpoint(partial(self.by_experts, expert_M=mx.stop_gradient(expert_M)))
            y_MO: mx.array = by_experts(x_MI, self.scales, self.biases)
            return y_MO
        parts = (self.weight, self.scales.astype(x_MI.dtype), self.biases.astype(x_MI.dtype))
        sizes = {"group_size": self.grid.group_size, "bits": self.grid.bits}
        y_M1O = mx.gather_qmm(x_MI[:, None], *parts, rhs_indices=expert_M, sorted_indices=True, **sizes)
        return y_M1O[:, 0]

    def by_experts(
        self: Any, x_MI: mx.array, scales_EOG: mx.array, biases_EOG: mx.array, expert_M: mx.array
    ) -> mx.array:
        """The same with these scales and biases, which keeps the matrices that it makes."""
        weight_EOI = dequantised(self.weight, scales_EOG, biases_EOG, self.grid).astype(x_MI.dtype)
        y_MO: mx.array = self.grouped(x_MI, weight_EOI, expert_M)
        return y_MO


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
