"""Bare state dicts: named tensors in one file (.pt, .pth, .bin, .safetensors) that says nothing of its model.

Shapes settle all of the configuration but the number of heads, the kind of GELU and the norms' epsilon: `--preset` or
`--config` says those, and must agree with the shapes in whatever else it says.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from convert.contents import Contents, by_name, shape_of_model
from convert.formats.format import Format
from convert.formats.names import CONV1D, GPT2, OURS, translate, without_prefixes
from convert.options import ReadOptions
from convert.storage.safetensors_file import is_safetensors, read_safetensors
from convert.storage.tensors import Tensor, same, transposed
from convert.storage.torch_file import TorchFile, is_torch_file
from gpt_common.config import PRESETS_FOLDER, RunConfig, load_preset, load_toml
from gpt_common.errors import UserError

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Under which people save a state dict beside other things."""


def recognise(path: Path) -> bool:
    """Any file of torch.save or safetensors; come here after the formats that say more."""
    return path.is_file() and (is_torch_file(path) or is_safetensors(path))


def read(path: Path, options: ReadOptions) -> Contents:
    """Tensors under the names of nanoGPT, of `transformers` or of this project.

    Raises:
        UserError: the file is damaged, holds something else than tensors, or contradicts `--preset` or `--config`.
    """
    raw, notes, verify = read_raw(path)
    ours = sum(translate(without_prefixes(name), OURS) is not None for name in raw)
    contents = by_name(path, raw, OURS if ours > len(raw) / 2 else GPT2)
    tensors = contents.tensors
    embedding = tensors.get("token_embedding.weight")
    untied = "head.bias" in tensors or _said(options).get("tied_head") is False
    if "head.weight" in tensors and embedding is not None and not untied and same(tensors["head.weight"], embedding):
        del tensors["head.weight"]
        notes = (*notes, "the output layer is the token embedding: tied")
    if _is_conv1d(tensors):
        notes = (*notes, "matrices are (in, out), as transformers keeps GPT-2's: transposed")
        for name in [name for name in tensors if name.endswith(CONV1D) and len(tensors[name].shape) == 2]:
            tensors[name] = transposed(tensors[name])
    return dataclasses.replace(
        contents,
        config=read_config(path, tensors, options, {}),
        described_in=described_in(options),
        notes=(*notes, *contents.notes),
        verify=verify,
    )


def described_in(options: ReadOptions) -> str:
    """What says which model it is, for messages."""
    return str(options.config or f"preset {options.preset}")


def _wrapper(value: Any) -> str | None:
    """Under which key a file keeps its state dict; None if it is one itself."""
    return next((key for key in WRAPPERS if isinstance(value, dict) and isinstance(value.get(key), dict)), None)


def tensor_names(path: Path) -> list[str]:
    """The names in a file, whatever else is wrong with it."""
    if not is_torch_file(path):
        return list(read_safetensors(path))
    value = TorchFile(path).value
    wrapper = _wrapper(value)
    inner = value if wrapper is None else value[wrapper]
    return [name for name in inner if isinstance(name, str)] if isinstance(inner, dict) else []


def read_raw(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...], Any]:
    """Tensors by their own names, what there is to say, and what checks all that is not read.

    Raises:
        UserError: the file is damaged, or holds something else than tensors.
    """
    if not is_torch_file(path):
        return read_safetensors(path), (), lambda: None
    file = TorchFile(path)
    value = file.value
    notes: tuple[str, ...] = ()
    wrapper = _wrapper(value)
    if wrapper is not None:
        left = ", ".join(str(key)[:40] for key in value if key != wrapper)
        notes = (f"taken from {wrapper!r}" + (f"; left out: {left}" if left else ""),)
        value = value[wrapper]
    return file.tensors(value, wrapper or "the state dict"), notes, file.verify


def _is_conv1d(tensors: Mapping[str, Tensor]) -> bool:
    """Whether matrices are (in, out), which only the fused projection of q, k and v shows for certain."""
    return any(
        name.endswith("qkv_proj.weight") and len(t.shape) == 2 and t.shape[1] == 3 * t.shape[0]
        for name, t in tensors.items()
    )


def _files(options: ReadOptions) -> list[Path]:
    """The TOML files of `--preset` and `--config`, each over the one before."""
    if options.preset is not None:
        load_preset(options.preset)  # a wrong name is said with the nearest right one
    preset = [] if options.preset is None else [PRESETS_FOLDER / f"{options.preset}.toml"]
    return preset + ([] if options.config is None else [options.config])


def _said(options: ReadOptions) -> dict[str, Any]:
    """What the files themselves say of the model, without defaults."""
    said: dict[str, Any] = {}
    for file in _files(options):
        # A file that cannot be read is refused by load_toml.
        with suppress(OSError, ValueError, TypeError, KeyError):
            said |= tomllib.loads(file.read_text(encoding="utf-8"))["model"]
    return said


def read_config(
    path: Path, tensors: Mapping[str, Tensor], options: ReadOptions, more: Mapping[str, Any]
) -> RunConfig | None:
    """`--config` over `--preset` over what shapes settle; None if neither was given.

    Args:
        more: fields that they settle besides those that every family has.

    Raises:
        UserError: the shapes contradict what was given, or it does not say the number of heads.
    """
    files = _files(options)
    if not files:
        return None
    settled = shape_of_model(tensors)
    config = RunConfig(model=dataclasses.replace(RunConfig().model, **{**settled, "n_head": 1}))
    settled |= more
    for file in files:
        config = load_toml(file, config)
    if config.model.vocab_size == 0 and "vocab_size" in settled:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=settled["vocab_size"]))
    for key, value in settled.items():
        if (wanted := getattr(config.model, key)) != value:
            raise UserError(
                f"{path}: its tensors have {key} {value}, {files[-1]} says {wanted}: choose the one that fits"
            )
    if "n_head" not in _said(options):
        raise UserError(f"{path}: no shape tells the number of heads: add n_head under [model] in {files[-1]}")
    return config


FORMAT = Format(name="state dict", order=90, recognise=recognise, read=read, bare=True)
