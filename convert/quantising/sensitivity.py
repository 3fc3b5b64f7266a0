"""Bits for each matrix by how much the model suffers from its rounding: many where it counts, few where it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from convert.quantising.calibrating import Arrays, Moments, Twin, rounded
from gpt_common.adapting.quantisation import BITS, Grid, Grids, quantised, stored
from gpt_common.config import ModelConfig
from gpt_common.data.batches import NumpyBatch

ASKED_BITS = 3
"""In which each matrix alone is tried: few enough that the divergence stands out from the noise of a short text."""
HALVINGS = 60
Costs = dict[str, dict[int, float]]
"""Divergence that the rounding of a matrix to so many bits is expected to cost, nats per token, by layer."""


def costs(
    twin: Twin,
    config: ModelConfig,
    teacher: Any,
    tensors: Arrays,
    grids: Grids,
    moments: Moments,
    batches: Iterable[NumpyBatch],
    asked: Callable[[], None],
) -> Costs:
    """What each matrix costs at every number of bits: measured at one, and from there on by how its outputs move.

    Args:
        moments: of the inputs of each layer.
        asked: called after each matrix.
    """
    found: Costs = {}
    batches = list(batches)
    for layer, grid in grids.items():
        alone = {layer: Grid(ASKED_BITS, grid.group_size)}
        student = twin.quantised(config, stored(tensors, rounded(tensors, alone, "float32")), alone)
        divergence = max(twin.compare(teacher, student, batches).divergence, 0.0)
        matrix, own = tensors[f"{layer}.weight"], moments[layer]
        moved = {bits: _moved(matrix, Grid(bits, grid.group_size), own) for bits in BITS}
        scale = divergence / max(moved[ASKED_BITS], 1e-300)
        found[layer] = {bits: scale * moved[bits] for bits in BITS}
        asked()
    return found


def _moved(matrix: npt.NDArray[np.float32], grid: Grid, moments: npt.NDArray[np.float64]) -> float:
    """Sum of the squares by which a matrix's outputs move when it is rounded."""
    error = quantised(matrix, grid).dequantised().astype(np.float64) - matrix
    if not moments.any():
        return float(np.square(error).sum())
    return float(np.einsum("...oi,...ij,...oj->", error, moments, error, optimize=True))


def cheapest(found: Costs, grids: Grids, sizes: Mapping[str, int], allowed: float) -> dict[str, Grid]:
    """The fewest bits in all whose expected costs add up to no more than `allowed`; at worst, the most there are.

    Args:
        sizes: numbers in each matrix.
        allowed: nats per token.
    """

    def choice(price: float) -> dict[str, int]:
        """Each matrix for itself, where a bit costs so much."""
        return {
            layer: min(BITS, key=lambda bits: each[bits] + price * bits * sizes[layer]) for layer, each in found.items()
        }

    low, high = 0.0, max(max(each.values()) for each in found.values()) + 1e-30
    for _ in range(HALVINGS):  # of a price between nothing and everything, on a scale of factors
        price = np.sqrt(max(low, high * 1e-18) * high)
        dear = sum(found[layer][bits] for layer, bits in choice(price).items()) > allowed
        low, high = (low, price) if dear else (price, high)
    return {layer: Grid(bits, grids[layer].group_size) for layer, bits in choice(low).items()}
