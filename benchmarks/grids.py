"""Rows with quantised matrices: which matrices those are, what is trained beside them, and what they weigh."""

from __future__ import annotations

import dataclasses
import math

from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.quantisation import Grid, Grids, quantisable, stored_shapes
from gpt_common.config import RunConfig
from gpt_common.errors import UserError
from gpt_common.network.parameters import parameter_shapes, tensor_shapes

GROUP_SIZE = 64
"""Weights that share a scale and a bias if nothing else is said, as in mlx-lm."""


def beside_grids(config: RunConfig, grid: Grid | None) -> RunConfig:
    """A configuration that trains adapters, the only thing that can be trained beside quantised matrices: its own, or
    LoRA; unchanged without a grid.

    Raises:
        UserError: no matrix has rows of whole groups; a base that is not kept in float32 beside the words.
    """
    if grid is None:
        return config
    if not grids_on(config, grid):
        raise UserError(
            f"--bits {grid.bits}: no matrix of this model has rows of whole groups of {grid.group_size}: take a "
            "smaller --group-size or a wider model"
        )
    if config.adapter.adapter_base_dtype != "float32":
        raise UserError("--adapter-base-dtype is of a base without words: leave it out beside --bits")
    adapter = config.adapter if config.adapter.adapts else AdapterConfig(adapter="lora")
    return dataclasses.replace(config, adapter=adapter)


def grids_on(config: RunConfig, grid: Grid | None) -> Grids:
    """Every matrix of a model that can be on one grid."""
    shapes = parameter_shapes(config.model)
    names = [] if grid is None else quantisable(shapes)
    return {name: grid for name in names if grid is not None and grid.fits(shapes[f"{name}.weight"][-1])}


def expected_weight_bytes(config: RunConfig, grid: Grid | None) -> int:
    """Bytes of all tensors of a model, without adapters, by its shapes: every number, scale and word has four."""
    shapes = stored_shapes(tensor_shapes(config.model), grids_on(config, grid))
    return 4 * sum(map(math.prod, shapes.values()))
