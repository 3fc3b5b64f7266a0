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

LLAMA = {
    "token_embedding": "model.embed_tokens",
    "blocks.{i}.attention_norm": "model.layers.{i}.input_layernorm",
    "blocks.{i}.attention.q_proj": "model.layers.{i}.self_attn.q_proj",
    "blocks.{i}.attention.k_proj": "model.layers.{i}.self_attn.k_proj",
    "blocks.{i}.attention.v_proj": "model.layers.{i}.self_attn.v_proj",
    "blocks.{i}.attention.out_proj": "model.layers.{i}.self_attn.o_proj",
    "blocks.{i}.feed_forward_norm": "model.layers.{i}.post_attention_layernorm",
    "blocks.{i}.feed_forward.gate_proj": "model.layers.{i}.mlp.gate_proj",
    "blocks.{i}.feed_forward.up_proj": "model.layers.{i}.mlp.up_proj",
    "blocks.{i}.feed_forward.down_proj": "model.layers.{i}.mlp.down_proj",
    "final_norm": "model.norm",
    "head": "lm_head",
}
"""Llama's names in `transformers`, which mlx-lm and most families since have kept."""

DEEPSEEK_V3 = LLAMA | {
    "blocks.{i}.attention.q_down_proj": "model.layers.{i}.self_attn.q_a_proj",
    "blocks.{i}.attention.q_latent_norm": "model.layers.{i}.self_attn.q_a_layernorm",
    "blocks.{i}.attention.q_up_proj": "model.layers.{i}.self_attn.q_b_proj",
    "blocks.{i}.attention.kv_down_proj": "model.layers.{i}.self_attn.kv_a_proj_with_mqa",
    "blocks.{i}.attention.kv_latent_norm": "model.layers.{i}.self_attn.kv_a_layernorm",
    "blocks.{i}.attention.kv_up_proj": "model.layers.{i}.self_attn.kv_b_proj",
    "blocks.{i}.feed_forward.router": "model.layers.{i}.mlp.gate",
    "blocks.{i}.feed_forward.routing_bias": "model.layers.{i}.mlp.gate.e_score_correction_bias",
    "blocks.{i}.feed_forward.experts.gate_proj": "model.layers.{i}.mlp.experts.*.gate_proj",
    "blocks.{i}.feed_forward.experts.up_proj": "model.layers.{i}.mlp.experts.*.up_proj",
    "blocks.{i}.feed_forward.experts.down_proj": "model.layers.{i}.mlp.experts.*.down_proj",
    "blocks.{i}.feed_forward.shared_experts.gate_proj": "model.layers.{i}.mlp.shared_experts.gate_proj",
    "blocks.{i}.feed_forward.shared_experts.up_proj": "model.layers.{i}.mlp.shared_experts.up_proj",
    "blocks.{i}.feed_forward.shared_experts.down_proj": "model.layers.{i}.mlp.shared_experts.down_proj",
}
"""DeepSeek-V3's names in `transformers`; `*` stands for the number of an expert."""

_GGUF = {
    "token_embedding": "token_embd",
    "blocks.{i}.attention_norm": "blk.{i}.attn_norm",
    "blocks.{i}.attention.out_proj": "blk.{i}.attn_output",
    "blocks.{i}.feed_forward_norm": "blk.{i}.ffn_norm",
    "blocks.{i}.feed_forward.up_proj": "blk.{i}.ffn_up",
    "blocks.{i}.feed_forward.down_proj": "blk.{i}.ffn_down",
    "final_norm": "output_norm",
    "head": "output",
}
GGUF_GPT2 = _GGUF | {
    "position_embedding": "position_embd",
    "blocks.{i}.attention.qkv_proj": "blk.{i}.attn_qkv",
}
GGUF_LLAMA = _GGUF | {
    "blocks.{i}.attention.q_proj": "blk.{i}.attn_q",
    "blocks.{i}.attention.k_proj": "blk.{i}.attn_k",
    "blocks.{i}.attention.v_proj": "blk.{i}.attn_v",
    "blocks.{i}.feed_forward.gate_proj": "blk.{i}.ffn_gate",
}
GGUF_QWEN3 = GGUF_LLAMA | {
    "blocks.{i}.attention.q_norm": "blk.{i}.attn_q_norm",
    "blocks.{i}.attention.k_norm": "blk.{i}.attn_k_norm",
}
GGUF_DEEPSEEK2 = _GGUF | {
    "blocks.{i}.attention.q_proj": "blk.{i}.attn_q",
    "blocks.{i}.attention.q_down_proj": "blk.{i}.attn_q_a",
    "blocks.{i}.attention.q_latent_norm": "blk.{i}.attn_q_a_norm",
    "blocks.{i}.attention.q_up_proj": "blk.{i}.attn_q_b",
    "blocks.{i}.attention.kv_down_proj": "blk.{i}.attn_kv_a_mqa",
    "blocks.{i}.attention.kv_latent_norm": "blk.{i}.attn_kv_a_norm",
    "blocks.{i}.attention.kv_up_proj": "blk.{i}.attn_kv_b",
    "blocks.{i}.feed_forward.gate_proj": "blk.{i}.ffn_gate",
    "blocks.{i}.feed_forward.router": "blk.{i}.ffn_gate_inp",
    "blocks.{i}.feed_forward.routing_bias": "blk.{i}.exp_probs_b",
    "blocks.{i}.feed_forward.experts.gate_proj": "blk.{i}.ffn_gate_exps",
    "blocks.{i}.feed_forward.experts.up_proj": "blk.{i}.ffn_up_exps",
    "blocks.{i}.feed_forward.experts.down_proj": "blk.{i}.ffn_down_exps",
    "blocks.{i}.feed_forward.shared_experts.gate_proj": "blk.{i}.ffn_gate_shexp",
    "blocks.{i}.feed_forward.shared_experts.up_proj": "blk.{i}.ffn_up_shexp",
    "blocks.{i}.feed_forward.shared_experts.down_proj": "blk.{i}.ffn_down_shexp",
}
"""llama.cpp's names in GGUF files, by architecture; experts lie stacked."""

CUSTOM_LLM = {
    "token_embedding": "token_embeddings",
    "position_embedding": "position_embeddings",
    "blocks.{i}.attention_norm": "decoder_layers.{i}.input_norm",
    "blocks.{i}.attention.q_down_proj": "decoder_layers.{i}.self_attn.q_proj_d",
    "blocks.{i}.attention.q_up_proj": "decoder_layers.{i}.self_attn.q_proj_u",
    "blocks.{i}.attention.q_rope_proj": "decoder_layers.{i}.self_attn.rope_q",
    "blocks.{i}.attention.kv_down_proj": "decoder_layers.{i}.self_attn.kv_proj_d",
    "blocks.{i}.attention.k_up_proj": "decoder_layers.{i}.self_attn.k_proj_u",
    "blocks.{i}.attention.k_rope_proj": "decoder_layers.{i}.self_attn.rope_k",
    "blocks.{i}.attention.v_up_proj": "decoder_layers.{i}.self_attn.v_proj_u",
    "blocks.{i}.attention.out_proj": "decoder_layers.{i}.self_attn.o_proj",
    "blocks.{i}.feed_forward_norm": "decoder_layers.{i}.post_attn_norm",
    "blocks.{i}.feed_forward.router": "decoder_layers.{i}.mlp.router",
    "blocks.{i}.feed_forward.routing_bias": "decoder_layers.{i}.mlp.routing_bias",
    "blocks.{i}.feed_forward.experts.gate_proj": "decoder_layers.{i}.mlp.routed_experts.*.gate_proj",
    "blocks.{i}.feed_forward.experts.up_proj": "decoder_layers.{i}.mlp.routed_experts.*.up_proj",
    "blocks.{i}.feed_forward.experts.down_proj": "decoder_layers.{i}.mlp.routed_experts.*.down_proj",
    "blocks.{i}.feed_forward.shared_experts.gate_proj": "decoder_layers.{i}.mlp.shared_experts.*.gate_proj",
    "blocks.{i}.feed_forward.shared_experts.up_proj": "decoder_layers.{i}.mlp.shared_experts.*.up_proj",
    "blocks.{i}.feed_forward.shared_experts.down_proj": "decoder_layers.{i}.mlp.shared_experts.*.down_proj",
    "head": "lm_head",
}
"""The names in CustomLLM's printed tree; `*` stands for the number of an expert."""

QK_NORMS = ("blocks.{i}.attention.q_norm", "blocks.{i}.attention.k_norm")
OURS = {name: name for name in (*GPT2, *LLAMA, *DEEPSEEK_V3, *CUSTOM_LLM, *QK_NORMS)}
"""Every name of ours, as it is."""

CONV1D = ("qkv_proj.weight", "out_proj.weight", "up_proj.weight", "down_proj.weight")
"""Matrices that `transformers` keeps as (in, out) for GPT-2, the transpose of everybody else's (out, in)."""

MASK_BUFFERS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)")
"""The causal mask, which older versions saved as if it were a weight."""

ANGLE_BUFFERS = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)")
"""Rotary wavelengths and tables, which older versions saved too."""

BUFFERS = ("routing_bias", "e_score_correction_bias", "exp_probs_b")
"""Tensors whose names end here, without `.weight` or `.bias`."""

NUMBERED_EXPERTS = re.compile(r"(.*\.(?:routed_)?experts\.)(0|[1-9]\d*)(\.(?:gate|up|down)_proj\.weight)")
"""Routed experts that are tensors of their own: what precedes the number, the number, what follows."""

NUMBERED_SHARED_EXPERTS = re.compile(r"(.*\.shared_experts\.)(0|[1-9]\d*)(\.(?:gate|up|down)_proj\.weight)")

KINDS = ("weight", "bias", "scales", "biases")
"""What a layer's tensors are called behind its name; the last two are of a quantised matrix."""

PREFIXES = ("_orig_mod.", "module.")
"""What torch.compile and DistributedDataParallel put before every name, in either order."""


def translate(name: str, names: Mapping[str, str]) -> str | None:
    """`name` through a key map, as a whole or before its `.weight` or `.bias`; None if the map does not have it."""
    layer = re.search(r"\.(0|[1-9]\d*)\.", name)
    template = name if layer is None else name[: layer.start(1)] + "{i}" + name[layer.end(1) :]
    stem, _, kind = template.rpartition(".")
    number = "" if layer is None else layer[1]
    if template in names:
        # A stem alone is no tensor, but for the buffers that have no kind.
        return names[template].replace("{i}", number) if kind in BUFFERS else None
    if kind not in KINDS or stem not in names or stem.rpartition(".")[2] in BUFFERS:
        return None
    return f"{names[stem].replace('{i}', number)}.{kind}"


def translated(name: str, names: Mapping[str, str]) -> str:
    """`name` through a key map that has it."""
    found = translate(name, names)
    assert found is not None
    return found


def inverted(names: Mapping[str, str]) -> dict[str, str]:
    """The map from the foreign names to ours."""
    return {foreign: ours for ours, foreign in names.items()}


def without_prefixes(name: str) -> str:
    """`name` without any of PREFIXES, as often as they are there."""
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name
