"""DeepSeek-V3 folders of mlx-lm: the settings of `transformers`, and weights whose header says `mlx`.

It reads the names of `transformers`; what it saves itself has all experts of a layer in one tensor, and the projection
from the latent to keys and values in two, by head: keys transposed, for attention in the latent space.

mlx-lm 0.32 (mlx_lm/models/deepseek_v3.py) differs from DeepSeek's own code in three places: it always rotates
neighbours, it does not normalise the gate of a single expert, and it gives experts of other groups the score 0 and not
minus infinity.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from convert.contents import OTHER_TARGET, Contents, refuse_fields
from convert.formats import transformers_deepseek_v3
from convert.formats.model_folder import FILES, is_mlx
from convert.options import ReadOptions, WriteOptions
from convert.storage.tensors import COPY_AGAIN, Tensor, from_array, load, values
from convert.storage.weights import read_weights
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError

OWN_NAMES = re.compile(
    r"(model\.layers\.\d+)\.(?:mlp\.switch_mlp|self_attn)\.(gate_proj|up_proj|down_proj|embed_q|unembed_out)\.weight"
)
"""Tensors that mlx-lm alone has: the layer, and which of them."""
EXTRA_LAYER = 61
"""Layer that mlx-lm leaves out of every model, because the published one's predicts a second token."""


def read(path: Path, _: ReadOptions) -> Contents:
    """Weights, configuration and tokenizer, whichever of its two layouts they have.

    Raises:
        UserError: a setting that our model does not have, an expert that is missing or unlike the others, a missing or
            damaged file.
    """
    raw, _metadata, verify = read_weights(path)
    renamed: dict[str, Tensor] = {}
    for name, tensor in raw.items():
        if match := OWN_NAMES.fullmatch(name):
            layer, part = match[1], match[2]
            if part == "unembed_out":
                continue
            if part == "embed_q":
                new = f"{layer}.self_attn.kv_b_proj.weight"
                tensor = _keys_and_values(path, name, tensor, raw.get(f"{layer}.self_attn.unembed_out.weight"))
            else:
                new = f"{layer}.mlp.experts.*.{part}.weight"
            if new in raw or new.replace("*", "0") in raw:
                raise UserError(f"{path}: {name} and {new} are the same weights: remove one of the two")
            renamed[new] = tensor
        else:
            renamed[name] = tensor
    return transformers_deepseek_v3.read_tensors(path, renamed, verify)


def _keys_and_values(path: Path, name: str, keys_HLN: Tensor, values_HVL: Tensor | None) -> Tensor:
    """Keys (H, L, N) and values (H, V, L), by head from a latent of L numbers -> one projection (H (N + V), L)."""
    if values_HVL is None:
        raise UserError(f"{path}: {name} is there without unembed_out.weight: {COPY_AGAIN}")
    shapes = keys_HLN.shape, values_HVL.shape
    alike = (keys_HLN.dtype, *shapes[0][:2]) == (values_HVL.dtype, *shapes[1][::2])
    if not alike or [len(shape) for shape in shapes] != [3, 3]:
        found = f"{name} has shape {list(shapes[0])} and unembed_out.weight {list(shapes[1])}"
        raise UserError(f"{path}: {found}, which do not go together: {COPY_AGAIN}")
    H, L, N = shapes[0]
    rows = H * (N + shapes[1][1])

    def blocks() -> Iterator[bytes]:
        by_head_HXL = np.concatenate([load(keys_HLN).swapaxes(1, 2), load(values_HVL)], axis=1)
        return from_array(by_head_HXL.reshape(rows, L), keys_HLN.dtype).blocks()

    return Tensor(dtype=keys_HLN.dtype, shape=(rows, L), blocks=blocks)


def write(contents: Contents, path: Path, options: WriteOptions) -> tuple[str, ...]:
    """A folder that `mlx_lm.load` accepts.

    Raises:
        UserError: mlx-lm's DeepSeek-V3 cannot be this model, or would compute something else.
    """
    model = contents.model
    refuse_fields(model, "DeepSeek-V3", transformers_deepseek_v3.COMPUTED)
    refuse_fields(model, "mlx-lm's DeepSeek-V3", {"rope_layout": "interleaved"})
    routed = [layer for layer in range(model.n_layer) if model.has_experts(layer)]
    if routed and model.experts_per_token == 1 and model.router_normalise:
        raise UserError(
            "the model has experts_per_token 1 with router_normalise, and mlx-lm does not normalise the gate of a "
            f"single expert, so it would compute something else: {OTHER_TARGET}"
        )
    if model.n_layer > EXTRA_LAYER:
        raise UserError(
            f"the model's n_layer is {model.n_layer}, and mlx-lm leaves out layer {EXTRA_LAYER}: {OTHER_TARGET}"
        )
    notes = transformers_deepseek_v3.write_deepseek(contents, path, options, "mlx")
    name = "blocks.{}.feed_forward.routing_bias"
    if model.balancing == "bias" and not all(_same_choice(contents.tensors[name.format(i)], model) for i in routed):
        notes = (
            *notes,
            "some routing biases are below zero, and mlx-lm gives experts of other groups the score 0 and not minus "
            "infinity: a token all of whose scores are below 0 goes to other experts there",
        )
    return notes


def _same_choice(bias: Tensor, model: ModelConfig) -> bool:
    """Whether every choice of groups has enough experts whose score is above 0, because their bias is not below it."""
    if model.groups_per_token == model.n_expert_group:
        return True
    above_GE = values(load(bias).tobytes(), bias.dtype).reshape(model.n_expert_group, -1) >= 0
    fewest = sorted(above_GE.sum(axis=1))[: model.groups_per_token]
    return bool(sum(fewest) >= model.experts_per_token)


FORMAT = dataclasses.replace(
    transformers_deepseek_v3.FORMAT,
    name="mlx-lm DeepSeek-V3 folder",
    order=50,
    recognise=is_mlx,
    read=read,
    write=write,
    target="mlx-lm",
    commands=("torch2mlx", "mlx2torch"),
    files=FILES,
)
