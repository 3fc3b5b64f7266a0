"""Small worlds made of the words of the stories: told, for a base to learn, and asked about, with the true answers.

A world has two or three animals, each with a name, a place and a thing; then perhaps one gives its thing away, goes
elsewhere, or hides its thing in one of two places. What is true at the end can be said in sentences or as JSON. Every
probability is known, so what a story costs, and what an answer costs that is not certain, is exact. One world in ten,
by its hash, is never trained on, and one phrasing of every question is not either.

Beside them a base reads notes of two or three facts. A small transformer finds out that it can look something up in
what it has read (Olsson et al. 2022, induction heads) where what is looked up stands right behind what it belongs to,
"Mia fox. Leo cat.", and long before it would in whole sentences; there it then finds it too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gpt_common.data.conversations.reading import Conversation, Message
from gpt_common.data.stories import WORDS
from gpt_common.keyed import keyed_generator

Split = Literal["train", "val"]
TURNS = 4
"""Questions of a training conversation, about one world: each reads the story again, and only answers teach."""
HELD_OUT = 10
"""One world in so many is for validation."""
NOTES = 6
"""For every story that a base reads, so many notes: half of its tokens and more."""
SHORT = 6
"""Of so many notes all but one are in the shortest words."""
FACTS = {"kind": ("name", "animal"), "where": ("name", "spot"), "who": ("thing", "name")}
"""By what a fact tells: what it is about, and what it says, keys of WORDS."""
AS_JSON = "Answer as JSON."

PHRASINGS: dict[str, tuple[str, ...]] = {
    "who": (
        "Who has the {it}?", "Tell me who has the {it}.", "Who is it that has the {it} now?", "Say who has the {it}.",
        "About the {it}: who has it?", "The {it} is with whom?",
    ),
    "where": (
        "Where is {it}?", "Tell me where {it} is.", "Where is {it} now?", "Say where {it} is.",
        "About {it}: in which place?", "In which place is {it}?",
    ),
    "kind": (
        "Which animal is {it}?", "Tell me which animal {it} is.", "{it} is which animal?", "Say which animal {it} is.",
        "About {it}: which animal?", "What animal is {it}?",
    ),
    "animals": (
        "Which animals are there?", "Tell me which animals there are.", "List the animals.",
        "Say which animals there are.", "About the animals: which are there?", "What animals are there?",
    ),
}  # fmt: skip
"""What is asked, by kind."""
NEW_PHRASINGS = {
    "who": "Now the {it}, who has it?",
    "where": "Now {it}, where is it?",
    "kind": "Now {it}, which animal is it?",
    "animals": "The animals are which?",
}
"""The same in words that no training example has."""


@dataclass(frozen=True)
class World:
    """What is true at the end, and what was told of it."""

    names: tuple[str, ...]
    animals: tuple[str, ...]
    """Of the names, in their order."""
    places: dict[str, str]
    """Where each name is."""
    holders: dict[str, str]
    """Who has each thing; a hidden one nobody."""
    hidden: tuple[str, tuple[str, str]] | None
    """A thing, and the two places in one of which it is."""
    told: str
    """The sentences, without what a base's text has at its end."""
    ways: int
    """One over the probability of the sentences."""


@dataclass(frozen=True)
class Question:
    """A question about a world."""

    kind: str
    """A key of PHRASINGS."""
    about: str
    """Whom or what it is about, if anything."""
    as_json: bool
    prompt: str
    """The story and the question."""
    answers: tuple[str, ...]
    """What is right: one answer, or several that are equally likely."""
    answer: str
    """The one that a training example gives."""

    @property
    def log_probability(self) -> float:
        """Of the answer, given story and question, nats."""
        return -math.log(len(self.answers))

    @property
    def asked(self) -> str:
        """The question alone."""
        return self.prompt.partition("\n")[2]


def write_world(rng: np.random.Generator) -> World:
    """A world of either split, drawn with `rng`."""
    ways = 1

    def choose(options: int) -> int:
        nonlocal ways
        ways *= options
        return int(rng.random() * options)

    def some(kind: str, count: int) -> list[str]:
        words, found = list(WORDS[kind]), []
        for _ in range(count):
            found.append(words.pop(choose(len(words))))
        return found

    count = 2 + choose(2)
    names, animals = some("name", count), some("animal", count)
    things, spots = some("thing", count), some("spot", count)
    places, holders = dict(zip(names, spots, strict=True)), dict(zip(things, names, strict=True))
    sentences = []
    for name, animal, thing, spot in zip(names, animals, things, spots, strict=True):
        facts = [f"{name} is a {animal}.", f"The {thing} is with {name}.", f"{name} is {spot}."]
        sentences += facts if choose(2) else facts[::-1]
    hidden, event = None, choose(4)
    if event:
        actor = choose(count)
        name, thing = names[actor], things[actor]
        free = [spot for spot in WORDS["spot"] if spot not in places.values()]
        if event == 1:
            others = [other for other in names if other != name]
            holders[thing] = others[choose(len(others))]
            sentences.append(f"Then {name} gave the {thing} away. The {thing} is with {holders[thing]}.")
        elif event == 2:
            places[name] = free[choose(len(free))]
            sentences.append(f"Then {name} went away. {name} is {places[name]}.")
        else:
            one = free.pop(choose(len(free)))
            hidden = thing, (one, free[choose(len(free))])
            del holders[thing]
            sentences.append(f"Then {name} hid the {thing}. The {thing} is {hidden[1][0]} or {hidden[1][1]}.")
    return World(tuple(names), tuple(animals), places, holders, hidden, " ".join(sentences), ways)


def write_worlds(seed: int, split: Split, count: int, key: str = "worlds") -> list[World]:
    """So many worlds of a split, the same for the same arguments."""
    rng, found = keyed_generator(key, seed, split), list[World]()
    while len(found) < count:
        world = write_world(rng)
        if (_held_out(world)) == (split == "val"):
            found.append(world)
    return found


def _held_out(world: World) -> bool:
    # By who and what it is about, whatever happens then and however it is told.
    about = json.dumps([world.names, world.animals, sorted(world.holders)])
    return int.from_bytes(hashlib.sha256(about.encode()).digest()[:4], "little") % HELD_OUT == 0


def write_conversations(seed: int, split: Split, count: int) -> list[tuple[Conversation, float]]:
    """So many conversations of TURNS different questions about a world each, and what their answers cost, nats."""
    rng, found = keyed_generator("conversations", seed, split), []
    for world in write_worlds(seed, split, count, "conversations"):
        asked: dict[tuple[str, str], Question] = {}
        while len(asked) < TURNS:
            question = ask(world, rng)
            asked.setdefault((question.kind, question.about), question)
        messages = []
        for turn, question in enumerate(asked.values()):
            messages.append(Message("user", question.asked if turn else question.prompt))
            messages.append(Message("assistant", question.answer))
        nats = -sum(question.log_probability for question in asked.values())
        found.append((Conversation("stories-qa", tuple(messages)), nats))
    return found


def write_texts(seed: int, split: Split, count: int) -> list[tuple[str, float]]:
    """What a base reads: so many stories, NOTES notes behind each; and what every text costs after its first word,
    nats. A text is an example of its own, and of that the first token is given."""
    rng, found = keyed_generator("told", seed, split), []
    for world in write_worlds(seed, split, count):
        texts = (1, told(world, rng)), *((NOTES, noted(rng)) for _ in range(NOTES))
        for share, (text, log_probability) in texts:
            found.append((text, _log_first(text.split()[0]) - math.log(share / (1 + NOTES)) - log_probability))
    return found


def _log_first(word: str) -> float:
    """Log probability that a text begins with this word."""
    notes, kinds, short = NOTES / (1 + NOTES), len(FACTS), 1 - 1 / SHORT
    if word == "The":  # of a note in sentences
        return math.log(notes / kinds * (1 - short))
    if word in WORDS["thing"]:
        return math.log(notes / kinds * short / len(WORDS["thing"]))
    return math.log((1 - notes / kinds) / len(WORDS["name"]))


def told(world: World, rng: np.random.Generator) -> tuple[str, float]:
    """A world as text for a base, which says at its end what is true now; and its log probability, nats.

    As many facts as there are, each drawn anew, in sentences or, half the time, as JSON. In every one a base has to
    look something up: what has been said already does not tell what comes next.
    """
    facts: list[tuple[str, str, tuple[str, ...]]] = [("animals", "", world.animals)]
    for name, animal in zip(world.names, world.animals, strict=True):
        facts += [("kind", name, (animal,)), ("where", name, (world.places[name],))]
    facts += [("who", thing, (holder,)) for thing, holder in world.holders.items()]
    if world.hidden is not None:
        facts.append(("where", f"the {world.hidden[0]}", world.hidden[1]))
    ways, as_json, closing = 2 * world.ways * len(facts) ** len(facts), bool(rng.random() < 0.5), []
    for i in rng.integers(len(facts), size=len(facts)):
        kind, about, values = facts[i]
        if kind == "where" and len(values) > 1:  # one of the places where it may be
            ways, values = ways * len(values), (values[int(rng.random() * len(values))],)
        closing.append(_said(kind, about, values, as_json=as_json))
    return "\n".join([world.told, " ".join(closing)]), -math.log(ways)


def noted(rng: np.random.Generator) -> tuple[str, float]:
    """Two or three facts of one kind, said, and said again as often and once more; and the text's log probability,
    nats."""
    count, kind = 2 + int(rng.random() * 2), list(FACTS)[int(rng.random() * len(FACTS))]
    ways, columns = 2 * len(FACTS) * count ** (count + 1), list[list[str]]()
    for word in FACTS[kind]:
        words = list(WORDS[word])
        columns.append([words[i] for i in rng.permutation(len(words))[:count]])
        ways *= math.perm(len(words), count)
    short, as_json = bool(rng.random() * SHORT >= 1), bool(rng.random() < 0.5)
    ways *= 1 if short else 2
    share = 1 - 1 / SHORT if short else 1 / SHORT

    def say(about: str, value: str, *, as_json: bool = False) -> str:
        return f"{about} {value}." if short else _said(kind, about, (value,), as_json=as_json)

    facts = list(zip(*columns, strict=True))
    again = [facts[i] for i in rng.integers(count, size=count + 1)]
    lines = [say(*fact) for fact in facts], [say(*fact, as_json=as_json) for fact in again]
    return "\n".join(" ".join(line) for line in lines), math.log(share / ways)


def ask(world: World, rng: np.random.Generator, *, new_phrasing: bool = False) -> Question:
    """A question about a world, drawn with `rng`."""
    kinds = [kind for kind in PHRASINGS for _ in range(1 if kind != "where" or world.hidden is None else 2)]
    kind = kinds[int(rng.random() * len(kinds))]
    as_json = bool(rng.random() < 0.5)
    about, answers = _about(kind, world, rng)
    phrasings = (NEW_PHRASINGS[kind],) if new_phrasing else PHRASINGS[kind]
    question = phrasings[int(rng.random() * len(phrasings))].format(it=about)
    said = tuple(_said(kind, about, tuple(answer), as_json=as_json) for answer in answers)
    prompt = f"{world.told}\n{question}" + (f" {AS_JSON}" if as_json else "")
    return Question(kind, about, as_json, prompt, said, said[int(rng.random() * len(said))])


def _about(kind: str, world: World, rng: np.random.Generator) -> tuple[str, list[list[str]]]:
    """What a question is about, and the answers that are right, each a list of words."""

    def one(options: Sequence[str]) -> str:
        return options[int(rng.random() * len(options))]

    if kind == "animals":
        return "", [list(world.animals)]
    if kind == "who":
        thing = one(list(world.holders))
        return thing, [[world.holders[thing]]]
    if kind == "kind":
        number = int(rng.random() * len(world.names))
        return world.names[number], [[world.animals[number]]]
    if world.hidden is not None and rng.random() < 0.5:
        return f"the {world.hidden[0]}", [[place] for place in world.hidden[1]]
    name = one(world.names)
    return name, [[world.places[name]]]


def _said(kind: str, about: str, values: tuple[str, ...], *, as_json: bool) -> str:
    """A fact as a sentence, or as JSON."""
    if kind == "animals":
        words = [f"a {word}" for word in values]
        listed = " and ".join([", ".join(words[:-1]), words[-1]])
        return json.dumps({"animals": values}) if as_json else f"The animals are {listed}."
    (value,) = values
    if as_json:
        return json.dumps({about.removeprefix("the "): f"a {value}" if kind == "kind" else value})
    about = about.replace("the ", "The ")
    return {"who": f"The {about} is with {value}.", "kind": f"{about} is a {value}."}.get(kind, f"{about} is {value}.")


def write_questions(seed: int, split: Split, count: int, *, new_phrasing: bool = False) -> list[Question]:
    """So many questions, each about a world of its own; the same for the same arguments."""
    rng = keyed_generator("questions", seed, split, int(new_phrasing))
    worlds = write_worlds(seed, split, count, f"questions of {'new' if new_phrasing else 'known'} phrasing")
    return [ask(world, rng, new_phrasing=new_phrasing) for world in worlds]
