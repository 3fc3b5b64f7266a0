"""The exact distribution of the next character: against a parser that knows nothing of it, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpt_common.data.grammar import Grammar
from gpt_common.data.stories import ALPHABET, write_story
from gpt_common.judging.probes.told import stories
from gpt_common.judging.probes.truth import begin, truth
from tests.gpt_common.data.parsing import log_probability

AMBIGUOUS = Grammar(
    {"story": ["[a] ends.\n\n", "{x} and {x.his} cat.\n\n"], "a": ["{x}", "Mia", "Max"]},
    {"x": "name"},
    {"name": {"Mia": {"his": "her"}, "Max": {"his": "his"}}},
)


def test_the_probability_of_a_story_is_the_one_it_was_drawn_with_and_the_parser_finds() -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        story = write_story(rng)
        read = begin().then(story.text)
        assert read is not None
        assert read.log_probability == pytest.approx(story.log_probability, abs=1e-9)
        assert read.log_probability == pytest.approx(log_probability(story.text), abs=1e-9)


def test_every_distribution_sums_to_one_and_the_text_costs_what_the_grammar_says() -> None:
    rng = np.random.default_rng(6)
    told = [write_story(rng) for _ in range(8)]
    text = "".join(story.text for story in told)
    found = truth(text, ALPHABET)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-12)
    said = found[np.arange(len(text)), [ALPHABET.index(character) for character in text]]
    assert np.log(said).sum() == pytest.approx(sum(story.log_probability for story in told), abs=1e-8)


def test_several_readings_of_one_text_are_summed() -> None:
    # "Ma": by [a] -> {x} 1/2 * 1/3 * 1/2, by [a] -> "Max" 1/2 * 1/3, by the second story 1/2 * 1/2.
    read = begin(AMBIGUOUS).then("M")
    assert read is not None
    assert read.distribution() == pytest.approx({"i": 0.5, "a": 0.5})
    read = begin(AMBIGUOUS).then("Max ")
    assert read is not None
    assert math.exp(read.log_probability) == pytest.approx(1 / 2)
    assert read.distribution() == pytest.approx({"e": 0.5, "a": 0.5})
    assert read.words() == pytest.approx({"ends.": 0.5, "and ": 0.5})
    assert read.then("and her") is None


def test_behind_the_end_a_new_story_begins_that_knows_nothing_of_the_one_before() -> None:
    read = begin(AMBIGUOUS).then("Max ends.\n\n")
    assert read is not None
    assert read.distribution() == {"M": pytest.approx(1.0)}
    assert read.then("Mia and her cat.\n\n") is not None


def test_a_text_that_no_story_is_has_no_truth() -> None:
    with pytest.raises(ValueError, match="no story goes on with 'x'"):
        truth("Once upon a timx", ALPHABET + "x")


def test_stories_with_their_facts_are_those_of_the_grammar() -> None:
    for _, told in zip(range(20), stories(3, "test"), strict=False):
        assert begin().then(told.text) is not None
        for mention in told.mentions:
            assert told.text.startswith(mention.word, mention.at)
            if mention.evidence is not None:
                assert mention.evidence < mention.at
