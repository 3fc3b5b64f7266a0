"""Adapters of mlx-lm: adapter_config.json and adapters.safetensors.

Both matrices of a layer are transposed: lora_a (I, R), lora_b (R, O); not those of experts. One scale serves all
layers, which sit in the last `num_layers` blocks. mlx-lm 0.32 (mlx_lm/tuner/lora.py, dora.py, utils.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from convert.adapters.adapter import Adapter, layers_of, made, no_such_layer, number, read_tensors
from convert.adapters.peft_adapter import CONFIG, write_tensors
from convert.storage.pickles import shown
from convert.storage.weights import read_json
from gpt_common.adapting.placement import placed, trained_whole
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError
from gpt_common.network.parameters import parameter_shapes

WEIGHTS = "adapters.safetensors"
SCALE = 20.0
"""mlx-lm's own, where none is given."""
PARTS = {"lora_a": "lora_a", "lora_b": "lora_b", "m": "magnitude"}


def names_of(model: ModelConfig) -> dict[str, str]:
    """What mlx-lm calls each layer of ours; those of experts are stacked in `switch_mlp`."""
    found = {}
    for ours, theirs in layers_of(model).items():
        if model.attention == "multi_head":
            theirs = f"model.{theirs.removeprefix('transformer.')}"
        found[ours] = theirs.replace(".mlp.experts.*.", ".mlp.switch_mlp.")
    return found


def read(folder: Path, model: ModelConfig) -> Adapter:
    """The adapter in a folder, for a base of this shape.

    Raises:
        UserError: it is no adapter but whole weights, or does not go with the base.
    """
    path = folder / CONFIG
    settings = read_json(path)
    kind = settings.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        hint = ": its file holds plain weights, which mlx_lm.fuse merges" if kind == "full" else ""
        raise UserError(f"{path}: fine_tune_type is {shown(kind)}, and only lora and dora are held here{hint}")
    parameters = settings.get("lora_parameters") or {}
    if not isinstance(parameters, dict):
        raise UserError(f"{path}: lora_parameters is {shown(parameters)}, and not an object")
    scale = number(path, parameters, "scale", SCALE)
    if not (folder / WEIGHTS).is_file():
        hint = (
            "an archive of numpy is not read: save it by mlx-lm of today"
            if list(folder.glob("*.npz"))
            else "copy it here"
        )
        raise UserError(f"{folder} has no {WEIGHTS}: {hint}")
    layers = {theirs: ours for ours, theirs in names_of(model).items()}
    tensors: dict[str, Any] = {}
    alphas: dict[str, float] = {}
    for key, value in read_tensors(folder / WEIGHTS).items():
        layer, _, part = key.rpartition(".")
        if layer not in layers or part not in (*PARTS, "weight", "bias"):
            raise no_such_layer(folder / WEIGHTS, layer, layers)
        ours = layers[layer]
        if part in ("weight", "bias"):
            tensors[f"{ours}.{part}"] = value
            continue
        stacked = value.ndim == 3
        tensors[f"{ours}.{PARTS[part]}"] = value if stacked or part == "m" else value.T.copy()
        if part == "lora_a":
            alphas[ours] = alpha_of(scale, value.shape[-2] if stacked else value.shape[-1])
    dropout = number(path, parameters, "dropout", 0.0)
    return made(folder, model, kind, tensors, alphas, rslora=False, dropout=dropout)


def alpha_of(scale: float, rank: int) -> float:
    """The alpha that gives a scale to the bit, where there is one."""
    near = scale * rank
    return next((alpha for alpha in (near, round(near, 9)) if alpha / max(rank, 1) == scale), near)


def write(adapter: Adapter, folder: Path, base: str) -> tuple[str, ...]:
    """A folder that `mlx_lm.load(adapter_path=...)` loads beside the exported base.

    Returns:
        What a person should know of it.

    Raises:
        UserError: mlx-lm cannot hold the adapter.
    """
    model, config = adapter.model, adapter.config
    names, shapes = names_of(model), parameter_shapes(model)
    found = placed(shapes, config)
    if whole := trained_whole(shapes, config):
        raise UserError(f"{whole[0]} was trained whole, and mlx-lm has no such adapter: merge it (convert fuse)")
    scale, rank = found[0].scale, max(one.rank for one in found)
    tensors: dict[str, Any] = {}
    keys: list[str] = []
    for one in found:
        block = one.name.startswith("blocks.")
        if not block or one.name not in names or one.name.endswith((".router", ".kv_up_proj")):
            raise UserError(f"the adapter stands beside {one.name}, where mlx-lm has none: merge it (convert fuse)")
        name = names[one.name]
        keys.append(name.split(".", 3)[3])
        for part, ours in PARTS.items():
            if f"{one.name}.{ours}" not in adapter.tensors:
                continue
            value = adapter.tensors[f"{one.name}.{ours}"]
            if part == "lora_b" and one.scale != scale:
                value = (value.astype("f8") * (one.scale / scale)).astype("f4")
            if part != "m" and one.rank != rank:  # zeros add nothing
                room = [(0, 0)] * value.ndim
                room[-2 if part == "lora_a" else -1] = (0, rank - one.rank)
                value = np.pad(value, room)
            tensors[f"{name}.{part}"] = value if len(one.shape) == 3 or part == "m" else value.T
    notes: tuple[str, ...] = ()
    if any(one.scale != scale for one in found):
        notes += ("mlx-lm has one scale for all layers: those with another have it in lora_b",)
    if any(one.rank != rank for one in found):
        notes += (f"mlx-lm has one rank for all layers: those with less than {rank} were filled up with zeros",)
    first = min(int(one.name.split(".")[1]) for one in found)
    settings = {
        "model": base,
        "fine_tune_type": config.adapter,
        "num_layers": model.n_layer - first,
        "lora_parameters": {
            "rank": rank,
            "scale": scale,
            "dropout": config.adapter_dropout,
            "keys": sorted(set(keys)),
        },
    }
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(settings, indent=4) + "\n", encoding="utf-8")
    write_tensors(tensors, folder / WEIGHTS, {})
    return notes
