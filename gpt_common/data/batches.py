"""Batches as a pure function of (seed, step, micro-step, rank): resuming needs the step number, nothing else."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from gpt_common.data.conversations.packing import alone, pack
from gpt_common.keyed import keyed_generator

Tokens = npt.NDArray[np.int32]
Array = TypeVar("Array")


@dataclass(frozen=True)
class Batch(Generic[Array]):
    """What a model learns from in one micro-step: numpy's arrays, and within a twin the framework's."""

    tokens: Array
    """(B, T) token ids."""
    labels: Array
    """(B, T) the ids that follow them."""
    weights: Array | None = None
    """(B, T) float32: how much each position counts in the loss; None if all count alike."""
    starts: Array | None = None
    """(B, T) int32: where in its row the example of each position begins: it sees nothing before. None: each row is one
    text, or one example and what fills it up."""


NumpyBatch = Batch[npt.NDArray[Any]]


@dataclass(frozen=True)
class Examples:
    """Texts of which some tokens are to be learnt, one after the other."""

    tokens: npt.NDArray[np.integer[Any]]
    """(N,) ids of all of them."""
    counted: npt.NDArray[np.uint8]
    """(N,) 1 where a token is to be predicted, 0 where it is only read; 0 at the first of an example."""
    ends: npt.NDArray[np.int64]
    """(E,) where each ends."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(E,) tokens of each."""
        return np.diff(self.ends, prepend=0)


class Rows:
    """Examples in rows of block_size + 1 tokens: tokens and labels are the row without its last and its first.

    Args:
        block_size: no example is longer than it and one more.
        packing: as many examples to a row as fit; otherwise one.
        pad: the id that fills a row.
    """

    def __init__(self, examples: Examples, block_size: int, *, packing: bool, pad: int = 0) -> None:
        self.examples, self.block_size, self.packing, self.pad = examples, block_size, packing, pad
        lengths = examples.lengths
        self.order, self.ends = pack(lengths, block_size + 1) if packing else alone(lengths)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def filled(self) -> float:
        """Share of the rows' room that holds examples."""
        return len(self.examples.tokens) / (len(self) * (self.block_size + 1))

    def batch(self, numbers: Sequence[int] | npt.NDArray[np.int64]) -> NumpyBatch:
        """The rows of these numbers, (B, T); what fills them counts nothing."""
        shape = len(numbers), self.block_size + 1
        tokens, weights, starts = np.full(shape, self.pad, np.int32), np.zeros(shape, np.float32), np.zeros(shape, int)
        for i, row in enumerate(numbers):
            at = 0
            for example in self.order[self.ends[row - 1] if row else 0 : self.ends[row]]:
                end = int(self.examples.ends[example])
                start = int(self.examples.ends[example - 1]) if example else 0
                here = slice(at, at + end - start)
                tokens[i, here], weights[i, here] = self.examples.tokens[start:end], self.examples.counted[start:end]
                starts[i, here] = at
                at += end - start
            starts[i, at:] = at
        # A label counts if its token does, and none that begins an example does: no example answers to another. One
        # alone sees nothing of what fills its row, which comes after it.
        return Batch(
            np.ascontiguousarray(tokens[:, :-1]),
            np.ascontiguousarray(tokens[:, 1:]),
            np.ascontiguousarray(weights[:, 1:]),
            np.ascontiguousarray(starts[:, :-1], np.int32) if self.packing else None,
        )


class Stream(Protocol):
    """A text that may still grow."""

    @property
    def beginning(self) -> npt.NDArray[np.integer[Any]]:
        """(N,) what it begins with, there from the start: more than a window."""

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""

    @property
    def grows(self) -> bool:
        """Whether somebody makes more of it at this moment."""

    @property
    def remedy(self) -> str:
        """The command that makes more of it."""

    def __len__(self) -> int:
        """How many tokens are there by now."""

    def look(self) -> None:
        """See what has come."""

    def read(self, start: int, stop: int) -> npt.NDArray[np.integer[Any]]:
        """Tokens `start` to `stop`; raises UserError where they are not what they should be."""


POOL_TOKENS = 1 << 20
"""Tokens whose windows are shuffled together: some thousand documents, and little to wait for."""


class Windows:
    """Windows of a stream, each once before any comes again, in an order in which what is there by now has no part.

    The stream is cut into windows of block_size tokens, and the windows side by side into pools, each of which is
    shuffled for itself and dealt after the one before it. A pool can be dealt when it is there, whatever else is; the
    last one, which may be smaller, when the stream has ended. Then the first comes again, shuffled anew.
    """

    HELD = 4
    """Pools in memory."""

    def __init__(self, stream: Stream, block_size: int) -> None:
        self.stream, self.block_size = stream, block_size
        self.pool_size = max(1, POOL_TOKENS // block_size)
        """Windows of a pool that is not the last."""
        self._held: dict[int, npt.NDArray[np.integer[Any]]] = {}

    @property
    def total(self) -> int | None:
        """How many windows there are; None while the stream may grow."""
        return (len(self.stream) - 1) // self.block_size if self.stream.ended else None

    def there(self, numbers: range) -> bool:
        """Whether the windows with these numbers can be dealt; reads them, so that a fault shows now.

        Raises:
            UserError: the stream is not what it was, or cannot be read.
        """
        if not self._known(numbers):
            self.stream.look()
        if not self._known(numbers):
            return False
        for pool in dict.fromkeys(self.place(number)[1] // self.pool_size for number in numbers):
            self._pool(pool)
        return True

    def needed(self, numbers: range) -> int:
        """Tokens that must be there before the windows with these numbers can be dealt, if the stream goes on."""
        return (numbers.stop - 1) // self.pool_size * self.pool_size * self.block_size + self._pool_tokens

    def place(self, number: int) -> tuple[int, int]:
        """How often the stream was dealt out before window `number`, and how many of it before it in this turn."""
        return (0, number) if self.total is None else divmod(number, self.total)

    def batch(self, numbers: range, seed: int, length: int) -> NumpyBatch:
        """The windows with these numbers in rows of `length`, which divides block_size.

        Raises:
            ValueError: they are not there yet.
        """
        rows = np.stack([self._window(number, seed) for number in numbers]).astype(np.int32)
        tokens, labels = (part.reshape(-1, length) for part in (rows[:, :-1], rows[:, 1:]))
        return Batch(np.ascontiguousarray(tokens), np.ascontiguousarray(labels))

    @property
    def _pool_tokens(self) -> int:
        return self.pool_size * self.block_size + 1

    def _known(self, numbers: range) -> bool:
        return self.total is not None or len(self.stream) >= self.needed(numbers)

    def _size(self, pool: int) -> int:
        return self.pool_size if self.total is None else min(self.pool_size, self.total - pool * self.pool_size)

    def _window(self, number: int, seed: int) -> npt.NDArray[np.integer[Any]]:
        turn, place = self.place(number)
        pool, at = divmod(place, self.pool_size)
        start = int(_shuffled(seed, turn, pool, self._size(pool))[at]) * self.block_size
        return self._pool(pool)[start : start + self.block_size + 1]

    def _pool(self, pool: int) -> npt.NDArray[np.integer[Any]]:
        if pool not in self._held:
            while len(self._held) >= self.HELD:
                del self._held[next(iter(self._held))]
            start, size = pool * self.pool_size * self.block_size, self._size(pool) * self.block_size + 1
            if start + size > len(self.stream):
                raise ValueError(f"pool {pool} was dealt before it was there")
            self._held[pool] = self.stream.read(start, start + size)
        return self._held[pool]


@functools.lru_cache(maxsize=4)
def _shuffled(seed: int, turn: int, pool: int, windows: int) -> npt.NDArray[np.int64]:
    """The windows of a pool in the order in which they come in turn number `turn`."""
    return keyed_generator(seed, "windows", turn, pool).permutation(windows)


Split = npt.NDArray[np.integer[Any]] | Rows
"""Where batches come from: one text, (N,), or rows of examples."""
Source = Split | Windows
"""Where training batches come from."""


def positions(batch: NumpyBatch) -> float:
    """How many positions count in the loss: the sum of their weights, and a trace for a batch where none does."""
    return batch.tokens.size if batch.weights is None else max(float(batch.weights.sum()), 1e-9)


def mean_loss(batches: Sequence[NumpyBatch], losses: Sequence[float]) -> float:
    """The mean over all positions that count, from the mean of each batch, nats per token."""
    if all(batch.weights is None for batch in batches):
        return float(np.mean(losses))
    return float(np.average(losses, weights=[positions(batch) for batch in batches]))


def places(split: Source, block_size: int) -> int:
    """At how many places a sequence can begin, or how many rows there are."""
    if isinstance(split, Windows):
        return min(split.pool_size, len(split.stream.beginning) // block_size)
    return len(split) if isinstance(split, Rows) else len(split) - block_size


def training_batch(
    split: Source,
    *,
    block_size: int,
    batch_size: int,
    seed: int,
    step: int,
    micro_step: int = 0,
    micro_steps: int = 1,
    rank: int = 0,
    ranks: int = 1,
) -> NumpyBatch:
    """Sequences (B, T) from random offsets as in nanoGPT; labels are one token later.

    Of examples every row, and of a stream every window, comes once before any comes again, in an order that is drawn
    anew each time.

    Args:
        split: the training split; of a text more than block_size tokens, of a stream all windows of this step.
        micro_steps, ranks: how many there are, which decides only the order of rows of examples and of windows.
    """
    if isinstance(split, Windows):
        micro_steps_done = (step * micro_steps + micro_step) * ranks + rank
        each = batch_size * block_size // split.block_size  # short rows are parts of windows
        return split.batch(range(micro_steps_done * each, (micro_steps_done + 1) * each), seed, block_size)
    if isinstance(split, Rows):
        first = ((step * micro_steps + micro_step) * ranks + rank) * batch_size
        turns = [divmod(first + i, len(split)) for i in range(batch_size)]
        return split.batch([int(_order(seed, turn, len(split))[place]) for turn, place in turns])
    generator = keyed_generator(seed, "batch", step, micro_step, rank)
    offsets = generator.integers(0, len(split) - block_size, size=batch_size)
    return _windows(split, offsets, block_size)


@functools.lru_cache(maxsize=4)
def _order(seed: int, turn: int, rows: int) -> npt.NDArray[np.int64]:
    """The rows in the order in which they come in turn number `turn`."""
    return keyed_generator(seed, "rows", turn).permutation(rows)


def evaluation_batches(split: Source, *, block_size: int, batch_size: int, batches: int) -> Iterator[NumpyBatch]:
    """The same `batches` batches every time: windows or rows spread evenly over the whole split.

    Of examples there are no more batches than rows are for, and of a stream only its beginning is asked.
    """
    if isinstance(split, Windows):
        split = split.stream.beginning
    if isinstance(split, Rows):
        batches = min(batches, -(-len(split) // batch_size))
        numbers = np.linspace(0, len(split) - 1, min(batches * batch_size, len(split))).astype(np.int64)
        for batch in range(batches):
            yield split.batch(numbers[batch::batches])
        return
    offsets = np.linspace(0, len(split) - block_size - 1, batches * batch_size).astype(np.int64)
    # Strided, so that any one batch sees the whole split and not one end of it.
    for batch in range(batches):
        yield _windows(split, offsets[batch::batches], block_size)


def estimated_on(split: Split, *, block_size: int, batch_size: int, batches: int) -> int:
    """How many tokens the `evaluation_batches` of a split predict; of a text no more than it has."""
    if isinstance(split, Rows):
        asked = evaluation_batches(split, block_size=block_size, batch_size=batch_size, batches=batches)
        return round(sum(positions(batch) for batch in asked))
    return min(batches * batch_size * block_size, len(split))


def _windows(tokens: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64], block_size: int) -> NumpyBatch:
    windows = tokens[offsets[:, None] + np.arange(block_size + 1)].astype(np.int32)
    return Batch(np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:]))
