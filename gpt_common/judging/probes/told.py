"""Stories with their facts: where each is mentioned, for the first time or again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpt_common.data.grammar import Grammar, Rule, Say, World
from gpt_common.data.stories import GRAMMAR
from gpt_common.keyed import keyed_generator

KEY = "probes"
"""Of the random numbers: no split of the corpus is drawn with them."""


@dataclass(frozen=True)
class Mention:
    """A fact in a story."""

    slot: str
    """`hero`, `thing.colour`, `hero.his`."""
    at: int
    """Characters before it."""
    word: str
    evidence: int | None
    """Where the nearest mention before begins that settles this one; None at the first."""


@dataclass(frozen=True)
class Told:
    """A story and the mentions in it, in their order."""

    text: str
    mentions: tuple[Mention, ...]


def tell(rng: np.random.Generator, grammar: Grammar = GRAMMAR) -> Told:
    """A story drawn with `rng`, with the probability that the grammar gives it."""
    world: World = {}
    written, length = list[str](), 0
    mentions: list[Mention] = []
    last: dict[str, int] = {}

    def expand(rule: str) -> None:
        nonlocal length
        templates = grammar.rules[rule]
        for piece in templates[int(rng.random() * len(templates))]:
            if isinstance(piece, Rule):
                expand(piece.name)
                continue
            if isinstance(piece, Say):
                text = piece.text
            else:
                name, known = piece.name, piece.name in world
                if not known:
                    options = grammar.options(name, world)
                    world.update(grammar.facts[name, options[int(rng.random() * len(options))]])
                text = world[name]
                settled_by = [last[said] for said in (name, owner(name, grammar)) if said in last]
                mentions.append(Mention(name, length, text, max(settled_by) if settled_by else None))
                last[name] = length
            written.append(text)
            length += len(text)

    expand("story")
    return Told("".join(written), tuple(mentions))


def owner(name: str, grammar: Grammar = GRAMMAR) -> str:
    """The slot whose word settles this: `hero` of `hero.his`, but `hero.kind` of itself."""
    return name if name in grammar.slots else name.rpartition(".")[0]


def stories(seed: int, what: str) -> Iterator[Told]:
    """Stories without end, the same for the same arguments."""
    rng = keyed_generator(KEY, seed, what)
    while True:
        yield tell(rng)
