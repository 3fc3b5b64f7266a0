"""The built-in corpus: small stories whose best possible loss is known.

The stories come from a grammar (`gpt_common.data.grammar`) that keeps people, things, colours and places consistent
from start to end. Its exact probabilities give the floor: the loss in nats per character that a model reaches
which has learnt the grammar completely. What a model has not learnt shows as excess over the floor, and, in what
it writes, as a kite that turns into a drum in mid-story.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gpt_common.data.grammar import Grammar
from gpt_common.keyed import keyed_generator

SHE = {"his": "her"}
HE = {"his": "his"}

PLAIN: dict[str, str] = {}  # a word without attributes
WORDS: dict[str, dict[str, dict[str, str]]] = {
    "name": {
        **dict.fromkeys(("Clara", "Dora", "Ella", "Kate", "Mia", "Rosie", "Zoe"), SHE),
        **dict.fromkeys(("Ben", "Finn", "Gus", "Jack", "Leo", "Pip", "Victor"), HE),
    },
    "animal": {
        "rabbit": {"went": "hopped"},
        "fox": {"went": "ran"},
        "bear": {"went": "walked"},
        "mouse": {"went": "hurried"},
        "duck": {"went": "waddled"},
        "cat": {"went": "crept"},
        "frog": {"went": "jumped"},
        "goat": {"went": "trotted"},
        "hen": {"went": "fluttered"},
        "squirrel": {"went": "skipped"},
    },
    "trait": dict.fromkeys(("kind", "brave", "shy", "clever", "cheerful", "curious", "gentle", "funny"), PLAIN),
    "home": dict.fromkeys(
        ("by the river", "in the forest", "on a green hill", "near the mill", "beside the lake", "on a farm"), PLAIN
    ),
    "weather": dict.fromkeys(("sunny", "rainy", "windy", "snowy", "foggy", "cold"), PLAIN),
    "time": dict.fromkeys(("morning", "afternoon", "evening"), PLAIN),
    "thing": {
        "kite": {"use": "fly"},
        "ball": {"use": "kick"},
        "drum": {"use": "beat"},
        "boat": {"use": "sail"},
        "hat": {"use": "wear"},
        "bell": {"use": "ring"},
        "book": {"use": "read"},
        "wagon": {"use": "pull"},
        "lamp": {"use": "light"},
        "flute": {"use": "play"},
        "scarf": {"use": "wear"},
        "horn": {"use": "blow"},
    },
    "colour": dict.fromkeys(("red", "blue", "green", "yellow", "white", "brown"), PLAIN),
    "food": {
        "a big pie": {"it": "pie"},
        "a sweet cake": {"it": "cake"},
        "a pot of soup": {"it": "soup"},
        "some bread": {"it": "bread"},
        "a jar of honey": {"it": "honey"},
        "some cheese": {"it": "cheese"},
    },
    "spot": dict.fromkeys(
        ("under the bed", "behind the barn", "in the grass", "next to the well", "behind a tree", "in the hay"), PLAIN
    ),
    "work": {
        "a raft": {"it": "raft", "of": "logs"},
        "a hut": {"it": "hut", "of": "branches"},
        "a sled": {"it": "sled", "of": "boards"},
        "a nest": {"it": "nest", "of": "straw"},
        "a wall": {"it": "wall", "of": "stones"},
    },
}

SLOTS = {
    "hero": "name",
    "friend": "name",
    "hero.kind": "animal",
    "friend.kind": "animal",
    "trait": "trait",
    "weather": "weather",
    "time": "time",
    "thing": "thing",
    "other": "thing",
    "thing.colour": "colour",
    "other.colour": "colour",
    "food": "food",
    "spot": "spot",
    "wrong": "spot",
    "work": "work",
}

RULES: dict[str, list[str]] = {
    "story": ["[opening]\n[day], [plot] [ending]\n\n"],
    "opening": [
        "Once upon a time there was a little {hero.kind} named {hero}. {hero} was very {trait}.",
        "Once upon a time there was a {trait} {hero.kind}. "
        "The {hero.kind} was named {hero}, and everyone liked {hero}.",
    ],
    "day": ["One {weather} {time}", "On a {weather} {time}"],
    "plot": [
        "{hero} could not find {hero.his} {thing.colour} {thing}. [loss] [meet] [search] [found]",
        "{hero} went to see {friend} the {friend.kind}. It was the birthday of {friend}. [present] [thanks]",
        "{hero} took {hero.his} {thing.colour} {thing} to the market. [meet] [offer] [trade]",
        "{hero} wanted to play. [meet] [hide] [look] [peek]",
        "a big storm came. {hero} was at home. [knock] [rescue] [shelter]",
        "{hero} made {food}. [meet] [hungry] [share]",
        "{hero} wanted to build {work}. [meet] [build] [done]",
    ],
    "meet": [
        'Then {friend} the {friend.kind} came by. "Hello, {hero}!" said {friend}.',
        'Then {hero} met a {friend.kind} named {friend}. "Hello, {friend}!" said {hero}.',
    ],
    # Lost and found.
    "loss": [
        "{hero} looked and looked, but the {thing} was gone.",
        '"Oh no!" said {hero}. "I want to {thing.use} my {thing}!"',
    ],
    "search": [
        "{friend} looked for the {thing} {wrong}.",
        '"I will help you!" cried {friend} and looked {wrong}.',
    ],
    "found": [
        "Then {hero} found the {thing.colour} {thing} {spot}.",
        '"Your {thing} is {spot}!" cried {friend}.',
    ],
    # A gift.
    "present": [
        "{hero} gave {friend} a {thing.colour} {thing}.",
        '"This {thing.colour} {thing} is for you," said {hero}.',
    ],
    "thanks": [
        '"Thank you!" cried {friend}. "I will {thing.use} the {thing} every day!"',
        "{friend} was very happy with the {thing.colour} {thing} and gave {hero} a hug.",
    ],
    # A trade.
    "offer": [
        '{friend} had a {other.colour} {other}. "I want to {other.use} the {other}," said {hero}.',
        '"I will give you my {other.colour} {other} for your {thing}!" cried {friend}.',
    ],
    "trade": [
        "So {hero} took the {other}, and {friend} kept the {thing}.",
        "Now {friend} had the {thing.colour} {thing}, and {hero} had the {other}.",
    ],
    # Hide and seek.
    "hide": [
        "{friend} hid {spot}.",
        '"Come and find me!" cried {friend} and hid {spot}.',
    ],
    "look": [
        "{hero} looked {wrong}, but {friend} was not there.",
        '"Where are you?" said {hero} and looked {wrong}.',
    ],
    "peek": [
        "Then {hero} found {friend} {spot}.",
        '"I see you!" said {hero}. "You are {spot}!"',
    ],
    # A storm.
    "knock": [
        "{friend} the {friend.kind} knocked at the door, and {hero} let {friend} in.",
        'There was a knock at the door. "Come in, {friend}!" said {hero}. {friend} was a {friend.kind}.',
    ],
    "rescue": [
        "{friend} was cold, so {hero} made {food}.",
        '"I am so cold!" cried {friend}. {hero} made {food}.',
    ],
    "shelter": [
        "{hero} and {friend} ate the {food.it} and waited for the sun to come out.",
        "The {food.it} was so good that {friend} stayed with {hero} all day.",
    ],
    # Sharing food.
    "hungry": [
        '"I am so hungry!" cried {friend}.',
        '"May I have some {food.it}?" asked {friend}.',
    ],
    "share": [
        "{hero} gave {friend} half of the {food.it}.",
        "So {hero} and {friend} ate the {food.it}.",
    ],
    # Building something.
    "build": [
        '"I will help you!" cried {friend} and found some {work.of}.',
        "{friend} held the {work.of}, and {hero} sang a song.",
    ],
    "done": [
        '"What a good {work.it}!" said {hero}.',
        "{hero} and {friend} were happy with the {work.it}.",
    ],
    "ending": [
        "{hero} and {friend} were friends from that day on.",
        "{hero} and {friend} laughed and danced.",
        "Then {hero} and {friend} went home for supper.",
        "It was the best day of all for {hero} and {friend}.",
    ],
}

GRAMMAR = Grammar(RULES, SLOTS, WORDS)

ALPHABET = GRAMMAR.alphabet
"""Every character that a story can contain, sorted: the character tokenizer's vocabulary."""

PROMPT = "Once upon a time"
"""How every story begins."""

END = "\n\n"
"""How every story ends; stands nowhere else."""


@dataclass(frozen=True)
class Story:
    """A story and how likely it is."""

    text: str
    """The story with its end marker, a blank line."""
    log_probability: float
    """log P(text) under the grammar, nats."""


@dataclass(frozen=True)
class Corpus:
    """Stories one after the other, and the lowest mean loss that any model can have on such stories."""

    text: str
    floor: float
    """-sum(log P) / characters, nats per character."""
    floor_error: float
    """Standard error of the floor over stories: how far this corpus may lie from the grammar's own mean."""


def write_story(rng: np.random.Generator) -> Story:
    """One story, drawn with `rng`."""
    text, ways = GRAMMAR.write(rng)
    return Story(text, -math.log(ways))


def write_corpus(seed: int, split: Literal["train", "val"], characters: int) -> Corpus:
    """Whole stories, as many as make up at least `characters`; the same ones for the same arguments."""
    rng = keyed_generator("stories", seed, split)
    stories: list[Story] = []
    length = 0
    while length < characters:
        stories.append(write_story(rng))
        length += len(stories[-1].text)
    lengths = np.array([len(story.text) for story in stories])
    nats = np.array([-story.log_probability for story in stories])
    floor = float(nats.sum() / lengths.sum())
    # Standard error of a ratio of two sums over independent stories.
    deviation = nats - floor * lengths
    error = math.sqrt(float(deviation @ deviation) * len(stories) / max(1, len(stories) - 1)) / length
    return Corpus("".join(story.text for story in stories), floor, error)
