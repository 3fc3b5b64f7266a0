"""Validation text that stands in the training text: how much of it, and whether that is more than chance.

Of every window of WINDOW letters of the validation text it is asked whether the training text has it. Some texts repeat
themselves: a grammar, verses, code. So stretches of the training text are asked the same, each whether its windows
stand in the rest, and only a validation text that repeats the training text far more than they do rings.

Windows are sampled by their hash: of equal windows either all are looked at or none, so that a share of the sample is
one of the whole. Memory holds the sample alone; the training text is read once, some at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.data.leakage.rolling import Among, Hashes, Letters, Prefixes
from gpt_common.data.tokenizers import Tokenizer

WINDOW = 180
"""Letters of a window. 50 of GPT-2's tokens, the window of Lee et al. 2022, hold about as many in English; 50
characters would be ten words, and in a small world those stand twice by chance."""
SAMPLED = 1 << 13
"""Windows of the validation text that are looked for, about; all of a shorter one."""
STRETCHES = 15
"""Of the training text that are asked the same, each as long as the validation text."""
LONGEST_STRETCH = 1 << 16
"""Tokens of such a stretch, at most."""
MOST_READ = 1 << 25
"""Tokens of the training text that are read when a dataset is opened; of more, spread evenly."""
SHARE_OF_VAL = 8
"""Of the validation text at most this part of that."""
READ_AT_ONCE = 1 << 16
"""Tokens of each part that is read of a larger text."""
LEAST = 0.01
"""Share below which nothing rings."""
TIMES = 2
"""More than so many times `expected` rings."""
NEW = 10
"""Where a text repeats so much of itself that nothing can be TIMES as much: less than this part of what is expected to
be new in the validation text rings, where that is at least LEAST_NEW."""
LEAST_NEW = 0.1
QUANTILE = 0.75
"""Of the stretches' shares: not the largest, which a leak that was put in twice would be."""

TokenIds = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Leakage:
    """How much of the validation text stands in the training text."""

    windows: int
    """Of the validation text that were looked for."""
    sampled: int
    """One window in so many was."""
    share: float
    """Of them that stand in the training text."""
    chance: tuple[float, ...]
    """The same share of each stretch of the training text in the rest of it."""
    apart: tuple[float, ...]
    """The same, without the windows that the validation text has too: what a leak that was put in twice adds nothing
    to."""
    read: float
    """Share of the training text that was read; the shares are scaled up by it."""

    @property
    def expected(self) -> float:
        """The share that a text of this kind may have without any leak.

        The largest that a stretch has apart from the validation text, or what three quarters of them have in all if
        that is more: a text that says one thing over and over says it everywhere.
        """
        usual = float(np.quantile(self.chance, QUANTILE)) if self.chance else 0.0
        return max(usual, *self.apart, 0.0)

    @property
    def is_leak(self) -> bool:
        """Whether validation text was put into the training text, in whole or in part."""
        # Two passages with the same WINDOW letters by chance share a window or a few, one that was copied many.
        copied = self.share * self.read * self.windows * self.sampled
        new = 1 - self.expected
        stands_out = self.share > TIMES * self.expected or (new >= LEAST_NEW and NEW * (1 - self.share) < new)
        return self.share >= LEAST and stands_out and copied >= WINDOW


def leakage(train: TokenIds, val: TokenIds, tokenizer: Tokenizer, most: int | None = MOST_READ) -> Leakage | None:
    """Look for the validation text in the training text.

    Args:
        train: (N,) ids.
        val: (M,) ids.
        most: tokens of the training text to read, and an eighth of it of the validation text; None for all.

    Returns:
        None if the validation text is shorter than a window.
    """
    letters = Letters(tokenizer)
    if most is not None and len(val) > most // SHARE_OF_VAL:
        val = _thinned(val, most // SHARE_OF_VAL)
    windows = letters.count(val) - WINDOW + 1
    if windows < 1:
        return None
    # A power of two, so that the sample is those hashes whose first bits are 0.
    bits = max(0, (windows // SAMPLED).bit_length())
    stretches = _stretches(len(train), len(val))
    asked = [_sampled(letters, val, bits), *(_sampled(letters, train[a:b], bits) for a, b in stretches)]
    wanted = np.unique(np.concatenate(asked))
    among, seen = Among(wanted), np.zeros(len(wanted), np.uint16)
    read = 0
    for begin, end, bit in _parts(len(train), stretches, most):
        read += end - begin
        for hashes in _hashes(letters, train[begin:end], bits):
            seen[among.places(hashes)] |= np.uint16(bit)
    scale = len(train) / max(read, 1)
    of_val = np.zeros(len(wanted), bool)
    of_val[np.searchsorted(wanted, asked[0])] = True
    shares, apart = list[float](), list[float]()
    for own, hashes in zip([0, *(1 << i for i in range(len(stretches)))], asked, strict=True):
        places = np.searchsorted(wanted, hashes)
        found = (seen[places] & np.uint16(0xFFFF ^ own)) > 0
        shares.append(min(1.0, float(found.mean()) * scale) if len(found) else 0.0)
        apart.append(min(1.0, float((found & ~of_val[places]).mean()) * scale) if len(found) else 0.0)
    return Leakage(len(asked[0]), 1 << bits, shares[0], tuple(shares[1:]), tuple(apart[1:]), read / max(len(train), 1))


def _thinned(tokens: TokenIds, count: int) -> TokenIds:
    """So many tokens of a larger text, in stretches that are spread evenly."""
    starts = np.linspace(0, len(tokens) - READ_AT_ONCE, max(1, count // READ_AT_ONCE)).astype(int)
    return np.concatenate([tokens[start : start + READ_AT_ONCE] for start in starts])


def _stretches(train: int, val: int) -> list[tuple[int, int]]:
    """From which token to which, evenly over the training text."""
    count = min(STRETCHES, max(2, train // max(val, 1)))
    length = min(val, train // count, LONGEST_STRETCH)
    if length < 1:
        return []
    starts = [i * (train - length) // max(count - 1, 1) for i in range(count)]
    return [(start, start + length) for start in starts]


def _parts(train: int, stretches: list[tuple[int, int]], most: int | None) -> Iterator[tuple[int, int, int]]:
    """What is read of the training text: from, to, and the bit of the stretch that it lies in."""
    cuts = sorted({0, train, *(place for stretch in stretches for place in stretch)})
    spread = 1 if most is None else -(-train // most)
    for begin, end in pairwise(cuts):
        inside = [i for i, (a, b) in enumerate(stretches) if a <= begin and end <= b]
        bit = 1 << inside[0] if inside else 1 << STRETCHES
        if spread == 1:
            yield begin, end, bit
            continue
        # Every `spread`-th part, the same ones wherever stretches lie.
        for part in range(-(-begin // READ_AT_ONCE) * READ_AT_ONCE, end, READ_AT_ONCE):
            if part // READ_AT_ONCE % spread == 0:
                yield part, min(end, part + READ_AT_ONCE), bit


def _hashes(letters: Letters, tokens: TokenIds, bits: int) -> Iterator[Hashes]:
    """Of every window in the sample, some at a time."""
    limit = np.uint64((1 << (64 - bits)) - 1) if bits else np.uint64(2**64 - 1)
    for stretch in letters.stretches(tokens, WINDOW - 1):
        hashes = Prefixes(stretch).windows(WINDOW)
        yield hashes[hashes <= limit] if bits else hashes


def _sampled(letters: Letters, tokens: TokenIds, bits: int) -> Hashes:
    return np.concatenate([*_hashes(letters, tokens, bits), np.zeros(0, np.uint64)])
