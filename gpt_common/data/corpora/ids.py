"""Token ids in files: written with their hash, read in chunks, and several files taken as one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.errors import UserError
from gpt_common.files import open_file

CHUNK_TOKENS = 1 << 20


def write_ids(path: Path, arrays: Iterable[npt.NDArray[np.integer]], dtype: np.dtype[Any]) -> tuple[int, str]:
    """Write ids; returns how many there are, and the SHA-256 of the file."""
    digest, tokens = hashlib.sha256(), 0
    with path.open("wb") as file:
        for ids in arrays:
            data = ids.astype(dtype).tobytes()
            file.write(data)
            digest.update(data)
            tokens += len(ids)
    return tokens, digest.hexdigest()


def read_ids(
    path: Path, dtype: np.dtype[Any], start: int, stop: int, *, header: int = 0
) -> Iterator[npt.NDArray[np.integer]]:
    """Ids `start` to `stop` of a file, CHUNK_TOKENS at a time.

    Args:
        header: bytes before the first id.

    Raises:
        UserError: unreadable, or it has not so many.
    """
    position = start
    try:
        with open_file(path) as file:
            file.seek(header + dtype.itemsize * start)
            while position < stop:
                data = file.read(dtype.itemsize * min(CHUNK_TOKENS, stop - position))
                if not data or len(data) % dtype.itemsize:
                    raise UserError(changed(path))
                ids = np.frombuffer(data, dtype)
                yield ids
                position += len(ids)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def changed(path: Path) -> str:
    """What to say of a file that is not what it was."""
    return f"{path} changed while it was read: repeat when nothing writes it"


def parts_of(lengths: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Of files that are taken as one, which hold ids `start` to `stop`: number of the file, and from where to where."""
    offset = 0
    for number, length in enumerate(lengths):
        first, last = max(start - offset, 0), min(stop - offset, length)
        if first < last:
            yield number, first, last
        offset += length
