"""GPT-2 folders of mlx-lm: as of `transformers`, but names without `transformer.`, and `n_ctx` in config.json.

What it saves itself has names that begin with `model.`, and matrices that are (out, in) already. By these names it
tells its own files from others', as is done here: the output projection of attention is square, so its shape would not
show a wrong transposition.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from convert.contents import Contents, by_name, refuse_activation, refuse_all_but_gpt2, refuse_fields
from convert.formats import transformers_gpt2
from convert.formats.model_folder import FILES
from convert.formats.names import GPT2
from convert.options import ReadOptions, WriteOptions
from convert.storage.mlx_grids import settings_of
from convert.storage.safetensors_file import read_safetensors
from convert.storage.weights import read_json, read_weights

NAMES = {ours: foreign.removeprefix("transformer.") for ours, foreign in GPT2.items()}


OWN_NAMES = {ours: f"model.{foreign}" for ours, foreign in NAMES.items()}
"""In the files that it saves itself."""


def recognise(path: Path) -> bool:
    """What mlx-lm accepts of GPT-2: `n_ctx`, and in every file names without a prefix; or names of its own."""
    names = [name for file in path.glob("model*.safetensors") for name in read_safetensors(file)]
    others = "n_ctx" in read_json(path / "config.json") and all(
        name.startswith(("wte", "wpe", "h.", "ln_f")) for name in names
    )
    return bool(names) and (others or _saved_by_itself(names))


def _saved_by_itself(names: Iterable[str]) -> bool:
    return all(name.startswith("model.") for name in names)


def read(path: Path, options: ReadOptions) -> Contents:
    """Weights, configuration and tokenizer.

    Raises:
        UserError: a setting that our model does not have, a missing or damaged file.
    """
    raw, metadata, verify = read_weights(path)
    if not _saved_by_itself(raw):
        return transformers_gpt2.read(path, options)
    return transformers_gpt2.with_own_biases(by_name(path, raw, OWN_NAMES), metadata, verify)


def write(contents: Contents, path: Path, options: WriteOptions) -> tuple[str, ...]:
    """A folder that `mlx_lm.load` accepts.

    Raises:
        UserError: mlx-lm's GPT-2 cannot be this model.
    """
    model = contents.model
    refuse_all_but_gpt2(model, "mlx-lm's GPT-2")
    refuse_activation(model, "gelu_tanh", "mlx-lm", options.other_gelu)
    refuse_fields(model, "mlx-lm's GPT-2", {"tied_head": True})
    settings: dict[str, Any] = {"n_ctx": model.block_size}
    if not contents.grids:
        return transformers_gpt2.write_folder(contents, path, options, names=NAMES, settings=settings)
    settings |= settings_of(contents.grids, OWN_NAMES)
    return transformers_gpt2.write_folder(contents, path, options, names=OWN_NAMES, settings=settings, ours=True)


FORMAT = dataclasses.replace(
    transformers_gpt2.FORMAT,
    name="mlx-lm GPT-2 folder",
    order=10,
    recognise=recognise,
    read=read,
    write=write,
    target="mlx-lm",
    commands=("torch2mlx", "mlx2torch"),
    keeps_words=True,
    files=FILES,
)
