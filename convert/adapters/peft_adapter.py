"""Adapters of peft: adapter_config.json and adapter_model.safetensors.

A (R, I) and B (O, R), as here; for GPT-2 too, whose Conv1D keeps its own matrix as (I, O) (`fan_in_fan_out`). Names are
transformers' behind `base_model.model.`. peft 0.21 (peft/tuners/lora/layer.py, peft/utils/save_and_load.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from convert.adapters.adapter import Adapter, Arrays, layers_of, made, no_such_layer, number, read_tensors
from convert.storage.pickles import shown
from convert.storage.safetensors_file import write_safetensors
from convert.storage.tensors import from_array
from convert.storage.weights import read_json
from gpt_common.adapting.placement import placed, trained_whole
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError
from gpt_common.network.parameters import parameter_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
HEAD, EMBEDDING = "lm_head", "token_embedding.weight"
"""What transformers calls a head, and we the tensor that it is where it is tied."""
PARTS = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b", "lora_magnitude_vector": "magnitude"}
NOT_HELD = {
    "bias": "none", "lora_bias": False, "use_qalora": False, "layer_replication": None, "target_parameters": None,
    "alora_invocation_tokens": None, "trainable_token_indices": None, "megatron_config": None, "use_bdlora": None,
    "arrow_config": None, "ensure_weight_tying": False,
}  # fmt: skip
"""What an adapter here cannot be, at the only value that it can have."""
SAME_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""First values of A and B; others, as PiSSA's, are of another base than the one that is named."""
PLAIN = re.compile(r"\^?([\w.]{1,200})\$?")
"""A pattern that is a name; a regular expression of a stranger is not run."""


def read(folder: Path, model: ModelConfig) -> Adapter:
    """The adapter in a folder, for a base of this shape.

    Raises:
        UserError: it is another kind of adapter, has something that is not held here, or does not go with the base.
    """
    path = folder / CONFIG
    settings = read_json(path)
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {shown(settings.get('peft_type'))}: only LORA is held here")
    for key, value in NOT_HELD.items():
        found = settings.get(key, value)
        if found != value and found not in (None, [], {}):
            raise UserError(f"{path}: {key} is {shown(found)}, which an adapter here cannot be: merge it in peft")
    start = settings.get("init_lora_weights", True)
    if not (start is None or isinstance(start, bool | str)) or start not in SAME_BASE:
        raise UserError(f"{path}: init_lora_weights is {shown(start)}, whose base is another: merge it in peft")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").exists()
        hint = "a pickle is not read: save it as safetensors in peft" if pickled else "copy it here"
        raise UserError(f"{folder} has no {WEIGHTS}: {hint}")
    layers = {theirs: ours for ours, theirs in layers_of(model).items()}
    tensors: dict[str, Any] = {}
    adapted: dict[str, str] = {}
    tied = None
    for key, value in read_tensors(folder / WEIGHTS).items():
        name = key.removeprefix(PREFIX)
        part = next((part for part in PARTS if name.endswith(f".{part}")), None)
        if part is not None:
            layer = name.removesuffix(f".{part}")
            if layer not in layers:
                raise no_such_layer(folder / WEIGHTS, layer, layers)
            adapted.setdefault(layer, layers[layer])
            tensors[f"{layers[layer]}.{PARTS[part]}"] = value
        else:
            stem, _, kind = name.replace(".modules_to_save.default", "").rpartition(".")
            if model.tied_head and (stem, kind) == (HEAD, "weight"):
                tied = value
                continue
            if stem not in layers or kind not in ("weight", "bias"):
                raise no_such_layer(folder / WEIGHTS, name, layers)
            tensors[f"{layers[stem]}.{kind}"] = value
    if model.tied_head:
        _check_tied(folder / WEIGHTS, tied, tensors.get(EMBEDDING))
    rank, alpha = number(path, settings, "r", 8, whole=True), number(path, settings, "lora_alpha", 8)
    ranks, alphas = (_pattern(path, settings, key) for key in ("rank_pattern", "alpha_pattern"))
    for layer, ours in adapted.items():
        a, said = tensors.get(f"{ours}.lora_a"), _of(layer, ranks, rank)
        if a is not None and (a.ndim != 2 or a.shape[0] != said):
            raise UserError(f"{folder / WEIGHTS}: {layer}.lora_A has shape {list(a.shape)}, and its rank is {said:g}")
    _check_targets(path, settings, adapted)
    kind_: Literal["lora", "dora"] = "dora" if settings.get("use_dora") is True else "lora"
    of_layers = {ours: _of(layer, alphas, alpha) for layer, ours in adapted.items()}
    dropout = number(path, settings, "lora_dropout", 0.0)
    return made(folder, model, kind_, tensors, of_layers, rslora=settings.get("use_rslora") is True, dropout=dropout)


def _check_tied(path: Path, head: Any, embedding: Any) -> None:
    """Raise a UserError where head and embedding are one tensor in the base, and two in the adapter: peft leaves the
    one that is not saved as the base has it."""
    if head is None and embedding is None:
        return
    if head is None or embedding is None or not np.array_equal(head, embedding):
        raise UserError(
            f"{path}: head and embedding are one in the base, and the adapter has trained them apart: merge it in peft"
        )


def _check_targets(path: Path, settings: Mapping[str, Any], adapted: Iterable[str]) -> None:
    """Raise a UserError where the configuration names other layers than those that have tensors: peft would pass over
    these. What is no list is a regular expression, or peft's own choice."""
    named = settings.get("target_modules")
    if named is None or isinstance(named, str):
        return
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise UserError(f"{path}: target_modules is {shown(named)}, and not a list of names")
    ends = tuple(f".{name}" for name in named)
    for layer in adapted:
        if not f".{layer}".endswith(ends):
            raise UserError(
                f"{path}: target_modules does not name {layer}, of which {WEIGHTS} has an adapter: copy both"
            )


def _pattern(path: Path, settings: Mapping[str, Any], key: str) -> dict[str, float]:
    entries = settings.get(key) or {}
    if not isinstance(entries, dict):
        raise UserError(f"{path}: {key} is {shown(entries)}, and not an object")
    found = {}
    for name in entries:
        if not (match := PLAIN.fullmatch(name)):
            raise UserError(f"{path}: {key} has {name!r:.80}, and only names are read, no regular expressions")
        found[match[1]] = number(path, entries, name, 0, whole=key == "rank_pattern")
    return found


def _of(layer: str, pattern: Mapping[str, float], otherwise: float) -> float:
    """The first entry that means a layer, as in peft."""
    return next((value for name, value in pattern.items() if f".{layer}".endswith(f".{name}")), otherwise)


def write(adapter: Adapter, folder: Path, base: str) -> tuple[str, ...]:
    """A folder that `PeftModel.from_pretrained` loads beside the exported base.

    Raises:
        UserError: peft cannot hold the adapter.
    """
    model, config = adapter.model, adapter.config
    names, shapes = layers_of(model), parameter_shapes(model)
    found = placed(shapes, config)
    tensors: dict[str, Any] = {}
    for one in found:
        if one.name not in names or len(one.shape) == 3:
            raise UserError(f"the adapter stands beside {one.name}, where peft has none: merge it (convert fuse)")
        for part, ours in PARTS.items():
            if f"{one.name}.{ours}" in adapter.tensors:
                tensors[f"{PREFIX}{names[one.name]}.{part}"] = adapter.tensors[f"{one.name}.{ours}"]
    whole = trained_whole(shapes, config)
    for name in whole:
        stem, _, kind = name.rpartition(".")
        tensors[f"{PREFIX}{names[stem]}.{kind}"] = adapter.tensors[name]
    saved = {names[name.rpartition(".")[0]].rpartition(".")[2] for name in whole}
    if model.tied_head and EMBEDDING in whole:  # peft would go on with the base's embedding as head
        tensors[f"{PREFIX}{HEAD}.weight"] = adapter.tensors[EMBEDDING]
        saved.add(HEAD)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.adapter_rank,
        "lora_alpha": _plain(config.adapter_alpha),
        "use_rslora": config.adapter_rslora,
        "use_dora": config.adapter == "dora",
        "lora_dropout": config.adapter_dropout,
        "bias": "none",
        "fan_in_fan_out": model.attention == "multi_head",
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": [names[one.name] for one in found],
        "modules_to_save": sorted(saved) or None,
        "rank_pattern": {names[one.name]: one.rank for one in found if one.rank != config.adapter_rank},
        "alpha_pattern": {names[one.name]: _plain(one.alpha) for one in found if one.alpha != config.adapter_alpha},
    }
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
    return ()


def _plain(value: float) -> float | int:
    """A whole number as peft writes it."""
    return int(value) if value == int(value) else value


def write_tensors(tensors: Arrays, path: Path, metadata: Mapping[str, str]) -> None:
    """A safetensors file of float32."""
    found = {name: from_array(np.ascontiguousarray(value, np.float32), "F32") for name, value in tensors.items()}
    write_safetensors(path, found, metadata, lambda _: None)
