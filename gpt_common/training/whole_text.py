"""Loss over a whole text, every token of it once: what an estimate from some batches is an estimate of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpt_common.data.batches import Batch, NumpyBatch, Rows, Split, positions
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class WholeText:
    """What a model makes of a text."""

    loss: float
    """Mean over all predicted tokens, nats."""
    tokens: int
    """How many were predicted: all but the first."""
    bytes: int
    """Their text in UTF-8; the end of a document, or of a turn, has none."""

    @property
    def bits_per_byte(self) -> float:
        """The same loss whatever the tokenizer: models with different vocabularies compare by it."""
        return self.loss * self.tokens / (math.log(2) * self.bytes) if self.bytes else math.nan


def whole_text(
    split: Split,
    tokenizer: Tokenizer,
    losses: Callable[[Iterable[NumpyBatch]], list[float]],
    *,
    block_size: int,
    batch_size: int,
    enough: Callable[[], bool] = lambda: False,
) -> WholeText | None:
    """The loss of a model over a whole text, block after block; None if it was enough before the end.

    The first token of a block is predicted from nothing but the one before it, as in training: a model that could
    look further back at every position would do a little better.

    Args:
        split: (N,) ids, or rows of examples, of which only what counts is predicted.
        losses: the model's mean loss of each batch, nats per token.
        enough: asked before every batch.
    """
    sizes: list[float] = []
    counts = np.zeros(tokenizer.vocab_size, np.int64)

    def batches() -> Iterator[NumpyBatch]:
        for batch in whole_batches(split, block_size=block_size, batch_size=batch_size):
            if enough():
                return
            sizes.append(positions(batch))
            said = batch.labels if batch.weights is None else batch.labels[batch.weights > 0]
            counts[:] += np.bincount(said.reshape(-1), minlength=len(counts))
            yield batch

    nats = sum(loss * size for loss, size in zip(losses(batches()), sizes, strict=True))
    total = int(split.examples.counted.sum()) if isinstance(split, Rows) else len(split) - 1
    if counts.sum() < total:
        return None
    return WholeText(loss=nats / total, tokens=total, bytes=int(counts @ byte_lengths(tokenizer)))


def whole_batches(split: Split, *, block_size: int, batch_size: int) -> Iterator[NumpyBatch]:
    """Blocks side by side, in which every token but the first is a label once; the last block may be shorter.

    Of examples: every row once.
    """
    if isinstance(split, Rows):
        for first in range(0, len(split), batch_size):
            yield split.batch(list(range(first, min(first + batch_size, len(split)))))
        return
    tokens = split
    blocks, rest = divmod(len(tokens) - 1, block_size)
    for first in range(0, blocks, batch_size):
        count = min(batch_size, blocks - first)
        start = first * block_size
        span = tokens[start : start + count * block_size + 1].astype(np.int32)
        yield Batch(span[:-1].reshape(count, block_size), span[1:].reshape(count, block_size))
    if rest:
        span = tokens[blocks * block_size :].astype(np.int32)
        yield Batch(span[None, :-1], span[None, 1:])


def byte_lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """(V,) bytes of text that each id stands for; none for the end of a document or a turn, or an id that was never
    given."""
    lengths, specials = np.zeros(tokenizer.vocab_size, np.int64), set(tokenizer.specials.values())
    for token in range(tokenizer.vocab_size):
        if token not in specials:
            with suppress(UserError):
                lengths[token] = len(tokenizer.decode_bytes([token]))
    return lengths
