"""GPT-2 folders of `transformers`: config.json, weights in one or several files, tokenizer.

`GPT2LMHeadModel` keeps the matrices of attention and feed-forward as (in, out) and always has biases.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convert.contents import Contents, by_name, check_sizes, drop_tied_head
from convert.names import CONV1D, GPT2, translate
from convert.options import ReadOptions, WriteOptions
from convert.pickles import shown
from convert.safetensors_file import write_safetensors
from convert.tensors import Tensor, transposed, zeros
from convert.tokenizer_files import read_tokenizer, write_tokenizer
from convert.weights import read_json, read_weights
from gpt_common.config import ModelConfig, RunConfig, from_dict
from gpt_common.errors import UserError, nearest
from gpt_common.init import parameter_shapes

NAME = "transformers GPT-2 folder"
ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "quantization_config": None,
}
"""Switches of GPT2Config that this project's model does not have, at the only value it computes."""
SHAPE = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
"""Fields of GPT2Config with the values that they have when config.json leaves them out."""
OURS = {"n_positions": "block_size", "layer_norm_epsilon": "norm_eps", "resid_pdrop": "dropout"}
"""Fields that have another name here."""
NO_BIASES = {"biases": "none: all of them are zeros"}
"""In the header of a file that we wrote from a model without biases."""


def recognise(path: Path) -> bool:
    """A folder whose config.json says `gpt2`."""
    return _model_type(path) == "gpt2"


def _model_type(folder: Path) -> str | None:
    config = folder / "config.json"
    return read_json(config).get("model_type") if config.is_file() else None


def read(path: Path, _: ReadOptions) -> Contents:
    """Weights, configuration and tokenizer.

    Raises:
        UserError: a setting that our model does not have, a missing or damaged file.
    """
    settings = read_json(path / "config.json")
    raw, metadata, verify = read_weights(path)
    named = by_name(path, raw, GPT2)
    tied = settings.get("tie_word_embeddings", True)
    if tied:
        drop_tied_head(path, named)
    tensors = {
        name: transposed(tensor) if name.endswith(CONV1D) and len(tensor.shape) == 2 else tensor
        for name, tensor in named.tensors.items()
    }
    biases = [name for name in tensors if name.endswith(".bias")]
    without_biases = metadata.items() >= NO_BIASES.items() and all(_is_zero(tensors[name]) for name in biases)
    if without_biases:
        for name in biases:
            del tensors[name]
    model = _model_config(path / "config.json", settings, bias=not without_biases, tied=tied)
    return Contents(
        path=path,
        format=NAME,
        config=RunConfig(model=model),
        tensors=tensors,
        find_tokenizer=lambda: read_tokenizer(path),
        key_map=GPT2,
        names=named.names,
        described_in="config.json",
        unknown=named.unknown,
        notes=named.notes,
        verify=verify,
    )


def _is_zero(tensor: Tensor) -> bool:
    return all(block.count(0) == len(block) for block in tensor.blocks())


def _model_config(path: Path, settings: Mapping[str, Any], *, bias: bool, tied: bool) -> ModelConfig:
    for key, value in FIXED.items():
        if settings.get(key, value) != value:
            raise _other_model(path, key, settings[key], value)
    activation = settings.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        known = nearest(shown(activation), ACTIVATIONS)
        raise UserError(f"{path}: activation_function {shown(activation)} is not known: {known}")
    dropout = settings.get("resid_pdrop", 0.1)
    fields = {OURS.get(key, key): settings.get(key, default) for key, default in SHAPE.items()}
    fields |= {
        "bias": bias,
        "tied_head": tied,
        "feed_forward": ACTIVATIONS[activation],
        "norm_eps": settings.get("layer_norm_epsilon", 1e-5),
        "dropout": float(dropout) if type(dropout) is int else dropout,
    }
    check_sizes(str(path), settings)
    try:
        model = from_dict({"model": fields}, where=str(path)).model
    except UserError as error:
        own = str(error)[:400]
        for theirs, ours in OURS.items():
            own = own.replace(ours, theirs)
        raise UserError(f"{own}: copy the file again, or choose another model") from None
    if settings.get("n_inner") not in (None, 4 * model.n_embd):
        raise _other_model(path, "n_inner", settings["n_inner"], 4 * model.n_embd)
    return model


def _other_model(path: Path, key: str, found: object, computed: object) -> UserError:
    return UserError(f"{path}: {key} is {shown(found)}, only {computed} can be converted: choose another model")


def write(contents: Contents, path: Path, options: WriteOptions) -> tuple[str, ...]:
    """A folder that `AutoModelForCausalLM.from_pretrained` loads.

    Raises:
        UserError: `GPT2LMHeadModel` cannot be this model.
    """
    notes = write_folder(contents, path, options, names=GPT2, settings={})
    _write_card(contents, path)
    return notes


def write_folder(
    contents: Contents, path: Path, options: WriteOptions, *, names: Mapping[str, str], settings: Mapping[str, Any]
) -> tuple[str, ...]:
    """config.json, model.safetensors and tokenizer of GPT-2 under `names`.

    Raises:
        UserError: a bias in the output layer, which GPT-2 does not have.
    """
    config = contents.config
    assert config is not None
    model = config.model
    if model.head_bias:
        raise UserError(
            "GPT-2's output layer has no bias in transformers and this model's has one: --to cannot hold it"
        )
    path.mkdir()
    end = None if options.tokenizer is None else options.tokenizer.end_of_text
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
        **{key: value for key, value in FIXED.items() if value is not None},
        "tie_word_embeddings": model.tied_head,
        "bos_token_id": end,
        "eos_token_id": end,
        "dtype": {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}[_dtype(contents)],
        **settings,
    }
    (path / "config.json").write_text(json.dumps(encoded, indent=2) + "\n", encoding="utf-8")
    tensors = {}
    # GPT-2 always has biases: where this model has none they are zeros, which changes nothing.
    for name, shape in parameter_shapes(dataclasses.replace(model, bias=True)).items():
        tensor = contents.tensors.get(name) or zeros(shape, _dtype(contents))
        foreign = translate(name, names)
        assert foreign is not None
        tensors[foreign] = transposed(tensor) if name.endswith(CONV1D) else tensor
    metadata = {"format": "pt"} | ({} if model.bias else NO_BIASES)
    write_safetensors(path / "model.safetensors", tensors, metadata, options.progress)
    if options.tokenizer is not None:
        write_tokenizer(options.tokenizer, path, model.block_size)
    return () if model.bias else ("the model has no biases: zeros were written in their place, which changes nothing",)


def _dtype(contents: Contents) -> str:
    return contents.tensors["token_embedding.weight"].dtype


def _write_card(contents: Contents, path: Path) -> None:
    assert contents.config is not None
    model = contents.config.model
    trained = f"Trained for {contents.step:,} steps." if contents.step else ""
    loss = "" if contents.best_val_loss is None else f" Best validation loss {contents.best_val_loss:.4f}."
    text = f"""---
library_name: transformers
pipeline_tag: text-generation
---

# A GPT-2 of {model.n_layer} layers

{model.n_layer} layers, {model.n_head} heads, width {model.n_embd}.
Context {model.block_size}, vocabulary {model.vocab_size}.
{trained}{loss}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{path.name.partition(".tmp-")[0]}")
```

Written by `python -m convert mlx2torch --to transformers` from a {contents.format}.
"""
    (path / "README.md").write_text(text, encoding="utf-8")
