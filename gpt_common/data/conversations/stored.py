"""Where examples end and which of their tokens count, on disk beside the token ids: `{train,val}.examples`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.data.batches import Examples
from gpt_common.errors import UserError


def write_examples(path: Path, examples: Examples) -> dict[str, Any]:
    """Write the ends, little-endian uint64, and then a byte for each token; returns the entry in the sidecar."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (examples.ends.astype("<u8"), examples.counted.astype(np.uint8)):
            file.write(part.data)
            digest.update(part.data)
    return {
        "examples": len(examples.ends),
        "counted": int(examples.counted.sum()),
        "longest": int(examples.lengths.max()),
        "sha256": digest.hexdigest(),
    }


def open_examples(folder: Path, split: str, tokens: npt.NDArray[np.integer[Any]], recorded: dict[str, Any]) -> Examples:
    """Memory-map what `write_examples` wrote, after its size, its SHA-256 and all of its ends were checked.

    Raises:
        UserError: missing, truncated, changed, or not examples of these tokens.
    """
    path, count = folder / f"{split}.examples", int(recorded["examples"])
    try:
        size, expected = path.stat().st_size, 8 * count + len(tokens)
        if size != expected:
            raise UserError(f"{path} has {size} bytes where {expected} were written: prepare the dataset again")
        content = np.memmap(path, np.uint8, mode="r")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: prepare the dataset again") from None
    if hashlib.sha256(content.data).hexdigest() != recorded["sha256"]:
        raise UserError(f"{path} has changed since it was written (its SHA-256 differs): prepare the dataset again")
    ends, counted = content[: 8 * count].view("<u8").astype(np.int64), content[8 * count :]
    lengths = np.diff(ends, prepend=0)
    whole = count > 0 and ends[-1] == len(tokens) and bool((lengths > 0).all()) and int(counted.max()) <= 1
    if not whole or bool(counted[ends - lengths].any()):
        raise UserError(f"{path} does not divide {len(tokens)} tokens into {count} examples: prepare the dataset again")
    return Examples(tokens, counted, ends)
