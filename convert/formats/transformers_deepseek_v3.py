"""DeepSeek-V3 folders of `transformers`: config.json, weights in one or several files, tokenizer.

Latent attention, a few dense blocks, then shared and routed experts with sigmoid gates, balanced by a bias (Liu et al.
2024; `DeepseekV3ForCausalLM`). On disk every expert has tensors of its own; in memory transformers 5 keeps them
stacked, gates over ups in one. Both are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from convert.contents import OTHER_TARGET, Contents, by_name, refuse_fields
from convert.formats import model_folder
from convert.formats.format import Format
from convert.formats.model_folder import CARD, COPY_OR_CHOOSE, FILES, REQUIRED, Fields
from convert.formats.names import DEEPSEEK_V3, NUMBERED_EXPERTS, translated, without_prefixes
from convert.options import ReadOptions, WriteOptions
from convert.storage.pickles import shown
from convert.storage.stacks import gather, stacked, unstacked, unwoven
from convert.storage.tensors import Tensor, zeros
from convert.storage.weights import read_json, read_weights
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError
from gpt_common.network.parameters import tensor_shapes

FIELDS: Fields = {
    "vocab_size": ("vocab_size", REQUIRED),
    "max_position_embeddings": ("block_size", 4096),
    "num_hidden_layers": ("n_layer", REQUIRED),
    "num_attention_heads": ("n_head", REQUIRED),
    "hidden_size": ("n_embd", REQUIRED),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "attention_bias": ("attention_bias", False),
    "kv_lora_rank": ("kv_latent", REQUIRED),
    "q_lora_rank": ("q_latent", 0),
    "qk_nope_head_dim": ("nope_size", REQUIRED),
    "qk_rope_head_dim": ("rope_size", REQUIRED),
    "v_head_dim": ("value_size", REQUIRED),
    "intermediate_size": ("feed_forward_width", REQUIRED),
    "first_k_dense_replace": ("n_dense_layer", REQUIRED),
    "n_routed_experts": ("n_expert", REQUIRED),
    "n_shared_experts": ("n_shared_expert", 0),
    "num_experts_per_tok": ("experts_per_token", REQUIRED),
    "moe_intermediate_size": ("expert_width", REQUIRED),
    "n_group": ("n_expert_group", REQUIRED),
    "topk_group": ("groups_per_token", REQUIRED),
    "norm_topk_prob": ("router_normalise", REQUIRED),
    "routed_scaling_factor": ("router_scale", REQUIRED),
    "tie_word_embeddings": ("tied_head", False),
    "attention_dropout": ("dropout", 0.0),
}
"""Settings of DeepseekV3Config, which drops attention weights only, by our names."""
MAY_BE_ZERO = ("first_k_dense_replace", "n_shared_experts")
FIXED = {
    "hidden_act": "silu",
    "pretraining_tp": 1,
    "moe_layer_freq": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
    "use_qk_norm": False,
}
"""Switches of DeepSeek-V3 that our model does not have, at the only value it computes."""
FOLLOWS = ("num_key_value_heads", "head_dim", "qk_head_dim", "rope_interleave")
"""Settings that repeat others, or are read by themselves."""
COMPUTED = {
    "bias": False,
    "norm": "rmsnorm",
    "final_norm": True,
    "positions": "rope",
    "attention": "latent",
    "feed_forward": "moe",
    "router": "sigmoid",
    "head_bias": False,
}
"""What DeepSeek-V3 is among our families."""
STACKED_EXPERTS = re.compile(r"(.*\.mlp\.experts\.)(gate_up_proj|down_proj)")


def read(path: Path, _: ReadOptions) -> Contents:
    """Weights, configuration and tokenizer; experts are stacked while they are read.

    Raises:
        UserError: a setting that our model does not have, an expert that is missing or unlike the others, a missing or
            damaged file.
    """
    raw, _metadata, verify = read_weights(path)
    return read_tensors(path, raw, verify)


def read_tensors(path: Path, raw: Mapping[str, Tensor], verify: Callable[[], None]) -> Contents:
    """What a folder holds, once its tensors have the names of `transformers`.

    Args:
        verify: checks whatever has not been read.

    Raises:
        UserError: a setting that our model does not have, an expert that is missing or unlike the others.
    """
    settings = read_json(path / "config.json")
    model = describe(path / "config.json")
    raw, notes = _without_extra_layer(raw, model.n_layer)
    experts, others = gather(path, raw, NUMBERED_EXPERTS, model.n_expert)
    whole = {name: stacked(parts) for name, parts in experts.items()}
    separated = _separated(others)
    if twice := sorted(whole.keys() & separated.keys()):
        raise UserError(f"{path}: {twice[0]} is there both stacked and as one tensor per expert: remove one of the two")
    notes = (*model_folder.not_read(settings, (*FIELDS, *FIXED, *FOLLOWS)), *notes)
    return model_folder.with_folder(by_name(path, whole | separated, DEEPSEEK_V3), model, verify, notes)


def _without_extra_layer(raw: Mapping[str, Tensor], n_layer: int) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The published model has one more layer, which predicts a second token and which transformers ignores too."""
    extra = f"model.layers.{n_layer}."
    if f"{extra}eh_proj.weight" not in raw:
        return dict(raw), ()
    kept = {name: tensor for name, tensor in raw.items() if not name.startswith(extra)}
    return kept, (f"layer {n_layer} left out: it predicts the token after the next one",)


def _separated(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stacked experts under the names of numbered ones: (E, 2 F, D) is gates over ups."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in raw.items():
        match = STACKED_EXPERTS.fullmatch(without_prefixes(name))
        if match is None or len(tensor.shape) != 3 or not tensor.size:
            tensors[name] = tensor
        elif match[2] == "down_proj":
            tensors[f"{match[1]}*.down_proj.weight"] = tensor
        elif tensor.shape[1] % 2 == 0:
            E, F, D = tensor.shape[0], tensor.shape[1] // 2, tensor.shape[2]
            gate, up = unwoven(tensor, F * D, 2, (E, F, D))
            tensors |= {f"{match[1]}*.gate_proj.weight": gate, f"{match[1]}*.up_proj.weight": up}
        else:
            tensors[name] = tensor
    return tensors


def describe(path: Path) -> ModelConfig:
    """The model that a config.json describes.

    Raises:
        UserError: it has a setting that our model does not have.
    """
    settings = read_json(path)
    model_folder.check_fixed(path, settings, FIXED)
    fields = model_folder.read_settings(path, settings, FIELDS, MAY_BE_ZERO) | COMPUTED
    interleave = settings.get("rope_interleave", True)
    if type(interleave) is not bool:
        raise model_folder.other_model(path, "rope_interleave", interleave, "true or false")
    fields["rope_layout"] = "interleaved" if interleave else "halves"
    fields["balancing"] = "bias"
    if type(fields["n_dense_layer"]) is int and type(fields["n_layer"]) is int:
        fields["n_dense_layer"] = min(fields["n_dense_layer"], fields["n_layer"])
    model = model_folder.read_model(path, fields, {theirs: ours for theirs, (ours, _) in FIELDS.items()})
    # transformers writes them although they follow from others, and computes with what it finds.
    for key, other, value in (
        ("num_key_value_heads", "num_attention_heads", model.n_head),
        ("head_dim", "qk_rope_head_dim", model.rope_size),
    ):
        if settings.get(key) not in (None, value):
            found = shown(settings[key])
            raise UserError(f"{path}: {key} is {found} and {other} {value}, which must be equal: {COPY_OR_CHOOSE}")
    return model


def write(contents: Contents, path: Path, options: WriteOptions) -> tuple[str, ...]:
    """A folder that `AutoModelForCausalLM.from_pretrained` loads.

    Raises:
        UserError: `DeepseekV3ForCausalLM` cannot be this model.
    """
    model = contents.model
    refuse_fields(model, "DeepSeek-V3", COMPUTED)
    for name, least in (("n_shared_expert", 1), ("n_expert", 2)):
        if getattr(model, name) < least:
            found = f"the model's {name} is {getattr(model, name)}"
            raise UserError(f"{found}, and transformers' DeepSeek-V3 needs at least {least}: {OTHER_TARGET}")
    notes = write_deepseek(contents, path, options, "pt")
    model_folder.write_card(contents, path, "DeepSeek-V3")
    return notes


def write_deepseek(contents: Contents, path: Path, options: WriteOptions, library: str) -> tuple[str, ...]:
    """config.json, model.safetensors with every expert for itself, and tokenizer, for transformers and mlx-lm.

    Args:
        contents: a model of which COMPUTED is true.
        library: for whom, in the header of the weights: pt or mlx.

    Raises:
        UserError: a tensor cannot be read.
    """
    model = contents.model
    settings = {
        **model_folder.settings_of(model, "DeepseekV3ForCausalLM", "deepseek_v3", FIELDS),
        "num_key_value_heads": model.n_head,
        "q_lora_rank": model.q_latent or None,
        "n_shared_experts": model.n_shared_expert or None,
        "intermediate_size": model.inner_width,
        "rope_interleave": model.rope_layout == "interleaved",
        "num_nextn_predict_layers": 0,
        "hidden_act": "silu",
    }
    tensors: dict[str, Tensor] = {}
    for name in tensor_shapes(model):
        foreign = translated(name, DEEPSEEK_V3)
        if "*" in foreign:
            parts = unstacked(contents.tensors[name])
            tensors |= {foreign.replace("*", str(expert)): part for expert, part in enumerate(parts)}
        else:
            tensors[foreign] = contents.tensors[name]
    notes: tuple[str, ...] = ()
    if model.balancing != "bias":
        notes = (
            f"the model's balancing is {model.balancing}: routing biases of zero were written, which change nothing",
        )
        for layer in filter(model.has_experts, range(model.n_layer)):
            tensors[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"] = zeros((model.n_expert,), "F32")
    if model.tied_head and library == "mlx":  # mlx-lm's DeepSeek-V3 has an output layer of its own
        tensors["lm_head.weight"] = contents.tensors["token_embedding.weight"]
    model_folder.write_folder(contents, path, options, settings=settings, tensors=tensors, metadata={"format": library})
    return notes


FORMAT = Format(
    name="transformers DeepSeek-V3 folder",
    order=60,
    model_type="deepseek_v3",
    family="a DeepSeek-V3 model",
    describe=describe,
    read=read,
    write=write,
    target="transformers",
    attention="latent",
    files=FILES | {CARD},
)
