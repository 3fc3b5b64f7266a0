"""Tensors of GGUF files, streamed: blocks of 4 to 8 bits become float32 when read, and are packed when written.

The packing of blocks is gguf-py's, an extra; float32, float16 and bfloat16 need nothing.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert.storage import tensors
from convert.storage.disk import create
from convert.storage.gguf_header import (
    ALIGNMENT,
    Header,
    Kind,
    Stored,
    Value,
    encoded_header,
    read_gguf_header,
)
from convert.storage.tensors import BLOCKS_AHEAD, Tensor, extent, values
from gpt_common.errors import UserError

LARGEST_IN_BLOCKS = 65504.0
"""The largest float16, which is what the scale of a block is."""


def is_packed(kind: Kind) -> bool:
    """Whether its numbers are kept in blocks."""
    return kind.elements > 1


def read_gguf(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """The header, and every tensor, to be streamed: those in blocks as float32.

    Raises:
        UserError: the file is not valid; while reading: gguf-py is needed and not here.
        OSError: it cannot be read.
    """
    header = read_gguf_header(path)
    found = {}
    for name, stored in header.tensors.items():
        if is_packed(stored.kind):
            dtype, blocks = "F32", functools.partial(_unpacked, path, stored)
        else:
            dtype, size = stored.kind.name, stored.kind.nbytes
            blocks = functools.partial(extent, path, stored.offset, stored.nbytes, tensors.BLOCK * size)
        found[name] = Tensor(dtype=dtype, shape=stored.shape, blocks=blocks)
    return header, found


def _unpacked(path: Path, stored: Stored) -> Iterator[bytes]:
    quants, kind = _quants(), stored.kind
    number = _gguf().GGMLQuantizationType(kind.number)
    for block in extent(path, stored.offset, stored.nbytes, kind.size_of(tensors.BLOCK)):
        packed = np.frombuffer(block, "<u1").reshape(1, -1)
        with np.errstate(all="ignore"):  # a damaged scale may be anything: what is no number is refused by who reads it
            yield quants.dequantize(packed, number).astype("<f4", copy=False).tobytes()


def packed(name: str, tensor: Tensor, kind: Kind) -> Iterator[bytes]:
    """The bytes of a tensor as `kind` keeps them; it is float32 if those are blocks, and of that dtype otherwise.

    Raises:
        UserError: a number is too large for the scale of a block, or gguf-py is not here.
    """
    if not is_packed(kind):
        yield from tensor.blocks()
        return
    quants = _quants()
    number = _gguf().GGMLQuantizationType(kind.number)
    for block in tensor.blocks():
        found = values(block, tensor.dtype)
        if float(np.abs(found).max(initial=0.0)) > LARGEST_IN_BLOCKS:
            raise UserError(f"tensor {name} has numbers too large for {kind.name.lower()}: choose another --dtype")
        with np.errstate(under="ignore", divide="ignore", over="ignore", invalid="ignore"):
            yield quants.quantize(np.ascontiguousarray(found).reshape(1, -1), number).tobytes()


def write_gguf(
    path: Path,
    settings: Mapping[str, Value],
    named: Mapping[str, tuple[Tensor, Kind]],
    progress: Callable[[int], None],
) -> None:
    """Stream tensors into a new file, in their order.

    Raises:
        UserError: a tensor cannot be read.
        OSError: the file cannot be written.
    """
    places: dict[str, Stored] = {}
    position = 0
    for name, (tensor, kind) in named.items():
        places[name] = Stored(kind, tensor.shape, position)
        position += _padded(places[name].nbytes)
    # Blocks that stay a moment longer leave their memory to the next ones. Freed at once it goes back to the system,
    # and fresh pages cost a sixth of the time.
    recent: deque[bytes] = deque(maxlen=BLOCKS_AHEAD)
    with create(path) as file:
        file.write(encoded_header(settings, places))
        for name, (tensor, kind) in named.items():
            size = tensor.nbytes / max(1, places[name].nbytes)
            for block in packed(name, tensor, kind):
                recent.append(block)
                file.write(block)
                progress(round(len(block) * size))
            file.write(bytes(_padded(places[name].nbytes) - places[name].nbytes))


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def mean_row(tensor: Tensor) -> Tensor:
    """(V, D) -> (1, D): the mean of its rows, as float32, summed in float64."""
    rows, width = tensor.shape
    total, rest = np.zeros(width, np.float64), np.empty(0, np.float64)
    for block in tensor.blocks():
        found = np.concatenate([rest, values(block, tensor.dtype).astype(np.float64)])
        whole = found.size // width * width
        total += found[:whole].reshape(-1, width).sum(axis=0)
        rest = found[whole:]
    return tensors.from_array((total / rows).astype("<f4").reshape(1, width), "F32")


def count_of(stored: Mapping[str, Stored]) -> dict[str, int]:
    """How many numbers there are of each kind."""
    found: dict[str, int] = {}
    for each in stored.values():
        found[each.kind.name] = found.get(each.kind.name, 0) + math.prod(each.shape)
    return found


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError(
            "blocks of 4 to 8 bits need gguf-py: pip install -e '.[deploy]', or choose float32, bfloat16 or float16"
        ) from None
    return gguf


def _quants() -> Any:
    _gguf()
    from gguf import quants

    return quants
