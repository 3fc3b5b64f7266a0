"""More entries in the vocabulary of a model that is fine-tuned: rows for the special tokens of a template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.data.tokenizers import ExtendedTokenizer, Tokenizer

GROWING = ("token_embedding.weight", "head.weight", "head.bias")
"""Tensors with a row for each entry of the vocabulary."""


@dataclass(frozen=True)
class Growth:
    """From so many entries to so many."""

    known: int
    entries: int
    names: tuple[str, ...]
    """Of the new ones."""

    @property
    def said(self) -> str:
        """A line for the person."""
        rows = "their rows begin" if len(self.names) > 1 else "its row begins"
        new = f"{len(self.names)} new token{'s' * (len(self.names) > 1)}, {', '.join(self.names)}"
        return f"vocabulary: {new}: {rows} as the mean of the {self.known:,} that are known"

    def rows(self, value: npt.NDArray[Any], vocab_size: int) -> npt.NDArray[np.float32]:
        """(V, ...) -> (vocab_size, ...): the rows of new tokens, and whatever was never a token's, are the mean.

        An embedding of its own by chance would be unlike all others, and as an output be far too likely or unlikely.
        """
        known = value[: self.known].astype(np.float32)
        mean = known.mean(axis=0, dtype=np.float64).astype(np.float32)
        return np.concatenate([known, np.broadcast_to(mean, (vocab_size - self.known, *mean.shape))])


def growth_between(theirs: dict[str, Any], ours: Tokenizer) -> Growth | None:
    """What `ours` has more than the tokenizer of a checkpoint, if it is that one with special tokens behind it.

    Args:
        theirs: what the checkpoint's manifest says of its tokenizer.
    """
    if not isinstance(ours, ExtendedTokenizer):
        return None
    for count in range(len(ours.names)):
        shorter = ExtendedTokenizer(ours.base, ours.names[:count]) if count else ours.base
        if shorter.fingerprint == theirs.get("fingerprint"):
            return Growth(shorter.vocab_size, ours.vocab_size, ours.names[count:])
    return None
