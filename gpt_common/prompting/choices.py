"""Which of some texts a model finds the likeliest behind a prompt, by several counts.

The sum of log probabilities favours short choices, and those that are likely anywhere; so it is also told per token,
per byte, and less what the choice costs behind nothing (Brown et al. 2020, section 2.4; Zhao et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError
from gpt_common.sampling import Batch
from gpt_common.words import one_line, share, shortened


@dataclass(frozen=True)
class Choice:
    """A text that may follow."""

    text: str
    total: float
    """Log probability behind the prompt, nats."""
    tokens: int
    bytes: int
    alone: float
    """Log probability of the same tokens behind what has no content."""

    @property
    def scores(self) -> tuple[float, float, float, float]:
        """The sum, per token, per byte, and the sum beyond what the choice has anyway."""
        return self.total, self.total / self.tokens, self.total / self.bytes, self.total - self.alone


COUNTS = ("sum", "per token", "per byte", "beyond")


def parse_choices(written: str) -> list[str]:
    """`A,B,C`; a comma within one is written `\\,`. Blanks count: what follows a word begins with one.

    Raises:
        UserError: fewer than two, an empty one, or one twice.
    """
    choices = [part.replace("\0", ",") for part in written.replace("\\,", "\0").split(",")]
    if len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices):
        raise UserError("--choices takes two or more different texts, divided by commas: ' yes, no'")
    return choices


def score_choices(
    batch: Batch, tokenizer: Tokenizer, block_size: int, prompt: Sequence[int], choices: Sequence[str], nothing: int
) -> list[Choice]:
    """How likely each choice is behind a prompt.

    A choice and the end of the prompt may share a token. So prompt and choice are encoded as one text, and scored from
    where their tokens differ from the prompt's: what stands before it is the same for all.

    Args:
        prompt: token ids.
        nothing: the token behind which a choice is scored alone, in the same tokens: cut otherwise it is another text.

    Raises:
        UserError: a character outside the vocabulary, or more than the block holds.
    """
    text = tokenizer.decode(prompt)
    whole = [[*prompt, *tokenizer.encode(choice)] for choice in choices]
    if tokenizer.encode(text) == list(prompt):  # a plain text: where it is cut into tokens may change at its end
        whole = [tokenizer.encode(text + choice) for choice in choices]
    begin = min(_alike(ids, prompt) for ids in whole)
    found = []
    for choice, ids in zip(choices, whole, strict=True):
        if len(ids) > block_size:
            raise UserError(f"prompt and choice have {len(ids)} tokens, the model's block holds {block_size}")
        total = _log_probability(batch, ids, begin)
        alone = _log_probability(batch, [nothing, *ids[begin:]], 1)
        found.append(Choice(choice, total, len(ids) - begin, len(choice.encode()), alone))
    return found


def _alike(ids: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens both begin with; one stays to be predicted, and one before it to predict it."""
    same = next((i for i, (a, b) in enumerate(zip(ids, prompt, strict=False)) if a != b), min(len(ids), len(prompt)))
    return max(1, min(same, len(ids) - 1))


def _log_probability(batch: Batch, ids: Sequence[int], begin: int) -> float:
    logits_TV = batch.all_logits(ids[:-1])[begin - 1 :].astype(np.float64)
    top_T1 = logits_TV.max(axis=1, keepdims=True)
    normal_T = top_T1[:, 0] + np.log(np.exp(logits_TV - top_T1).sum(axis=1))
    return math.fsum((logits_TV[np.arange(len(normal_T)), ids[begin:]] - normal_T).tolist())


def lines_of(found: Sequence[Choice]) -> Iterator[str]:
    """A table; by every count the best is marked, and none where two are equal."""
    best = [_best([choice.scores[i] for choice in found]) for i in range(len(COUNTS))]
    probabilities = np.exp([choice.total - max(one.total for one in found) for choice in found])
    yield f"{'choice':<20} {'':>7} " + " ".join(f"{name:>11}" for name in COUNTS)
    for number, choice in enumerate(found):
        cells = [f"{score:>10.4f}{'*' if best[i] == number else ' '}" for i, score in enumerate(choice.scores)]
        name = shortened(one_line(choice.text), 20)
        yield f"{name:<20} {share(float(probabilities[number] / probabilities.sum())):>7} " + " ".join(cells)
    yield "log probabilities in nats; * the best; beyond: less that behind nothing"


def _best(scores: Sequence[float]) -> int | None:
    """Number of the highest; None of several that are equal."""
    top = max(scores)
    return scores.index(top) if scores.count(top) == 1 else None
