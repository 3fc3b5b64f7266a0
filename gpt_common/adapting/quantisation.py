"""Matrices in a few bits: MLX's affine layout in numpy, which both twins compute with and are compared with.

A matrix is cut along its rows into groups of 32, 64 or 128 consecutive inputs. A group's weights are `code * scale +
bias`, with one scale and one bias for the group and for each weight a code of 2 to 8 bits. In a model file:

| tensor      | shape, of a matrix (..., I) | what                                                               |
|-------------|-----------------------------|--------------------------------------------------------------------|
| NAME.weight | (..., I bits / 32), U32     | a row's codes one after the other, from the lowest bit of a word on |
| NAME.scales | (..., I / group)            | scale of each group                                                |
| NAME.biases | (..., I / group)            | its bias; NAME.bias is the layer's own, and something else         |

The shapes say how many bits and how large a group: nothing else has to be kept. Which arithmetic makes a code is read
from MLX 0.32.4, `backend/cpu/quantized.cpp`, and compared with `mx.quantize` bit for bit in the tests.

Shape suffixes: X any leading dimensions, I inputs, G groups of a row, K inputs of a group, W words of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

Shapes = Mapping[str, tuple[int, ...]]
F32 = npt.NDArray[np.float32]
U32 = npt.NDArray[np.uint32]

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
LEAST_SCALE = np.float32(1e-7)
PARTS = ("weight", "scales", "biases")
"""What the tensors of a quantised matrix are called, behind the name of its layer."""
ROWS_AT_ONCE = 1 << 22
"""Weights that are taken apart together: some bytes each for every bit."""


@dataclass(frozen=True, order=True)
class Grid:
    """How a matrix is quantised."""

    bits: int
    """Of a code."""
    group_size: int
    """Inputs that share a scale and a bias."""

    @property
    def largest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def fits(self, inputs: int) -> bool:
        """Whether rows of so many inputs are whole groups."""
        return inputs % self.group_size == 0

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Shapes of the three tensors of a matrix (..., I), by the end of their name."""
        *rows, inputs = shape
        groups = (*rows, inputs // self.group_size)
        return {"weight": (*rows, inputs * self.bits // 32), "scales": groups, "biases": groups}


Grids = Mapping[str, Grid]
"""The layers of a model that are quantised, by name."""
NOT_QUANTISED: Grids = MappingProxyType({})


@dataclass(frozen=True)
class Quantised:
    """A matrix on its grid."""

    grid: Grid
    words_XW: U32
    scales_XG: F32
    biases_XG: F32

    def dequantised(self) -> F32:
        """The matrix (X, I) that it stands for: a product and a sum, each rounded to float32."""
        codes_XI = unpacked(self.words_XW, self.grid.bits)
        codes_XGK = codes_XI.reshape(*self.scales_XG.shape, self.grid.group_size).astype(np.float32)
        matrix: F32 = (codes_XGK * self.scales_XG[..., None] + self.biases_XG[..., None]).reshape(codes_XI.shape)
        return matrix

    def tensors(self, layer: str) -> dict[str, npt.NDArray[Any]]:
        """The three tensors of a layer with this matrix, by name."""
        parts = (self.words_XW, self.scales_XG, self.biases_XG)
        return {f"{layer}.{part}": value for part, value in zip(PARTS, parts, strict=True)}


def quantised(matrix_XI: F32, grid: Grid, dtype: str = "float32") -> Quantised:
    """A matrix rounded to a grid, as `mx.quantize` does it.

    Args:
        matrix_XI: whole groups to a row; finite.
        grid: which.
        dtype: in which scales and biases will be kept: the codes are found first, with those in float32.
    """
    groups_XGK = matrix_XI.reshape(*matrix_XI.shape[:-1], -1, grid.group_size)
    scales_XG, biases_XG = scales_and_biases(groups_XGK, grid)
    codes_XGK = codes_of(groups_XGK, scales_XG[..., None], biases_XG[..., None], grid)
    words_XW = packed(codes_XGK.reshape(matrix_XI.shape), grid.bits)
    return Quantised(grid, words_XW, rounded_to(dtype, scales_XG), rounded_to(dtype, biases_XG))


def scales_and_biases(groups_XGK: F32, grid: Grid) -> tuple[F32, F32]:
    """Scale and bias (X, G) of each group: evenly from its smallest weight to its largest, and the one of both that is
    farther from zero exactly on a code."""
    highest, lowest = groups_XGK.max(axis=-1), groups_XGK.min(axis=-1)
    down = np.abs(lowest) > np.abs(highest)
    with np.errstate(under="ignore", over="ignore", invalid="ignore"):
        scale = np.maximum((highest - lowest) / np.float32(grid.largest), LEAST_SCALE)
        scale, edge = np.where(down, scale, -scale), np.where(down, lowest, highest)
        steps = np.rint(edge / scale)
        zero = steps == 0
        scale = np.where(zero, scale, edge / np.where(zero, np.float32(1), steps))
    return scale.astype(np.float32), np.where(zero, np.float32(0), edge).astype(np.float32)


def codes_of(values: F32, scales: F32, biases: F32, grid: Grid) -> npt.NDArray[np.uint8]:
    """The nearest code of each value, half to even; arguments broadcast."""
    with np.errstate(under="ignore", over="ignore", divide="ignore", invalid="ignore"):
        codes = np.clip(np.rint((values - biases) / scales), 0, grid.largest)
    found: npt.NDArray[np.uint8] = codes.astype(np.uint8)
    return found


def packed(codes_XI: npt.NDArray[np.uint8], bits: int) -> U32:
    """Codes as words (X, W): one stream of bits to a row, lowest first, little-endian."""
    *rows, inputs = codes_XI.shape
    flat_NI = codes_XI.reshape(-1, inputs)
    words_NW = np.empty((len(flat_NI), inputs * bits // 32), np.uint32)
    for part in _parts(len(flat_NI), inputs):
        stream = np.unpackbits(flat_NI[part][..., None], axis=-1, count=bits, bitorder="little")
        stream = np.packbits(stream.reshape(len(stream), -1), axis=-1, bitorder="little")
        words_NW[part] = stream.view("<u4")
    return words_NW.reshape(*rows, -1)


def unpacked(words_XW: U32, bits: int) -> npt.NDArray[np.uint8]:
    """Words as codes (X, I)."""
    *rows, words = words_XW.shape
    inputs = words * 32 // bits
    flat_NW = np.ascontiguousarray(words_XW.reshape(-1, words), "<u4")
    codes_NI = np.empty((len(flat_NW), inputs), np.uint8)
    for part in _parts(len(flat_NW), inputs):
        stream = np.unpackbits(flat_NW[part].view(np.uint8), axis=-1, bitorder="little")
        codes_NI[part] = np.packbits(stream.reshape(-1, inputs, bits), axis=-1, bitorder="little")[..., 0]
    return codes_NI.reshape(*rows, inputs)


def rounded_to(dtype: str, values: F32) -> F32:
    """Values as `dtype` has them (float32, float16 or bfloat16, to nearest even), still float32."""
    if dtype == "float16":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        bits = np.asarray(values, order="C").view(np.uint32)
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        # A single number stays one of no dimensions.
        return np.asarray(((bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)).view(np.float32))
    return values


def grids_of(found: Shapes, shapes: Shapes) -> dict[str, Grid]:
    """Which matrices of a file are quantised, and how, by the shapes in it.

    Args:
        found: of everything in the file.
        shapes: of the matrices as they would be in float.

    Raises:
        ValueError: three tensors that belong to no grid; says which.
    """
    grids = {}
    for scales in found:
        layer, _, part = scales.rpartition(".")
        whole = shapes.get(f"{layer}.weight")
        if part != "scales" or whole is None:
            continue
        grid = _grid(whole[-1], found.get(f"{layer}.weight", ()), found[scales])
        if grid is None or any(found.get(f"{layer}.{part}") != shape for part, shape in grid.shapes(whole).items()):
            words, groups = (list(found.get(name, ())) for name in (f"{layer}.weight", scales))
            raise ValueError(f"{layer} has words {words} and scales {groups}, which is no grid for {list(whole)}")
        grids[layer] = grid
    return grids


def stored_shapes(shapes: Shapes, grids: Grids) -> dict[str, tuple[int, ...]]:
    """Shape of everything in the file of a model some of whose matrices are quantised."""
    stored: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        layer, _, part = name.rpartition(".")
        if part == "weight" and layer in grids:
            stored |= {f"{layer}.{part}": held for part, held in grids[layer].shapes(shape).items()}
        else:
            stored[name] = shape
    return stored


def on_grids(weights: Iterable[tuple[str, F32]], grids: Grids) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Name and value of every tensor of a model whose weights are these, rounded where they are quantised."""
    for name, value in weights:
        layer = name.removesuffix(".weight")
        yield from quantised(value, grids[layer]).tensors(layer).items() if layer in grids else [(name, value)]


def stored(weights: Mapping[str, F32], matrices: Mapping[str, Quantised]) -> dict[str, npt.NDArray[Any]]:
    """Every tensor of a model whose weights are these, but for these matrices."""
    held = {name: value for name, value in weights.items() if name.removesuffix(".weight") not in matrices}
    for layer, matrix in matrices.items():
        held |= matrix.tensors(layer)
    return held


def quantisable(shapes: Shapes) -> list[str]:
    """Layers whose matrices are quantised if nothing else is said, by name: all but learned positions and routers.

    A router's rounding would send tokens to other experts; both are small.
    """
    names = [
        name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) > 1
    ]
    return [name for name in names if name != "position_embedding" and not name.endswith(".router")]


def bits_per_weight(shapes: Shapes, grids: Grids, dtype_bits: Mapping[str, int] | int = 32) -> float:
    """Bits of a model file for each of the numbers that it stands for.

    Args:
        dtype_bits: of what is not a word, by tensor, or of all of it.
    """
    total = 0
    for name, shape in stored_shapes(shapes, grids).items():
        layer, _, part = name.rpartition(".")
        wide = dtype_bits if isinstance(dtype_bits, int) else dtype_bits.get(name, 32)
        total += (32 if part == "weight" and layer in grids else wide) * math.prod(shape)
    return total / sum(map(math.prod, shapes.values()))


def _grid(inputs: int, words: tuple[int, ...], groups: tuple[int, ...]) -> Grid | None:
    """The grid by which rows of so many inputs have so many words and scales."""
    if not words or not groups or not inputs or inputs % max(groups[-1], 1) or words[-1] * 32 % inputs:
        return None
    grid = Grid(words[-1] * 32 // inputs, inputs // max(groups[-1], 1))
    return grid if grid.bits in BITS and grid.group_size in GROUP_SIZES else None


def _parts(rows: int, inputs: int) -> Iterable[Any]:
    step = max(1, ROWS_AT_ONCE // max(inputs, 1))
    return [slice(start, start + step) for start in range(0, rows, step)]
