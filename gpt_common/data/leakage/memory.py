"""Memorisation: the longest stretch of a text that stands, letter by letter, in the training text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt_common.data.leakage.rolling import Among, Letters, Prefixes, TokenIds
from gpt_common.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Verbatim:
    """The longest stretch of a text that the training text has too, whatever its spacing."""

    letters: int
    """Without spacing."""
    of: int
    """Letters of the whole text."""
    begin: int
    """The first token of it ..."""
    end: int
    """... and the one behind its last."""


def longest_runs(texts: Sequence[TokenIds], train: TokenIds, tokenizer: Tokenizer) -> list[Verbatim]:
    """Of each text the longest stretch that stands in the training text; the first of several as long.

    The training text is read once for every halving of the lengths that are still possible, about ten times.

    Args:
        texts: (M,) ids each.
        train: (N,) ids.
    """
    letters = Letters(tokenizer)
    said = [letters.of(text) for text in texts]
    known = [Prefixes(each) for each in said]
    # A text has a stretch of `low` letters in common with the training text, and none of `high`.
    low, high = [0] * len(texts), [len(each) + 1 for each in said]
    where = [0] * len(texts)
    while any(b - a > 1 for a, b in zip(low, high, strict=True)):
        asked: dict[int, list[int]] = {}
        for number, (a, b) in enumerate(zip(low, high, strict=True)):
            if b - a > 1:
                asked.setdefault((a + b) // 2, []).append(number)
        wanted = {
            length: np.unique(np.concatenate([known[number].windows(length) for number in numbers]))
            for length, numbers in asked.items()
        }
        among = {length: Among(hashes) for length, hashes in wanted.items()}
        seen = {length: np.zeros(len(hashes), bool) for length, hashes in wanted.items()}
        for stretch in letters.stretches(train, max(asked) - 1):
            prefixes = Prefixes(stretch)
            for length in asked:
                seen[length][among[length].places(prefixes.windows(length))] = True
        for length, numbers in asked.items():
            for number in numbers:
                hashes = known[number].windows(length)
                found = np.flatnonzero(seen[length][np.searchsorted(wanted[length], hashes)])
                if len(found):
                    low[number], where[number] = length, int(found[0])
                else:
                    high[number] = length
    runs = []
    for text, length, begin, each in zip(texts, low, where, said, strict=True):
        # Letters up to and with each token.
        ends = np.cumsum([len(letters.of(text[i : i + 1])) for i in range(len(text))])
        first = int(np.searchsorted(ends, begin, side="right"))
        last = int(np.searchsorted(ends, begin + length, side="left")) + 1 if length else first
        runs.append(Verbatim(length, len(each), first, last))
    return runs
