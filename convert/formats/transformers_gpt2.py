"""GPT-2 folders of `transformers`: config.json, weights in one or several files, tokenizer.

`GPT2LMHeadModel` keeps the matrices of attention and feed-forward as (in, out) and always has biases.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from convert.contents import Contents, by_name, check_sizes, refuse_all_but_gpt2, refuse_fields
from convert.formats import model_folder
from convert.formats.format import Format
from convert.formats.model_folder import CARD, FILES
from convert.formats.names import CONV1D, GPT2, translated
from convert.options import ReadOptions, WriteOptions
from convert.storage.pickles import shown
from convert.storage.tensors import Tensor, transposed, zeros
from convert.storage.weights import read_json, read_weights
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError, nearest
from gpt_common.network.parameters import parameter_shapes

ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}
"""Switches of GPT2Config that this project's model does not have, at the only value it computes."""
SHAPE = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
"""Fields of GPT2Config with the values that they have when config.json leaves them out."""
OURS = {"n_positions": "block_size", "layer_norm_epsilon": "norm_eps", "resid_pdrop": "dropout"}
"""Fields that have another name here."""
NO_BIASES = {"biases": "none: all of them are zeros"}
"""In the header of a file that we wrote from a model without biases."""


def read(path: Path, _: ReadOptions) -> Contents:
    """Weights, configuration and tokenizer.

    Raises:
        UserError: a setting that our model does not have, a missing or damaged file.
    """
    raw, metadata, verify = read_weights(path)
    contents = by_name(path, raw, GPT2)
    tensors = contents.tensors
    for name in [name for name in tensors if name.endswith(CONV1D) and len(tensors[name].shape) == 2]:
        tensors[name] = transposed(tensors[name])
    return with_own_biases(contents, metadata, verify)


def with_own_biases(contents: Contents, metadata: Mapping[str, str], verify: Callable[[], None]) -> Contents:
    """The weights of a GPT-2 folder with its configuration, without biases where its header says that it has none."""
    tensors = contents.tensors
    biases = [name for name in tensors if name.endswith(".bias")]
    without_biases = metadata.items() >= NO_BIASES.items() and all(_is_zero(tensors[name]) for name in biases)
    if without_biases:
        for name in biases:
            del tensors[name]
    model = dataclasses.replace(describe(contents.path / "config.json"), bias=not without_biases)
    return model_folder.with_folder(contents, model, verify)


def _is_zero(tensor: Tensor) -> bool:
    return all(block.count(0) == len(block) for block in tensor.blocks())


def describe(path: Path) -> ModelConfig:
    """The model that a config.json describes, with the biases that GPT-2 always has.

    Raises:
        UserError: it has a setting that our model does not have.
    """
    settings = read_json(path)
    model_folder.check_fixed(path, settings, FIXED)
    activation = settings.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        known = nearest(shown(activation), ACTIVATIONS)
        raise UserError(f"{path}: activation_function {shown(activation)} is not known: {known}")
    dropout = settings.get("resid_pdrop", 0.1)
    fields = {OURS.get(key, key): settings.get(key, default) for key, default in SHAPE.items()}
    fields |= {
        "bias": True,
        "tied_head": settings.get("tie_word_embeddings", True),
        "feed_forward": ACTIVATIONS[activation],
        "norm_eps": settings.get("layer_norm_epsilon", 1e-5),
        "dropout": float(dropout) if type(dropout) is int else dropout,
    }
    check_sizes(str(path), settings)
    model = model_folder.read_model(path, fields, OURS)
    if settings.get("n_inner") not in (None, 4 * model.n_embd):
        raise model_folder.other_model(path, "n_inner", settings["n_inner"], 4 * model.n_embd)
    return model


def write(contents: Contents, path: Path, options: WriteOptions) -> tuple[str, ...]:
    """A folder that `AutoModelForCausalLM.from_pretrained` loads.

    Raises:
        UserError: `GPT2LMHeadModel` cannot be this model.
    """
    notes = write_folder(contents, path, options, names=GPT2, settings={})
    model_folder.write_card(contents, path, "GPT-2")
    return notes


def write_folder(
    contents: Contents,
    path: Path,
    options: WriteOptions,
    *,
    names: Mapping[str, str],
    settings: Mapping[str, Any],
    ours: bool = False,
) -> tuple[str, ...]:
    """config.json, model.safetensors and tokenizer of GPT-2 under `names`.

    Args:
        ours: matrices are (out, in) and quantised ones words, as in mlx-lm's own files.

    Raises:
        UserError: the model has something that GPT-2 does not have.
    """
    model = contents.model
    refuse_all_but_gpt2(model, "GPT-2")
    refuse_fields(model, "transformers' GPT-2", {"head_bias": False})
    encoded = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": model.block_size,
        "n_embd": model.n_embd,
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_inner": None,
        "activation_function": "gelu" if model.feed_forward == "gelu" else "gelu_new",
        "layer_norm_epsilon": model.norm_eps,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), model.dropout),
        **FIXED,
        "tie_word_embeddings": model.tied_head,
        **settings,
    }
    tensors = {}
    held = contents.stored if ours else contents.tensors
    # GPT-2 always has biases: where this model has none they are zeros, which changes nothing.
    for name, shape in parameter_shapes(dataclasses.replace(model, bias=True)).items():
        tensor = held.get(name) or zeros(shape, model_folder.dtype_of(contents))
        tensors[translated(name, names)] = transposed(tensor) if name.endswith(CONV1D) and not ours else tensor
    tensors |= {translated(name, names): tensor for name, tensor in held.items() if name in contents.words}
    metadata = {"format": "pt"} | ({} if model.bias else NO_BIASES)
    model_folder.write_folder(contents, path, options, settings=encoded, tensors=tensors, metadata=metadata)
    return () if model.bias else ("the model has no biases: zeros were written in their place, which changes nothing",)


FORMAT = Format(
    name="transformers GPT-2 folder",
    order=20,
    model_type="gpt2",
    describe=describe,
    read=read,
    write=write,
    target="transformers",
    attention="multi_head",
    files=FILES | {CARD},
)
