"""An answer as it is written: token by token to text, with what stops it, and how likely each token was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gpt_common.data.tokenizers import TextStream, Tokenizer
from gpt_common.errors import UserError
from gpt_common.sampling import Logits


@dataclass(frozen=True)
class Likely:
    """A token and the logarithm of its probability."""

    id: int
    text: str
    """What it says; of bytes that are no whole characters, `bytes:\\xe2\\x82`."""
    bytes: bytes
    logprob: float | None
    """None of a text's first token, which nothing predicts."""


@dataclass(frozen=True)
class Said:
    """A token of an answer or of its prompt."""

    token: Likely
    top: tuple[Likely, ...]
    """The likeliest in its place, the likeliest first; and itself, if it is not one of them and others are asked for.
    """
    offset: int
    """Where it begins, in characters of the answer, or of the prompt."""


@dataclass
class Piece:
    """What an answer has more than before."""

    text: str = ""
    tokens: list[Said] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)


def likely(tokenizer: Tokenizer, token: int, logprob: float | None) -> Likely:
    """A token as it is told."""
    try:
        raw = tokenizer.decode_bytes([token])
    except UserError:  # a gap in a published vocabulary
        raw = b""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
    return Likely(token, text, raw, logprob)


def told(tokenizer: Tokenizer, token: int, logits_V: Logits, count: int) -> tuple[Likely, tuple[Likely, ...]]:
    """A token with the probability that the model gave it, and the `count` likeliest in its place.

    The model's own probabilities, at temperature 1 and without any cut, whatever the token was chosen by.
    """
    scores_V = logits_V.astype(np.float64)
    scores_V -= scores_V.max()
    logprobs_V = scores_V - np.log(np.exp(scores_V).sum())
    best = np.argsort(-logprobs_V, kind="stable")[:count].tolist() if count else []
    chosen = likely(tokenizer, token, float(logprobs_V[token]))
    top = [likely(tokenizer, one, float(logprobs_V[one])) for one in best]
    if count and token not in best:
        top.append(chosen)
    return chosen, tuple(top)


class Writer:
    """The text of one answer; what could become a stop string is held back until it is none.

    Args:
        tokenizer: the model's.
        stops: texts at which it ends; they are no part of it.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self.stops = stops
        self.stopped = False
        self._stream = TextStream(tokenizer)
        self._held = ""
        self._shown = 0
        """Characters that were given out."""
        self._waiting: list[tuple[int, Said | None, int, int]] = []
        """Tokens whose text is held back: id, what is told of it, where it begins and ends."""

    @property
    def length(self) -> int:
        """Characters that were written, given out or not."""
        return self._shown + len(self._held)

    def push(self, token: int, said: Said | None) -> Piece:
        """Write a token; returns what can be given out by now."""
        begin = self.length
        self._held += self._stream.push(token)
        self._waiting.append((token, said, begin, self.length))
        return self._given_out(final=False)

    def finish(self) -> Piece:
        """The rest, where there are no more tokens."""
        self._held += self._stream.finish()
        return self._given_out(final=True)

    def _given_out(self, *, final: bool) -> Piece:
        found = [at for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            cut = min(found)
        else:
            cut = len(self._held) - (0 if final else self._could_be_a_stop())
        piece = Piece(self._held[:cut])
        self._shown += cut
        self._held = "" if self.stopped else self._held[cut:]
        while self._waiting:
            token, said, begin, end = self._waiting[0]
            if not (final or end <= self._shown or (self.stopped and begin < self._shown)):
                break
            self._waiting.pop(0)
            piece.ids.append(token)
            if said is not None:
                piece.tokens.append(said)
        return piece

    def _could_be_a_stop(self) -> int:
        """Characters at the end of what is held that begin a stop string."""
        longest = max(map(len, self.stops), default=0)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self.stops):
                return length
        return 0
