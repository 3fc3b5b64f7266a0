"""Tensors that are streamed: what one is, and blocks of its bytes on demand. Values change only in `cast`.

Bytes are little-endian in C order, dtypes carry safetensors' names. A block holds BLOCK elements, the last one fewer,
so memory does not grow with the tensor; only transposing and gathering strides hold one whole tensor.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.errors import UserError
from gpt_common.training.manifest import hash_header

BLOCK = 1 << 17
"""Elements per block: 512 kB of float32, which stay in the cache between checksum, hash and write."""

WORTH_A_THREAD = 1 << 16
"""Bytes that take longer to hash than a thread takes to start."""
BLOCKS_AHEAD = 4
"""Blocks that may wait for their hash, so that neither core waits for the other at every block."""

# Unsigned integers where numpy has no such float (BF16): bits are moved, never interpreted.
NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U8": "<u1", "U32": "<u4", "BOOL": "<u1", "C64": "<c8", "C128": "<c16",
}  # fmt: skip
WEIGHT_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""What weights may be, and what people call it."""
DTYPE_NAMES = WEIGHT_DTYPES | {
    "F64": "float64", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "U32": "uint32",
    "BOOL": "bool",
    "C64": "complex64", "C128": "complex128",
}  # fmt: skip
COPY_AGAIN = "copy or download it again"

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor that has not been read."""

    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[bytes]]
    """Starts reading; raises UserError where the bytes are missing or damaged."""
    origin: object = None
    """Where the bytes lie; equal origins, equal bytes."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * item_size(self.dtype)


def item_size(dtype: str) -> int:
    """Bytes per element."""
    return np.dtype(NUMPY[dtype]).itemsize


def load(tensor: Tensor) -> Array:
    """The whole tensor; BF16 as its bits in uint16."""
    array = np.empty(tensor.size, NUMPY[tensor.dtype])
    position = 0
    for block in tensor.blocks():
        part = np.frombuffer(block, array.dtype)
        array[position : position + part.size] = part
        position += part.size
    return array.reshape(tensor.shape)


def array(tensor: Tensor) -> npt.NDArray[np.float32]:
    """A whole tensor of floats, float32."""
    found = np.empty(tensor.size, np.float32)
    position = 0
    for block in tensor.blocks():
        part = values(block, tensor.dtype)
        found[position : position + part.size] = part
        position += part.size
    return found.reshape(tensor.shape)


def from_array(array: Array, dtype: str) -> Tensor:
    """A tensor over an array that is in memory; `dtype` says what its bits mean."""

    def blocks() -> Iterator[bytes]:
        flat = array.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            yield flat[start : start + BLOCK].tobytes()

    return Tensor(dtype=dtype, shape=array.shape, blocks=blocks)


def zeros(shape: tuple[int, ...], dtype: str) -> Tensor:
    """A tensor of zeros."""
    return from_array(np.zeros(shape, NUMPY[dtype]), dtype)


def transposed(tensor: Tensor) -> Tensor:
    """The transpose of a matrix; holds it in memory while it is read."""

    def blocks() -> Iterator[bytes]:
        return from_array(np.ascontiguousarray(load(tensor).T), tensor.dtype).blocks()

    return Tensor(dtype=tensor.dtype, shape=tensor.shape[::-1], blocks=blocks)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal dtype, shape and bits."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if a.origin is not None and a.origin == b.origin:
        return True
    return all(x == y for x, y in zip(a.blocks(), b.blocks(), strict=True))


def values(block: bytes, dtype: str) -> Array:
    """The numbers in a block; BF16 and F16 come as float32, which holds them exactly."""
    raw = np.frombuffer(block, NUMPY[dtype])
    if dtype == "BF16":
        return (raw.astype("<u4") << 16).view("<f4")
    return raw.astype("<f4") if dtype == "F16" else raw


@dataclass
class Rounding:
    """What casts changed."""

    elements: int = 0
    changed: int = 0
    largest: float = 0.0

    def __str__(self) -> str:
        if not self.changed:
            return f"nothing was lost: all {self.elements:,} values are exact"
        return f"{self.changed:,} of {self.elements:,} values changed, the largest by {self.largest:.3g}"


def cast(name: str, tensor: Tensor, dtype: str, rounding: Rounding) -> Tensor:
    """`tensor` in another float dtype, rounded to nearest even; what changes is added to `rounding` while it is read.

    Raises:
        UserError: while reading: a finite value becomes infinite.
    """
    if tensor.dtype == dtype:
        return tensor

    def blocks() -> Iterator[bytes]:
        for block in tensor.blocks():
            before = values(block, tensor.dtype)
            with np.errstate(over="ignore", invalid="ignore", under="ignore"):
                out = _round(before, dtype)
                after = values(out, dtype)
                overflow = int(np.count_nonzero(np.isinf(after) & np.isfinite(before)))
                if overflow:
                    raise UserError(
                        f"tensor {name}: {overflow:,} values are too large for {WEIGHT_DTYPES[dtype]} (largest "
                        f"{np.nanmax(np.abs(before)):.4g}): choose another --dtype"
                    )
                error = np.abs(after.astype("<f8") - before.astype("<f8"))
            changed = error[error > 0]  # comparisons with NaN are false: a NaN stays one
            rounding.elements += before.size
            rounding.changed += changed.size
            rounding.largest = max(rounding.largest, float(changed.max(initial=0)))
            yield out

    return Tensor(dtype=dtype, shape=tensor.shape, blocks=blocks)


def _round(numbers: Array, dtype: str) -> bytes:
    """Bytes of `numbers` in `dtype`."""
    if dtype != "BF16":
        return numbers.astype(NUMPY[dtype]).tobytes()
    bits = numbers.astype("<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding could carry a NaN's payload into the sign: keep its upper half and make it quiet.
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, (bits >> 16) | 0x40, rounded).astype("<u2").tobytes()


def extent(path: Path, start: int, length: int, block: int) -> Iterator[bytes]:
    """`length` bytes of a file from `start` on, in blocks of `block` bytes.

    Raises:
        UserError: the file ends before.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while length:
            data = file.read(min(block, length))
            if not data:
                raise UserError(f"{path} is damaged: it ends too early: {COPY_AGAIN}")
            while len(data) < min(block, length) and (more := file.read(min(block, length) - len(data))):
                data += more
            length -= len(data)
            yield data


def hashed(tensor: Tensor) -> tuple[Iterator[bytes], Callable[[], str]]:
    """The blocks of a tensor, and what says, after the last one, its SHA-256 as in a checkpoint's manifest."""
    digest = hashlib.sha256(hash_header(tensor.dtype, tensor.shape))
    return tee(tensor.blocks(), digest.update), digest.hexdigest


def tee(blocks: Iterable[bytes], update: Callable[[bytes], object]) -> Iterator[bytes]:
    """Pass blocks on while another thread feeds them to `update`, in order: hashes release the interpreter.

    `update` has taken every block before the end is reached; what it raises is raised here.
    """
    pending: deque[Future[object]] = deque()
    with ThreadPoolExecutor(max_workers=1) as thread:
        for block in blocks:
            if len(block) < WORTH_A_THREAD and not pending:
                update(block)
            else:
                pending.append(thread.submit(update, block))
            yield block
            if len(pending) > BLOCKS_AHEAD:
                pending.popleft().result()
        for future in pending:
            future.result()
