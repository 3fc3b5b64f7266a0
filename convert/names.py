"""Key maps: our tensor names and foreign ones, as data. `{i}` stands for the layer; `.weight` or `.bias` follows."""

from __future__ import annotations

import re
from collections.abc import Mapping

GPT2 = {
    "token_embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "blocks.{i}.attention_norm": "transformer.h.{i}.ln_1",
    "blocks.{i}.attention.qkv_proj": "transformer.h.{i}.attn.c_attn",
    "blocks.{i}.attention.out_proj": "transformer.h.{i}.attn.c_proj",
    "blocks.{i}.feed_forward_norm": "transformer.h.{i}.ln_2",
    "blocks.{i}.feed_forward.up_proj": "transformer.h.{i}.mlp.c_fc",
    "blocks.{i}.feed_forward.down_proj": "transformer.h.{i}.mlp.c_proj",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
"""GPT-2's names, which nanoGPT kept."""

CONV1D = ("qkv_proj.weight", "out_proj.weight", "up_proj.weight", "down_proj.weight")
"""Matrices that `transformers` keeps as (in, out) for GPT-2, the transpose of everybody else's (out, in)."""

MASK_BUFFERS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")
"""The causal mask, which older versions saved as if it were a weight."""

PREFIXES = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before every name, in either order."""


def translate(name: str, names: Mapping[str, str]) -> str | None:
    """`name` (with its `.weight` or `.bias`) through a key map; None if the map does not have it."""
    stem, _, kind = name.rpartition(".")
    layer = re.search(r"\.(0|[1-9]\d*)\.", stem)
    if kind not in ("weight", "bias"):
        return None
    if layer is None:
        return None if stem not in names else f"{names[stem]}.{kind}"
    template = stem[: layer.start(1)] + "{i}" + stem[layer.end(1) :]
    return None if template not in names else f"{names[template].format(i=layer[1])}.{kind}"


def inverted(names: Mapping[str, str]) -> dict[str, str]:
    """The map from the foreign names to ours."""
    return {foreign: ours for ours, foreign in names.items()}


def without_prefixes(name: str) -> str:
    """`name` without any of PREFIXES, as often as they are there."""
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name
