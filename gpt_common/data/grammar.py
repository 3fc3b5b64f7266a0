"""A probabilistic grammar with a memory: sentences that stay consistent, and the exact probability of each text.

A grammar is rules, slots and words. A rule has alternatives, each a template:

    "[meet] {hero} lost {hero.his} {thing.colour} {thing}."

`[rule]` is replaced by one of that rule's alternatives. `{slot}` is a fact of the story. At its first mention it is
open: one word of its kind is chosen that no other slot holds, and remembered with everything that follows from it
(`{hero.his}` from the hero's name). Every later mention repeats it.

Every choice is uniform, so a derivation's probability is 1 / (product of the numbers of options): an integer, exact.
`write` draws a text and counts; `derivations` finds every way in which the rules make a given text (or, without one,
every text that they make at all) and knows nothing of what `write` drew.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
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

    def derivations(self, text: str | None = None) -> Iterator[tuple[str, int]]:
        """Every derivation of `text`, or of every text if None: the text, and one over the probability."""
        stack: list[tuple[str, _Agenda, World, int]] = [("", (Rule("story"), None), {}, 1)]
        while stack:
            written, agenda, world, ways = stack.pop()
            while agenda is not None:
                piece, agenda = agenda
                if isinstance(piece, Rule):
                    templates = self.rules[piece.name]
                    stack += [(written, _push(t, agenda), world, ways * len(templates)) for t in templates]
                    break
                if isinstance(piece, Slot) and piece.name not in world:
                    words = self.options(piece.name, world)
                    for word in words:
                        if text is None or text.startswith(word, len(written)):
                            settled = world | self.facts[piece.name, word]
                            stack.append((written + word, agenda, settled, ways * len(words)))
                    break
                said = piece.text if isinstance(piece, Say) else world[piece.name]
                if text is not None and not text.startswith(said, len(written)):
                    break
                written += said
            else:
                if text is None or len(written) == len(text):
                    yield written, ways

    def contradictions(self, text: str) -> list[str]:
        """Where `text`, or the story that it begins, contradicts itself: one line for each fact that changed.

        The reading with the fewest contradictions counts. A text whose sentences the rules cannot make at all gets
        one line that says where it leaves them.
        """
        values: dict[str, set[str]] = {}
        for facts in self.facts.values():
            for name, value in facts.items():
                values.setdefault(name, set()).add(value)
        furthest = 0
        order = 0  # breaks ties: later readings first, which goes deep before wide
        queue: list[tuple[int, int, int, _Agenda, World, tuple[str, ...]]] = [(0, 0, 0, (Rule("story"), None), {}, ())]
        while queue:
            _, _, at, agenda, world, errors = heapq.heappop(queue)
            while agenda is not None and at < len(text):
                piece, agenda = agenda
                furthest = max(furthest, at)
                if isinstance(piece, Rule):
                    for template in self.rules[piece.name]:
                        order -= 1
                        heapq.heappush(queue, (len(errors), order, at, _push(template, agenda), world, errors))
                    break
                if isinstance(piece, Say):
                    if not _begins(text, at, piece.text):
                        break
                    at += len(piece.text)
                    continue
                expected = world.get(piece.name)
                if expected is not None and _begins(text, at, expected):
                    at += len(expected)
                    continue
                options = self.options(piece.name, world) if expected is None else [expected]
                for word in values[piece.name]:
                    if _begins(text, at, word):
                        settled = world | self.facts[piece.name, word] if expected is None else world
                        found = errors
                        if word not in options:
                            meant = f"'{expected}' became" if expected else "used twice:"
                            found = (*errors, f"{meant} '{word}' after \"{text[max(0, at - 30) : at]}\"")
                        order -= 1
                        heapq.heappush(queue, (len(found), order, at + len(word), agenda, settled, found))
                break
            else:
                if agenda is None and at < len(text):
                    continue
                return list(errors)
        return [f'not a sentence of these stories: "{text[furthest : furthest + 40]}"']


_Agenda = tuple[Piece, "_Agenda"] | None
"""Pieces still to come, as a linked list, so that readings share their tails."""


def _push(template: Template, agenda: _Agenda) -> _Agenda:
    for piece in reversed(template):
        agenda = (piece, agenda)
    return agenda


def _begins(text: str, at: int, word: str) -> bool:
    """Whether `word` stands in `text` at `at`, or as much of it as the text still holds."""
    return text.startswith(word[: len(text) - at], at)


def _compile(template: str) -> Template:
    pieces: list[Piece] = []
    for slot, rule, text in re.findall(r"\{([\w.]+)\}|\[(\w+)\]|([^][{}]+)", template):
        pieces.append(Slot(slot) if slot else Rule(rule) if rule else Say(text))
    return tuple(pieces)
