"""Llama folders of mlx-lm: the names and settings of `transformers`, and weights whose header says `mlx`."""

from __future__ import annotations

import dataclasses
import functools

from convert.formats import transformers_llama
from convert.formats.model_folder import FILES, is_mlx

FORMAT = dataclasses.replace(
    transformers_llama.FORMAT,
    name="mlx-lm Llama folder",
    order=30,
    recognise=is_mlx,
    write=functools.partial(transformers_llama.write_llama, library="mlx"),
    target="mlx-lm",
    commands=("torch2mlx", "mlx2torch"),
    keeps_words=True,
    files=FILES,
)
