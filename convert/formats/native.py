"""This project's own runs and checkpoints (gpt_common/training/checkpoint.py)."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path

from convert.contents import Contents, check_sizes
from convert.formats.format import Format
from convert.options import ReadOptions, WriteOptions
from convert.storage.grids import taken_apart
from convert.storage.safetensors_file import read_safetensors, write_safetensors
from convert.storage.tensors import Tensor, hashed
from gpt_common.adapting.quantisation import NOT_QUANTISED
from gpt_common.config import from_dict, to_dict, to_toml
from gpt_common.data.conversations.templates import SETTINGS, own_template, settings_of
from gpt_common.data.tokenizers import identity, load_tokenizer
from gpt_common.errors import UserError
from gpt_common.network.parameters import tensor_shapes
from gpt_common.training.checkpoint import find_checkpoint, read_manifest, write_checkpoint
from gpt_common.training.manifest import MODEL_FILE, OPTIMIZER_FILE, OUTER_FILE, STATE_FILE, TOKENIZER_FILE, Manifest


def recognise(path: Path) -> bool:
    """A checkpoint folder, or a run folder with checkpoints in it."""
    return path.is_dir() and ((path / STATE_FILE).exists() or (path / "checkpoints").is_dir())


def read(path: Path, options: ReadOptions) -> Contents:
    """The best checkpoint of a run (the latest with `options.latest`), or the one that `path` is.

    With `options.adapter` an adapter too, by its own tensors: its base is named, and not read.

    Raises:
        UserError: no checkpoint, or a damaged one; hashes are checked while tensors are read.
    """
    folder = find_checkpoint(path, prefer="latest" if options.latest else "best")
    manifest = read_manifest(folder)
    if manifest.base is not None and not options.adapter:
        raise UserError(f"{path} is an adapter, a part of a model: merge it first (python -m convert fuse {path})")
    check_sizes(str(folder / STATE_FILE), manifest.config.get("model", {}))
    config = from_dict(manifest.config, where=str(folder / STATE_FILE))
    recorded = manifest.tensors
    for file in sorted(recorded.keys() ^ {MODEL_FILE, OPTIMIZER_FILE}):
        if file not in (OPTIMIZER_FILE, OUTER_FILE):
            raise _damaged(folder, f"{STATE_FILE} {'lists' if file in recorded else 'does not list'} {file[:80]!r}")
    tensors = _checked(folder / MODEL_FILE, recorded[MODEL_FILE])
    words: dict[str, Tensor] = {}
    grids = NOT_QUANTISED
    if manifest.base is None and config.model.n_layer <= len(tensors):  # as it must; and no names are made for more
        try:
            tensors, words, grids = taken_apart(tensors, tensor_shapes(config.model))
        except ValueError as error:
            raise _damaged(folder, str(error)) from None
    moments = {}
    if OPTIMIZER_FILE in recorded and options.optimizer:
        moments = _checked(folder / OPTIMIZER_FILE, recorded[OPTIMIZER_FILE])
    has_tokenizer = (folder / TOKENIZER_FILE).exists()
    return Contents(
        path=folder,
        config=config,
        tensors=tensors,
        words=words,
        grids=grids,
        moments=moments,
        described_in=STATE_FILE,
        step=manifest.step,
        tokens=manifest.tokens,
        val_loss=manifest.val_loss,
        best_val_loss=manifest.best_val_loss,
        best_step=manifest.best_step,
        dataset=manifest.dataset,
        prompt=manifest.prompt,
        base=None if manifest.base is None else Path(os.path.normpath(folder.resolve() / str(manifest.base["path"]))),
        find_tokenizer=lambda: (load_tokenizer(folder), ()) if has_tokenizer else (None, ("no tokenizer",)),
        find_template=lambda: own_template(folder),
    )


def _checked(path: Path, recorded: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors of a file, whose SHA-256 is compared with the manifest's while they are read."""
    found = read_safetensors(path)
    for name in sorted(found.keys() ^ recorded.keys()):
        what = "is not in the manifest" if name in found else "is missing"
        raise _damaged(path.parent, f"tensor {name} in {path.name} {what}")
    return {name: _compared(path, name, tensor, recorded[name]) for name, tensor in found.items()}


def _damaged(checkpoint: Path, what: str) -> UserError:
    return UserError(f"checkpoint {checkpoint} is damaged: {what}. Copy it again, or take another checkpoint")


def _compared(path: Path, name: str, tensor: Tensor, expected: str) -> Tensor:
    def blocks() -> Iterator[bytes]:
        found, sha256 = hashed(tensor)
        yield from found
        if sha256() != expected:
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
    manifest = Manifest(
        step=contents.step,
        config=to_dict(config),
        tokens=contents.tokens,
        val_loss=contents.val_loss,
        best_val_loss=contents.best_val_loss,
        best_step=contents.step if contents.best_step is None else contents.best_step,
        dataset=contents.dataset,
        prompt=contents.prompt,
        tokenizer=None if tokenizer is None else identity(tokenizer),
        written_by={
            "program": "convert",
            "versions": {"python": platform.python_version()},
            "source": {"format": contents.format, **(contents.published or {"path": str(contents.path)})},
        },
    )

    def write_files(folder: Path) -> dict[str, dict[str, str]]:
        hashes = {MODEL_FILE: write_safetensors(folder / MODEL_FILE, contents.stored, {}, options.progress)}
        if contents.moments:
            hashes[OPTIMIZER_FILE] = write_safetensors(folder / OPTIMIZER_FILE, contents.moments, {}, options.progress)
        if tokenizer is not None:
            tokenizer.save(folder / TOKENIZER_FILE)
        return hashes

    write_checkpoint(path, manifest, write_files=write_files, best=True, keep=1)
    (path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    if options.template is not None:
        (path / SETTINGS).write_text(settings_of(options.template), encoding="utf-8")
    return ()


FORMAT = Format(
    name="native checkpoint",
    order=0,
    recognise=recognise,
    read=read,
    write=write,
    target="native",
    commands=("torch2mlx",),
    suffix="-mlx",
    files=frozenset({"config.toml", "checkpoints", SETTINGS}),
    holds_optimizer=True,
    keeps_words=True,
)
