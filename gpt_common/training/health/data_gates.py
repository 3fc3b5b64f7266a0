"""Gates on data: which text a batch is of."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.config import TrainConfig
from gpt_common.data.batches import NumpyBatch, Rows, Source, Windows
from gpt_common.training.health.gates import GateFailed

SEARCHED = 1 << 24
"""Tokens that are searched in one go."""


def check_batches(batches: Sequence[NumpyBatch], split: npt.NDArray[Any], other: npt.NDArray[Any], what: str) -> str:
    """Every sequence stands in the split that it should be from.

    Args:
        split: the tokens that they should be from, (N,).
        other: those of the other split.
        what: "training" or "validation".

    Raises:
        GateFailed: a sequence is not in its split.
    """
    for batch in batches:
        for row in _texts(batch):
            if not holds(split, row):
                where = "in the other split" if holds(other, row) else "nowhere in the data"
                raise GateFailed(
                    "data",
                    f"a {what} sequence stands {where}: {row[:6].tolist()} ...",
                    "Batches are drawn from the wrong split, or ids are changed on the way",
                )
    return f"the {what} batches are of the {what} split"


def text_of_stream(
    windows: Windows, numbers: range, beginning: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.integer[Any]]:
    """Of a stream, the pools that the windows with these numbers are from.

    Args:
        beginning: what the stream begins with, behind the validation text.

    Raises:
        GateFailed: it begins with something else.
    """
    stream, size = windows.stream, windows.pool_size * windows.block_size
    if not np.array_equal(stream.read(0, len(beginning)), beginning):
        raise GateFailed("data", "the stream does not begin behind the validation text", "Its offset is forgotten")
    pools = dict.fromkeys(windows.place(number)[1] // windows.pool_size for number in numbers)
    parts = [stream.read(pool * size, min((pool + 1) * size + 1, len(stream))) for pool in pools]
    return np.concatenate(parts)


def _texts(batch: NumpyBatch) -> list[npt.NDArray[Any]]:
    """The first and the last sequence, or the first examples of them."""
    if batch.starts is None:
        windows = np.concatenate([batch.tokens, batch.labels[:, -1:]], axis=1)
        if batch.weights is None:
            return [windows[0], windows[-1]]
        # Up to the last that counts: behind it is what fills the row.
        return [windows[row][: 2 + np.flatnonzero(batch.weights[row]).max(initial=-2)] for row in (0, -1)]
    return [batch.tokens[row][batch.starts[row] == 0] for row in (0, -1)]


def steps_per_epoch(split: Source, train: TrainConfig, block_size: int) -> float:
    """Steps in which every token, or every row of examples, or all that a stream begins with, comes about once."""
    split = split.stream.beginning if isinstance(split, Windows) else split
    rows = train.batch_size * train.grad_accum_steps
    return len(split) / (rows if isinstance(split, Rows) else rows * block_size)


def check_drawn_anew(batches: Sequence[NumpyBatch], following: Sequence[NumpyBatch], places: int) -> None:
    """No micro-batch is that of another micro-step, or of the step before.

    Args:
        batches: of one step.
        following: of the next.
        places: where a sequence can begin; of few, batches are alike by chance, and nothing is said.

    Raises:
        GateFailed: they are.
    """
    chance = 1.0 / max(1, places) ** min(8, len(batches[0].tokens))
    for others, what, meaning in (
        (batches[1:], "micro-batch 1 is an earlier one again", "The micro-step is not counted"),
        (following[:1], "the next step has the same micro-batch", "The step is not counted"),
    ):
        same = [np.array_equal(batches[0].tokens, other.tokens) for other in others]
        if same and all(same) and chance ** len(same) < 1e-6:
            raise GateFailed("data", what, meaning)


class Repeats:
    """Watches that no step is given a batch again which another step was given.

    Args:
        places: where a sequence can begin; of few, batches are alike by chance, and nothing is said.
        rows: sequences of a batch.
    """

    REMEMBERED = 1000
    """Batches: enough to see that they go round, and few enough that chance makes no two alike."""

    def __init__(self, places: int, rows: int) -> None:
        self._tell = 1e-6 * max(1, places) ** min(8, rows) >= self.REMEMBERED**2
        self._step_of: dict[int, int] = {}

    def check(self, step: int, batches: Sequence[NumpyBatch]) -> None:
        """Look at what a step was given.

        Raises:
            GateFailed: an earlier step had it.
        """
        for batch in batches if self._tell else ():
            before = self._step_of.setdefault(zlib.crc32(np.ascontiguousarray(batch.tokens).tobytes()), step)
            if before != step:
                text = f"step {step} is given a batch that step {before} was given"
                raise GateFailed("data", text, "Batches go round, or do not depend on the step")
        while len(self._step_of) > self.REMEMBERED:
            del self._step_of[next(iter(self._step_of))]


def holds(tokens: npt.NDArray[Any], window: npt.NDArray[Any]) -> bool:
    """Whether a sequence stands somewhere in tokens (N,)."""
    for first in range(0, len(tokens), SEARCHED):
        part = np.asarray(tokens[first : first + SEARCHED + len(window)])
        text, wanted = part.tobytes(), window.astype(part.dtype).tobytes()
        at = text.find(wanted)
        while at >= 0:
            if at % part.itemsize == 0:
                return True
            at = text.find(wanted, at + 1)
    return False
