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
from torch.utils.checkpoint import checkpoint

from gpt_common.adapting.quantisation import Grid, Grids
from torch_gpt.adapters import part
from torch_gpt.kernels import dequantised, quantised_linear
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
        # Made again for the backward pass.
        y_MO: Tensor = checkpoint(self.by_experts, x_MI, self.scales, self.biases, expert_M, use_reentrant=False)
        return y_MO

    def by_experts(self: Any, x_MI: Tensor, scales_EOG: Tensor, biases_EOG: Tensor, expert_M: Tensor) -> Tensor:
        """The same with these scales and biases, which keeps the matrices that it makes."""
        weight_EOI = dequantised(self.weight, scales_EOG, biases_EOG, self.grid).to(x_MI.dtype)
        y_MO: Tensor = self.grouped(x_MI, weight_EOI, expert_M)
        return y_MO


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
