"""GPT-2 folders of mlx-lm: as of `transformers`, but names without `transformer.`, and `n_ctx` in config.json."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from convert.contents import Contents, refuse_activation, refuse_all_but_gpt2, refuse_fields
from convert.formats import transformers_gpt2
from convert.formats.model_folder import FILES
from convert.formats.names import GPT2
from convert.options import WriteOptions
from convert.storage.safetensors_file import read_safetensors
from convert.storage.weights import read_json

NAMES = {ours: foreign.removeprefix("transformer.") for ours, foreign in GPT2.items()}


def recognise(path: Path) -> bool:
    """What mlx-lm accepts of GPT-2: `n_ctx`, and in every file names without a prefix."""
    files = list(path.glob("model*.safetensors")) if "n_ctx" in read_json(path / "config.json") else []
    return bool(files) and all(
        name.startswith(("wte", "wpe", "h.", "ln_f")) for f in files for name in read_safetensors(f)
    )


def write(contents: Contents, path: Path, options: WriteOptions) -> tuple[str, ...]:
    """A folder that `mlx_lm.load` accepts.

    Raises:
        UserError: mlx-lm's GPT-2 cannot be this model.
    """
    model = contents.model
    refuse_all_but_gpt2(model, "mlx-lm's GPT-2")
    refuse_activation(model, "gelu_tanh", "mlx-lm", options.other_gelu)
    refuse_fields(model, "mlx-lm's GPT-2", {"tied_head": True})
    settings = {"n_ctx": model.block_size}
    return transformers_gpt2.write_folder(contents, path, options, names=NAMES, settings=settings)


FORMAT = dataclasses.replace(
    transformers_gpt2.FORMAT,
    name="mlx-lm GPT-2 folder",
    order=10,
    recognise=recognise,
    write=write,
    target="mlx-lm",
    commands=("torch2mlx", "mlx2torch"),
    files=FILES,
)
