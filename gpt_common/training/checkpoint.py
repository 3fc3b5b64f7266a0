"""Checkpoints on disk: layout, manifest, validation, atomic commit, retention. No tensor arithmetic.

    runs/<name>/checkpoints/
        step-000500/model.safetensors       float32 master weights under the canonical names
                    optimizer.safetensors   exp_avg.<name>, exp_avg_sq.<name>
                    tokenizer.json          so that the folder can be sampled from on its own
                    state.json              step, losses, configuration, fingerprints, SHA-256 per tensor
        latest, best, kept                  files that name a checkpoint; `kept` those that adapters stand beside

A checkpoint is written to `step-000500.tmp-<pid>`, synced, renamed, and only then named by a pointer: a crash at any
moment leaves the previous checkpoint valid. Reading trusts nothing: the safetensors library validates the
file before a framework maps it, then names, shapes, dtypes and hashes are compared with the manifest.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from gpt_common.adapting.quantisation import grids_of, stored_shapes
from gpt_common.config import RunConfig
from gpt_common.errors import UserError
from gpt_common.files import (
    cannot_write,
    discard_on_error,
    move_into_place,
    read_bytes,
    remove,
    sweep_leftovers,
    temporary_beside,
    write_atomically,
)
from gpt_common.network.parameters import optimizer_shapes, saved_shapes
from gpt_common.training.manifest import (
    CHECKPOINT_NAME,
    MODEL_FILE,
    OPTIMIZER_FILE,
    OUTER_FILE,
    STATE_FILE,
    Hashes,
    Header,
    Manifest,
    base_of,
    keep_base,
    kept_for_adapters,
    read_header,
    tensor_hashes,
)
from gpt_common.training.pretrained import foreign, missing
from gpt_common.words import one_line

FULL_DISK_BYTES, LARGEST_POINTER = 1 << 16, 1 << 10
WEIGHT_DTYPES, MOMENT_DTYPES, WORD_DTYPE = ("F32", "BF16", "F16"), ("F32",), "U32"
"""What both twins take, as safetensors calls it."""


def write_checkpoint(
    run_folder: Path,
    manifest: Manifest,
    *,
    write_files: Callable[[Path], Hashes | None],
    best: bool,
    keep: int,
) -> Path:
    """Commit one checkpoint and move the pointers.

    Args:
        run_folder: the run; the checkpoint becomes `checkpoints/step-<step>`.
        manifest: what state.json will say; its `tensors` are filled in here.
        write_files: writes the tensor files and the tokenizer into the folder that it is given. It may return the
            `tensor_hashes` by file name, if it hashed what it wrote; otherwise the files are read again.
        best: also point `best` here.
        keep: how many of the newest checkpoints stay; the best one always does.

    Raises:
        UserError: no space, or the folder cannot be written; what was there before is untouched.
    """
    final = place_of(run_folder, manifest.step)
    folder = final.parent
    temporary = temporary_beside(final)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(folder)
        with discard_on_error(temporary):
            temporary.mkdir()
            with _library_errors_as_os_errors(temporary):
                known = write_files(temporary) or {}
                tensors = {
                    name: known.get(name) or tensor_hashes(temporary / name)
                    for name in (MODEL_FILE, OPTIMIZER_FILE, OUTER_FILE)
                    if (temporary / name).exists()
                }
            dataclasses.replace(manifest, tensors=tensors).write(temporary / STATE_FILE)
            # A run that was taken up again before this step: its old checkpoint gives way at the last moment.
            move_into_place(temporary, final)
        write_atomically(folder / "latest", final.name + "\n")
        if best:
            write_atomically(folder / "best", final.name + "\n")
        keep_base(final, manifest)
        _retire(folder, keep)
    except OSError as error:
        raise cannot_write(final, error) from None
    return final


def place_of(run_folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run_folder / "checkpoints" / f"step-{step:06d}"


@contextmanager
def _library_errors_as_os_errors(folder: Path) -> Iterator[None]:
    """MLX reports a failed write as a RuntimeError, the safetensors library as an error of its own."""
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, ValueError, SafetensorError) as error:
        full = os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < FULL_DISK_BYTES
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from None


def _retire(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints, the pointed ones, and the bases of adapters."""
    protected = kept_for_adapters(folder) | {_pointed(folder, name) for name in ("best", "latest")}
    for old in _checkpoints(folder)[:-keep]:
        if old.name not in protected:
            # Renamed first, so that a crash in the middle of deletion never leaves a torn checkpoint.
            remove(old.rename(temporary_beside(old, "retired-")))


def _checkpoints(folder: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    found = [p for p in folder.glob("step-*") if re.fullmatch(CHECKPOINT_NAME, p.name) and p.is_dir()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def _pointed(folder: Path, name: str) -> str | None:
    """What a pointer names: a checkpoint beside it, and nothing up or elsewhere on the disk."""
    try:
        target = read_bytes(folder / name, LARGEST_POINTER).decode("ascii").strip()
    except (OSError, ValueError):
        return None
    return target if re.fullmatch(CHECKPOINT_NAME, target) else None


def find_checkpoint(path: Path, *, prefer: Literal["best", "latest"]) -> Path:
    """The checkpoint folder that `path` means: itself, or the best or latest one of a run folder.

    Raises:
        UserError: there is no checkpoint; the message names the folder, and the command that brings it in where it is
            another program's.
    """
    if (path / STATE_FILE).exists() or (path.is_dir() and path.parent.name == "checkpoints"):
        return path
    folder = path / "checkpoints"
    if not folder.is_dir() and (said := foreign(path)) is not None:
        raise UserError(said)
    if not path.is_dir():
        raise UserError(f"{path} is no run or checkpoint, but a file" if path.exists() else missing(path))
    name = _pointed(folder, prefer) or _pointed(folder, "latest")
    if name and (folder / name).is_dir():
        return folder / name
    committed = _checkpoints(folder) if folder.is_dir() else []
    if not committed:
        if not folder.is_dir() and (runs := sorted(path.glob("*/checkpoints"))):
            raise UserError(f"{path} is a folder of runs: name one of them, as {one_line(str(runs[0].parent))}")
        raise UserError(f"{path} holds no checkpoint: the run ended before its first one; start it again")
    # The pointer is moved after the commit; a crash in between leaves a newer, valid checkpoint unnamed.
    return committed[-1]


def newest_valid(checkpoint: Path) -> Path | None:
    """The newest checkpoint beside `checkpoint`, other than it, that passes validation."""
    for candidate in reversed(_checkpoints(checkpoint.parent)):
        if candidate.name != checkpoint.name:
            try:
                validate(candidate, offer=False)
            except UserError:
                continue
            return candidate
    return None


def read_manifest(checkpoint: Path, *, offer: bool = True) -> Manifest:
    """The manifest of a checkpoint.

    Args:
        offer: name the newest valid checkpoint beside a damaged one.

    Raises:
        UserError: missing or damaged manifest, or a format version this code does not know.
    """
    try:
        return Manifest.read(checkpoint / STATE_FILE)
    except (OSError, ValueError) as error:
        raise _damaged(checkpoint, f"{STATE_FILE} cannot be read ({_reason(error)})", offer) from None


def described(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint whose model file holds, by its header, the tensors of its configuration.

    Only headers are read: nothing was built or allocated by sizes that stand in a file and nowhere else.

    Raises:
        UserError: names what is damaged, and offers the newest valid checkpoint.
    """
    manifest = read_manifest(checkpoint)
    check_weights(checkpoint, manifest)
    return manifest


def check_weights(checkpoint: Path, manifest: Manifest, *, offer: bool = True) -> None:
    """Refuse a checkpoint whose model file's header is not what its configuration asks for; raises as `described`."""
    try:
        config = manifest.run_config
        model = config.model
    except UserError as error:
        raise _damaged(checkpoint, f"{STATE_FILE}: {error}", offer) from None
    if model.vocab_size < 1:
        raise _damaged(checkpoint, f"{STATE_FILE} says vocab_size {model.vocab_size}", offer)
    found = _header(checkpoint, MODEL_FILE, offer)
    base = base_of(checkpoint, manifest)
    if base is not None:
        check_weights(base, read_manifest(base, offer=offer), offer=offer)
    # Every layer has tensors: more layers than tensors are refused before all their names are made.
    tensors = len(found) if manifest.base is None else len(manifest.base["tensors"])
    if model.n_layer > tensors:
        what = f"{MODEL_FILE} has {tensors} tensors, too few for the {model.n_layer} layers in {STATE_FILE}"
        raise _damaged(checkpoint, what, offer)
    try:
        wanted = saved_shapes(model, config.adapter)
    except UserError as error:
        raise _damaged(checkpoint, f"{STATE_FILE}: {error}", offer) from None
    try:
        grids = grids_of({name: shape for name, (_, shape) in found.items()}, wanted)
        wrong = _difference(found, stored_shapes(wanted, grids), WEIGHT_DTYPES, {f"{layer}.weight" for layer in grids})
    except ValueError as error:
        wrong = str(error)
    if wrong is not None:
        raise _damaged(checkpoint, f"{MODEL_FILE} does not fit the configuration in {STATE_FILE}: {wrong}", offer)


def _header(checkpoint: Path, file: str, offer: bool) -> Header:
    try:
        return read_header(checkpoint / file)
    except (OSError, ValueError) as error:
        raise _damaged(checkpoint, f"{file} cannot be read ({_reason(error)})", offer) from None


def _difference(
    found: Header, wanted: Mapping[str, tuple[int, ...]], dtypes: Sequence[str], words: Collection[str] = ()
) -> str | None:
    """The first way in which the tensors of a file are not those that are wanted, in words; None if they are.

    Args:
        words: tensors that are no numbers of `dtypes` but words of a quantised matrix.
    """
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            return f"tensor {name} is missing"
        if name not in wanted:
            return f"unexpected tensor {name}"
        dtype, shape = found[name]
        if shape != wanted[name]:
            return f"{name} has shape {shape}, and not {wanted[name]}"
        allowed = (WORD_DTYPE,) if name in words else dtypes
        if dtype not in allowed:
            return f"{name} is {dtype}, and not {' or '.join(allowed)}"
    return None


def validate(checkpoint: Path, *, offer: bool = True) -> Manifest:
    """Check every byte of a checkpoint against its manifest, and return the manifest.

    Args:
        offer: name the newest valid checkpoint beside a damaged one.

    Raises:
        UserError: names the file, the tensor and what is wrong, and offers the newest valid checkpoint.
    """
    manifest = read_manifest(checkpoint, offer=offer)
    check_weights(checkpoint, manifest, offer=offer)
    for file, recorded in manifest.tensors.items():
        try:
            found = tensor_hashes(checkpoint / file, finite=True)
        except (OSError, ValueError) as error:
            raise _damaged(checkpoint, f"{file} cannot be read ({_reason(error)})", offer) from None
        for name in sorted(recorded.keys() | found.keys()):
            if name not in found:
                raise _damaged(checkpoint, f"tensor {name} is missing from {file}", offer)
            if name not in recorded:
                raise _damaged(checkpoint, f"tensor {name} in {file} is not in the manifest", offer)
            if recorded[name] != found[name]:
                raise _damaged(checkpoint, f"tensor {name} in {file} has changed since it was saved", offer)
    if (base := base_of(checkpoint, manifest)) is not None:
        validate(base, offer=offer)
    return manifest


def check_moments(checkpoint: Path, manifest: Manifest, config: RunConfig) -> None:
    """Refuse a checkpoint whose optimiser's state is not whole, or not what the optimiser of `config` goes on with.

    Only the header is read.

    Raises:
        UserError: names the tensor that is missing, unexpected or of another shape.
    """
    weights_alone = f"--init-from {checkpoint} takes the weights alone"
    path = checkpoint / OPTIMIZER_FILE
    if OPTIMIZER_FILE not in manifest.tensors:
        raise UserError(
            f"{checkpoint} has no optimiser state, so training cannot go on where it stood: {weights_alone}"
        )
    found, optimizer = _header(checkpoint, OPTIMIZER_FILE, True), config.optim.optimizer
    what = _difference(found, optimizer_shapes(config.model, config.optim, config.adapter), MOMENT_DTYPES)
    if what is not None:
        raise UserError(f"{path} does not fit the configuration and its {optimizer}: {what}; {weights_alone}")


def _reason(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _damaged(checkpoint: Path, what: str, offer: bool) -> UserError:
    message = f"checkpoint {checkpoint} is damaged: {what}."
    valid = newest_valid(checkpoint) if offer else None
    return UserError(message + (f"\nThe newest valid one is {valid}: use that" if valid else " Copy it here again"))
