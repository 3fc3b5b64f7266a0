"""CustomLLM's state dict: tensors under the names of its printed tree, in one file of torch.save or safetensors.

Every expert has tensors of its own there. Here the routed ones are stacked, and the shared ones are one SwiGLU of all
their widths together, which computes the same sum. `--preset` or `--config` says what no shape does: heads, and experts
per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.contents import Contents, by_name
from convert.formats import state_dict
from convert.formats.format import Format
from convert.formats.names import (
    CUSTOM_LLM,
    NUMBERED_EXPERTS,
    NUMBERED_SHARED_EXPERTS,
    inverted,
    translate,
    without_prefixes,
)
from convert.options import ReadOptions
from convert.storage.stacks import gather, joined, stacked
from convert.storage.tensors import Tensor, zeros
from gpt_common.config import ModelConfig
from gpt_common.network.parameters import buffer_shapes

FIRST = "blocks.0.feed_forward"


def recognise(path: Path) -> bool:
    """A file with nothing but tensors, some of them under names that only CustomLLM has."""
    if not state_dict.recognise(path):
        return False
    to_ours = inverted(CUSTOM_LLM)
    names = (without_prefixes(name) for name in state_dict.tensor_names(path))
    return any(name.startswith("decoder_layers.") and translate(name, to_ours) is not None for name in names)


def read(path: Path, options: ReadOptions) -> Contents:
    """Tensors of the file, experts put together while they are read.

    Raises:
        UserError: the file is damaged, an expert is missing or unlike the others, or shapes contradict `--preset` or
            `--config`.
    """
    raw, notes, verify = state_dict.read_raw(path)
    shared, others = gather(path, raw, NUMBERED_SHARED_EXPERTS, None)
    routed, others = gather(path, others, NUMBERED_EXPERTS, None)
    whole = {name: joined(parts, axis=1 if ".down_proj." in name else 0) for name, parts in shared.items()}
    whole |= {name: stacked(parts) for name, parts in routed.items()}
    contents = by_name(path, whole | others, CUSTOM_LLM)
    tensors = contents.tensors
    n_shared = max((len(parts) for parts in shared.values()), default=0)
    config = state_dict.read_config(path, tensors, options, _settled(tensors, n_shared))
    if config is not None and config.model.balancing == "bias":
        buffers = _buffers(config.model, tensors)
        missing = buffers.keys() - tensors.keys()
        tensors |= {name: zeros(shape, "F32") for name, shape in buffers.items() if name in missing}
        if missing:
            notes = (*notes, "the file has no routing biases: they begin at zero")
    return dataclasses.replace(
        contents,
        config=config,
        described_in=state_dict.described_in(options),
        notes=(*notes, *contents.notes),
        verify=verify,
    )


def _settled(tensors: Mapping[str, Tensor], n_shared: int) -> dict[str, Any]:
    """The fields of `ModelConfig` that names and shapes of the first block settle."""
    fields: dict[str, Any] = {"n_shared_expert": n_shared}
    for field, name, axis in (
        ("n_expert", f"{FIRST}.experts.gate_proj.weight", 0),
        ("expert_width", f"{FIRST}.experts.gate_proj.weight", 1),
        ("kv_latent", "blocks.0.attention.kv_down_proj.weight", 0),
        ("q_latent", "blocks.0.attention.q_down_proj.weight", 0),
    ):
        if name in tensors and len(tensors[name].shape) > axis:
            fields[field] = tensors[name].shape[axis]
    return fields


def _buffers(model: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of the routing biases of the blocks that the file has."""
    layers = sum(name.endswith(".router.weight") for name in tensors)
    return buffer_shapes(dataclasses.replace(model, n_layer=min(model.n_layer, layers)))


FORMAT = Format(name="CustomLLM state dict", order=80, family="CustomLLM", recognise=recognise, read=read, bare=True)
