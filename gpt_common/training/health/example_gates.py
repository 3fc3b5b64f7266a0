"""Gates on examples that share rows: their answers count, and none feels what another one in its row says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt_common.data.batches import Batch, NumpyBatch
from gpt_common.training.health.asked import StepProbe
from gpt_common.training.health.gates import GateFailed

ROWS = 2
"""Rows that are asked."""


def check_examples(probe: StepProbe, batches: Sequence[NumpyBatch], step: int) -> str:
    """Something counts in every row, and other tokens in its first example leave the loss of the next as it is.

    Raises:
        GateFailed: nothing of a row is learnt, or examples leak.
    """
    batch = batches[0]
    assert batch.weights is not None
    silent = np.flatnonzero(~(batch.weights > 0).any(axis=1))
    if len(silent):
        raise GateFailed(
            "examples", f"no token of row {silent[0]} counts in the loss", "Answers are not marked, or weights are lost"
        )
    # A step that is compiled takes no other number of rows.
    rows = slice(None if probe.compiled else ROWS)
    tokens, weights = batch.tokens[rows], batch.weights[rows]
    first = np.ones(tokens.shape, bool) if batch.starts is None else batch.starts[rows] == 0
    later = np.where(first, np.float32(0), weights)
    counted = int((weights > 0).sum())
    if batch.starts is None or not later.any():
        return f"{counted} tokens count in the first rows, one example to a row"
    changed = np.where(first, (tokens + 1) % probe.vocab_size, tokens).astype(np.int32)
    still, moved = (
        probe.step_loss([Batch(asked, batch.labels[rows], later, batch.starts[rows])], step, dropout=False)
        for asked in (tokens, changed)
    )
    if not abs(moved - still) <= 1e-6 * max(1.0, still):
        raise GateFailed(
            "examples",
            f"other tokens in a row's first example change the loss of the next from {still:.6f} to {moved:.6f}",
            "Packing leaks: attention reaches into the neighbour",
        )
    return f"{counted} tokens count in the first rows, and no example feels its neighbour"
