"""Llama folders of mlx-lm: the names and settings of `transformers`, and weights whose header says `mlx`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from convert.contents import Contents
from convert.formats import transformers_llama
from convert.formats.model_folder import is_mlx
from convert.options import ReadOptions, WriteOptions

NAME = "Llama folder as mlx-lm takes it"


def recognise(path: Path) -> bool:
    """A Llama folder whose weights were written for MLX."""
    return transformers_llama.recognise(path) and is_mlx(path)


def read(path: Path, options: ReadOptions) -> Contents:
    """As a folder of `transformers`.

    Raises:
        UserError: as there.
    """
    return dataclasses.replace(transformers_llama.read(path, options), format=NAME)


def write(contents: Contents, path: Path, options: WriteOptions) -> tuple[str, ...]:
    """A folder that `mlx_lm.load` accepts.

    Raises:
        UserError: mlx-lm's Llama cannot be this model.
    """
    transformers_llama.write_llama(contents, path, options, "mlx")
    return ()
