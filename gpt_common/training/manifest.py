"""The manifest of a checkpoint, state.json, and the hashes in it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_common.config import RunConfig, from_dict
from gpt_common.errors import UserError
from gpt_common.files import open_file, read_bytes, read_json, unique_keys, write_atomically
from gpt_common.words import one_line

FORMAT_VERSION = 1
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
OUTER_FILE = "outer.safetensors"
"""The outer momentum of ranks that are averaged, where they have one."""
TOKENIZER_FILE = "tokenizer.json"
STATE_FILE = "state.json"
KEPT_FILE = "kept"
"""Beside checkpoints: the names of those that adapters of other runs stand beside, one a line."""
CHECKPOINT_NAME = r"step-[0-9]{1,16}"
LARGEST_KEPT = 1 << 16
HASH_BLOCK = 1 << 22
LARGEST_MANIFEST = LARGEST_HEADER = 1 << 24
"""Bytes of state.json, and of what a safetensors file says of its tensors: a hundred thousand of them; more is neither.
"""
LARGEST_COUNT = 1 << 53
"""Steps and tokens: what a float holds exactly."""

Hashes = Mapping[str, Mapping[str, str]]
"""SHA-256 by file and tensor name."""
Header = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype, as safetensors calls it, and shape by tensor name."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What state.json says of a checkpoint."""

    step: int
    """Updates done."""
    config: dict[str, dict[str, Any]]
    """The configuration by section, as it was written."""
    tokens: int | None = None
    """Tokens trained on."""
    val_loss: float | None = None
    """Validation loss here, nats per token; None before the first evaluation."""
    best_step: int | None = None
    """Step of the best evaluation so far, and its loss:"""
    best_val_loss: float | None = None
    dataset: dict[str, Any] | None = None
    """`name` and `fingerprint`, and of one that was followed its `preparation`; None where weights came from elsewhere.
    """
    tokenizer: dict[str, Any] | None = None
    """`kind`, `fingerprint` and `vocab_size`, as `gpt_common.data.tokenizers.identity` gives them."""
    prompt: str | None = None
    """What samples start from if no prompt is given."""
    written_by: dict[str, Any] | None = None
    """Program and versions."""
    base: dict[str, Any] | None = None
    """Of an adapter: `path` of the checkpoint that it stands beside, from this one's folder, and `tensors`, the SHA-256
    of each tensor of its model file."""
    tensors: Hashes = dataclasses.field(default_factory=dict)
    """SHA-256 of dtype, shape and bytes, by file and tensor name."""

    @property
    def run_config(self) -> RunConfig:
        """The configuration, checked.

        Raises:
            UserError: it has a field or a value that this program does not know.
        """
        return from_dict(self.config)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """The manifest in a file.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no manifest; says what is wrong.
            UserError: a format version that this program does not know.
        """
        state = read_json(path, LARGEST_MANIFEST)
        if not isinstance(state, dict):
            raise ValueError("it is not a JSON object")
        for name in ("format_version", "step", "config", "tensors"):
            if name not in state:
                raise ValueError(f"{name} is missing")
        version = state["format_version"]
        if type(version) is not int or version != FORMAT_VERSION:
            raise UserError(f"{path} has format version {version!r:.80}, this reads {FORMAT_VERSION}: update it")
        names = [field.name for field in dataclasses.fields(cls)]
        manifest = cls(**{name: state[name] for name in names if name in state})
        manifest.check()
        return manifest

    def check(self) -> None:
        """Raise a ValueError for an entry of a wrong type, or out of its range."""
        for name in ("step", "tokens", "best_step"):
            value = getattr(self, name)
            if (value is not None or name == "step") and not (type(value) is int and 0 <= value < LARGEST_COUNT):
                raise ValueError(f"{name} is {value!r:.80} and not a count")
        for name, entry in (("config", self.config), ("tensors", self.tensors)):
            if not isinstance(entry, dict) or not all(isinstance(value, dict) for value in entry.values()):
                raise ValueError(f"{name} must be an object of objects")
        # Names, not paths; and without a list of its tensors a file is believed whatever it holds.
        if MODEL_FILE not in self.tensors or self.tensors.keys() - {MODEL_FILE, OPTIMIZER_FILE, OUTER_FILE}:
            found = ", ".join(f"{file[:80]!r}" for file in sorted(self.tensors)[:4])
            raise ValueError(
                f"tensors must list {MODEL_FILE}, and {OPTIMIZER_FILE} if there is one; it has {found or '{}'}"
            )
        for file, recorded in self.tensors.items():
            if not recorded or not all(isinstance(value, str) for value in recorded.values()):
                raise ValueError(f"tensors must have a SHA-256 for each tensor in {file}")
        for name in ("val_loss", "best_val_loss"):
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and abs(value) < LARGEST_COUNT):
                raise ValueError(f"{name} is {value!r:.80} and not a loss")
        for name, kinds in (
            ("dataset", {"name": str, "fingerprint": str}),
            ("tokenizer", {"kind": str, "fingerprint": str, "vocab_size": int}),
            ("written_by", {}),
            ("base", {"path": str, "tensors": dict}),
        ):
            value = getattr(self, name)
            if not isinstance(value, dict | None):
                raise ValueError(f"{name} is {value!r:.80} and not an object")
            for key, kind in kinds.items():
                if value and type(value.get(key)) is not kind:
                    raise ValueError(f"{key} of {name} is {value.get(key)!r:.80}")
        if self.dataset and not isinstance(self.dataset.get("preparation", {}), dict):
            raise ValueError(f"preparation of dataset is {self.dataset['preparation']!r:.80}")
        if not isinstance(self.prompt, str | None):
            raise ValueError(f"prompt is {self.prompt!r:.80} and not a text")

    def write(self, path: Path) -> None:
        """Write state.json, not yet synced."""
        document = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def base_entry(base: Path, checkpoint: Path) -> dict[str, Any]:
    """What the manifest of an adapter says of its base.

    Args:
        base: the checkpoint.
        checkpoint: where the adapter will lie: a pair of runs that are moved together still find each other.
    """
    path = os.path.relpath(base.resolve(), checkpoint.resolve())
    return {"path": Path(path).as_posix(), "tensors": dict(Manifest.read(base / STATE_FILE).tensors[MODEL_FILE])}


def base_of(checkpoint: Path, manifest: Manifest) -> Path | None:
    """The checkpoint that an adapter stands beside; None of one that is a whole model.

    Its bytes are not read here: what is compared is what its own manifest says of them.

    Raises:
        UserError: it is not where it was, it is another now, or there should be one and is none.
    """
    if manifest.base is None:
        if manifest.run_config.adapter.adapts:
            raise UserError(f"{checkpoint} is an adapter, and its {STATE_FILE} names no base: copy it here again")
        return None
    # Not resolved: the way from a link is that from the folder that it stands for.
    base = Path(os.path.normpath(checkpoint.resolve() / manifest.base["path"]))
    shown = one_line(str(base))
    if not (base / STATE_FILE).is_file():
        raise UserError(f"{checkpoint} is an adapter, and its base is not here: put the checkpoint back at {shown}")
    try:
        found = Manifest.read(base / STATE_FILE)
    except (OSError, ValueError) as error:
        raise UserError(f"{shown}, the base of the adapter {checkpoint}, cannot be read ({error})") from None
    theirs, ours = found.tensors[MODEL_FILE], manifest.base["tensors"]
    if found.base is not None or theirs != ours:
        names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        raise UserError(
            f"{shown} is not the base that the adapter {checkpoint} was trained beside any more: "
            f"{one_line(', '.join(names[:2]))} and {max(0, len(names) - 2)} more tensors are others; put that one back"
        )
    return base


def kept_for_adapters(folder: Path) -> set[str]:
    """Names of the checkpoints of a run that adapters stand beside."""
    try:
        names = read_bytes(folder / KEPT_FILE, LARGEST_KEPT).decode("ascii").split()
    except (OSError, ValueError):
        return set()
    return {name for name in names if re.fullmatch(CHECKPOINT_NAME, name)}


def keep_base(checkpoint: Path, manifest: Manifest) -> None:
    """Leave word beside the base of an adapter, if it is one, that it stays when its run goes on.

    Where that cannot be written nobody trains on either.
    """
    if manifest.base is None:
        return
    base = Path(os.path.normpath(checkpoint.resolve() / manifest.base["path"]))
    names = kept_for_adapters(base.parent)
    if base.parent.name == "checkpoints" and base.is_dir() and base.name not in names:
        with suppress(OSError):
            write_atomically(base.parent / KEPT_FILE, "".join(f"{name}\n" for name in sorted({*names, base.name})))


def hash_header(dtype: str, shape: Sequence[int]) -> bytes:
    """What is hashed before a tensor's bytes, so that equal hashes mean equal tensors.

    Args:
        dtype: safetensors' name of it, as `F32`.
    """
    return f"{dtype} {list(shape)}\n".encode()


def all_finite(dtype: str, data: bytes) -> bool:
    """Whether numbers hold neither NaN nor infinity, whose exponent bits are all set.

    Args:
        dtype: safetensors' name of it; integers are always finite.
        data: whole numbers of it, little-endian.
    """
    if dtype not in _EXPONENTS:
        return True
    kind, exponent = _EXPONENTS[dtype]
    return not ((np.frombuffer(data, kind) & kind(exponent)) == exponent).any()


_EXPONENTS = {
    "F64": (np.uint64, 0x7FF0 << 48),
    "F32": (np.uint32, 0x7F80 << 16),
    "BF16": (np.uint16, 0x7F80),
    "F16": (np.uint16, 0x7C00),
}


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape by tensor name, after the safetensors library has accepted the file.

    Raises:
        ValueError: the file is not valid safetensors.
        OSError: it is no file, or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    header_entries(path)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def header_entries(path: Path) -> tuple[dict[str, Any], int]:
    """A file's own words on its tensors, and where the data begin; raises as `read_header`.

    Of two entries with one name the library takes the last, MLX the first: neither is what was meant.
    """
    with open_file(path) as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= LARGEST_HEADER:
            raise ValueError(f"its header is {length} bytes long")
        header = file.read(length)
    try:
        entries = json.loads(header, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"its header is damaged: {what}") from None
    if not isinstance(entries, dict):
        raise ValueError("its header is not a JSON object")
    return entries, 8 + length


def tensor_hashes(path: Path, *, finite: bool = False) -> dict[str, str]:
    """SHA-256 of every tensor's dtype, shape and bytes in a safetensors file, read in blocks.

    Args:
        finite: also refuse NaN and infinity.

    Raises:
        ValueError: the file is not valid safetensors, or a number is not finite.
        OSError: it cannot be read.
    """
    header = read_header(path)
    hashes = {}
    offsets, data = header_entries(path)
    with open_file(path) as file:
        for name, (dtype, shape) in header.items():
            begin, end = offsets[name]["data_offsets"]
            digest = hashlib.sha256(hash_header(dtype, shape))
            file.seek(data + begin)
            remaining = end - begin
            while remaining and (block := file.read(min(HASH_BLOCK, remaining))):
                digest.update(block)
                remaining -= len(block)
                if finite and not all_finite(dtype, block):
                    raise ValueError(f"tensor {name} holds NaN or infinity: the run had diverged when it was saved")
            hashes[name] = digest.hexdigest()
    return hashes
