"""Rolling hashes of a text without its spacing, whatever the vocabulary: where the same letters stand twice.

Text is compared as its letters: the bytes of its UTF-8 without ASCII white space, a special token as one letter of its
own. So a passage that was wrapped, indented or doubly spaced is still the same passage, and windows are of the same
length for every vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError
from gpt_common.keyed import keyed_generator

Hashes = npt.NDArray[np.uint64]
TokenIds = npt.NDArray[np.integer[Any]]

AT_ONCE = 1 << 17
"""Tokens that are looked at in one go: what is worked out of them stays in a processor's cache, nearly."""
SPECIAL = 0xFF
"""The letter of a special token: no UTF-8 has this byte."""
_FACTOR = 0x9E3779B97F4A7C15 | 1
_INVERSE = pow(_FACTOR, -1, 1 << 64)
_LETTER_VALUES: Hashes = keyed_generator("letters").integers(0, 2**64, 256, np.uint64)


class Letters:
    """Token ids to letters.

    Args:
        tokenizer: of the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        specials = set(tokenizer.specials.values())
        pieces = [bytes([SPECIAL])] * tokenizer.vocab_size
        for token in range(tokenizer.vocab_size):
            if token not in specials:
                with suppress(UserError):  # an id without text
                    pieces[token] = b"".join(tokenizer.decode_bytes([token]).split())
        self._lengths = np.array([len(piece) for piece in pieces], np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._bytes = np.frombuffer(b"".join(pieces), np.uint8)
        self._single = int(self._lengths.max()) <= 1
        if self._single:
            self._letter = np.array([piece[0] if piece else 0 for piece in pieces], np.uint8)
            self._has_one = self._lengths > 0

    def of(self, tokens: TokenIds) -> npt.NDArray[np.uint8]:
        """(L,) letters of tokens (N,)."""
        tokens = np.asarray(tokens)
        if self._single:
            return np.asarray(self._letter[tokens][self._has_one[tokens]])
        lengths = self._lengths[tokens]
        ends = np.cumsum(lengths)
        where = np.repeat(self._starts[tokens] - ends + lengths, lengths)
        where += np.arange(len(where))
        return np.asarray(self._bytes[where])

    def count(self, tokens: TokenIds) -> int:
        """Letters of tokens (N,), which may be many."""
        return sum(
            int(self._lengths[np.asarray(tokens[first : first + AT_ONCE])].sum())
            for first in range(0, len(tokens), AT_ONCE)
        )

    def stretches(self, tokens: TokenIds, overlap: int) -> Iterator[npt.NDArray[np.uint8]]:
        """The letters of tokens (N,), some at a time; each begins with the last `overlap` letters before it."""
        before = np.zeros(0, np.uint8)
        for first in range(0, len(tokens), AT_ONCE):
            stretch = np.concatenate([before, self.of(tokens[first : first + AT_ONCE])])
            yield stretch
            before = stretch[max(0, len(stretch) - overlap) :]


class Prefixes:
    """Sums over a stretch of letters, of which the hash of any window in it follows.

    A hash is that of a polynomial modulo 2^64 over random values of the letters: equal letters have equal hashes
    wherever they stand, and among a billion different windows about one in 2^34 has that of another.
    """

    def __init__(self, letters: npt.NDArray[np.uint8]) -> None:
        self._inverse = _powers(_INVERSE, len(letters) + 1)
        self._sums = np.zeros(len(letters) + 1, np.uint64)
        np.cumsum(_LETTER_VALUES[letters] * _powers(_FACTOR, len(letters)), out=self._sums[1:])

    def windows(self, length: int) -> Hashes:
        """The hashes of all windows of this length, by where they begin."""
        if length >= len(self._sums):
            return np.zeros(0, np.uint64)
        hashes = self._sums[length:] - self._sums[:-length]
        hashes *= self._inverse[: len(hashes)]
        return np.asarray(hashes)


_remembered: dict[int, Hashes] = {}


def _powers(base: int, count: int) -> Hashes:
    found = _remembered.get(base)
    if found is None or len(found) < count:
        found = np.full(max(count, 2 * AT_ONCE), base, np.uint64)
        found[0] = 1
        np.cumprod(found, out=found)
        if len(found) <= 8 * AT_ONCE:
            _remembered[base] = found
    return found[:count]


class Among:
    """Which of many hashes are among some that are looked for.

    Args:
        wanted: sorted, each once.
    """

    BITS = 20

    def __init__(self, wanted: Hashes) -> None:
        self.wanted = wanted
        self._possible = np.zeros(1 << self.BITS, bool)
        self._possible[self._short(wanted)] = True

    def _short(self, hashes: Hashes) -> Hashes:
        # From the middle: the first bits decide what is in a sample, the last ones mix least.
        return np.asarray((hashes >> np.uint64(20)) & np.uint64((1 << self.BITS) - 1))

    def places(self, hashes: Hashes) -> npt.NDArray[np.int64]:
        """Where in `wanted` those stand that are in it."""
        likely = hashes[self._possible[self._short(hashes)]]
        if not len(likely) or not len(self.wanted):
            return np.zeros(0, np.int64)
        places = np.minimum(np.searchsorted(self.wanted, likely), len(self.wanted) - 1)
        return np.asarray(places[self.wanted[places] == likely], np.int64)
