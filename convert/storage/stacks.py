"""Tensors made of others, streamed: experts stacked and taken apart again, matrices joined side by side.

Both ways are one operation on the stream of elements. `woven` takes a run of elements from each tensor in turn until
all are used up; `unwoven` deals them out again. Whole tensors as runs stack them, rows as runs put them side by side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from convert.storage import tensors
from convert.storage.tensors import COPY_AGAIN, DTYPE_NAMES, Tensor, item_size
from gpt_common.errors import UserError


class _Stream:
    """The bytes of a tensor from any place on: going forward reads on, going back starts again."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.restart()

    def restart(self) -> None:
        """Back to the first byte."""
        self.blocks = self.tensor.blocks()
        self.left = memoryview(b"")
        self.position = 0

    def read(self, start: int, limit: int) -> memoryview:
        """Some bytes from byte `start` on, at least one and at most `limit`."""
        if start < self.position:
            self.restart()
        while self.position + len(self.left) <= start:
            self.position += len(self.left)
            self.left = memoryview(next(self.blocks))
        piece = self.left[start - self.position :][:limit]
        self.left = self.left[start - self.position + len(piece) :]
        self.position = start + len(piece)
        if self.position == self.tensor.nbytes:
            # Whoever checks what was read does so after the last block.
            for _ in self.blocks:
                pass
        return piece

    def run(self, start: int, length: int) -> Iterator[memoryview]:
        """`length` bytes from byte `start` on; others may read in between."""
        end = start + length
        while start < end:
            piece = self.read(start, end - start)
            start += len(piece)
            yield piece


def in_blocks(pieces: Iterator[memoryview], dtype: str) -> Iterator[bytes]:
    """The same bytes in blocks as `Tensor.blocks` promises them."""
    size = tensors.BLOCK * item_size(dtype)
    block = bytearray()
    for piece in pieces:
        while len(block) + len(piece) >= size:
            missing = size - len(block)
            yield bytes(block) + piece[:missing]
            block.clear()
            piece = piece[missing:]
        block += piece
    if block:
        yield bytes(block)


def runs_of(tensor: Tensor, length: int) -> Iterator[bytes]:
    """The bytes of a tensor, `length` elements at a time; all are read, so that whoever checks them does."""
    stream, size = _Stream(tensor), length * item_size(tensor.dtype)
    for start in range(0, tensor.nbytes, size):
        yield b"".join(stream.run(start, size))


def woven(parts: Sequence[Tensor], run: int, shape: tuple[int, ...]) -> Tensor:
    """One tensor of `run` elements of each part in turn, until all are used up; parts are alike in size and dtype."""
    length = run * item_size(parts[0].dtype)

    def pieces() -> Iterator[memoryview]:
        if run == parts[0].size:  # one file after the other is open, not all of them
            for part in parts:
                yield from _Stream(part).run(0, length)
            return
        streams = [_Stream(part) for part in parts]
        for start in range(0, parts[0].nbytes, length):
            for stream in streams:
                yield from stream.run(start, length)

    dtype = parts[0].dtype
    return Tensor(dtype=dtype, shape=shape, blocks=lambda: in_blocks(pieces(), dtype))


def unwoven(tensor: Tensor, run: int, count: int, shape: tuple[int, ...]) -> list[Tensor]:
    """The `count` tensors of `shape` that `woven` would make `tensor` of.

    Read in order they share one pass over the tensor where each is a single run, as a stack's experts are.
    """
    stream = _Stream(tensor) if tensor.size else None
    length = run * item_size(tensor.dtype)

    def pieces(number: int) -> Iterator[memoryview]:
        if stream is None:
            return
        for start in range(number * length, tensor.nbytes, count * length):
            yield from stream.run(start, length)

    def part(number: int) -> Tensor:
        return Tensor(dtype=tensor.dtype, shape=shape, blocks=lambda: in_blocks(pieces(number), tensor.dtype))

    return [part(number) for number in range(count)]


def stacked(parts: Sequence[Tensor]) -> Tensor:
    """(F, D) each -> (E, F, D)."""
    return woven(parts, parts[0].size, (len(parts), *parts[0].shape))


def unstacked(tensor: Tensor) -> list[Tensor]:
    """(E, F, D) -> (F, D) each."""
    shape = tensor.shape[1:]
    return unwoven(tensor, tensor.size // tensor.shape[0], tensor.shape[0], shape)


def joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Matrices below one another (axis 0) or side by side (axis 1)."""
    rows, columns = parts[0].shape
    if axis == 0:
        return woven(parts, parts[0].size, (rows * len(parts), columns))
    return woven(parts, columns, (rows, columns * len(parts)))


def below(parts: Sequence[Tensor]) -> Tensor:
    """Tensors of rows of one width, below one another, whatever the number of each."""

    def pieces() -> Iterator[memoryview]:
        for part in parts:
            yield from _Stream(part).run(0, part.nbytes)

    dtype, shape = parts[0].dtype, (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return Tensor(dtype=dtype, shape=shape, blocks=lambda: in_blocks(pieces(), dtype))


def first_rows(tensor: Tensor, count: int) -> Tensor:
    """The first rows alone; all is read, so that whoever checks it does."""
    length = tensor.nbytes // tensor.shape[0] * count

    def pieces() -> Iterator[memoryview]:
        stream = _Stream(tensor)
        yield from stream.run(0, length)
        for _ in stream.run(length, tensor.nbytes - length):
            pass

    shape = (count, *tensor.shape[1:])
    return Tensor(dtype=tensor.dtype, shape=shape, blocks=lambda: in_blocks(pieces(), tensor.dtype))


def reordered(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """In every group of as many rows as `order` has, row number order[i] in place i; a vector's numbers are its rows.

    One group is in memory.
    """
    length = tensor.nbytes // tensor.shape[0]

    def pieces() -> Iterator[memoryview]:
        for run in runs_of(tensor, tensor.size // tensor.shape[0] * len(order)):
            group = memoryview(run)
            for row in order:
                yield group[row * length : (row + 1) * length]

    return Tensor(dtype=tensor.dtype, shape=tensor.shape, blocks=lambda: in_blocks(pieces(), tensor.dtype))


def gather(
    path: Path, raw: Mapping[str, Tensor], pattern: re.Pattern[str], count: int | None
) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
    """Tensors that are numbered in their names, and the others.

    Args:
        pattern: matches their names; its groups are what stands before the number, the number, and what follows.
        count: how many there must be of each; None if the file alone says.

    Returns:
        Lists in the order of the numbers, under the name with `*` in the number's place; and what has no number.

    Raises:
        UserError: a number is missing or beyond the count, or a tensor's shape or dtype is not that of the first.
    """
    numbered: dict[str, dict[int, str]] = {}
    others = {}
    for name, tensor in raw.items():
        if match := pattern.fullmatch(name):
            numbered.setdefault(f"{match[1]}*{match[3]}", {})[int(match[2])] = name
        else:
            others[name] = tensor
    gathered = {}
    for star, names in numbered.items():
        expected = count or len(names)
        for number in range(expected):
            if number not in names:
                wanted = f", config.json asks for {count} experts" if count else ""
                raise UserError(f"{path}: tensor {star.replace('*', str(number))} is missing{wanted}: {COPY_AGAIN}")
        if len(names) > expected:
            name = names[max(names)]
            raise UserError(f"{path}: unexpected tensor {name}, config.json asks for {count} experts: {COPY_AGAIN}")
        ordered = [names[number] for number in range(expected)]
        gathered[star] = [raw[name] for name in ordered]
        first = gathered[star][0]
        for name, tensor in zip(ordered, gathered[star], strict=True):
            shape = f"{path}: tensor {name} has shape {list(tensor.shape)}"
            if len(tensor.shape) != 2:
                raise UserError(f"{shape} and is not a matrix: {COPY_AGAIN}")
            if tensor.shape != first.shape:
                raise UserError(
                    f"{shape}, {ordered[0]} has {list(first.shape)}, and experts must be alike: {COPY_AGAIN}"
                )
            if tensor.dtype != first.dtype:
                dtype, others_dtype = DTYPE_NAMES[tensor.dtype], DTYPE_NAMES[first.dtype]
                raise UserError(
                    f"{path}: tensor {name} is {dtype}, {ordered[0]} is {others_dtype}: save the experts in one dtype"
                )
    return gathered, others
