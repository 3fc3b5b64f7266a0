"""The manifest of a checkpoint, state.json, and the hashes in it."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_common.config import RunConfig, from_dict
from gpt_common.errors import UserError

FORMAT_VERSION = 1
MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
TOKENIZER_FILE = "tokenizer.json"
STATE_FILE = "state.json"
HASH_BLOCK = 1 << 22
LARGEST_MANIFEST = 1 << 28
"""Bytes: hundreds of thousands of tensors; more is no manifest."""

Hashes = Mapping[str, Mapping[str, str]]
"""SHA-256 by file and tensor name."""


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
    dataset: dict[str, str] | None = None
    """`name` and `fingerprint`; None where weights came from elsewhere."""
    tokenizer: dict[str, Any] | None = None
    """`kind`, `fingerprint` and `vocab_size`, as `gpt_common.data.tokenizers.identity` gives them."""
    prompt: str | None = None
    """What samples start from if no prompt is given."""
    written_by: dict[str, Any] | None = None
    """Program and versions."""
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
        require_file(path)
        if path.stat().st_size > LARGEST_MANIFEST:
            raise ValueError("it is too large")
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            version = state["format_version"]
            names = [field.name for field in dataclasses.fields(cls)]
            manifest = cls(**{name: state[name] for name in names if name in state})
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        if version != FORMAT_VERSION:
            raise UserError(f"{path} has format version {version}, this program reads {FORMAT_VERSION}: update it")
        manifest.check()
        return manifest

    def check(self) -> None:
        """Raise a ValueError for an entry of a wrong type."""
        if type(self.step) is not int or self.step < 0:
            raise ValueError(f"step is {self.step!r}")
        for name, entry in (("config", self.config), ("tensors", self.tensors)):
            if not isinstance(entry, dict) or not all(isinstance(value, dict) for value in entry.values()):
                raise ValueError(f"{name} must be an object of objects")
        for name in ("tokens", "val_loss", "best_val_loss", "best_step"):
            if not isinstance(value := getattr(self, name), int | float | None) or isinstance(value, bool):
                raise ValueError(f"{name} is {value!r:.80} and not a number")
        for name, kinds in (
            ("dataset", {"name": str, "fingerprint": str}),
            ("tokenizer", {"kind": str, "fingerprint": str, "vocab_size": int}),
            ("written_by", {}),
        ):
            value = getattr(self, name)
            if not isinstance(value, dict | None):
                raise ValueError(f"{name} is {value!r:.80} and not an object")
            for key, kind in kinds.items():
                if value and type(value.get(key)) is not kind:
                    raise ValueError(f"{key} of {name} is {value.get(key)!r:.80}")
        if not isinstance(self.prompt, str | None):
            raise ValueError(f"prompt is {self.prompt!r:.80} and not a text")

    def write(self, path: Path) -> None:
        """Write state.json, not yet synced."""
        document = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


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


def require_file(path: Path) -> None:
    """Refuse what would be waited for or read without end: a pipe, a device, a folder.

    Raises:
        OSError: it is no regular file, or is not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape by tensor name, after the safetensors library has accepted the file.

    Raises:
        ValueError: the file is not valid safetensors.
        OSError: it is no file, or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    require_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return {name: (s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except SafetensorError as error:
        raise ValueError(str(error)) from None


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
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        offsets = json.loads(file.read(length))
        for name, (dtype, shape) in header.items():
            begin, end = offsets[name]["data_offsets"]
            digest = hashlib.sha256(hash_header(dtype, shape))
            file.seek(8 + length + begin)
            remaining = end - begin
            while remaining and (block := file.read(min(HASH_BLOCK, remaining))):
                digest.update(block)
                remaining -= len(block)
                if finite and not all_finite(dtype, block):
                    raise ValueError(f"tensor {name} holds NaN or infinity: the run had diverged when it was saved")
            hashes[name] = digest.hexdigest()
    return hashes
