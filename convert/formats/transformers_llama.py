"""Llama folders of `transformers`: config.json, weights in one or several files, tokenizer.

Grouped queries, RMS norms, rotary positions in halves, SwiGLU (Touvron et al. 2023; `LlamaForCausalLM`).
"""

from __future__ import annotations

from pathlib import Path

from convert.contents import Contents, by_name, refuse_fields
from convert.formats import model_folder
from convert.formats.format import Format
from convert.formats.model_folder import CARD, FILES, REQUIRED, Fields
from convert.formats.names import LLAMA, translated
from convert.options import ReadOptions, WriteOptions
from convert.storage import mlx_grids
from convert.storage.weights import read_json, read_weights
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError

FIELDS: Fields = {
    "vocab_size": ("vocab_size", REQUIRED),
    "max_position_embeddings": ("block_size", 2048),
    "num_hidden_layers": ("n_layer", REQUIRED),
    "num_attention_heads": ("n_head", REQUIRED),
    "num_key_value_heads": ("n_kv_head", 0),
    "hidden_size": ("n_embd", REQUIRED),
    "head_dim": ("head_size", 0),
    "intermediate_size": ("feed_forward_width", REQUIRED),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "attention_bias": ("attention_bias", False),
    "mlp_bias": ("bias", False),
    "tie_word_embeddings": ("tied_head", False),
    "attention_dropout": ("dropout", 0.0),
}
"""Settings of LlamaConfig, which drops attention weights only, by our names."""
FIXED = {
    "hidden_act": "silu",
    "pretraining_tp": 1,
    "rope_interleaved": False,
    "rope_traditional": False,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_qk_norm": False,
}
"""Switches of Llama, in transformers and mlx-lm, that our model does not have, at the only value it computes."""
COMPUTED = {
    "norm": "rmsnorm",
    "final_norm": True,
    "positions": "rope",
    "rope_layout": "halves",
    "attention": "grouped_query",
    "qk_norm": False,
    "feed_forward": "swiglu",
    "head_bias": False,
}
"""What Llama is among our families."""


def read(path: Path, _: ReadOptions) -> Contents:
    """Weights, configuration and tokenizer.

    Raises:
        UserError: a setting that our model does not have, a missing or damaged file.
    """
    model = describe(path / "config.json")
    raw, _metadata, verify = read_weights(path)
    notes = model_folder.not_read(read_json(path / "config.json"), FIELDS.keys() | FIXED)
    return model_folder.with_folder(by_name(path, raw, LLAMA), model, verify, notes)


def describe(path: Path) -> ModelConfig:
    """The model that a config.json describes.

    Raises:
        UserError: it has a setting that our model does not have.
    """
    settings = read_json(path)
    model_folder.check_fixed(path, settings, FIXED)
    fields = model_folder.read_settings(path, settings, FIELDS) | COMPUTED
    if fields["bias"] is True:
        if fields["attention_bias"] is False:
            raise UserError(
                f"{path}: mlp_bias is true and attention_bias false, and here the feed-forward layer has biases only "
                "where attention has them: choose another model"
            )
        fields["attention_bias"] = False  # `bias` says it for both
    # Our zeros: as many key heads as heads, and heads that share the width.
    if fields["n_kv_head"] == fields["n_head"]:
        fields["n_kv_head"] = 0
    names = {theirs: ours for theirs, (ours, _) in FIELDS.items()}
    model = model_folder.read_model(path, fields, names)
    if model.head_size * model.n_head == model.n_embd:
        model = model_folder.read_model(path, fields | {"head_size": 0}, names)
    return model


def write(contents: Contents, path: Path, options: WriteOptions) -> tuple[str, ...]:
    """A folder that `AutoModelForCausalLM.from_pretrained` loads.

    Raises:
        UserError: `LlamaForCausalLM` cannot be this model.
    """
    model = contents.model
    if model.n_embd % model.n_head:
        raise UserError(
            f"transformers' Llama wants heads (n_head {model.n_head}) that divide the width (n_embd {model.n_embd}), "
            "whatever their own size is: --to mlx-lm takes others"
        )
    notes = write_llama(contents, path, options, "pt")
    model_folder.write_card(contents, path, "Llama")
    return notes


def write_llama(contents: Contents, path: Path, options: WriteOptions, library: str) -> tuple[str, ...]:
    """config.json, model.safetensors and tokenizer, as transformers and mlx-lm both read them.

    Args:
        library: for whom, in the header of the weights: pt or mlx.

    Raises:
        UserError: Llama cannot be this model.
    """
    model = contents.model
    refuse_fields(model, "Llama", COMPUTED)
    settings = {
        **model_folder.settings_of(model, "LlamaForCausalLM", "llama", FIELDS),
        "num_key_value_heads": model.n_kv_head or model.n_head,
        "head_dim": model.key_size,
        "intermediate_size": model.inner_width,
        "attention_bias": model.has_attention_biases,
        "hidden_act": "silu",
    }
    held = contents.stored if library == "mlx" else contents.tensors
    tensors = {translated(name, LLAMA): tensor for name, tensor in held.items()}
    if library == "mlx":
        settings |= mlx_grids.settings_of(contents.grids, LLAMA)
    model_folder.write_folder(contents, path, options, settings=settings, tensors=tensors, metadata={"format": library})
    return ()


FORMAT = Format(
    name="transformers Llama folder",
    order=40,
    model_type="llama",
    family="a Llama model",
    describe=describe,
    read=read,
    write=write,
    target="transformers",
    attention="grouped_query",
    files=FILES | {CARD},
)
