"""Llama and DeepSeek-V3 folders that cannot be converted, or are not what they say they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.convert.hostile.corpus import Case, Make

Tensors = dict[str, torch.Tensor]
FILE = "model.safetensors"
SHARDS = tuple(f"model-{i}-of-00003.safetensors" for i in ("00001", "00002", "00003"))
EXPERT = "model.layers.1.mlp.experts.{}.{}_proj.weight"
ROUTER, BIAS = "model.layers.1.mlp.gate.weight", "model.layers.1.mlp.gate.e_score_correction_bias"
Q, K, NORM = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qko")
KV_DOWN = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"

COMMON: dict[str, Any] = {
    "vocab_size": 65,
    "max_position_embeddings": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
COMMON |= {"hidden_size": 8, "intermediate_size": 12, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
LLAMA = COMMON | {"model_type": "llama", "num_key_value_heads": 2, "head_dim": 6, "attention_bias": False}
DEEPSEEK = COMMON | {
    "model_type": "deepseek_v3",
    "num_key_value_heads": 4,
    "kv_lora_rank": 5,
    "q_lora_rank": 7,
    "qk_nope_head_dim": 3,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
    "moe_intermediate_size": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 3,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}


def _filled(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def _swiglu(name: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{name}.{part}_proj.weight": (width, 8) for part in ("gate", "up")}
    return shapes | {f"{name}.down_proj.weight": (8, width)}


def llama_tensors() -> Tensors:
    """Two blocks: four heads of six numbers on a width of eight, two key heads."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (65, 8), "lm_head.weight": (65, 8)}
    for i in range(2):
        layer = f"model.layers.{i}"
        for part, shape in (("q", (24, 8)), ("k", (12, 8)), ("v", (12, 8)), ("o", (8, 24))):
            shapes[f"{layer}.self_attn.{part}_proj.weight"] = shape
        shapes |= _swiglu(f"{layer}.mlp", 12)
        shapes |= {f"{layer}.{norm}_layernorm.weight": (8,) for norm in ("input", "post_attention")}
    return _filled(shapes | {"model.norm.weight": (8,)})


def deepseek_tensors() -> Tensors:
    """A dense block and one with six experts in three groups; every expert has tensors of its own."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (65, 8), "lm_head.weight": (65, 8)}
    for i in range(2):
        layer = f"model.layers.{i}"
        for part, shape in (("q_a_proj", (7, 8)), ("q_a_layernorm", (7,)), ("q_b_proj", (28, 7))):
            shapes[f"{layer}.self_attn.{part}.weight"] = shape
        for part, shape in (("kv_a_proj_with_mqa", (9, 8)), ("kv_a_layernorm", (5,)), ("kv_b_proj", (36, 5))):
            shapes[f"{layer}.self_attn.{part}.weight"] = shape
        shapes[f"{layer}.self_attn.o_proj.weight"] = (8, 24)
        shapes |= {f"{layer}.{norm}_layernorm.weight": (8,) for norm in ("input", "post_attention")}
    shapes |= _swiglu("model.layers.0.mlp", 12) | _swiglu("model.layers.1.mlp.shared_experts", 3)
    for expert in range(6):
        shapes |= _swiglu(f"model.layers.1.mlp.experts.{expert}", 3)
    return _filled(shapes | {ROUTER: (6, 8), BIAS: (6,), "model.norm.weight": (8,)})


Edit = Callable[[Any], Any]


def _folder(
    name: str, make_tensors: Callable[[], Tensors], settings: dict[str, Any], edit: Edit | None, config: Edit | None
) -> Make:
    def make(folder: Path) -> Path:
        source = folder / name
        source.mkdir()
        tensors, said = make_tensors(), dict(settings)
        if edit:
            edit(tensors)
        if config:
            config(said)
        save_file(tensors, source / FILE, metadata={"format": "pt"})
        (source / "config.json").write_text(json.dumps(said))
        return source

    return make


def llama(tensors: Edit | None = None, config: Edit | None = None) -> Make:
    """A folder `llama` with tensors and configuration edited in place."""
    return _folder("llama", llama_tensors, LLAMA, tensors, config)


def deepseek(tensors: Edit | None = None, config: Edit | None = None) -> Make:
    """A folder `deepseek` with tensors and configuration edited in place."""
    return _folder("deepseek", deepseek_tensors, DEEPSEEK, tensors, config)


def deepseek_shards(edit: Callable[[Path], Any] | None = None) -> Make:
    """The same in three shards with an index, experts in all of them; then `edit` changes the folder."""

    def make(folder: Path) -> Path:
        source = deepseek()(folder)
        (source / FILE).unlink()
        tensors = deepseek_tensors()
        placed = {name: SHARDS[i % 3] for i, name in enumerate(tensors)}
        for shard in SHARDS:
            save_file({name: t for name, t in tensors.items() if placed[name] == shard}, source / shard)
        (source / f"{FILE}.index.json").write_text(json.dumps({"weight_map": placed}))
        if edit:
            edit(source)
        return source

    return make


SOUND_FAMILIES: dict[str, tuple[str, Make]] = {
    "llama": ("torch2mlx", llama()),
    "deepseek": ("torch2mlx", deepseek()),
    "deepseek shards": ("torch2mlx", deepseek_shards()),
}


def _says(make: Callable[..., Make], **values: Any) -> Make:
    return make(config=lambda settings: settings.update(values))


def _without(make: Callable[..., Make], key: str) -> Make:
    return make(config=lambda settings: settings.pop(key))


SCALED = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "original_max_position_embeddings": 8}
YARN = {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0}
WINDOWS = ["full_attention", "sliding_attention"]
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
SETTINGS = [
    Case("llama: scaled wavelengths", _says(llama, rope_parameters=SCALED), ("rope_type in rope_parameters", "llama3")),
    Case("llama: scaled wavelengths, old", _says(llama, rope_scaling=YARN), ("type in rope_scaling", "yarn")),
    Case("llama: an unknown scaling", _says(llama, rope_scaling={"type": "su"}), ("type in rope_scaling", "su")),
    Case("llama: a scaling without a kind", _says(llama, rope_scaling={"factor": 2.0}), ("factor in rope_scaling",)),
    Case("llama: scaling that is a number", _says(llama, rope_scaling=2.0), ("rope_scaling", r"2\.0")),
    Case("llama: heads that rotate in part", _says(llama, partial_rotary_factor=0.5), ("partial_rotary_factor",)),
    Case("llama: two bases", _says(llama, rope_theta=1e4, rope_parameters={"rope_theta": 5e5}), ("10000", "500000")),
    Case("llama: a base of 0", _says(llama, rope_theta=0.0), ("rope_theta",)),
    Case("llama: an endless base", _says(llama, rope_parameters={"rope_theta": 10**400}), ("rope_theta", "enormous")),
    Case("llama: a base of NaN", _says(llama, rope_theta=float("nan")), ("rope_theta", "nan")),
    Case("llama: a base as text", _says(llama, rope_theta="long"), ("rope_theta", "long")),
    Case("llama: a sliding window", _says(llama, sliding_window=8), ("sliding_window", "8")),
    Case("llama: some windows slide", _says(llama, layer_types=WINDOWS), ("layer_types", "full_attention")),
    Case("llama: capped logits", _says(llama, final_logit_softcapping=30.0), ("final_logit_softcapping", "30")),
    Case("llama: another activation", _says(llama, hidden_act="relu"), ("hidden_act", "relu")),
    Case("llama: biases in the feed-forward layer alone", _says(llama, mlp_bias=True), ("mlp_bias", "attention_bias")),
    Case("llama: quantised by another tool", _says(llama, quantization={"bits": 4}), ("quantization", "bfloat16")),
    Case("llama: key heads that do not divide", _says(llama, num_key_value_heads=3), ("num_key_value_heads", "3")),
    Case("llama: an odd head", _says(llama, head_dim=5), ("head_dim", "odd", "5")),
    Case("llama: no width", _without(llama, "intermediate_size"), ("intermediate_size",)),
    Case("deepseek: groups that do not divide", _says(deepseek, n_group=4), ("n_group 4", "n_routed_experts 6")),
    Case("deepseek: more groups than there are", _says(deepseek, topk_group=4), ("topk_group 4", "n_group 3")),
    Case("deepseek: too many experts per token", _says(deepseek, num_experts_per_tok=5), ("num_experts_per_tok 5",)),
    Case("deepseek: groups of one expert", _says(deepseek, n_group=6), ("n_group 6", "two")),
    Case("deepseek: experts in every other block", _says(deepseek, moe_layer_freq=2), ("moe_layer_freq", "2")),
    Case("deepseek: softmax gates", _says(deepseek, scoring_func="softmax"), ("scoring_func", "softmax")),
    Case("deepseek: greedy choice", _says(deepseek, topk_method="greedy"), ("topk_method", "greedy")),
    Case("deepseek: no number of experts", _without(deepseek, "n_routed_experts"), ("n_routed_experts",)),
    Case(
        "deepseek: an infinite scale", _says(deepseek, routed_scaling_factor=float("inf")), ("routed_scaling_factor",)
    ),
    Case("deepseek: 10^12 experts", _says(deepseek, n_routed_experts=10**12), ("n_routed_experts",)),
    Case(
        "deepseek: grouped queries",
        _says(deepseek, num_key_value_heads=2),
        ("num_key_value_heads is 2", "num_attention_heads 4"),
    ),
    Case(
        "deepseek: a head that is not what rotates",
        _says(deepseek, head_dim=7),
        ("head_dim is 7", "qk_rope_head_dim 4"),
    ),
    Case("deepseek: an odd rotary part", _says(deepseek, qk_rope_head_dim=3), ("qk_rope_head_dim", "odd", "3")),
    Case("deepseek: heads as text", _says(deepseek, num_attention_heads="4"), ("num_attention_heads", "'4'")),
    Case("deepseek: scaled wavelengths", _says(deepseek, rope_scaling=YARN), ("type in rope_scaling", "yarn")),
    Case("deepseek: float8 by its configuration", _says(deepseek, quantization_config=FP8), ("quantised", "bfloat16")),
    Case("deepseek: an older kind", _says(deepseek, model_type="deepseek_v2"), ("deepseek_v2", "deepseek_v3")),
]
SETTINGS = [Case(case.name, case.make, case.says, file="config.json") for case in SETTINGS]


def _renumbered(tensors: Tensors) -> None:
    """Experts 0, 1, 2, 3, 4, 6: as many as there should be."""
    for part in ("gate", "up", "down"):
        tensors[EXPERT.format(6, part)] = tensors.pop(EXPERT.format(5, part))


def _float8(tensors: Tensors) -> None:
    """As the published model: matrices of eight bits, and beside each the inverse of its scale."""
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.ones(1, 1)


def _merged(tensors: Tensors) -> None:
    """One matrix of the experts stacked, and for every expert too."""
    tensors["model.layers.1.mlp.experts.down_proj"] = torch.ones(6, 8, 3)


def _replace(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    return lambda tensors: tensors.update({name: change(tensors[name]).contiguous()})


SIXTH = [EXPERT.format(5, part) for part in ("gate", "up", "down")]
SEVENTH = {EXPERT.format(6, part): t for part, t in (("gate", torch.ones(3, 8)), ("up", torch.ones(3, 8)))}
TENSORS = [
    Case("llama: heads of another width", _says(llama, head_dim=4), ("q_proj", "24, 8", "16, 8")),
    Case("llama: heads that are not the width's", _without(llama, "head_dim"), ("q_proj", "24, 8", "8, 8")),
    Case("llama: key heads of all heads", _without(llama, "num_key_value_heads"), ("k_proj", "12, 8", "24, 8")),
    Case(
        "llama: biases that config.json denies", llama(lambda t: t.update({Q[:-6] + "bias": torch.ones(24)})), ("q_p",)
    ),
    Case("llama: no biases where it wants them", _says(llama, attention_bias=True), (r"q_proj\.bias", "missing")),
    Case("llama: q, k and v in one", llama(lambda t: t.update({Q.replace("q_", "qkv_"): t.pop(Q)})), ("qkv_proj",)),
    Case(
        "llama: norms of queries and keys",
        llama(lambda t: t.update({Q.replace("proj", "norm"): torch.ones(6)})),
        ("q_norm",),
    ),
    Case("llama: no head", llama(lambda t: t.pop("lm_head.weight")), ("lm_head",)),
    Case("llama: a tied head that differs", _says(llama, tie_word_embeddings=True), ("lm_head", "tie_word_embeddings")),
    Case("llama: a transposed matrix", llama(_replace(NORM, lambda t: t.T)), ("o_proj", "24, 8", "8, 24")),
    Case("llama: an embedding of int4", llama(_replace(Q, lambda t: t.to(torch.uint8))), ("q_proj", "uint8")),
    Case(
        "deepseek: an expert is missing", deepseek(lambda t: t.pop(EXPERT.format(2, "up"))), (r"experts\.2\.up_proj",)
    ),
    Case(
        "deepseek: an expert in the middle is missing", deepseek(_renumbered), (r"experts\.5\.", "missing", "6 experts")
    ),
    Case("deepseek: the last expert is missing", deepseek(lambda t: [t.pop(n) for n in SIXTH]), (r"experts\.5\.",)),
    Case("deepseek: an expert too many", deepseek(lambda t: t.update(SEVENTH)), (r"experts\.6\.", "6 experts")),
    Case("deepseek: fewer experts than configured", _says(deepseek, n_routed_experts=9), (r"experts\.6\.", "missing")),
    Case(
        "deepseek: more experts than configured",
        _says(deepseek, n_routed_experts=3, n_group=1, topk_group=1),
        (r"experts\.5\.", "3 experts"),
    ),
    Case(
        "deepseek: an expert of 10^40",
        deepseek(lambda t: t.update({EXPERT.format(10**40, "up"): torch.ones(3, 8)})),
        ("experts",),
    ),
    Case(
        "deepseek: an expert called 00",
        deepseek(lambda t: t.update({EXPERT.format("00", "up"): torch.ones(3, 8)})),
        (r"experts\.00",),
    ),
    Case(
        "deepseek: a misshapen expert",
        deepseek(_replace(EXPERT.format(3, "down"), lambda t: t.T)),
        (r"experts\.3\.down_proj", "3, 8", "8, 3"),
    ),
    Case(
        "deepseek: an expert as a vector",
        deepseek(_replace(EXPERT.format(0, "up"), torch.flatten)),
        (r"experts\.0\.up", "24"),
    ),
    Case(
        "deepseek: all experts narrower",
        _says(deepseek, moe_intermediate_size=4),
        (r"experts\.\*", "6, 3, 8", "6, 4, 8"),
    ),
    Case(
        "deepseek: an expert of another dtype",
        deepseek(_replace(EXPERT.format(4, "gate"), torch.Tensor.half)),
        (r"experts\.4\.gate", "float16", "float32"),
    ),
    Case("deepseek: experts twice", deepseek(_merged), ("stacked", r"experts\.\*\.down_proj")),
    Case("deepseek: no router", deepseek(lambda t: t.pop(ROUTER)), (r"mlp\.gate\.weight", "missing")),
    Case("deepseek: no routing bias", deepseek(lambda t: t.pop(BIAS)), ("e_score_correction_bias", "missing")),
    Case(
        "deepseek: a routing bias of another size",
        deepseek(_replace(BIAS, lambda t: t[:5])),
        ("e_score_correction_bias", "5", "6"),
    ),
    Case("deepseek: a dense block too few", _says(deepseek, first_k_dense_replace=0), (r"layers\.0\.mlp",)),
    Case("deepseek: a dense block too many", _says(deepseek, first_k_dense_replace=2), (r"layers\.1\.mlp",)),
    Case("deepseek: no latent of queries", _says(deepseek, q_lora_rank=None), (r"q_proj|q_a_proj",)),
    Case("deepseek: a latent of another width", _says(deepseek, kv_lora_rank=6), ("kv_a", "10, 8|6")),
    Case("deepseek: float8", deepseek(_float8), ("F8_E4M3", "_proj", "bfloat16|float32")),
    Case(
        "deepseek: scales of float8",
        deepseek(lambda t: t.update({f"{KV_DOWN}_scale_inv": torch.ones(1, 1)})),
        ("scale_inv",),
    ),
    Case(
        "deepseek: another block than it has",
        deepseek(lambda t: t.update({"model.layers.2.enorm.weight": torch.ones(8)})),
        (r"layers\.2\.enorm",),
    ),
]


def _cut(source: Path) -> None:
    (source / SHARDS[2]).write_bytes((source / SHARDS[2]).read_bytes()[:-40])


def _lost(source: Path) -> None:
    (source / SHARDS[1]).unlink()


SHARD_CASES = [
    Case("deepseek: a shard that is cut", deepseek_shards(_cut), (), file=SHARDS[2]),
    Case("deepseek: a shard that is lost", deepseek_shards(_lost), (), file=SHARDS[1]),
]

FAMILIES = [*SETTINGS, *TENSORS, *SHARD_CASES]
