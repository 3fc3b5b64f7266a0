"""Minimal pairs: two texts that differ in one place, and by how much the grammar finds one of them likelier."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt_common.data.stories import END
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.judging.probes.agreement import rivals, verdict
from gpt_common.judging.probes.continuations import Choice, weigh
from gpt_common.judging.probes.told import KEY, Told, stories
from gpt_common.judging.probes.truth import DELIMITERS, begin
from gpt_common.judging.scoring import Scorer
from gpt_common.keyed import keyed_generator

GROUPS = {
    "impossible": "a fact that changes in mid-story, to the end of its sentence",
    "likelier": "two words that can both come next, one of them likelier",
    "even": "two words that can come next equally well",
}
MOST_STORIES = 40
"""For every pair that is wanted, no more stories are read."""


@dataclass(frozen=True)
class Pair:
    """Two texts."""

    group: str
    """A key of GROUPS."""
    prefix: str
    right: str
    """What follows the prefix in the likelier text, or in either if they are equally likely."""
    wrong: str
    log_odds: float
    """True log probability of the right text less that of the wrong one, nats; infinite if that is impossible."""


@dataclass(frozen=True)
class Pairs:
    """What a model makes of the pairs of one group."""

    group: str
    pairs: int
    right: float | None
    """Share in which the right text is the likelier one, ties half; None where both are equally likely."""
    ties: int
    log_odds: float
    """Mean of the model's, nats."""
    true_log_odds: float | None
    """Mean of the true ones; None where they are infinite."""
    difference: float | None
    """Root of the mean squared difference between the model's and the true log-odds, nats."""


def make_pairs(seed: int, count: int) -> list[Pair]:
    """So many pairs of each group; the same for the same arguments."""
    rng = keyed_generator(KEY, seed, "places of pairs")
    found: dict[str, list[Pair]] = {group: [] for group in GROUPS}
    for told in itertools.islice(stories(seed, "pairs"), MOST_STORIES * count):
        if all(len(pairs) >= count for pairs in found.values()):
            break
        for pair in (_impossible(told, rng), *_possible(told, rng)):
            if pair is not None and len(found[pair.group]) < count:
                found[pair.group].append(pair)
    return [pair for pairs in found.values() for pair in pairs]


def _impossible(told: Told, rng: np.random.Generator) -> Pair | None:
    repeated = [mention for mention in told.mentions if mention.evidence is not None]
    mention = repeated[int(rng.random() * len(repeated))]
    others = rivals(mention)
    rival = others[int(rng.random() * len(others))]
    after = mention.at + len(mention.word)
    end = next(i for i in range(after, len(told.text)) if told.text[i] in ".!?") + 1
    prefix, tail = told.text[: mention.at], told.text[after:end]
    before = begin().then(prefix)
    if before is None or before.then(rival + tail) is not None:
        return None
    return Pair("impossible", END + prefix, mention.word + tail, rival + tail, math.inf)


def _possible(told: Told, rng: np.random.Generator) -> list[Pair | None]:
    """A pair of words of each of the other groups, at places drawn anew."""
    places = [i for i in range(1, len(told.text) - 1) if told.text[i - 1] == " "]
    found: dict[str, Pair] = {}
    for place in rng.permutation(places):
        prefix = told.text[:place]
        before = begin().then(prefix)
        assert before is not None
        words = before.words()
        bare = [word[:-1] for word in words]
        choices = [word for word in words if bare.count(word[:-1]) == 1]
        if len(choices) < 2:
            continue
        one, other = (choices[i] for i in rng.permutation(len(choices))[:2])
        if words[one] < words[other]:
            one, other = other, one
        odds = math.log(words[one] / words[other])
        group = "likelier" if odds > 1e-9 else "even"
        found.setdefault(group, Pair(group, END + prefix, one, other, odds if odds > 1e-9 else 0.0))
        if len(found) == 2:
            break
    return list(found.values())


def judge_pairs(asked: Sequence[Pair], tokenizer: Tokenizer, scorer: Scorer) -> list[Pairs]:
    """Ask a model, and count by group.

    A vocabulary whose tokens begin with a space holds a word without what is behind it: there it is left away.
    """
    by_character = tokenizer.kind == "char"

    def said(text: str) -> str:
        return text if by_character or text[-1] not in DELIMITERS or text[-1] in ".!?" else text[:-1]

    choices = [Choice(pair.prefix, (said(pair.right), said(pair.wrong))) for pair in asked]
    weighed = weigh(choices, tokenizer, scorer)
    found = []
    for group in dict.fromkeys(pair.group for pair in asked):
        of_group = [(pair, w) for pair, w in zip(asked, weighed, strict=True) if pair.group == group]
        theirs = np.array([w.scores[0] - w.scores[1] for _, w in of_group])
        true = np.array([pair.log_odds for pair, _ in of_group])
        known = bool(np.isfinite(true).all())
        verdicts = [verdict(w) for _, w in of_group]
        found.append(
            Pairs(
                group=group,
                pairs=len(of_group),
                right=None if group == "even" else sum(verdicts) / len(verdicts),
                ties=verdicts.count(0.5),
                log_odds=float(theirs.mean()),
                true_log_odds=float(true.mean()) if known else None,
                difference=float(np.sqrt(np.mean((theirs - true) ** 2))) if known else None,
            )
        )
    return found
