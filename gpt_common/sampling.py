"""From logits to a token, and from a context to what a model sees of it.

The choice is made by numpy in float64 from uniform numbers that depend on the seed alone, so equal logits give
equal text in both twins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gpt_common.commands import SampleSettings
from gpt_common.data.tokenizers import ExtendedTokenizer, Tokenizer
from gpt_common.errors import UserError
from gpt_common.structured import Constraint, Divergence

Logits = npt.NDArray[np.float32]
MOST_PROMPT_TOKENS = 2048
"""That are gone through at once: their logits stand beside each other in memory."""


class Batch(Protocol):
    """Sequences that a twin continues together (`ContinuousBatch` in its sample.py)."""

    def next_logits(self, contexts: Mapping[int, Sequence[int]]) -> dict[int, Logits]:
        """By the number of each sequence the logits (V) of its next token; which are in it may change at each step."""

    def all_logits(self, tokens: Sequence[int]) -> Logits:
        """Of one text that fits the block the logits behind every token, (T, V)."""


@dataclass
class Continuation:
    """A sequence on its way: all tokens so far, and how the next ones are chosen."""

    context: list[int]
    settings: SampleSettings
    draws: Iterator[float]
    """Uniform numbers in [0, 1), one per token that is chosen."""
    constraint: Constraint | None = None
    """The form that it keeps to, if any."""
    made: int = 0
    """Tokens that are new."""
    forced: int = 0
    """Of them, those that the form left no choice about: they take no number."""
    divergence: Divergence = field(default_factory=Divergence)
    """What the form cost: of the model's next tokens, held to it, from what they are without it, at temperature 1,
    summed over all that are new."""

    def advance(self, logits_V: Logits) -> int:
        """Choose the next token, and take it in."""
        token = choose(logits_V, self.settings, next(self.draws)) if self.constraint is None else self._held(logits_V)
        self.context.append(token)
        self.made += 1
        return token

    def _held(self, logits_V: Logits) -> int:
        """The next token that the form allows."""
        constraint = self.constraint
        assert constraint is not None
        self.divergence.add(logits_V, constraint.allowed)
        token = constraint.forced
        if token is None:
            token = choose(logits_V, self.settings, next(self.draws), constraint.allowed)
        else:
            self.forced += 1
        constraint.take(token)
        return token

    @property
    def is_full(self) -> bool:
        """Whether nothing may follow: it has as many new tokens as it may, or its form has come to its end."""
        return self.made >= self.settings.max_new_tokens or (self.constraint is not None and self.constraint.closed)


def continue_together(
    batch: Batch, waiting: Iterable[Continuation], at_once: int, is_last: Callable[[int, int], bool]
) -> Iterator[tuple[int, int | None]]:
    """New tokens of several sequences, each with the number of its sequence; None behind the last of a sequence.

    Args:
        at_once: sequences that are continued together, at most; the next one joins when one ends.
        is_last: whether the sequence of this number ends with this token.
    """
    coming, going = enumerate(waiting), dict[int, Continuation]()
    while True:
        going |= dict(islice(coming, at_once - len(going)))
        if not going:
            return
        logits = batch.next_logits({number: one.context for number, one in going.items()})
        for number, one in list(going.items()):
            token = one.advance(logits[number])
            yield number, token
            if is_last(number, token) or one.is_full:
                del going[number]
                yield number, None


def equally_long(texts: Mapping[int, Sequence[int]]) -> Iterator[list[int]]:
    """The numbers of texts that have one length, group by group, none larger than memory should bear."""
    by_length: dict[int, list[int]] = {}
    for number, tokens in texts.items():
        by_length.setdefault(len(tokens), []).append(number)
    for length, numbers in by_length.items():
        most = max(1, MOST_PROMPT_TOKENS // length)
        yield from (numbers[first : first + most] for first in range(0, len(numbers), most))


def choose(
    logits_V: npt.NDArray[np.float32],
    settings: SampleSettings,
    draw: float,
    allowed: npt.NDArray[np.intp] | None = None,
) -> int:
    """The next token: the likeliest at temperature 0, else by inverting the cumulative distribution at `draw`.

    Args:
        logits_V: (V,) float32.
        draw: a uniform number in [0, 1).
        allowed: ids of the tokens to choose from, ascending; all if None. The others are left out before anything else,
            as if their logits were -inf: top-k and top-p count what is left.
    """
    if allowed is not None:
        return int(allowed[choose(logits_V[allowed], settings, draw)])
    if settings.temperature == 0:
        return int(np.argmax(logits_V))
    kept, cumulative = shares(logits_V.astype(np.float64) / settings.temperature, settings)
    place = int(np.searchsorted(cumulative, draw * cumulative[-1], side="right"))
    return int(kept[min(place, len(kept) - 1)])


def shares(
    scores_V: npt.NDArray[np.float64], settings: SampleSettings
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The tokens among which one is drawn, and where the share of each ends, of a sum that is not 1.

    They are in order of their ids, and not of likelihood: two tokens that a rounding error would make change places
    stay where they are, so that the twins choose alike.

    Args:
        scores_V: (V,) logits by temperature.
    """
    weights_V = np.exp(scores_V - scores_V.max())
    kept = np.arange(len(weights_V))
    if settings.top_k or settings.top_p < 1:
        # Likeliest first; equal logits in order of their ids.
        kept = np.argsort(-scores_V, kind="stable")[: settings.top_k or None]
        if settings.top_p < 1:
            # The smallest set that reaches top_p (Holtzman et al. 2020): at least one token.
            cumulative = np.cumsum(weights_V[kept] / weights_V[kept].sum())
            kept = kept[: int(np.searchsorted(cumulative, settings.top_p)) + 1]
        kept = np.sort(kept)
    return kept, np.cumsum(weights_V[kept])


def until_end(tokens: Iterable[int], tokenizer: Tokenizer) -> Iterator[int]:
    """Generated tokens up to the one that ends document or turn, which is no text; all where there is no such token."""
    ends = tokenizer.ends
    return takewhile(lambda token: token not in ends, tokens)


def window(context: Sequence[int], block_size: int) -> list[int]:
    """What a model can see of a context, with room to go on.

    A context that fills the block is cut to its last three quarters: learned positions cannot slide, so the
    cache is built anew from there, once in a quarter of a block and not at every token.
    """
    return list(context if len(context) < block_size else context[-max(1, 3 * block_size // 4) :])


def encode_prompt(prompt: str, tokenizer: Tokenizer, block_size: int) -> list[int]:
    """Token ids of a prompt that fits the model.

    Raises:
        UserError: empty, with a character outside the vocabulary, or longer than the block.
    """
    # What was added for a template is there to be said: by its name.
    own = isinstance(tokenizer, ExtendedTokenizer)
    ids = tokenizer.encode_written(prompt) if own else tokenizer.encode(prompt)
    if len(ids) > block_size:
        raise UserError(f"the prompt has {len(ids)} tokens, the model's block holds {block_size}: shorten it")
    if not ids:
        raise UserError("the prompt is empty: give at least one character")
    return ids
