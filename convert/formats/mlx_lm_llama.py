"""Llama folders of mlx-lm: the names and settings of `transformers`, and weights whose header says `mlx`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from convert.contents import Contents
from convert.formats import transformers_llama
from convert.formats.model_folder import FILES, is_mlx
from convert.options import WriteOptions


def write(contents: Contents, path: Path, options: WriteOptions) -> tuple[str, ...]:
    """A folder that `mlx_lm.load` accepts.

    Raises:
        UserError: mlx-lm's Llama cannot be this model.
    """
    return transformers_llama.write_llama(contents, path, options, "mlx")


FORMAT = dataclasses.replace(
    transformers_llama.FORMAT,
    name="mlx-lm Llama folder",
    order=30,
    recognise=is_mlx,
    write=write,
    target="mlx-lm",
    commands=("torch2mlx", "mlx2torch"),
    files=FILES,
)
