"""How folders of mlx-lm say which matrices are quantised: tensors beside the words, and `quantization` in config.json.

    "quantization": {"group_size": 64, "bits": 4, "mode": "affine", "model.layers.0.mlp.down_proj": {... "bits": 8}}

What has scales beside it is quantised, and as the settings say under its own name, or else as they say for all.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.contents import Contents
from convert.formats.names import translated
from convert.storage.grids import taken_apart
from convert.storage.pickles import shown
from convert.storage.tensors import COPY_AGAIN
from gpt_common.adapting.quantisation import Grid, Grids
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError
from gpt_common.network.parameters import tensor_shapes

KEYS = ("quantization", "quantization_config")
"""Where config.json says it: mlx-lm reads the first, and writes the second for others."""


def with_words(contents: Contents, settings: Mapping[str, Any], path: Path) -> Contents:
    """Contents whose quantised matrices are words, now also as what these stand for.

    Args:
        contents: of a folder, its configuration known.
        settings: of config.json.
        path: the folder.

    Raises:
        UserError: words on no grid, or on another than config.json says.
    """
    said = settings.get(KEYS[0]) or settings.get(KEYS[1])
    if said is None:
        return contents
    check_mode(path, said)
    try:
        floats, words, grids = taken_apart(contents.tensors, _shapes(contents.model, len(contents.tensors)))
    except ValueError as error:
        raise UserError(f"{path}: {error}: {COPY_AGAIN}") from None
    if not grids:
        raise UserError(f"{path}: config.json says that it is quantised, and no tensor is: {COPY_AGAIN}")
    for layer, grid in grids.items():
        name = contents.own_name(f"{layer}.weight").removesuffix(".weight")
        if (asked := _asked(path, said, name)) != grid:
            raise UserError(f"{path}: {name} is on {grid} and config.json says {asked}: {COPY_AGAIN}")
    return dataclasses.replace(contents, tensors=floats, words=words, grids=grids)


def check_mode(path: Path, said: object, key: str = KEYS[0]) -> None:
    """Refuse another kind of quantisation than MLX's affine one.

    Args:
        said: what config.json says under `key`.

    Raises:
        UserError: it is another.
    """
    known = isinstance(said, dict) and {"bits", "group_size"} <= said.keys() and "quant_method" not in said
    mode = said.get("mode", "affine") if isinstance(said, dict) else said
    if known and mode == "affine":
        return
    method = said.get("quant_method", mode if known else None) if isinstance(said, dict) else said
    how = "" if method is None else f" by {shown(method)}"
    raise UserError(
        f"{path}: {key} says that the weights are quantised{how}, and only MLX's affine mode is read: choose or save "
        "the model in bfloat16"
    )


def settings_of(grids: Grids, names: Mapping[str, str]) -> dict[str, Any]:
    """What config.json says of quantised matrices.

    Args:
        names: what the folder calls our layers, a key map.
    """
    if not grids:
        return {}
    (common, _), *_ = Counter(grids.values()).most_common(1)
    said: dict[str, Any] = {**_entry(common)}
    for layer, grid in grids.items():
        if grid != common:
            said[translated(f"{layer}.weight", names).removesuffix(".weight")] = _entry(grid)
    return dict.fromkeys(KEYS, said)


def _entry(grid: Grid) -> dict[str, Any]:
    return {"group_size": grid.group_size, "bits": grid.bits, "mode": "affine"}


def _asked(path: Path, said: Mapping[str, Any], layer: str) -> Grid:
    own = said.get(layer)
    if isinstance(own, dict):
        check_mode(path, own)
    chosen = own if isinstance(own, dict) else said
    return Grid(chosen["bits"], chosen["group_size"])


def _shapes(model: ModelConfig, tensors: int) -> Mapping[str, tuple[int, ...]]:
    """Of a model with no more layers than a file has tensors: no names are made for more."""
    return tensor_shapes(model) if model.n_layer <= tensors else {}
