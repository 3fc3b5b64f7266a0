"""llama.cpp's architectures: what each computes, what its settings are called, and which models of ours it holds.

Where its loader and ours keep the same numbers in another order, that is said here too: of `llama` alone the rows of
queries and keys, numbers that rotate together side by side, where ours are half a head apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convert.contents import OTHER_TARGET, gpt2_fields, refuse_fields
from convert.formats import model_folder
from convert.formats.model_folder import REQUIRED, Fields
from convert.formats.names import GGUF_DEEPSEEK2, GGUF_GPT2, GGUF_LLAMA, GGUF_QWEN3
from convert.storage.gguf_header import Value
from convert.storage.pickles import shown
from convert.storage.tensors import Tensor
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError

ARCHITECTURE = "general.architecture"
COMMON: dict[str, tuple[str, object]] = {
    "vocab_size": ("vocab_size", REQUIRED),
    "context_length": ("block_size", REQUIRED),
    "embedding_length": ("n_embd", REQUIRED),
    "block_count": ("n_layer", REQUIRED),
    "feed_forward_length": ("feed_forward_width", REQUIRED),
    "attention.head_count": ("n_head", REQUIRED),
}
ROTARY = COMMON | {
    "attention.layer_norm_rms_epsilon": ("norm_eps", REQUIRED),
    "rope.freq_base": ("rope_theta", 10000.0),
}
"""llama.cpp takes 10000 too where a file says nothing."""
GROUPED = ROTARY | {"attention.head_count_kv": ("n_kv_head", 0), "attention.key_length": ("head_size", 0)}
DEEPSEEK = ROTARY | {
    "attention.q_lora_rank": ("q_latent", 0),
    "attention.kv_lora_rank": ("kv_latent", REQUIRED),
    "attention.key_length": ("key_size", REQUIRED),
    "attention.value_length": ("value_size", REQUIRED),
    "rope.dimension_count": ("rope_size", REQUIRED),
    "leading_dense_block_count": ("n_dense_layer", 0),
    "expert_count": ("n_expert", REQUIRED),
    "expert_used_count": ("experts_per_token", REQUIRED),
    "expert_shared_count": ("n_shared_expert", 0),
    "expert_feed_forward_length": ("expert_width", REQUIRED),
    "expert_weights_scale": ("router_scale", 1.0),
    "expert_weights_norm": ("router_normalise", False),
    "expert_group_count": ("n_expert_group", 1),
    "expert_group_used_count": ("groups_per_token", 1),
}
GATES = {"softmax": 1, "sigmoid": 2}
"""`expert_gating_func`."""
LATENT_NORM_EPS = 1e-6
"""What DeepSeek's norms of latents add, whatever the others do; llama.cpp adds the same to all."""
LITE_LAYERS, LITE_OTHER = (26, 27), (48, 128_256)
"""Layers, or layers and vocabulary, by which llama.cpp tells models whose queries have no latent; tried out."""
MAY_BE_ZERO = ("leading_dense_block_count", "expert_shared_count", "attention.q_lora_rank")
NEUTRAL: dict[str, object] = {
    "rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.scale_linear": 1.0, "attention.sliding_window": 0,
    "attention.causal": True, "attention.scale": 0.0, "attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0,
    "attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0, "logit_scale": 1.0, "residual_scale": 1.0,
    "embedding_scale": 1.0, "use_parallel_residual": False, "nextn_predict_layers": 0,
}  # fmt: skip
"""Settings that change what is computed, at the only value at which they change nothing."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One of llama.cpp's."""

    name: str
    people: str
    names: Mapping[str, str]
    """Our tensor names and its own."""
    fields: Fields
    """Its settings, without the name of the architecture in front, by our fields."""
    computed: Mapping[str, object]
    """What it is among our families, as `refuse_fields` takes it."""
    written: Callable[[ModelConfig], dict[str, Value]]
    """Settings that are no field of ours."""
    read: Callable[[Path, Mapping[str, Any], Mapping[str, Any], Mapping[str, Tensor]], dict[str, Any]]
    """Fields of ours that are no setting, from settings, the fields found and the tensors; None takes one away."""
    choices: Callable[[ModelConfig], Mapping[str, object]] = lambda _: {}
    """What it leaves open, beside `computed`."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """Settings of its own at the only value that can be converted."""

    def settings(self, model: ModelConfig) -> dict[str, Value]:
        """What a file says of a model.

        Raises:
            UserError: the architecture cannot be this model; names the field.
        """
        refuse_fields(model, f"llama.cpp's {self.name}", {**self.choices(model), **self.computed})
        extra = self.written(model)
        said = {key: getattr(model, ours) for key, (ours, _) in self.fields.items()}
        said["feed_forward_length"] = model.inner_width
        return {ARCHITECTURE: self.name} | {f"{self.name}.{key}": value for key, value in (said | extra).items()}

    def describe(self, path: Path, settings: Mapping[str, Value], tensors: Mapping[str, Tensor]) -> ModelConfig:
        """The model that a file holds.

        Args:
            tensors: by our names, where they have one.

        Raises:
            UserError: it has a setting that our model does not have.
        """
        found = own_settings(path, self.name, settings)
        for key, value in (NEUTRAL | dict(self.fixed)).items():
            if found.get(key, value) != value:
                raise model_folder.other_model(path, f"{self.name}.{key}", found[key], value)
        names = {f"{self.name}.{key}": ours for key, (ours, _) in self.fields.items()}
        prefixed = {f"{self.name}.{key}": each for key, each in self.fields.items()}
        said = {f"{self.name}.{key}": value for key, value in found.items()}
        zero = tuple(f"{self.name}.{key}" for key in MAY_BE_ZERO)
        theta = said.get(f"{self.name}.rope.freq_base", 10000.0)
        fields = model_folder.read_settings(path, said, prefixed, zero)
        if not isinstance(theta, float) or not 0 < theta < model_folder.LARGEST_THETA:
            raise UserError(f"{path}: {self.name}.rope.freq_base is {shown(theta)}, which no model has: choose another")
        fields |= {"rope_theta": theta, "tied_head": "head.weight" not in tensors}
        fields |= {**self.computed, **self.read(path, found, fields, tensors)}
        return _usual(path, {name: value for name, value in fields.items() if value is not None}, names)


# ---- what is particular to one ---------------------------------------------------------------------------------------


def _grouped_written(model: ModelConfig) -> dict[str, Value]:
    K = model.key_size
    return {
        "attention.head_count_kv": model.n_kv_head or model.n_head,
        "attention.key_length": K,
        "attention.value_length": K,
        "rope.dimension_count": K,
    }


def _grouped_read(
    path: Path, found: Mapping[str, Any], fields: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    n_head, width = fields["n_head"], fields["n_embd"]
    K = fields["head_size"] or (width // n_head if type(n_head) is int and type(width) is int else 0)
    for key in ("attention.value_length", "rope.dimension_count"):
        if found.get(key, K) != K:
            raise model_folder.other_model(path, key, found[key], K)
    bias = any(".feed_forward." in name and name.endswith(".bias") for name in tensors)
    return {"bias": bias, "attention_bias": not bias and any(name.endswith(".q_proj.bias") for name in tensors)}


def _deepseek_written(model: ModelConfig) -> dict[str, Value]:
    for name, least in (("n_shared_expert", 1), ("n_expert", 2)):
        if getattr(model, name) < least:
            found = f"the model's {name} is {getattr(model, name)}"
            raise UserError(f"{found}, and llama.cpp's deepseek2 needs at least {least}: {OTHER_TARGET}")
    if model.q_latent and (model.n_layer in LITE_LAYERS or (model.n_layer, model.vocab_size) == LITE_OTHER):
        raise UserError(
            f"the model's n_layer is {model.n_layer} and it has q_latent, and llama.cpp's deepseek2 takes all of that "
            f"many layers for DeepSeek-V2 Lite, which has none: {OTHER_TARGET}"
        )
    return {"attention.head_count_kv": model.n_head, "expert_gating_func": GATES[model.router]}


def _deepseek_read(
    path: Path, found: Mapping[str, Any], fields: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    gate = found.get("expert_gating_func", GATES["softmax"])
    router = next((name for name, number in GATES.items() if number == gate), None)
    if router is None:
        raise model_folder.other_model(path, "deepseek2.expert_gating_func", gate, "softmax or sigmoid")
    # Where keys and values are apart (latents.py), the other two lengths are of latents.
    key, value = (found.get(f"attention.{which}_length_mla") for which in ("key", "value"))
    key, value, rope = key or fields["key_size"], value or fields["value_size"], fields["rope_size"]
    if type(key) is not int or type(rope) is not int or rope >= key:
        raise model_folder.other_model(path, "deepseek2.attention.key_length", key, f"more than {shown(rope)}")
    n_dense, n_layer = fields["n_dense_layer"], fields["n_layer"]
    if type(n_dense) is int and type(n_layer) is int:
        n_dense = min(n_dense, n_layer)
    # Where no block has experts, nothing but the kind of gate tells DeepSeek-V3 from V2, which has no biases on them.
    biased = any(name.endswith(".routing_bias") for name in tensors) or (n_dense == n_layer and router == "sigmoid")
    return {
        "key_size": None, "n_dense_layer": n_dense, "nope_size": key - rope, "value_size": value, "router": router,
        "balancing": "bias" if biased else "none",
    }  # fmt: skip


LLAMA_COMPUTED = {
    "norm": "rmsnorm", "final_norm": True, "positions": "rope", "rope_layout": "halves", "attention": "grouped_query",
    "qk_norm": False, "feed_forward": "swiglu", "head_bias": False,
}  # fmt: skip
LLAMA = Architecture(
    name="llama",
    people="Llama",
    names=GGUF_LLAMA,
    fields=GROUPED,
    computed=LLAMA_COMPUTED,
    written=_grouped_written,
    read=_grouped_read,
    fixed={"expert_count": 0, "expert_used_count": 0},
)
QWEN3 = Architecture(
    name="qwen3",
    people="Qwen3",
    names=GGUF_QWEN3,
    fields=GROUPED,
    computed=LLAMA_COMPUTED | {"qk_norm": True, "bias": False, "attention_bias": False},
    written=_grouped_written,
    read=lambda *given: _grouped_read(*given) | {"bias": False, "attention_bias": False},
)
GPT2 = Architecture(
    name="gpt2",
    people="GPT-2",
    names=GGUF_GPT2,
    fields=COMMON | {"attention.layer_norm_epsilon": ("norm_eps", REQUIRED)},
    computed={
        "attention": "multi_head", "norm": "layernorm", "final_norm": True, "positions": "learned", "qk_norm": False,
        "head_bias": False,
    },
    written=lambda _: {},
    read=lambda *_: {"feed_forward": "gelu_tanh", "bias": True},
    choices=lambda model: {name: value for name, value in gpt2_fields(model).items() if name != "feed_forward_width"},
)  # fmt: skip
DEEPSEEK2 = Architecture(
    name="deepseek2",
    people="DeepSeek",
    names=GGUF_DEEPSEEK2,
    fields=DEEPSEEK,
    computed={
        "bias": False, "attention_bias": False, "norm": "rmsnorm", "final_norm": True, "positions": "rope",
        "rope_layout": "interleaved", "attention": "latent", "feed_forward": "moe", "head_bias": False,
    },
    written=_deepseek_written,
    read=_deepseek_read,
    choices=lambda _: {"norm_eps": LATENT_NORM_EPS},
    fixed={"attention.layer_norm_rms_epsilon": LATENT_NORM_EPS},
)  # fmt: skip
ARCHITECTURES = {each.name: each for each in (LLAMA, QWEN3, GPT2, DEEPSEEK2)}


def architecture_for(model: ModelConfig) -> Architecture:
    """The architecture that computes what a model does.

    Raises:
        UserError: llama.cpp has none.
    """
    by_attention = {"grouped_query": QWEN3 if model.qk_norm else LLAMA, "multi_head": GPT2, "latent": DEEPSEEK2}
    if model.attention not in by_attention:
        known = ", ".join(by_attention)
        raise UserError(f"the model's attention is {model.attention}, and llama.cpp has only {known}: {OTHER_TARGET}")
    return by_attention[model.attention]


def architecture_in(path: Path, settings: Mapping[str, Value]) -> Architecture:
    """The architecture that a file names.

    Raises:
        UserError: another, or none.
    """
    name = settings.get(ARCHITECTURE)
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{path}: its architecture is {shown(name)}, and {known} are read here: choose another model")
    return ARCHITECTURES[name]


def own_settings(path: Path, name: str, settings: Mapping[str, Value]) -> dict[str, Any]:
    """The settings of an architecture, without its name; one that is listed for every layer is that of the first.

    Raises:
        UserError: layers differ.
    """
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if not key.startswith(f"{name}."):
            continue
        if isinstance(value, list | np.ndarray):
            each = list(value) if isinstance(value, list) else value.tolist()
            if not each or any(one != each[0] for one in each):
                raise UserError(f"{path}: {key[:80]} differs from layer to layer: choose another model")
            value = each[0]
        found[key.removeprefix(f"{name}.")] = value
    tokens = settings.get("tokenizer.ggml.tokens")
    if "vocab_size" not in found and isinstance(tokens, list):
        found["vocab_size"] = len(tokens)
    return found


def _usual(path: Path, fields: dict[str, Any], names: Mapping[str, str]) -> ModelConfig:
    """The configuration, with our zeros where a size follows from others."""
    if fields.get("n_kv_head") == fields["n_head"]:
        fields["n_kv_head"] = 0
    model = model_folder.read_model(path, fields, names)
    if model.head_size * model.n_head == model.n_embd:
        model = model_folder.read_model(path, fields | {"head_size": 0}, names)
    if model.attention == "multi_head" and model.feed_forward_width == 4 * model.n_embd:
        model = model_folder.read_model(path, fields | {"feed_forward_width": 0}, names)
    return model


def side_by_side(K: int) -> list[int]:
    """The rows of a head of K whose halves rotate together, in the order in which `llama` has them."""
    return [half * (K // 2) + i for i in range(K // 2) for half in (0, 1)]


def in_halves(K: int) -> list[int]:
    """The reverse."""
    return [2 * i + half for half in (0, 1) for i in range(K // 2)]
