"""From logits to a token, and from a context to what a model sees of it.

The choice is made by numpy in float64 from uniform numbers that depend on the seed alone, so equal logits give
equal text in both twins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from gpt_common.commands import SampleSettings
from gpt_common.data.tokenizers import ExtendedTokenizer, Tokenizer
from gpt_common.errors import UserError


def choose(logits_V: npt.NDArray[np.float32], settings: SampleSettings, draw: float) -> int:
    """The next token: the likeliest at temperature 0, else by inverting the cumulative distribution at `draw`.

    Args:
        logits_V: (V,) float32.
        draw: a uniform number in [0, 1).
    """
    if settings.temperature == 0:
        return int(np.argmax(logits_V))
    scores_V = logits_V.astype(np.float64) / settings.temperature
    # Likeliest first; equal logits in order of their ids, so that the order does not depend on the backend.
    order_V = np.argsort(-scores_V, kind="stable")
    if settings.top_k:
        order_V = order_V[: settings.top_k]
    weights = np.exp(scores_V[order_V] - scores_V[order_V[0]])
    cumulative = np.cumsum(weights / weights.sum())
    if settings.top_p < 1:
        # The smallest set that reaches top_p (Holtzman et al. 2020): at least one token.
        cumulative = cumulative[: int(np.searchsorted(cumulative, settings.top_p)) + 1]
    return int(order_V[min(int(np.searchsorted(cumulative, draw * cumulative[-1], side="right")), len(cumulative) - 1)])


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
