"""All formats: every file or package of this folder that declares one. A new format is one more, and nothing else."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pkgutil
import stat
from pathlib import Path

from convert import formats
from convert.contents import Contents
from convert.formats.format import Format
from convert.formats.model_folder import model_type
from convert.formats.tokenizer_files import PICKLE
from convert.options import ReadOptions
from convert.storage.pickles import Refused, read_pickle
from convert.storage.tensors import COPY_AGAIN
from convert.storage.torch_file import LARGEST_PICKLE
from convert.storage.weights import WEIGHTS
from gpt_common.config import ModelConfig
from gpt_common.errors import UserError
from gpt_common.training.pretrained import unusable


def _declared() -> tuple[Format, ...]:
    names = (found.name for found in pkgutil.iter_modules(formats.__path__, f"{formats.__name__}."))
    modules = (importlib.import_module(name) for name in names if name != __name__)
    found = (module.FORMAT for module in modules if hasattr(module, "FORMAT"))
    return tuple(sorted(found, key=lambda declared: declared.order))


FORMATS = _declared()
"""In the order in which they are asked whether a source is theirs."""


def targets(command: str | None = None) -> tuple[str, ...]:
    """What `--to` of a command offers; everything that can be written if none is named."""
    written = (found for found in FORMATS if found.target and (command is None or command in found.commands))
    return tuple(dict.fromkeys(found.target for found in written))


def blocks() -> tuple[str, ...]:
    """What `--dtype` offers besides floats."""
    return tuple(dict.fromkeys(name for found in FORMATS for name in found.blocks or ()))


def formats_of(target: str) -> list[Format]:
    """The formats that share a name in `--to`."""
    return [found for found in FORMATS if found.target == target]


def format_for(target: str, model: ModelConfig) -> Format:
    """The format that `--to` means for a model.

    Raises:
        UserError: the library has no such model.
    """
    for found in formats_of(target):
        if found.attention in ("", model.attention):
            return found
    known = ", ".join(found.attention for found in formats_of(target))
    raise UserError(f"the model's attention is {model.attention}, and {target} has only {known}: keep the run as it is")


def read(path: Path, options: ReadOptions) -> Contents:
    """The contents of whatever `path` is.

    Raises:
        UserError: no known format; says what it looks like. Or the format's own errors.
    """
    try:
        if not os.path.lexists(path):
            raise UserError(f"no such file or folder: {path}; check the name")
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UserError(f"{path} is neither a file nor a folder: give one of those")
        kind = model_type(path)
        for candidate in FORMATS:
            if candidate.model_type in ("", kind) and candidate.recognise(path):
                if not candidate.bare and (options.preset or options.config):
                    raise UserError(f"{path} already says which model it is: leave out --preset and --config")
                contents = candidate.read(path, options)
                return dataclasses.replace(contents, format=candidate.name, family=candidate.family)
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename or path}: {error.strerror or error}: check the path and its permissions"
        ) from None
    raise UserError(_unknown(path))


def describe(folder: Path) -> ModelConfig:
    """The model that a folder's config.json describes, of which nothing else may be there yet.

    Raises:
        UserError: no format holds it.
    """
    kind = model_type(folder)
    for candidate in FORMATS:
        if candidate.describe is not None and candidate.model_type == kind:
            return candidate.describe(folder / "config.json")
    raise UserError(_unknown(folder))


def _unknown(path: Path) -> str:
    if (said := unusable(path)) is not None:
        return said
    if path.is_dir():
        if (path / "config.json").is_file():
            *others, last = dict.fromkeys(f"'{found.model_type}'" for found in FORMATS if found.model_type)
            known = f"{', '.join(others)} or {last}"
            said = f"config.json says model_type {model_type(path)!r}, which is not supported"
            return f"{path}: {said}: choose a model of type {known}"
        alone = [found.single_file for found in FORMATS if found.single_file]
        written = sorted(name for found in FORMATS for name in found.files if Path(name).suffix in alone)
        weights = [name for name in (*WEIGHTS, *written) if (path / name).is_file()]
        if weights:
            return f"{path} has {weights[0]} but no config.json: add it, or convert that file with --preset or --config"
        return f"{path} is a folder without a checkpoint: give a run, or one with config.json and weights or ckpt.pt"
    with path.open("rb") as file:
        start = file.read(16)
        file.seek(257)
        tar = file.read(5) == b"ustar"
    if not start:
        return f"{path} is empty: {COPY_AGAIN}"
    if tar:
        return f"{path} is a tar archive, not a checkpoint of PyTorch 1.6 or later: convert what is in it"
    if start[:1] == PICKLE and path.stat().st_size < LARGEST_PICKLE:
        try:
            read_pickle(path.read_bytes())
        except Refused as error:
            return f"{path} is a bare pickle: {error}. Nothing in it was run; save tensors with torch.save"
        return f"{path} is a bare pickle: save tensors with torch.save"
    return (
        f"{path} is not a checkpoint: it begins with {start!r}. Give a file of torch.save or safetensors, or a folder"
    )
