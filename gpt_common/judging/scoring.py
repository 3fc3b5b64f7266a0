"""How likely a model finds what stands behind something else, token by token; many of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gpt_common.data.batches import NumpyBatch, Tokens
from gpt_common.sampling import Batch

Ids = Sequence[int] | npt.NDArray[np.uint32]
LOGITS_ON_CPU, LOGITS_ON_GPU = 1 << 21, 1 << 26
"""Numbers of a batch's logits, at most, unless one row has more: 8 and 256 MiB in float32, a few times that while they
become probabilities. On a CPU larger ones come from the system page by page each time: the loss takes eight times as
long then (docs/results.md)."""


TOKENS_AT_ONCE = 4096
"""Of a batch: what one layer makes of them is some megabytes in small models."""


class Scorer(Protocol):
    """A model as it is asked here (`Scorer` in a twin's evaluate.py); without dropout, over its whole vocabulary."""

    block_size: int
    vocab_size: int
    logits_at_once: int
    """Numbers of a batch's logits."""
    batch: Batch
    """The same model, for text that it writes."""

    def losses(self, batches: Iterable[NumpyBatch]) -> list[float]:
        """Mean loss of each batch, nats per token."""

    def logits(self, tokens: Tokens) -> npt.NDArray[np.float32]:
        """(B, T) ids -> (B, T, V)."""

    def scores(
        self, tokens: Tokens, labels: Tokens, shared: Sequence[int] = (), *, likeliest: bool = True
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]:
        """What each label costs, (B, T) nats, and whether it is the likeliest token.

        Args:
            shared: tokens that stand before every row: gone through once, and cached.
            likeliest: whether that is asked; None otherwise.
        """


@dataclass(frozen=True)
class Part:
    """A stretch of tokens that a model is to predict, and what it sees before it."""

    seen: tuple[int, ...]
    """At least one token; behind it the predicted ones."""
    predicted: tuple[int, ...]
    owner: int
    """Whose it is: a number that the asker chooses."""
    first: int = 0
    """Where in the owner's tokens the predicted ones begin."""

    def __len__(self) -> int:
        """Tokens that the model goes through."""
        return len(self.seen) + len(self.predicted) - 1


@dataclass(frozen=True)
class Scored:
    """What a model made of a part."""

    part: Part
    nats: npt.NDArray[np.float64]
    """Of each predicted token: minus its log probability."""
    likeliest: npt.NDArray[np.bool_] | None
    """Whether it was the model's first choice, if that was asked."""


def parts_of(tokens: Ids, before: Ids, block_size: int, stride: int, owner: int = 0) -> Iterator[Part]:
    """A text in windows that a block holds: every token is predicted once, and none sees less than it could.

    The first window predicts a whole block; each of the others `stride` tokens more, behind the block_size - stride + 1
    before them, or as many more as are left over where the text ends.

    Args:
        tokens: what is predicted.
        before: what stands before the first, at least one token; as much of it as fits is seen.
        stride: 1 (as much context as there can be) to block_size (windows side by side, the fewest).
    """
    whole, begin = np.concatenate([before, tokens]).astype(np.int64), len(before)
    done, count = 0, len(tokens)
    while done < count:
        # The first window may give all its room to what it predicts: there is nothing more to see.
        more = min(count - done, stride if done else max(stride, block_size - begin + 1))
        end = begin + done + more
        seen = whole[max(0, end - 1 - block_size) : begin + done].tolist()
        yield Part(tuple(seen), tuple(whole[begin + done : end].tolist()), owner, done)
        done += more


def score(
    scorer: Scorer,
    parts: Sequence[Part],
    advance: Callable[[int], None] = lambda _: None,
    *,
    likeliest: bool = True,
) -> Iterator[Scored]:
    """What a model makes of the parts, in any order.

    Args:
        advance: hears how many tokens more the model has gone through.
        likeliest: whether it is asked what the model's first choices were.
    """
    for shared, beside in together(parts):
        yield from _score(scorer, beside, shared, advance, likeliest)


def together(parts: Iterable[Part]) -> list[tuple[tuple[int, ...], list[Part]]]:
    """The parts that begin alike, each with the tokens that need to be gone through only once; and all others, the
    longest first."""
    by_context: dict[tuple[int, ...], list[Part]] = {}
    for part in parts:
        by_context.setdefault(part.seen, []).append(part)
    found, alone = list[tuple[tuple[int, ...], list[Part]]](), list[Part]()
    for seen, beside in by_context.items():
        # What is shared must be worth two passes for one.
        if len(beside) > 1 and len(seen) > max(len(part.predicted) for part in beside):
            found.append((seen[:-1], beside))
        else:
            alone += beside
    # If memory does not hold the longest, that shows at once; and the time that is left is never more than it seems.
    return [*found, ((), sorted(alone, key=len, reverse=True))]


def passed(parts: Iterable[Part]) -> int:
    """Tokens that the model goes through for these, without what rows are filled up with."""
    groups = together(parts)
    return sum(len(shared) + sum(len(part) - len(shared) for part in beside) for shared, beside in groups)


def _score(
    scorer: Scorer, parts: Sequence[Part], shared: tuple[int, ...], advance: Callable[[int], None], likeliest: bool
) -> Iterator[Scored]:
    """Rows side by side, filled up on the right, where nothing that counts can see it."""
    waiting, first = list(parts), True
    while waiting:
        longest = max(1, max(len(part) for part in waiting) - len(shared))
        rows = max(1, min(scorer.logits_at_once // (longest * scorer.vocab_size), _rows_held(scorer, longest, shared)))
        now, waiting = waiting[:rows], waiting[rows:]
        longest = max(len(part) for part in now) - len(shared)
        tokens, labels = np.zeros((2, len(now), longest), np.int32)
        for row, part in enumerate(now):
            ids = [*part.seen[len(shared) :], *part.predicted]
            tokens[row, : len(ids) - 1], labels[row, : len(ids) - 1] = ids[:-1], ids[1:]
        nats, chosen = scorer.scores(tokens, labels, shared, likeliest=likeliest)
        for row, part in enumerate(now):
            end = len(part) - len(shared)
            span = slice(end - len(part.predicted), end)
            yield Scored(part, nats[row, span].astype(np.float64), None if chosen is None else chosen[row, span])
        # What is shared is told once, as `passed` counts it, in however many batches its parts come.
        advance(sum(len(part) - len(shared) for part in now) + (len(shared) if first else 0))
        first = False


def _rows_held(scorer: Scorer, longest: int, shared: tuple[int, ...]) -> int:
    """Rows whose activations, or whose copies of a cache, are no more than memory should bear."""
    return max(1, TOKENS_AT_ONCE // (scorer.block_size if shared else longest))
