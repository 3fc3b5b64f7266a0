"""An adapter as it goes from one library to another: our names, float32, and what it is for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from convert.formats.names import DEEPSEEK_V3, GPT2, LLAMA, translated
from convert.storage.pickles import shown
from convert.storage.safetensors_file import read_safetensors
from convert.storage.tensors import WEIGHT_DTYPES, load, values
from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.adapting.placement import adapter_shapes
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError, nearest
from gpt_common.network.parameters import parameter_shapes

Arrays = Mapping[str, npt.NDArray[np.float32]]
FAMILIES = {"multi_head": GPT2, "grouped_query": LLAMA, "latent": DEEPSEEK_V3}
"""Names of other libraries by kind of attention."""
LARGEST_RANK = 1 << 14


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What is trained beside a model."""

    model: ModelConfig
    config: AdapterConfig
    tensors: Arrays
    """By canonical name."""


def layers_of(model: ModelConfig) -> dict[str, str]:
    """What other libraries, as transformers does, call each layer of ours that has a matrix.

    Raises:
        UserError: no other library has this model.
    """
    if model.attention not in FAMILIES:
        raise UserError(f"no other library has a model with attention {model.attention}: keep the adapter as it is")
    names = FAMILIES[model.attention]
    found = {}
    for name in parameter_shapes(model):
        stem, _, kind = name.rpartition(".")
        # A layer that this family does not have is left out: whoever needs it says so.
        if kind == "weight" and (stem in names or template(stem) in names):
            found[stem] = translated(name, names).removesuffix(".weight")
    return found


def template(name: str) -> str:
    """`blocks.3.attention` as `blocks.{i}.attention`."""
    block, _, rest = name.partition(".")
    return f"{block}.{{i}}.{rest.partition('.')[2]}" if block == "blocks" else name


def read_tensors(path: Path) -> Arrays:
    """All tensors of an adapter's file, in float32.

    Raises:
        UserError: the file is missing or damaged, or a tensor is no weight, or not finite.
    """
    found = {}
    for name, tensor in read_safetensors(path).items():
        if tensor.dtype not in WEIGHT_DTYPES:
            raise UserError(f"{path}: tensor {name:.80} is {tensor.dtype}: an adapter is float32, bfloat16 or float16")
        bits = load(tensor)
        found[name] = values(bits.tobytes(), tensor.dtype).astype(np.float32).reshape(tensor.shape)
        if not np.isfinite(found[name]).all():
            raise UserError(f"{path}: tensor {name:.80} holds NaN or infinity: the training had diverged")
    return found


def number(path: Path, settings: Mapping[str, Any], key: str, default: float, *, whole: bool = False) -> float:
    """A number of a configuration; raises UserError for anything else, or for one that no adapter has."""
    value = settings.get(key, default)
    value = default if value is None else value
    kinds: tuple[type, ...] = (int,) if whole else (int, float)
    if type(value) not in kinds or not 0 <= value < (LARGEST_RANK if whole else math.inf):
        raise UserError(f"{path}: {key} is {shown(value)}, and not a {'whole ' if whole else ''}number from 0")
    return float(value)


def targets(names: Iterable[str], model: ModelConfig) -> tuple[str, ...]:
    """The shortest `adapter_targets` that mean these layers and no others."""
    chosen, everywhere = set(names), [f"blocks.{i}." for i in range(model.n_layer)]
    there = {name.removesuffix(".weight") for name in parameter_shapes(model)}
    ends = {name.split(".", 2)[2] if name.startswith("blocks.") else name for name in chosen}
    found: list[str] = []
    for end in sorted(ends):
        meant = {name for name in there if name in {end, *(f"{block}{end}" for block in everywhere)}}
        found += [end] if meant <= chosen else sorted(name for name in chosen if name in meant)
    return tuple(found)


def made(
    path: Path,
    model: ModelConfig,
    kind: Literal["lora", "dora"],
    tensors: Arrays,
    alphas: Mapping[str, float],
    *,
    rslora: bool,
    dropout: float,
) -> Adapter:
    """An adapter with the configuration that its tensors ask for.

    Args:
        tensors: by our names, A and B in our layout.
        alphas: of each adapted layer.

    Raises:
        UserError: a tensor is missing or has a shape that does not go with the model's.
    """
    layers = list(alphas)
    for name in layers:
        for part in ("lora_a", "lora_b", *(("magnitude",) if kind == "dora" else ())):
            if f"{name}.{part}" not in tensors:
                raise UserError(f"{path}: the adapter of {name} has no {part}: copy it again")
        if (a := tensors[f"{name}.lora_a"]).ndim < 2:
            raise UserError(f"{path}: {name}.lora_a has shape {list(a.shape)}, and is no matrix: copy it again")
    if not layers:
        raise UserError(f"{path} holds no adapter of any matrix: nothing to bring in")
    ranks = {name: tensors[f"{name}.lora_a"].shape[-2] for name in layers}
    rank = max(sorted(set(ranks.values())), key=list(ranks.values()).count)
    alpha = max(sorted(set(alphas.values())), key=list(alphas.values()).count)
    try:
        config = AdapterConfig(
            adapter=kind,
            adapter_rank=rank,
            adapter_alpha=alpha,
            adapter_rslora=rslora,
            adapter_dropout=dropout,
            adapter_targets=targets(layers, model),
            adapter_ranks=tuple(f"{name}={ranks[name]}" for name in layers if ranks[name] != rank),
            adapter_alphas=tuple(f"{name}={alphas[name]!r}" for name in layers if alphas[name] != alpha),
            adapter_whole=tuple(dict.fromkeys(name.partition(".")[0] for name in tensors if _is_whole(name))),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    wanted = adapter_shapes(parameter_shapes(model), config)
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in tensors or name not in wanted:
            what = "is missing" if name in wanted else "belongs to no adapter of it"
            raise UserError(f"{path}: tensor {name} {what}: copy it again")
        if tensors[name].shape != wanted[name]:
            has, needs = list(tensors[name].shape), list(wanted[name])
            raise UserError(f"{path}: {name} has shape {has}, and the base asks for {needs}: is this its base?")
    return Adapter(model=model, config=config, tensors=tensors)


def _is_whole(name: str) -> bool:
    return name.endswith((".weight", ".bias"))


def no_such_layer(path: Path, name: str, known: Iterable[str]) -> UserError:
    """For a tensor of no layer that the base has."""
    leaves = {one.rpartition(".")[2] for one in known}
    hint = nearest(name.rpartition(".")[2][:80], leaves)
    return UserError(f"{path}: the base has no matrix {name:.100}: {hint}")
