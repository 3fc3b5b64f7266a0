"""Quantised matrices among the tensors of a file: the words that lie there, and the floats that they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from convert.storage.tensors import WEIGHT_DTYPES, Tensor, array, from_array, load
from gpt_common.adapting.quantisation import PARTS, Grid, Grids, Quantised, grids_of

Tensors = Mapping[str, Tensor]


def taken_apart(
    tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Grids]:
    """Every tensor as floats, the words with their scales and biases apart, and the grids.

    Args:
        tensors: of a file, under our names.
        shapes: of the model's parameters.

    Raises:
        ValueError: words that are on no grid.
    """
    grids = grids_of({name: tensor.shape for name, tensor in tensors.items()}, shapes)
    words = {f"{layer}.{part}": tensors[f"{layer}.{part}"] for layer in grids for part in PARTS}
    for name, tensor in words.items():
        wanted = ("U32",) if name.endswith(".weight") else tuple(WEIGHT_DTYPES)
        if tensor.dtype not in wanted:
            raise ValueError(f"{name} of a quantised matrix is {tensor.dtype} and not {' or '.join(wanted)}")
    floats = {}
    for name, tensor in tensors.items():
        layer = name.rpartition(".")[0]
        if name == f"{layer}.weight" and layer in grids:
            scales, biases = (words[f"{layer}.{part}"] for part in PARTS[1:])
            floats[name] = dequantised(tensor, scales, biases, grids[layer])
        elif name not in words:
            floats[name] = tensor
    return floats, words, grids


def together(tensors: Tensors, words: Tensors, grids: Grids) -> dict[str, Tensor]:
    """What a file holds that keeps the words, each matrix in its place."""
    held: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        held |= {f"{layer}.{part}": words[f"{layer}.{part}"] for part in PARTS} if layer in grids else {name: tensor}
    return held


def dequantised(words: Tensor, scales: Tensor, biases: Tensor, grid: Grid) -> Tensor:
    """The matrix that words stand for, float32; in memory while it is read."""

    def blocks() -> Iterator[bytes]:
        return from_array(as_quantised(words, scales, biases, grid).dequantised(), "F32").blocks()

    *rows, groups = scales.shape
    return Tensor(dtype="F32", shape=(*rows, groups * grid.group_size), blocks=blocks)


def as_quantised(words: Tensor, scales: Tensor, biases: Tensor, grid: Grid) -> Quantised:
    """A matrix on its grid, read."""
    return Quantised(grid, load(words), array(scales), array(biases))


def as_tensors(layer: str, matrix: Quantised, dtype: str) -> dict[str, Tensor]:
    """The three tensors of a matrix; scales and biases in `dtype`, which they are rounded to already."""
    floats = {"scales": matrix.scales_XG, "biases": matrix.biases_XG}
    return {f"{layer}.weight": from_array(matrix.words_XW, "U32")} | {
        f"{layer}.{part}": from_array(_bits(value, dtype), dtype) for part, value in floats.items()
    }


def _bits(value: np.ndarray, dtype: str) -> np.ndarray:
    """Values that a dtype holds, as its bits."""
    if dtype == "BF16":
        return (np.ascontiguousarray(value).view(np.uint32) >> np.uint32(16)).astype("<u2")
    return value.astype({"F32": "<f4", "F16": "<f2"}[dtype])
