"""Batches as a pure function of (seed, step, micro-step, rank): resuming needs the step number, nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

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


NumpyBatch = Batch[npt.NDArray[Any]]


def positions(batch: NumpyBatch) -> float:
    """How many positions count in the loss: the sum of their weights, and a trace for a batch where none does."""
    return batch.tokens.size if batch.weights is None else max(float(batch.weights.sum()), 1e-9)


def training_batch(
    tokens: npt.NDArray[np.integer],
    *,
    block_size: int,
    batch_size: int,
    seed: int,
    step: int,
    micro_step: int = 0,
    rank: int = 0,
) -> NumpyBatch:
    """Sequences (B, T) from random offsets as in nanoGPT; labels are one token later.

    Args:
        tokens: the training split, (N,), N > block_size.
    """
    generator = keyed_generator(seed, "batch", step, micro_step, rank)
    offsets = generator.integers(0, len(tokens) - block_size, size=batch_size)
    return _windows(tokens, offsets, block_size)


def evaluation_batches(
    tokens: npt.NDArray[np.integer], *, block_size: int, batch_size: int, batches: int
) -> Iterator[NumpyBatch]:
    """The same `batches` batches every time: windows spread evenly over the whole split."""
    offsets = np.linspace(0, len(tokens) - block_size - 1, batches * batch_size).astype(np.int64)
    # Strided, so that any one batch sees the whole split and not one end of it.
    for batch in range(batches):
        yield _windows(tokens, offsets[batch::batches], block_size)


def _windows(tokens: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64], block_size: int) -> NumpyBatch:
    windows = tokens[offsets[:, None] + np.arange(block_size + 1)].astype(np.int32)
    return Batch(np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:]))
