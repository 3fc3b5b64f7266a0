"""A parser for the grammar of the stories: how likely a given text is, and where a text contradicts itself.

It knows nothing of what `Grammar.write` drew, so that the two check each other.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from gpt_common.data import grammar
from gpt_common.data.grammar import Piece, Rule, Say, Slot, Template, World
from gpt_common.data.stories import END, RULES, SLOTS, WORDS

_Agenda = tuple[Piece, "_Agenda"] | None
"""Pieces still to come, as a linked list, so that readings share their tails."""


def _push(template: Template, agenda: _Agenda) -> _Agenda:
    for piece in reversed(template):
        agenda = (piece, agenda)
    return agenda


def _begins(text: str, at: int, word: str) -> bool:
    """Whether `word` stands in `text` at `at`, or as much of it as the text still holds."""
    return text.startswith(word[: len(text) - at], at)


class Grammar(grammar.Grammar):
    """A grammar that can read too."""

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


GRAMMAR = Grammar(RULES, SLOTS, WORDS)


def log_probability(text: str) -> float:
    """log P(text) in nats, by finding all derivations of `text`; -inf if the grammar cannot make it."""
    probability = sum(1 / ways for _, ways in GRAMMAR.derivations(text))
    return math.log(probability) if probability else -math.inf


def consistency_errors(text: str) -> list[str]:
    """Facts that change in mid-story, and sentences that no story has, in text that a model wrote.

    The text starts at the start of a story; its last story may be unfinished. One line per error.
    """
    stories = text.split(END)
    whole, rest = [story + END for story in stories[:-1]], stories[-1]
    return [error for story in [*whole, rest] for error in GRAMMAR.contradictions(story)]
