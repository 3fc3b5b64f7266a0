"""Checkpoints on disk: layout, manifest, validation, atomic commit, retention. No tensor arithmetic.

    runs/<name>/checkpoints/
        step-000500/model.safetensors       float32 master weights under the canonical names
                    optimizer.safetensors   exp_avg.<name>, exp_avg_sq.<name>
                    tokenizer.json          so that the folder can be sampled from on its own
                    state.json              step, losses, configuration, fingerprints, SHA-256 per tensor
        latest, best                        one-line files that name a checkpoint

A checkpoint is written to `step-000500.tmp-<pid>`, synced, renamed, and only then named by a pointer: a crash at any
moment leaves the previous checkpoint valid. Reading trusts nothing: the safetensors library validates the
file before a framework maps it, then names, shapes, dtypes and hashes are compared with the manifest.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from gpt_common.config import ModelConfig
from gpt_common.errors import UserError
from gpt_common.network.init import tensor_shapes

FORMAT_VERSION = 1
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
TOKENIZER_FILE = "tokenizer.json"
STATE_FILE = "state.json"
HASH_BLOCK = 1 << 22
FULL_DISK_BYTES = 1 << 16

Hashes = Mapping[str, Mapping[str, str]]
"""SHA-256 by file and tensor name."""


def write_checkpoint(
    run_folder: Path,
    step: int,
    *,
    state: Mapping[str, Any],
    write_files: Callable[[Path], Hashes | None],
    best: bool,
    keep: int,
) -> Path:
    """Commit one checkpoint and move the pointers.

    Args:
        run_folder: the run; the checkpoint becomes `checkpoints/step-<step>`.
        state: manifest entries; `format_version`, `step` and `tensors` (SHA-256 by file and name) are added here.
        write_files: writes the tensor files and the tokenizer into the folder that it is given. It may return the
            `tensor_hashes` by file name, if it hashed what it wrote; otherwise the files are read again.
        best: also point `best` here.
        keep: how many of the newest checkpoints stay; the best one always does.

    Raises:
        UserError: no space, or the folder cannot be written; what was there before is untouched.
    """
    folder = run_folder / "checkpoints"
    final = folder / f"step-{step:06d}"
    temporary = folder / f"{final.name}.tmp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with discard_on_error(temporary):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            with _library_errors_as_os_errors(temporary):
                known = write_files(temporary) or {}
                tensors = {
                    name: known.get(name) or tensor_hashes(temporary / name)
                    for name in (MODEL_FILE, OPTIMIZER_FILE)
                    if (temporary / name).exists()
                }
            manifest = {"format_version": FORMAT_VERSION, "step": step, **state, "tensors": tensors}
            (temporary / STATE_FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
            for path in temporary.iterdir():
                sync(path)
            sync(temporary)
            replaced = folder / f"{final.name}.tmp-replaced-{os.getpid()}"
            if final.exists():
                # A run that was taken up again before this step: the old one gives way at the last moment.
                final.rename(replaced)
            temporary.rename(final)
            sync(folder)
            shutil.rmtree(replaced, ignore_errors=True)
        write_atomically(folder / "latest", final.name + "\n")
        if best:
            write_atomically(folder / "best", final.name + "\n")
        _retire(folder, keep)
    except OSError as error:
        raise cannot_write(final, error) from None
    return final


@contextmanager
def _library_errors_as_os_errors(folder: Path) -> Iterator[None]:
    """MLX reports a failed write as a RuntimeError, the safetensors library as an error of its own."""
    from safetensors import SafetensorError

    try:
        yield
    except (RuntimeError, ValueError, SafetensorError) as error:
        full = os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(folder).free < FULL_DISK_BYTES
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from None


@contextmanager
def discard_on_error(path: Path) -> Iterator[None]:
    """Remove `path` if the block that fills it fails, so that nothing half-written stays."""
    try:
        yield
    except BaseException:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        raise


def cannot_write(path: Path, error: OSError) -> UserError:
    """The message for a write that failed: no space, read-only folder, or whatever the system said."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left to write {path}: free some and repeat; everything saved before is intact")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"cannot write {path}: the folder is read-only; everything saved before is intact")
    return UserError(f"cannot write {path}: {error.strerror or error}; everything saved before is intact")


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by `text` in one step: a reader sees the old one or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    with discard_on_error(temporary):
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)


def _retire(folder: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints and the pointed ones, and what crashed writers left."""
    protected = {pointed for name in ("best", "latest") if (pointed := _pointed(folder, name))}
    for old in _checkpoints(folder)[:-keep]:
        if old.name not in protected:
            # Renamed first, so that a crash in the middle of deletion never leaves a torn checkpoint.
            doomed = old.with_name(f"{old.name}.tmp-retired-{os.getpid()}")
            old.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    for leftover in folder.glob("*.tmp-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _checkpoints(folder: Path) -> list[Path]:
    """Committed checkpoints, oldest first."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def _pointed(folder: Path, name: str) -> str | None:
    """What a pointer names: a checkpoint beside it, and nothing up or elsewhere on the disk."""
    try:
        target = (folder / name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return target if target.startswith("step-") and Path(target).name == target else None


def find_checkpoint(path: Path, *, prefer: Literal["best", "latest"]) -> Path:
    """The checkpoint folder that `path` means: itself, or the best or latest one of a run folder.

    Raises:
        UserError: there is no checkpoint; the message names the folder.
    """
    if (path / STATE_FILE).exists() or (path.is_dir() and path.parent.name == "checkpoints"):
        return path
    folder = path / "checkpoints"
    if not path.is_dir():
        raise UserError(f"no such run or checkpoint: {path}")
    name = _pointed(folder, prefer) or _pointed(folder, "latest")
    if name and (folder / name).is_dir():
        return folder / name
    committed = _checkpoints(folder) if folder.is_dir() else []
    if not committed:
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


def read_state(checkpoint: Path, *, offer: bool = True) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Args:
        offer: name the newest valid checkpoint beside a damaged one.

    Raises:
        UserError: missing or damaged manifest, or a format version this code does not know.
    """
    path = checkpoint / STATE_FILE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        version, step = state["format_version"], state["step"]
        if type(step) is not int or step < 0:
            raise ValueError(f"step is {step!r}")
        for key, entry in (("config", state["config"]), ("tensors", state["tensors"])):
            if not isinstance(entry, dict) or not all(isinstance(value, dict) for value in entry.values()):
                raise ValueError(f"{key} must be an object of objects")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise _damaged(checkpoint, f"{STATE_FILE} cannot be read ({reason})", offer) from None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}: update it")
    return dict(state)


def validate(checkpoint: Path, *, offer: bool = True) -> dict[str, Any]:
    """Check every byte of a checkpoint against its manifest, and return the manifest.

    Args:
        offer: name the newest valid checkpoint beside a damaged one.

    Raises:
        UserError: names the file, the tensor and what is wrong, and offers the newest valid checkpoint.
    """
    state = read_state(checkpoint, offer=offer)
    for file, recorded in state["tensors"].items():
        try:
            found = tensor_hashes(checkpoint / file)
        except (OSError, ValueError) as error:
            raise _damaged(checkpoint, f"{file} cannot be read ({error})", offer) from None
        for name in sorted(recorded.keys() | found.keys()):
            if name not in found:
                raise _damaged(checkpoint, f"tensor {name} is missing from {file}", offer)
            if name not in recorded:
                raise _damaged(checkpoint, f"tensor {name} in {file} is not in the manifest", offer)
            if recorded[name] != found[name]:
                raise _damaged(checkpoint, f"tensor {name} in {file} has changed since it was saved", offer)
    return state


def fitting(checkpoint: Path, shapes: Mapping[str, tuple[int, ...]], model: ModelConfig) -> dict[str, int]:
    """How many rows of each tensor a model takes: all of them, or fewer positions for a shorter block.

    Args:
        shapes: shape of every tensor in the checkpoint's model file.
        model: the shape of the model that is to hold them.

    Raises:
        UserError: a tensor is missing, superfluous or of another shape; a block longer than the checkpoint's.
    """
    wanted = tensor_shapes(model)
    for name in sorted(wanted.keys() ^ shapes.keys()):
        what = "is missing" if name in wanted else "has no place in the model"
        raise UserError(f"{checkpoint} does not fit the configuration: tensor {name} {what}")
    for name, shape in wanted.items():
        longer = name == "position_embedding.weight" and shapes[name][1:] == shape[1:]
        if longer and shapes[name][0] < shape[0]:
            rows = shapes[name][0]
            raise UserError(f"block_size {shape[0]} is beyond the checkpoint's {rows}: use --block-size {rows} or less")
        if shapes[name] != shape and not longer:
            raise UserError(
                f"{checkpoint} does not fit the configuration: {name} has shape {shapes[name]}, the model needs {shape}"
            )
    return {name: shape[0] for name, shape in wanted.items()}


def _damaged(checkpoint: Path, what: str, offer: bool) -> UserError:
    message = f"checkpoint {checkpoint} is damaged: {what}."
    valid = newest_valid(checkpoint) if offer else None
    return UserError(message + (f"\nThe newest valid one is {valid}: use that" if valid else " Copy it here again"))


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape by tensor name, after the safetensors library has accepted the file.

    Raises:
        ValueError: the file is not valid safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def tensor_hashes(path: Path) -> dict[str, str]:
    """SHA-256 of every tensor's dtype, shape and bytes in a safetensors file, read in blocks.

    Raises:
        ValueError: the file is not valid safetensors.
        OSError: it cannot be read.
    """
    header = read_header(path)
    hashes = {}
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        offsets = json.loads(file.read(length))
        for name, (dtype, shape) in header.items():
            begin, end = offsets[name]["data_offsets"]
            digest = hashlib.sha256(f"{dtype} {list(shape)}\n".encode())
            file.seek(8 + length + begin)
            remaining = end - begin
            while remaining and (block := file.read(min(HASH_BLOCK, remaining))):
                digest.update(block)
                remaining -= len(block)
            hashes[name] = digest.hexdigest()
    return hashes
