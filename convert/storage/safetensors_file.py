"""Safetensors files, streamed: the library validates what is read; the header of what is written is known before."""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from convert.storage.disk import create
from convert.storage.tensors import BLOCK, COPY_AGAIN, NUMPY, Tensor, extent, hashed, item_size
from gpt_common.errors import UserError
from gpt_common.training.manifest import header_entries, read_header


def is_safetensors(path: Path) -> bool:
    """Whether the content begins as a safetensors file does: a length, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, to be streamed, in the order in which they lie.

    Raises:
        UserError: the file is missing, unreadable or not valid.
    """
    try:
        found = read_header(path)
        offsets, data = header_entries(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a valid safetensors file ({error}): {COPY_AGAIN}") from None
    tensors = {}
    for name, (dtype, shape) in sorted(found.items(), key=lambda item: offsets[item[0]]["data_offsets"][0]):
        if dtype not in NUMPY:
            raise UserError(f"{path}: tensor {name} is {dtype}, which no model here can hold: save it as float32")
        begin, size = data + offsets[name]["data_offsets"][0], item_size(dtype)
        blocks = functools.partial(extent, path, begin, math.prod(shape) * size, BLOCK * size)
        tensors[name] = Tensor(dtype=dtype, shape=shape, blocks=blocks)
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The header's own entries; call after `read_safetensors` has accepted the file."""
    return dict(header_entries(path)[0].get("__metadata__", {}))


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], progress: Callable[[int], None]
) -> dict[str, str]:
    """Stream tensors into a file; returns the SHA-256 of each as in a checkpoint's manifest.

    Raises:
        UserError: a tensor cannot be read.
        OSError: the file cannot be written.
    """
    # Wide elements first, so that every tensor begins at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: -item_size(tensors[name].dtype))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in names:
        tensor = tensors[name]
        end = position + tensor.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    hashes = {}
    with create(path) as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            blocks, sha256 = hashed(tensors[name])
            for block in blocks:
                file.write(block)
                progress(len(block))
            hashes[name] = sha256()
    return hashes
