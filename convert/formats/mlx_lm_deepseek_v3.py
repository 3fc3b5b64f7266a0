"""DeepSeek-V3 folders of mlx-lm: the names and settings of `transformers`, and weights whose header says `mlx`.

mlx-lm 0.32 (mlx_lm/models/deepseek_v3.py) differs from DeepSeek's own code in three places: it always rotates
neighbours, it does not normalise the gate of a single expert, and it gives experts of other groups the score 0 and not
minus infinity.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from convert.contents import OTHER_TARGET, Contents, refuse_fields
from convert.formats import transformers_deepseek_v3
from convert.formats.model_folder import FILES, is_mlx
from convert.options import WriteOptions
from convert.storage.tensors import Tensor, load, values
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError

EXTRA_LAYER = 61
"""Layer that mlx-lm leaves out of every model, because the published one's predicts a second token."""


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
    write=write,
    target="mlx-lm",
    commands=("torch2mlx", "mlx2torch"),
    files=FILES,
)
