"""This project's own runs and checkpoints (gpt_common/training/checkpoint.py)."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convert.contents import Contents, check_sizes
from convert.options import ReadOptions, WriteOptions
from convert.storage.pickles import shown
from convert.storage.safetensors_file import read_safetensors, write_safetensors
from convert.storage.tensors import Tensor, beside
from gpt_common.config import from_dict, to_dict, to_toml
from gpt_common.data.tokenizers import load_tokenizer
from gpt_common.errors import UserError
from gpt_common.training.checkpoint import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    TOKENIZER_FILE,
    find_checkpoint,
    read_state,
    write_checkpoint,
)

NAME = "native checkpoint"


def recognise(path: Path) -> bool:
    """A checkpoint folder, or a run folder with checkpoints in it."""
    return path.is_dir() and ((path / STATE_FILE).exists() or (path / "checkpoints").is_dir())


def read(path: Path, options: ReadOptions) -> Contents:
    """The best checkpoint of a run (the latest with `options.latest`), or the one that `path` is.

    Raises:
        UserError: no checkpoint, or a damaged one; hashes are checked while tensors are read.
    """
    folder = find_checkpoint(path, prefer="latest" if options.latest else "best")
    state = read_state(folder)
    check_sizes(str(folder / STATE_FILE), state["config"].get("model", {}))
    config = from_dict(state["config"], where=str(folder / STATE_FILE))
    recorded = state["tensors"]
    for file in sorted(recorded.keys() ^ {MODEL_FILE, OPTIMIZER_FILE}):
        if file != OPTIMIZER_FILE:
            raise _damaged(folder, f"{STATE_FILE} {'lists' if file in recorded else 'does not list'} {file[:80]!r}")
    for key in ("tokens", "val_loss", "best_val_loss", "best_step"):
        if not isinstance(state.get(key), int | float | None):
            raise _damaged(folder, f"{key} in {STATE_FILE} is {shown(state[key])} and not a number")
    tensors = _checked(folder / MODEL_FILE, recorded[MODEL_FILE])
    moments = {}
    if OPTIMIZER_FILE in recorded and options.optimizer:
        moments = _checked(folder / OPTIMIZER_FILE, recorded[OPTIMIZER_FILE])
    has_tokenizer = (folder / TOKENIZER_FILE).exists()
    return Contents(
        path=folder,
        format=NAME,
        config=config,
        tensors=tensors,
        moments=moments,
        described_in=STATE_FILE,
        step=state["step"],
        tokens=state.get("tokens"),
        val_loss=state.get("val_loss"),
        best_val_loss=state.get("best_val_loss"),
        best_step=state.get("best_step"),
        dataset=state.get("dataset"),
        find_tokenizer=lambda: (load_tokenizer(folder), ()) if has_tokenizer else (None, ("no tokenizer",)),
    )


def _checked(path: Path, recorded: dict[str, str]) -> dict[str, Tensor]:
    """The tensors of a file, whose SHA-256 is compared with the manifest's while they are read."""
    found = read_safetensors(path)
    for name in sorted(found.keys() ^ recorded.keys()):
        what = "is not in the manifest" if name in found else "is missing"
        raise _damaged(path.parent, f"tensor {name} in {path.name} {what}")
    return {name: _hashed(path, name, tensor, recorded[name]) for name, tensor in found.items()}


def _damaged(checkpoint: Path, what: str) -> UserError:
    return UserError(f"checkpoint {checkpoint} is damaged: {what}. Copy it again, or take another checkpoint")


def _hashed(path: Path, name: str, tensor: Tensor, expected: str) -> Tensor:
    def blocks() -> Iterator[bytes]:
        digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
        yield from beside(tensor.blocks(), digest.update)
        if digest.hexdigest() != expected:
            raise _damaged(path.parent, f"tensor {name} in {path.name} has changed since it was saved")

    return Tensor(dtype=tensor.dtype, shape=tensor.shape, blocks=blocks)


def write(contents: Contents, path: Path, options: WriteOptions) -> tuple[str, ...]:
    """A run folder with one checkpoint, from which both twins continue, fine-tune and sample.

    Raises:
        UserError: a tensor cannot be read, or the folder not be written.
    """
    config = contents.config
    assert config is not None
    tokenizer = options.tokenizer
    state: dict[str, Any] = {
        "tokens": contents.tokens,
        "val_loss": contents.val_loss,
        "best_val_loss": contents.best_val_loss,
        "best_step": contents.step if contents.best_step is None else contents.best_step,
        "config": to_dict(config),
        "dataset": contents.dataset,
        "tokenizer": tokenizer
        and {"kind": tokenizer.kind, "fingerprint": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size},
        "written_by": {
            "program": "convert",
            "versions": {"python": platform.python_version()},
            "source": {"format": contents.format, "path": str(contents.path)},
        },
    }

    def write_files(folder: Path) -> dict[str, dict[str, str]]:
        hashes = {MODEL_FILE: write_safetensors(folder / MODEL_FILE, contents.tensors, {}, options.progress)}
        if contents.moments:
            hashes[OPTIMIZER_FILE] = write_safetensors(folder / OPTIMIZER_FILE, contents.moments, {}, options.progress)
        if tokenizer is not None:
            tokenizer.save(folder / TOKENIZER_FILE)
        return hashes

    write_checkpoint(path, contents.step, state=state, write_files=write_files, best=True, keep=1)
    (path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    return ()
