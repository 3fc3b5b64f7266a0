"""The true distribution of what comes next in a story: exact, from the grammar, whatever has been read.

A text may have several readings under the grammar ("Then Mia ..." may be the hero again or a friend who is new). All
that agree with what was read are kept, each with its probability, and summed over. Behind the end of a story the next
one begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpt_common.data.grammar import Grammar, Piece, Rule, Say, Template, World
from gpt_common.data.stories import GRAMMAR

DELIMITERS = frozenset(' .,!?"\n')
"""Characters that end a word."""

_Agenda = tuple[Piece, "_Agenda"] | None
"""Pieces still to come, as a linked list, so that readings share their tails."""


@dataclass(frozen=True, slots=True)
class _Reading:
    text: str
    """What it says next ..."""
    at: int
    """... from here on; never at its end."""
    agenda: _Agenda
    world: World
    weight: float
    """Its share among all readings."""


@dataclass(frozen=True, slots=True)
class Read:
    """A text as far as it was read. Readings of one text share what they can; nothing is ever changed in place."""

    grammar: Grammar
    readings: tuple[_Reading, ...]
    log_probability: float
    """Log probability that a text of this grammar begins so, nats."""

    def distribution(self) -> dict[str, float]:
        """The true probability of every character that can come next."""
        found: dict[str, float] = {}
        for reading in self.readings:
            character = reading.text[reading.at]
            found[character] = found.get(character, 0.0) + reading.weight
        return found

    def then(self, text: str) -> Read | None:
        """Read on; None if no text of the grammar goes on so."""
        found: Read | None = self
        for character in text:
            if found is None:
                break
            found = found._one(character)
        return found

    def _one(self, character: str) -> Read | None:
        fitting = [reading for reading in self.readings if reading.text[reading.at] == character]
        total = math.fsum(reading.weight for reading in fitting)
        if not fitting:
            return None
        readings: list[_Reading] = []
        for reading in fitting:
            weight = reading.weight / total
            if reading.at + 1 < len(reading.text):
                readings.append(_Reading(reading.text, reading.at + 1, reading.agenda, reading.world, weight))
            else:
                readings += _expand(self.grammar, reading.agenda, reading.world, weight)
        return Read(self.grammar, tuple(readings), self.log_probability + math.log(total))

    def words(self) -> dict[str, float]:
        """Every word that can come next, with the character behind it, and its true probability."""
        found: dict[str, float] = {}
        open_words: list[tuple[str, Read, float]] = [("", self, 1.0)]
        while open_words:
            word, read, probability = open_words.pop()
            for character, share in read.distribution().items():
                if word and character in DELIMITERS:
                    found[word + character] = probability * share
                elif (further := read._one(character)) is not None:
                    open_words.append((word + character, further, probability * share))
        return found


def begin(grammar: Grammar = GRAMMAR) -> Read:
    """The place before a story, where nothing was read."""
    return Read(grammar, tuple(_expand(grammar, None, {}, 1.0)), 0.0)


def _push(template: Template, agenda: _Agenda) -> _Agenda:
    for piece in reversed(template):
        agenda = (piece, agenda)
    return agenda


def _expand(grammar: Grammar, agenda: _Agenda, world: World, weight: float) -> Iterable[_Reading]:
    """All that can be said next, each up to a piece of text; choices are uniform."""
    stack = [(agenda, world, weight)]
    while stack:
        agenda, world, weight = stack.pop()
        if agenda is None:  # the story is over, and the next begins
            agenda, world = (Rule("story"), None), {}
        piece, rest = agenda
        if isinstance(piece, Rule):
            templates = grammar.rules[piece.name]
            stack += [(_push(template, rest), world, weight / len(templates)) for template in templates]
        elif isinstance(piece, Say):
            yield _Reading(piece.text, 0, rest, world, weight)
        elif piece.name in world:
            yield _Reading(world[piece.name], 0, rest, world, weight)
        else:
            options = grammar.options(piece.name, world)
            for word in options:
                yield _Reading(word, 0, rest, world | grammar.facts[piece.name, word], weight / len(options))


def truth(text: str, alphabet: str, grammar: Grammar = GRAMMAR) -> npt.NDArray[np.float64]:
    """(N, A) true probability of each character of an alphabet (A,) at each place of a text (N,), given all before it.

    Args:
        text: whole stories, from the beginning of the first.

    Raises:
        ValueError: the grammar does not write this text.
    """
    column = {character: i for i, character in enumerate(alphabet)}
    found = np.zeros((len(text), len(alphabet)))
    read: Read | None = begin(grammar)
    for place, character in enumerate(text):
        assert read is not None
        for other, probability in read.distribution().items():
            found[place, column[other]] = probability
        read = read._one(character)
        if read is None:
            raise ValueError(f"no story goes on with {character!r} behind {text[max(0, place - 40) : place]!r}")
    return found
