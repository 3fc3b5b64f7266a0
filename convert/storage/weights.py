"""Named tensors from one file or several: model.safetensors, pytorch_model.bin, and shards of either with an index."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convert.storage.safetensors_file import read_metadata, read_safetensors
from convert.storage.tensors import COPY_AGAIN, Tensor
from convert.storage.torch_file import TorchFile, is_torch_file
from gpt_common.errors import UserError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The first that is there is taken: safetensors before pickles, one file before shards."""
Weights = tuple[dict[str, Tensor], dict[str, str], Callable[[], None]]
"""Tensors by name, the header entries of a single safetensors file, and what checks all that is not read."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        UserError: it does not.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): {COPY_AGAIN}") from None
    return value


def read_weights(folder: Path) -> Weights:
    """The weights of a folder of `transformers` or mlx-lm.

    Raises:
        UserError: there are none, a file is damaged, or index and shards disagree.
    """
    present = [name for name in WEIGHTS if (folder / name).is_file()]
    if not present:
        raise UserError(f"{folder} has a config.json but no weights: add one of {', '.join(WEIGHTS)}")
    path = folder / present[0]
    return _read_shards(path) if path.name.endswith(".index.json") else read_weights_file(path)


def _read_shards(index: Path) -> Weights:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict):
        raise UserError(f"{index} has no weight_map from tensors to files: {COPY_AGAIN}")
    for name, file in placed.items():
        if not isinstance(file, str) or Path(file).name != file or not (index.parent / file).is_file():
            raise UserError(
                f"{index} places tensor {name[:80]} in {str(file)[:80]!r}, and no such file is beside it: {COPY_AGAIN}"
            )
    tensors: dict[str, Tensor] = {}
    checks = []
    for file in sorted(set(placed.values())):
        found, _, verify = read_weights_file(index.parent / file)
        checks.append(verify)
        listed = {name for name, where in placed.items() if where == file}
        for name in sorted(found.keys() ^ listed):
            what = "is missing from it" if name in listed else "is in it and not in the index"
            raise UserError(f"{index} and {file} disagree: tensor {name[:80]} {what}: {COPY_AGAIN}")
        tensors.update(found)

    def verify_all() -> None:
        for check in checks:
            check()

    return tensors, {}, verify_all


def read_weights_file(path: Path) -> Weights:
    """Named tensors of a safetensors or torch file.

    Raises:
        UserError: the file is neither, is damaged, or holds something else than named tensors.
    """
    if not is_torch_file(path):
        return read_safetensors(path), read_metadata(path), lambda: None
    file = TorchFile(path)
    return file.tensors(file.value, "the state dict"), {}, file.verify
