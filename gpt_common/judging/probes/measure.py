"""`evaluate --probes`: what a model knows of the world of `stories`, and whether it is as sure as it may be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from gpt_common.data.stories import ALPHABET, END
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.errors import UserError
from gpt_common.judging.answers import judge, questions_of_worlds
from gpt_common.judging.comparison import ratio
from gpt_common.judging.measure import Asked
from gpt_common.judging.probes.agreement import Item, agreements, items
from gpt_common.judging.probes.calibration import calibration
from gpt_common.judging.probes.pairs import Pair, judge_pairs, make_pairs
from gpt_common.judging.probes.results import ProbesResult, StoriesLoss
from gpt_common.judging.probes.told import stories
from gpt_common.judging.probes.truth import begin
from gpt_common.judging.scoring import Scorer, parts_of, passed, score
from gpt_common.progress import Progress
from gpt_common.training.checkpoint import read_manifest

SEED = 15_000
"""Of the stories that are asked about: other ones than a dataset has."""
ITEMS = 100
"""Of each kind of agreement and each group of pairs."""
STORIES = 200
"""Whose every character is compared with the truth: about 65,000."""


class ProbesMeasure:
    """Asks about the world of `stories`.

    Args:
        items: of each kind of agreement and each group of pairs, and questions of stories-qa in each way.
        stories: whose every character is compared with the truth.
    """

    name = "probes"

    def __init__(self, items: int = ITEMS, stories: int = STORIES) -> None:
        self.items, self.stories = items, stories
        self._made: tuple[list[Item], list[Pair], list[str]] | None = None

    @property
    def about(self) -> str:
        """What it asks about."""
        return "the world of `stories`"

    def prepare(self, asked: Asked) -> None:
        """Make what is asked: any model may be."""
        del asked
        if self._made is None:
            told = [one.text for one in islice(stories(SEED, "calibration"), self.stories)]
            self._made = items(SEED, self.items), make_pairs(SEED, self.items), told

    def ask(self, scorer: Scorer, asked: Asked) -> ProbesResult:
        """Ask."""
        self.prepare(asked)
        found = self.asked_of(scorer, asked.source.tokenizer)
        trained_on = read_manifest(asked.source.checkpoint).dataset
        if trained_on is None or trained_on["name"] != "stories-qa":
            return found
        put = questions_of_worlds(asked.source.tokenizer, self.items)
        counts: dict[str, tuple[int, int]] = {}
        for question, is_right in zip(put, judge(put, scorer.batch, scorer.block_size), strict=True):
            right, of = counts.get(question.group, (0, 0))
            counts[question.group] = right + is_right, of + 1
        return replace(found, questions=counts)

    def asked_of(self, scorer: Scorer, tokenizer: Tokenizer) -> ProbesResult:
        """Ask a model that writes in this vocabulary."""
        assert self._made is not None
        repeated, pairs, told = self._made
        if missing := unwritable(tokenizer):
            return ProbesResult(
                f"probes ask about the world of `stories`, and this model's vocabulary cannot write {missing}: none "
                "were asked"
            )
        if tokenizer.kind == "char":
            found = calibration(told, tokenizer, scorer)
            told = told[: found.stories]
            loss = StoriesLoss(found.characters, found.loss, found.entropy, found.error, by_letters(told))
        else:
            found, loss = None, stories_loss(told, tokenizer, scorer)
        note = None
        if loss.is_far:
            note = (
                f"probes ask about the world of `stories`: this model's loss there, {loss.loss:.2f} nats/character, is "
                f"far above the lowest, {loss.lowest:.2f} (knowing how often each letter occurs gives "
                f"{loss.by_letters:.2f}): it was not trained on them, or not for long"
            )
        elif found is None:
            note = (
                "calibration character by character is not available: tokens of this vocabulary hold several. The loss "
                "is exact, an upper bound where a text can be cut into tokens in several ways"
            )
        return ProbesResult(
            note=note,
            loss=loss,
            agreement=tuple(agreements(repeated, tokenizer, scorer)),
            pairs=tuple(judge_pairs(pairs, tokenizer, scorer)),
            calibration=found,
        )


def unwritable(tokenizer: Tokenizer) -> str | None:
    """A character of the stories that a vocabulary does not have or does not give back; None if it has all."""
    for character in ALPHABET:
        try:
            back = tokenizer.decode(tokenizer.encode(character))
        except UserError:
            return repr(character)
        if back != character:
            return repr(character)
    return None


def by_letters(told: Sequence[str]) -> float:
    """Entropy of the letters, nats."""
    counts = Counter("".join(told))
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values())


def stories_loss(told: Sequence[str], tokenizer: Tokenizer, scorer: Scorer) -> StoriesLoss:
    """Loss of a model on stories in its own tokens, beside their true probability."""
    before = tokenizer.encode(END)
    nats = [0.0] * len(told)
    parts = [
        part
        for owner, story in enumerate(told)
        for part in parts_of(tokenizer.encode(story), before, scorer.block_size, max(1, scorer.block_size // 2), owner)
    ]
    with Progress(plain_lines=False) as progress:
        for scored in score(scorer, parts, progress.counting("reading", passed(parts))):
            nats[scored.part.owner] += float(scored.nats.sum())
    true = []
    for story in told:
        read = begin().then(story)
        assert read is not None
        true.append(-read.log_probability)
    lengths = [len(story) for story in told]
    total = sum(lengths)
    error = ratio([mine - lowest for mine, lowest in zip(nats, true, strict=True)], lengths).error
    return StoriesLoss(total, sum(nats) / total, sum(true) / total, error, by_letters(told))
