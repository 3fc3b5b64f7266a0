"""Batches as a pure function of (seed, step, micro-step, rank): resuming needs the step number, nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from gpt_common.keyed import keyed_generator

Tokens = npt.NDArray[np.int32]


def training_batch(
    tokens: npt.NDArray[np.integer],
    *,
    block_size: int,
    batch_size: int,
    seed: int,
    step: int,
    micro_step: int = 0,
    rank: int = 0,
) -> tuple[Tokens, Tokens]:
    """Inputs and labels, (B, T) int32 each, from random offsets as in nanoGPT; labels are one token later.

    Args:
        tokens: the training split, (N,), N > block_size.
    """
    generator = keyed_generator(seed, "batch", step, micro_step, rank)
    offsets = generator.integers(0, len(tokens) - block_size, size=batch_size)
    return _windows(tokens, offsets, block_size)


def evaluation_batches(
    tokens: npt.NDArray[np.integer], *, block_size: int, batch_size: int, batches: int
) -> Iterator[tuple[Tokens, Tokens]]:
    """The same `batches` batches every time: windows spread evenly over the whole split."""
    offsets = np.linspace(0, len(tokens) - block_size - 1, batches * batch_size).astype(np.int64)
    # Strided, so that any one batch sees the whole split and not one end of it.
    for batch in range(batches):
        yield _windows(tokens, offsets[batch::batches], block_size)


def _windows(tokens: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64], block_size: int) -> tuple[Tokens, Tokens]:
    windows = tokens[offsets[:, None] + np.arange(block_size + 1)].astype(np.int32)
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])
