"""Questions about small worlds: the answers are true of what is told, and cost what they should."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gpt_common.data import open_dataset
from gpt_common.data.conversations.stories_qa import (
    AS_JSON,
    NEW_PHRASINGS,
    NOTES,
    PHRASINGS,
    TURNS,
    _log_first,
    noted,
    told,
    write_conversations,
    write_questions,
    write_texts,
    write_worlds,
)
from gpt_common.data.stories import WORDS
from gpt_common.keyed import keyed_generator

COUNT = 400
QUESTIONS = write_questions(7, "train", COUNT)


def facts(story: str) -> tuple[dict[str, str], dict[str, list[str]], dict[str, str]]:
    """Who is what, where each name or thing may be, and who has each thing: read sentence by sentence."""
    animals: dict[str, str] = {}
    places: dict[str, list[str]] = {}
    holders: dict[str, str] = {}
    for sentence in story.removesuffix(".").split(". "):
        if match := re.fullmatch(r"(\w+) is a (\w+)", sentence):
            animals[match[1]] = match[2]
        elif match := re.fullmatch(r"The (\w+) is with (\w+)", sentence):
            holders[match[1]] = match[2]
        elif (match := re.fullmatch(r"Then (\w+) gave the (\w+) away", sentence)) or (
            match := re.fullmatch(r"Then (\w+) hid the (\w+)", sentence)
        ):
            assert holders.pop(match[2]) == match[1]
        elif match := re.fullmatch(r"The (\w+) is (.+) or (.+)", sentence):
            places[f"the {match[1]}"] = [match[2], match[3]]
        elif match := re.fullmatch(r"(\w+) is (.+)", sentence):
            assert [match[2]] not in places.values()
            places[match[1]] = [match[2]]
        else:
            assert re.fullmatch(r"Then (\w+) went away", sentence)
    return animals, places, holders


def plain(answer: str, kind: str) -> list[str]:
    """What an answer says, whether it is text or JSON."""
    if answer.startswith("{"):
        (value,) = json.loads(answer).values()
        return value if isinstance(value, list) else [value.removeprefix("a ") if kind == "kind" else value]
    if kind == "animals":
        listed = answer.removeprefix("The animals are ").removesuffix(".")
        return [word.removeprefix("a ") for word in re.split(", | and ", listed)]
    pattern = {"who": r"The \w+ is with (\w+)\.", "kind": r"\w+ is a (\w+)\.", "where": r"[\w ]+? is (.+)\."}[kind]
    found = re.fullmatch(pattern, answer)
    assert found
    return [found[1]]


@pytest.mark.parametrize("kind", PHRASINGS)
def test_answers_are_true(kind: str) -> None:
    asked = [question for question in QUESTIONS if question.kind == kind]
    assert len(asked) > COUNT / 10
    for question in asked:
        story, said = question.prompt.split("\n")
        animals, places, holders = facts(story)
        patterns = [re.escape(each).replace(r"\{it\}", "(.+?)") for each in PHRASINGS[kind]]
        found = [match for each in patterns if (match := re.fullmatch(each, said.removesuffix(f" {AS_JSON}")))]
        about = min((match.group(1) for match in found if match.groups()), key=len, default="")
        right = {
            "who": [[holders.get(about, "")]],
            "where": [[place] for place in places.get(about, [])],
            "kind": [[animals.get(about, "")]],
            "animals": [list(animals.values())],
        }[kind]
        assert [plain(answer, kind) for answer in question.answers] == right
        assert question.answer in question.answers
        assert question.as_json == question.answer.startswith("{")
        assert math.exp(question.log_probability) == pytest.approx(1 / len(right))


def test_answers_that_are_not_certain_are_given_as_often_as_they_are_likely() -> None:
    """Of n questions with two answers the first is given half the time: 5 standard deviations."""
    unsure = [question for question in write_questions(7, "train", 4000) if len(question.answers) == 2]
    first = sum(question.answer == question.answers[0] for question in unsure)
    assert abs(first - len(unsure) / 2) < 5 * math.sqrt(len(unsure) / 4)
    assert len(unsure) > 100


def test_no_world_is_in_both_splits_and_no_new_phrasing_in_training() -> None:
    train = {tuple(sorted(facts(question.prompt.split("\n")[0])[0].items())) for question in QUESTIONS}
    val = {
        tuple(sorted(facts(question.prompt.split("\n")[0])[0].items())) for question in write_questions(7, "val", 200)
    }
    assert len(val) > 150
    assert not {world for world in train & val if len(world) == 3}
    for new in NEW_PHRASINGS.values():
        beginning = new.split("{")[0]
        assert not any(question.prompt.split("\n")[1].startswith(beginning) for question in QUESTIONS)
    assert write_questions(7, "val", 5) == write_questions(7, "val", 5) != write_questions(8, "val", 5)


def test_a_conversation_asks_different_things_of_one_world() -> None:
    for conversation, nats in write_conversations(3, "train", 50):
        asked = [message.content.split("\n")[-1] for message in conversation.messages[::2]]
        assert len({question.removesuffix(f" {AS_JSON}") for question in asked}) == TURNS
        assert [message.content.count("\n") for message in conversation.messages] == [1] + [0] * (2 * TURNS - 1)
        hidden = [re.escape(phrasing).replace(r"\{it\}", r"the \w+") for phrasing in PHRASINGS["where"]]
        unsure = sum(any(re.match(each, question) for each in hidden) for question in asked)
        assert nats == pytest.approx(unsure * math.log(2))


def test_what_is_told_costs_what_its_choices_are() -> None:
    """One over the product of the numbers of options, counted from the text."""
    names, animals, things, spots = (len(WORDS[kind]) for kind in ("name", "animal", "thing", "spot"))
    rng = np.random.default_rng(0)
    for world in write_worlds(3, "val", 60):
        text, log_probability = told(world, rng)
        story, closing = text.split("\n")
        n = len(world.names)
        ways = 2 * 4 * 2**n * math.prod(math.perm(of, n) for of in (names, animals, things, spots))
        if "gave" in story:
            ways *= n * (n - 1)
        elif "went" in story:
            ways *= n * (spots - n)
        elif "hid" in story:
            ways *= n * (spots - n) * (spots - n - 1)
        facts_told = 1 + 2 * n + n
        assert closing.count("}") + closing.count(".") == facts_told
        if "hid" in story:
            thing = story.split(" hid the ")[1].split(".")[0]
            ways *= 2 ** len(re.findall(f'{{"{thing}": |The {thing} is ', closing))
        assert log_probability == pytest.approx(-math.log(2 * ways * facts_told**facts_told))


def test_a_note_costs_what_its_choices_are_and_says_nothing_new_again() -> None:
    names, animals, things, spots = (len(WORDS[kind]) for kind in ("name", "animal", "thing", "spot"))
    rng, seen = np.random.default_rng(0), {"short": 0, "sentences": 0, "JSON": 0}
    for _ in range(1_200):
        text, log_probability = noted(rng)
        said, again = text.split("\n")
        facts = said.removesuffix(".").split(". ")
        n = len(facts)
        if short := " is " not in said:
            values = [(names, spots) if " the " in f or " a " in f else None for f in facts]
            of = values[0] or ((things, names) if said[0].islower() else (names, animals))
            assert set(again.removesuffix(".").split(". ")) <= set(facts)
        else:
            of = (things, names) if " with " in said else (names, animals) if " is a " in said else (names, spots)
            if again.startswith("{"):
                pairs = [pair for line in again.replace("} {", "}\n{").split("\n") for pair in json.loads(line).items()]
                plain_facts = {re.sub(r"^The | is( with)?\b", "", fact) for fact in facts}
                assert {f"{about} {value}" for about, value in pairs} <= plain_facts
            else:
                assert set(again.removesuffix(".").split(". ")) <= set(facts)
        form = "short" if short else "JSON" if again.startswith("{") else "sentences"
        seen[form] += 1
        ways = 2 * 3 * math.prod(math.perm(number, n) for number in of) * n ** (n + 1)
        assert log_probability == pytest.approx(math.log((5 / 6 if short else 1 / 12) / ways))
    # Within four standard deviations.
    for form, share in {"short": 5 / 6, "sentences": 1 / 12, "JSON": 1 / 12}.items():
        assert abs(seen[form] / 1_200 - share) < 4 * math.sqrt(share * (1 - share) / 1_200)


def test_a_text_costs_what_its_first_word_leaves() -> None:
    """Of an example the first token is given: what it alone tells is not to be learnt."""
    texts = write_texts(5, "train", 2_000)
    assert len(texts) == 2_000 * (1 + NOTES)
    first = Counter(text.split()[0] for text, _ in texts)
    assert set(first) == {"The", *WORDS["name"], *WORDS["thing"]}
    rng = keyed_generator("told", 5, "train")
    stories = [told(world, rng)[1] for world in write_worlds(5, "train", 1)]
    shares = {word: math.exp(_log_first(word)) for word in first}
    assert sum(shares.values()) == pytest.approx(1)
    for word, number in first.items():
        share = shares[word]
        assert abs(number / len(texts) - share) < 4 * math.sqrt(share * (1 - share) / len(texts)), word
    assert texts[0][1] == pytest.approx(-stories[0] + math.log(1 + NOTES) + math.log(shares[texts[0][0].split()[0]]))


def test_every_first_word_is_one_token(tmp_path: Path) -> None:
    tokenizer = open_dataset("stories-worlds", tmp_path).tokenizer
    words = ("The", *WORDS["name"], *WORDS["thing"])
    assert [word for word in words if len(tokenizer.encode(f"{word} is")) != 2] == []
