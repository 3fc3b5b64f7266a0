"""How likely a model finds each of several ways in which a text could go on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt_common.data.tokenizers import Tokenizer
from gpt_common.judging.scoring import Part, Scorer, passed, score
from gpt_common.progress import Progress

SAME = 1e-5
"""Nats by which float32 moves the score of one text among different neighbours: what lies nearer is a tie."""


@dataclass(frozen=True)
class Choice:
    """Several texts that begin alike."""

    prefix: str
    ways: tuple[str, ...]
    evidence: int = 0
    """Characters of the prefix before what decides between them."""


@dataclass(frozen=True)
class Weighed:
    """What a model makes of a choice."""

    scores: tuple[float, ...]
    """Log probability of each way, nats: the sum over its tokens. What all ways begin with is left out."""
    seen: bool
    """Whether what decides stood in the model's block."""


def weigh(choices: Sequence[Choice], tokenizer: Tokenizer, scorer: Scorer) -> list[Weighed]:
    """Score every way of every choice.

    A text longer than the block loses its beginning, the same for all ways of a choice.
    """
    parts: list[Part] = []
    seen: list[bool] = []
    owner = 0
    for choice in choices:
        texts = [tokenizer.encode(choice.prefix + way) for way in choice.ways]
        alike = next((i for i, ids in enumerate(zip(*texts, strict=False)) if len(set(ids)) > 1), min(map(len, texts)))
        cut = max(0, max(map(len, texts)) - scorer.block_size - 1)
        alike = max(alike, cut + 1)  # nothing is predicted from nothing
        for ids in texts:
            if ids[alike:]:
                parts.append(Part(tuple(ids[cut:alike]), tuple(ids[alike:]), owner))
            owner += 1
        seen.append(not cut or len(tokenizer.decode(texts[0][:cut])) <= choice.evidence)
    sums = np.zeros(owner)
    with Progress(plain_lines=False) as progress:
        for scored in score(scorer, parts, progress.counting("asking", passed(parts))):
            sums[scored.part.owner] -= float(scored.nats.sum())
    remaining = iter(sums.tolist())
    return [
        Weighed(tuple(next(remaining) for _ in choice.ways), stood) for choice, stood in zip(choices, seen, strict=True)
    ]
