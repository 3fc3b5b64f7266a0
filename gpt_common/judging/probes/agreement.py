"""Agreement: a story up to the point where a fact must be repeated; does the model repeat it, or say a rival?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpt_common.data.stories import END, GRAMMAR
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.judging.probes.continuations import SAME, Choice, Weighed, weigh
from gpt_common.judging.probes.told import KEY, Mention, Told, stories
from gpt_common.judging.probes.truth import begin
from gpt_common.judging.scoring import Scorer
from gpt_common.keyed import keyed_generator

KINDS = {
    "name": ("hero", "friend"),
    "pronoun": ("hero.his",),
    "thing": ("thing", "other"),
    "colour": ("thing.colour", "other.colour"),
    "animal": ("hero.kind", "friend.kind"),
    "place": ("spot", "wrong"),
    "use of a thing": ("thing.use", "other.use"),
    "food": ("food.it",),
    "work": ("work.it", "work.of"),
}
"""What is asked for, and the facts of a story that are of this kind."""
MOST_STORIES = 40
"""For every item that is wanted, no more stories are read: some facts are seldom repeated."""


@dataclass(frozen=True)
class Item:
    """A story up to where a fact must be repeated; the right way is the first."""

    kind: str
    choice: Choice


@dataclass(frozen=True)
class Agreement:
    """How often a model repeats a fact of one kind."""

    kind: str
    items: int
    """That were asked: those whose fact stood in the model's block."""
    out_of_sight: int
    """Others, whose fact lay further back than the model's block: left out."""
    right: float
    """Share in which the right continuation is likelier than every rival; a tie counts half."""
    ties: int
    probability: float
    """Mean probability of the right continuation among it and its rivals."""
    chance: float
    """What a model would reach that tells none from another."""
    error: float
    """Standard error of `right`."""
    verdicts: tuple[float | None, ...]
    """Of every item: 1 right, 0 wrong, half for a tie; None if its fact was out of sight."""


def items(seed: int, count: int) -> list[Item]:
    """So many items of each kind, as far as stories have them; the same for the same arguments."""
    rng = keyed_generator(KEY, seed, "places of agreement")
    found: dict[str, list[Item]] = {kind: [] for kind in KINDS}
    for told in itertools.islice(stories(seed, "agreement"), MOST_STORIES * count):
        wanting = [kind for kind, so_far in found.items() if len(so_far) < count]
        if not wanting:
            break
        for kind in wanting:
            # One of each kind from a story, wherever: what a story has twice is not two answers.
            mentions = [told.mentions[i] for i in rng.permutation(len(told.mentions))]
            item = next((item for mention in mentions if (item := _item(told, mention, kind))), None)
            if item is not None:
                found[kind].append(item)
    return [item for of_kind in found.values() for item in of_kind]


def _item(told: Told, mention: Mention, kind: str) -> Item | None:
    """The mention as a question, if it repeats a fact and the grammar allows no rival there."""
    if mention.slot not in KINDS[kind] or mention.evidence is None:
        return None
    prefix = told.text[: mention.at]
    before = begin().then(prefix)
    assert before is not None
    if any(before.then(rival) is not None for rival in rivals(mention)):
        return None
    ways = (mention.word, *rivals(mention))
    return Item(kind, Choice(END + prefix, ways, len(END) + mention.evidence))


def rivals(mention: Mention) -> list[str]:
    """Words of the same kind that would be wrong."""
    end = mention.slot.removeprefix(mention.slot.partition(".")[0])
    values = {
        facts[mention.slot]: None
        for (slot, _), facts in GRAMMAR.facts.items()
        if mention.slot in facts and (not end or slot == mention.slot or mention.slot == slot + end)
    }
    return [value for value in values if value != mention.word]


def agreements(asked: Sequence[Item], tokenizer: Tokenizer, scorer: Scorer) -> list[Agreement]:
    """Ask a model, and count by kind."""
    weighed = weigh([item.choice for item in asked], tokenizer, scorer)
    found = []
    for kind in dict.fromkeys(item.kind for item in asked):
        pairs = [(item, w) for item, w in zip(asked, weighed, strict=True) if item.kind == kind]
        seen = [w for _, w in pairs if w.seen]
        verdicts = [verdict(w) for w in seen]
        count = len(seen)
        right = sum(verdicts) / count if count else math.nan
        found.append(
            Agreement(
                kind=kind,
                items=count,
                out_of_sight=len(pairs) - count,
                right=right,
                ties=verdicts.count(0.5),
                probability=sum(map(_probability, seen)) / count if count else math.nan,
                chance=sum(1 / len(w.scores) for w in seen) / count if count else math.nan,
                error=math.sqrt(max(0.0, right * (1 - right)) / count) if count else math.nan,
                verdicts=tuple(verdict(w) if w.seen else None for _, w in pairs),
            )
        )
    return found


def verdict(weighed: Weighed) -> float:
    """1 if the first way is the likeliest, 0 if another one is, half for a tie with the best of the others."""
    first, *others = weighed.scores
    best = max(others)
    return 0.5 if abs(first - best) <= SAME else float(first > best)


def _probability(weighed: Weighed) -> float:
    first, *_ = weighed.scores
    return 1 / sum(math.exp(min(700.0, score - first)) for score in weighed.scores)
