"""What folders of `transformers` and mlx-lm have in common: config.json, model.safetensors, tokenizer, model card."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from convert.contents import Contents, check_sizes, drop_tied_head
from convert.formats.tokenizer_files import ends_of, read_tokenizer, write_tokenizer
from convert.options import WriteOptions
from convert.storage import mlx_grids
from convert.storage.pickles import shown
from convert.storage.safetensors_file import read_metadata, read_safetensors, write_safetensors
from convert.storage.tensors import WEIGHT_DTYPES, Tensor
from convert.storage.weights import read_json
from gpt_common.config import ModelConfig, RunConfig, from_dict
from gpt_common.data.conversations.templates import own_template
from gpt_common.errors import UserError

FILES = frozenset({"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"})
"""What `write_folder` makes."""
CARD = "README.md"
REQUIRED = object()
"""A setting that must be there: what a library would put in its place is no guess that should pass in silence."""
COPY_OR_CHOOSE = "copy the file again, or choose another model"
Fields = Mapping[str, tuple[str, object]]
"""A library's settings: our name, and the value where config.json leaves it out or says null."""
NEVER_COMPUTED = {
    "architectures", "model_type", "auto_map", "transformers_version", "_name_or_path", "dtype", "torch_dtype",
    "use_cache", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id", "output_router_logits",
    "num_nextn_predict_layers", "num_mtp_layers", "aux_loss_alpha", "seq_aux", "ep_size",
}  # fmt: skip
"""Settings on which no logit depends."""
ROPE = ("rope_theta", "rope_parameters", "rope_scaling")
ROPE_DEFAULTS: dict[str, object] = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}
"""What `rope_parameters` may say besides the base."""
LARGEST_THETA = 1e15


def model_type(folder: Path) -> str | None:
    """What config.json says the model is; None if there is none."""
    config = folder / "config.json"
    return read_json(config).get("model_type") if config.is_file() else None


def is_mlx(folder: Path) -> bool:
    """Whether every weight file says that it was written for MLX, as mlx-lm's own do."""
    files = sorted(folder.glob("model*.safetensors"))
    return bool(files) and all(read_safetensors(f) and read_metadata(f).get("format") == "mlx" for f in files)


def with_folder(
    contents: Contents, model: ModelConfig, verify: Callable[[], None], notes: tuple[str, ...] = ()
) -> Contents:
    """The weights of a folder, with what config.json and its tokenizer say of them.

    Args:
        verify: checks whatever has not been read.

    Raises:
        UserError: an output layer that should be the token embedding is not, or a grid is not what config.json says.
    """
    if model.tied_head:
        drop_tied_head(contents)
    found = dataclasses.replace(
        contents,
        config=RunConfig(model=model),
        find_tokenizer=lambda: read_tokenizer(contents.path),
        find_template=lambda: own_template(contents.path),
        described_in="config.json",
        notes=(*notes, *contents.notes),
        verify=verify,
    )
    return mlx_grids.with_words(found, read_json(contents.path / "config.json"), contents.path)


def read_settings(
    path: Path, settings: Mapping[str, Any], fields: Fields, zero: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Fields of ours from config.json; types are checked with the rest by `read_model`.

    Args:
        zero: the settings that may be 0.

    Raises:
        UserError: one is missing, or no number that a model could have.
    """
    check_sizes(str(path), {key: settings.get(key) for key in fields})
    found = {}
    for key, (ours, default) in fields.items():
        value = settings.get(key)
        if value is None:
            if default is REQUIRED:
                raise UserError(f"{path} does not say {key}: add it, or copy the file again")
            value = default
        elif type(value) is int and value < 1 and key not in zero:
            raise UserError(f"{path}: {key} is {value}, it must be at least 1: {COPY_OR_CHOOSE}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path}: {key} is {value}, which is not a finite number: {COPY_OR_CHOOSE}")
        found[ours] = value
    return found | {"rope_theta": rope_theta(path, settings)}


def read_model(path: Path, fields: Mapping[str, Any], names: Mapping[str, str]) -> ModelConfig:
    """A configuration from its fields.

    Args:
        names: what config.json calls them.

    Raises:
        UserError: a type or a combination that cannot be; in the words of config.json.
    """
    try:
        return from_dict({"model": dict(fields)}, where=str(path)).model
    except UserError as error:
        said = str(error).removeprefix(str(path))[:400]
        for theirs, ours in names.items():
            said = re.sub(rf"\b{ours}\b", theirs, said)
        raise UserError(f"{path}{said}: {COPY_OR_CHOOSE}") from None


def check_fixed(path: Path, settings: Mapping[str, Any], fixed: Mapping[str, object]) -> None:
    """Refuse settings that our models do not have, at any other value than the one they compute.

    Raises:
        UserError: names the setting.
    """
    for key in mlx_grids.KEYS:
        if settings.get(key) is not None:
            mlx_grids.check_mode(path, settings[key], key)
    layers = settings.get("layer_types")
    if layers is not None and set(map(str, layers if isinstance(layers, list) else [layers])) - {"full_attention"}:
        raise UserError(f"{path}: layer_types names layers other than full_attention: choose another model")
    for key, value in fixed.items():
        if settings.get(key, value) != value:
            raise other_model(path, key, settings[key], value)


def not_read(settings: Mapping[str, Any], read: Iterable[str]) -> tuple[str, ...]:
    """A note with the settings that nothing here reads, and the libraries' model of this type does not either."""
    known = {*read, *ROPE, *NEVER_COMPUTED, *mlx_grids.KEYS, "layer_types"}
    names = [name[:40] for name, value in settings.items() if name not in known and value not in (None, False)]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (f"not read in config.json: {', '.join(names[:8])}{more}",) if names else ()


def other_model(path: Path, key: str, found: object, computed: object) -> UserError:
    """A setting that cannot be converted."""
    return UserError(f"{path}: {key} is {shown(found)}, and only {computed} can be converted: choose another model")


def rope_theta(path: Path, settings: Mapping[str, Any]) -> object:
    """The base of the rotary wavelengths: in `rope_parameters` since transformers 5, beside it before and for mlx-lm.

    Raises:
        UserError: wavelengths are scaled, or the two places disagree.
    """
    thetas = {"rope_theta": settings["rope_theta"]} if settings.get("rope_theta") is not None else {}
    for key in ROPE[1:]:
        parameters = settings.get(key)
        if parameters is None:
            continue
        if not isinstance(parameters, dict):
            raise other_model(path, key, parameters, "an object with rope_type default")
        for name, value in parameters.items():
            if name != "rope_theta" and value != ROPE_DEFAULTS.get(name):
                raise other_model(path, f"{name[:40]} in {key}", value, ROPE_DEFAULTS.get(name, "a model without it"))
        if "rope_theta" in parameters:
            thetas[f"rope_theta in {key}"] = parameters["rope_theta"]
    (first, theta), *others = thetas.items() if thetas else [("", 10000.0)]
    for name, other in others:
        if other != theta:
            raise UserError(f"{path}: {first} is {shown(theta)} and {name} {shown(other)}: set both to the same value")
    if isinstance(theta, int | float) and not abs(theta) < LARGEST_THETA:
        raise UserError(f"{path}: rope_theta is {shown(theta)}, which no model has: {COPY_OR_CHOOSE}")
    return theta


def settings_of(model: ModelConfig, architecture: str, model_type: str, fields: Fields) -> dict[str, Any]:
    """What config.json says of a model with rotary positions; some values want another form there."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        **{theirs: getattr(model, ours) for theirs, (ours, _) in fields.items()},
        # For transformers before 5 and for mlx-lm, then for transformers since.
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
    }


def dtype_of(contents: Contents) -> str:
    """The dtype of the weights, as their largest tensor has it."""
    kept = contents.words.get("token_embedding.scales") or contents.tensors["token_embedding.weight"]
    return kept.dtype


def write_folder(
    contents: Contents,
    path: Path,
    options: WriteOptions,
    *,
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
) -> None:
    """config.json of `settings`, and weights and tokenizer.

    Raises:
        UserError: a tensor cannot be read.
        OSError: the folder cannot be written.
    """
    path.mkdir()
    begin = None if options.tokenizer is None else options.tokenizer.end_of_text
    ends = [] if options.tokenizer is None else ends_of(options.tokenizer, options.template)
    end = ends if len(ends) > 1 else next(iter(ends), None)
    rest = {"bos_token_id": begin, "eos_token_id": end, "dtype": WEIGHT_DTYPES[dtype_of(contents)]}
    encoded = json.dumps({**settings, **rest}, indent=2) + "\n"
    (path / "config.json").write_text(encoded, encoding="utf-8")
    write_safetensors(path / "model.safetensors", tensors, metadata, options.progress)
    if options.tokenizer is not None:
        write_tokenizer(options.tokenizer, path, contents.model.block_size, options.template)


def write_card(contents: Contents, path: Path, kind: str) -> None:
    """README.md for the hub: what it is, how it was trained, how to load it."""
    model = contents.model
    trained = f"Trained for {contents.step:,} steps." if contents.step else ""
    loss = "" if contents.best_val_loss is None else f" Best validation loss {contents.best_val_loss:.4f}."
    text = f"""---
library_name: transformers
pipeline_tag: text-generation
---

# A {kind} of {model.n_layer} layers

{model.n_layer} layers, {model.n_head} heads, width {model.n_embd}.
Context {model.block_size}, vocabulary {model.vocab_size}.
{trained}{loss}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{path.name.partition(".tmp-")[0]}")
```

Written by `python -m convert export --to transformers` from a {contents.format}.
"""
    (path / CARD).write_text(text, encoding="utf-8")
