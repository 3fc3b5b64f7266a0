"""A probabilistic grammar with a memory: sentences that stay consistent, and the exact probability of each text.

A grammar is rules, slots and words. A rule has alternatives, each a template:

    "[meet] {hero} lost {hero.his} {thing.colour} {thing}."

`[rule]` is replaced by one of that rule's alternatives. `{slot}` is a fact of the story. At its first mention it is
open: one word of its kind is chosen that no other slot holds, and remembered with everything that follows from it
(`{hero.his}` from the hero's name). Every later mention repeats it.

Every choice is uniform, so a derivation's probability is 1 / (product of the numbers of options): an integer, exact.
`write` draws a text and counts. A parser that knows nothing of what it drew finds the same
(tests/gpt_common/data/parsing.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

World = dict[str, str]
"""What a story has settled so far: the word in each slot, and in each attribute that follows from it."""

Words = Mapping[str, Mapping[str, Mapping[str, str]]]
"""kind of word -> word -> attributes that follow from the word, as {"Mia": {"his": "her"}}."""


@dataclass(frozen=True)
class Say:
    """Fixed text."""

    text: str


@dataclass(frozen=True)
class Slot:
    """A mention of a fact: `hero`, or something that follows from it, `hero.his`."""

    name: str


@dataclass(frozen=True)
class Rule:
    """Replaced by one of the alternatives of the rule called `name`."""

    name: str


Piece = Say | Slot | Rule
Template = tuple[Piece, ...]


class Grammar:
    """Rules, slots and words, checked when made.

    Args:
        rules: name -> alternatives, each a template. The text is made from the rule `story`.
        slots: slot -> kind of word.
        words: kind -> word -> attributes; slot `hero` holding a word with attribute `his` settles `hero.his`.

    Raises:
        ValueError: a template names an unknown rule or slot.
    """

    def __init__(self, rules: Mapping[str, Sequence[str]], slots: Mapping[str, str], words: Words) -> None:
        self.rules = {name: [_compile(template) for template in templates] for name, templates in rules.items()}
        self.slots = dict(slots)
        self.words = {kind: list(attributes) for kind, attributes in words.items()}
        # What choosing a word settles: (slot, word) -> {"hero": "Mia", "hero.his": "her"}.
        self.facts: dict[tuple[str, str], World] = {
            (slot, word): {slot: word, **{f"{slot}.{name}": value for name, value in attributes.items()}}
            for slot, kind in slots.items()
            for word, attributes in words[kind].items()
        }
        self.rivals = {slot: [s for s, k in slots.items() if k == kind and s != slot] for slot, kind in slots.items()}
        known = {name for facts in self.facts.values() for name in facts}
        for name, templates in self.rules.items():
            for piece in (piece for template in templates for piece in template):
                if isinstance(piece, Rule) and piece.name not in self.rules:
                    raise ValueError(f"rule '{name}' uses the unknown rule [{piece.name}]")
                if isinstance(piece, Slot) and piece.name not in known:
                    raise ValueError(f"rule '{name}' uses the unknown slot {{{piece.name}}}")

    @property
    def alphabet(self) -> str:
        """Every character that a text can contain, sorted."""
        texts = [piece.text for rule in self.rules.values() for t in rule for piece in t if isinstance(piece, Say)]
        texts += [value for facts in self.facts.values() for value in facts.values()]
        return "".join(sorted(set("".join(texts))))

    def options(self, slot: str, world: World) -> list[str]:
        """Words that an open slot can take: those of its kind that no other slot holds."""
        taken = {world[rival] for rival in self.rivals[slot] if rival in world}
        words = self.words[self.slots[slot]]
        return [word for word in words if word not in taken] if taken else words

    def write(self, rng: np.random.Generator) -> tuple[str, int]:
        """A text, and one over the probability of the choices that made it."""
        world: World = {}
        written: list[str] = []
        ways = 1
        random = rng.random

        def expand(rule: str) -> None:
            nonlocal ways
            templates = self.rules[rule]
            ways *= len(templates)
            for piece in templates[int(random() * len(templates))]:
                if isinstance(piece, Say):
                    written.append(piece.text)
                elif isinstance(piece, Rule):
                    expand(piece.name)
                else:
                    if piece.name not in world:
                        options = self.options(piece.name, world)
                        ways *= len(options)
                        world.update(self.facts[piece.name, options[int(random() * len(options))]])
                    written.append(world[piece.name])

        expand("story")
        return "".join(written), ways


def _compile(template: str) -> Template:
    pieces: list[Piece] = []
    for slot, rule, text in re.findall(r"\{([\w.]+)\}|\[(\w+)\]|([^][{}]+)", template):
        pieces.append(Slot(slot) if slot else Rule(rule) if rule else Say(text))
    return tuple(pieces)
