"""Checkpoint formats: one file each with the same verbs.

    NAME                                what it is, for people
    recognise(path) -> bool             by content, never by name alone
    read(path, options) -> Contents     nothing but headers is read
    write(contents, path, options)      into a path that does not exist; the command moves it into place;
                                        returns what a person should know about the result
                                        (a bare state dict has none: it would lose the configuration)

None of them imports a framework.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import ModuleType

from convert.contents import Contents
from convert.formats import (
    custom_llm,
    mlx_lm_deepseek_v3,
    mlx_lm_gpt2,
    mlx_lm_llama,
    nanogpt,
    native,
    state_dict,
    transformers_deepseek_v3,
    transformers_gpt2,
    transformers_llama,
)
from convert.formats.tokenizer_files import PICKLE
from convert.options import ReadOptions
from convert.storage.pickles import Refused, read_pickle
from convert.storage.tensors import AGAIN
from convert.storage.torch_file import LARGEST_PICKLE
from convert.storage.weights import WEIGHTS, read_json
from gpt_common.errors import UserError

FORMATS: tuple[ModuleType, ...] = (
    native,
    mlx_lm_gpt2,
    transformers_gpt2,
    mlx_lm_llama,
    transformers_llama,
    mlx_lm_deepseek_v3,
    transformers_deepseek_v3,
    nanogpt,
    custom_llm,
    state_dict,
)
"""In the order in which they are tried: what says most of itself first."""
MODEL_TYPES = "'gpt2', 'llama' or 'deepseek_v3'"
BARE = (custom_llm, state_dict)
"""Tensors alone, which `--preset` or `--config` explains."""


def read(path: Path, options: ReadOptions) -> Contents:
    """The contents of whatever `path` is.

    Raises:
        UserError: nothing that is known here; says what it looks like. Or the format's own errors.
    """
    try:
        if not os.path.lexists(path):
            raise UserError(f"no such file or folder: {path}; check the name")
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise UserError(f"{path} is neither a file nor a folder: give one of those")
        for candidate in FORMATS:
            if candidate.recognise(path):
                if candidate not in BARE and (options.preset or options.config):
                    raise UserError(f"{path} says itself which model it is: leave out --preset and --config")
                contents: Contents = candidate.read(path, options)
                return contents
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename or path}: {error.strerror or error}: check that you may"
        ) from None
    raise UserError(_unknown(path))


def _unknown(path: Path) -> str:
    if path.is_dir():
        if (path / "config.json").is_file():
            kind = read_json(path / "config.json").get("model_type")
            return f"{path}: config.json says model_type {kind!r}; choose one that says {MODEL_TYPES}"
        weights = [name for name in (*WEIGHTS, nanogpt.FILE) if (path / name).is_file()]
        if weights:
            return f"{path} has {weights[0]} but no config.json: add it, or convert that file with --preset or --config"
        return f"{path} is a folder without a checkpoint: give a run, or one with config.json and weights or ckpt.pt"
    with path.open("rb") as file:
        start = file.read(16)
        file.seek(257)
        tar = file.read(5) == b"ustar"
    if not start:
        return f"{path} is empty: {AGAIN}"
    if tar:
        return f"{path} is not a checkpoint of PyTorch 1.6 or later but a tar archive: convert what is in it"
    if start[:1] == PICKLE and path.stat().st_size < LARGEST_PICKLE:
        try:
            read_pickle(path.read_bytes())
        except Refused as error:
            return f"{path} is a bare pickle: {error}. Nothing in it was run; save tensors with torch.save"
        return f"{path} is a bare pickle: save tensors with torch.save"
    return (
        f"{path} is not a checkpoint: it begins with {start!r}. Give a file of torch.save or safetensors, or a folder"
    )
