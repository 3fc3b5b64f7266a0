"""The built-in corpus: its probabilities are exact, so its floor is a real lower bound."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from gpt_common.data import stories
from gpt_common.data.grammar import Rule, Say, Slot, Template
from gpt_common.data.stories import RULES, SLOTS, WORDS, write_story
from tests.gpt_common.data.parsing import GRAMMAR, Grammar, consistency_errors, log_probability


def small_grammar(plot: int, alternatives: int, words: int) -> Grammar:
    """One plot of the real grammar, with fewer phrasings and fewer words."""
    rules = {name: templates[:alternatives] for name, templates in RULES.items()} | {"plot": [RULES["plot"][plot]]}
    fewer = {kind: dict(itertools.islice(attributes.items(), words)) for kind, attributes in WORDS.items()}
    # Two of a kind are the fewest that can tell two slots of a kind apart; the weather tells nothing apart.
    fewer |= {kind: dict(itertools.islice(WORDS[kind].items(), 1)) for kind in ("weather", "time")}
    return Grammar(rules, SLOTS, fewer)


# Probabilities


@pytest.mark.parametrize("plot", range(len(RULES["plot"])))
def test_probabilities_of_all_derivations_sum_to_one_and_no_text_has_two(plot: int) -> None:
    derivations = list(small_grammar(plot, alternatives=2, words=2).derivations())
    assert len(derivations) > 1000
    assert sum((Fraction(1, ways) for _, ways in derivations), Fraction()) == 1
    assert len({text for text, _ in derivations}) == len(derivations)


def test_a_parse_finds_the_probability_that_the_enumeration_gives() -> None:
    grammar = small_grammar(0, alternatives=2, words=2)
    derivations = list(grammar.derivations())
    for text, ways in derivations[:: len(derivations) // 500]:
        assert list(grammar.derivations(text)) == [(text, ways)]


def test_stories_are_as_frequent_as_their_probability_says() -> None:
    grammar = small_grammar(5, alternatives=1, words=2)
    expected = {text: 1 / ways for text, ways in grammar.derivations()}
    # Not all equally likely: a choice is left out where a word is already taken.
    rng = np.random.default_rng(0)
    draws = 30_000
    seen = Counter(grammar.write(rng)[0] for _ in range(draws))
    assert set(seen) <= set(expected)
    result = stats.chisquare([seen[text] for text in expected], [draws * p for p in expected.values()])
    assert result.pvalue > 0.001


def test_what_the_writer_counts_is_what_a_parse_finds() -> None:
    rng = np.random.default_rng(1)
    for _ in range(3000):
        story = write_story(rng)
        derivations = list(GRAMMAR.derivations(story.text))
        assert len(derivations) == 1
        assert math.isclose(log_probability(story.text), story.log_probability, rel_tol=1e-12)


def test_text_of_two_derivations_gets_the_sum() -> None:
    rules = {"story": ["{thing}{thing}", "{thing}[again]"], "again": ["a", "b"]}
    twice = Grammar(rules, {"thing": "t"}, {"t": {"a": {}, "b": {}}})
    found = list(twice.derivations("aa"))
    assert sorted(ways for _, ways in found) == [4, 8]
    assert sum(Fraction(1, ways) for _, ways in twice.derivations()) == 1


def test_text_that_is_no_story_is_impossible() -> None:
    text = write_story(np.random.default_rng(2)).text
    assert log_probability(text) < 0
    for wrong in ("", text[:-1], text[1:], text + text, text.replace("was", "is", 1), stories.PROMPT):
        assert log_probability(wrong) == -math.inf


# No two derivations give the same text: a reader who knows what came before can tell from the next characters which
# choice was made. This is proved from the rules alone, for all stories.


def openings(grammar: Grammar, template: Template) -> Iterator[Template]:
    """The template with its leading rule, if any, replaced by each of that rule's alternatives."""
    if template and isinstance(template[0], Rule):
        for alternative in grammar.rules[template[0].name]:
            yield from openings(grammar, (*alternative, *template[1:]))
    else:
        yield template


def texts(grammar: Grammar, piece: Say | Slot) -> set[str]:
    if isinstance(piece, Say):
        return {piece.text}
    return {facts[piece.name] for facts in grammar.facts.values() if piece.name in facts}


def distinguishable(grammar: Grammar, one: Template, other: Template) -> bool:
    """Whether no text can begin with both, as far as their first difference shows."""
    for i, (a, b) in enumerate(zip(one, other, strict=False), start=1):
        if a == b:
            continue
        if isinstance(a, Rule) or isinstance(b, Rule):
            return False
        if isinstance(a, Say) and isinstance(b, Say):
            common = min(len(a.text), len(b.text))
            if a.text[:common] != b.text[:common]:
                return True
            # One sentence begins like the other: what follows must tell them apart.
            rest = [(*([Say(p.text[common:])] if p.text[common:] else []), *t[i:]) for p, t in ((a, one), (b, other))]
            return distinguishable(grammar, rest[0], rest[1])
        left, right = texts(grammar, a), texts(grammar, b)
        # Two slots of one kind never hold the same word.
        rivals = isinstance(a, Slot) and isinstance(b, Slot) and b.name in grammar.rivals.get(a.name, [])
        return all(not x.startswith(y) and not y.startswith(x) for x in left for y in right if not (rivals and x == y))
    return False


def indistinguishable(grammar: Grammar) -> list[str]:
    """Choices that the text does not show at once."""
    found = []
    for name, templates in grammar.rules.items():
        starts = [list(openings(grammar, template)) for template in templates]
        for one, other in itertools.combinations(starts, 2):
            if not all(distinguishable(grammar, a, b) for a in one for b in other):
                found.append(name)
    for kind, words in grammar.words.items():
        found += [kind for a, b in itertools.permutations(words, 2) if b.startswith(a)]
    return found


def test_every_choice_shows_in_the_text_at_once() -> None:
    assert indistinguishable(GRAMMAR) == []


@pytest.mark.parametrize(
    ("rule", "template"),
    [
        ("meet", RULES["meet"][0]),  # the same sentence twice
        ("meet", RULES["meet"][0] + " They sat down."),  # one sentence begins another
        ("day", "{time}[day]"),  # unknown to the text which follows
        ("ending", "{thing.colour}"),
    ],
)
def test_the_proof_fails_for_a_choice_that_does_not_show(rule: str, template: str) -> None:
    spoiled = Grammar({**RULES, rule: [*RULES[rule], template, template]}, SLOTS, WORDS)
    assert rule in indistinguishable(spoiled)


# The floor


def ngram_loss(train: bytes, held_out: bytes, order: int, peek: int = 0) -> float:
    """Nats per character of an interpolated n-gram model (Witten & Bell 1991) of contexts up to `order` - 1.

    Args:
        peek: how many characters to the right of each context the model sees, wrongly.
    """

    def keys(text: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
        # A hash of `length` characters up to each position; 64 bits, so collisions do not matter.
        key = np.zeros(len(text) - order - peek, np.uint64)
        for i in range(length):
            key = key * np.uint64(0x9E3779B97F4A7C15) + text[order - i : len(text) - i - peek] + np.uint64(1)
        return key

    def lookup(table: NDArray[np.uint64], counts: NDArray[np.int64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
        at = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
        return np.where(table[at] == wanted, counts[at], 0)

    seen, new = (np.frombuffer(text, np.uint8).astype(np.uint64) for text in (train, held_out))
    target_seen, target_new = (text[order : len(text) - peek] for text in (seen, new))
    if peek:
        seen, new = np.roll(seen, -peek), np.roll(new, -peek)
    probability = np.full(len(target_new), 1 / len(stories.ALPHABET))
    for length in range(order):
        contexts_seen, contexts_new = (keys(np.roll(text, 1), length) for text in (seen, new))
        pairs_seen, pairs_new = (
            contexts * np.uint64(0xD1B54A32D192ED03) + target
            for contexts, target in ((contexts_seen, target_seen), (contexts_new, target_new))
        )
        pairs, first, pair_counts = np.unique(pairs_seen, return_index=True, return_counts=True)
        contexts, context_counts = np.unique(contexts_seen, return_counts=True)
        # Distinct successors of a context: how often something new followed it.
        kinds = np.bincount(np.searchsorted(contexts, contexts_seen[first]), minlength=len(contexts))
        count, total = lookup(pairs, pair_counts, pairs_new), lookup(contexts, context_counts, contexts_new)
        novel = lookup(contexts, kinds, contexts_new)
        known = total > 0
        mixed = (count + novel * probability) / np.maximum(total + novel, 1)
        probability = np.where(known, mixed, probability)
    return float(-np.log(probability).mean())


@pytest.fixture(scope="module")
def corpora() -> dict[str, stories.Corpus]:
    return {
        "train": stories.write_corpus(0, "train", 400_000),
        "val": stories.write_corpus(0, "val", 60_000),
    }


def test_ngram_models_approach_the_floor_from_above_and_never_cross_it(corpora: dict[str, stories.Corpus]) -> None:
    train, val = corpora["train"].text.encode(), corpora["val"].text.encode()
    losses = {order: ngram_loss(train, val, order) for order in (1, 2, 3, 4, 5, 6, 7, 8, 12)}
    print({order: round(loss, 3) for order, loss in losses.items()}, "floor", round(corpora["val"].floor, 3))
    for shorter, longer in itertools.pairwise(range(1, 9)):
        assert losses[longer] < losses[shorter]
    assert min(losses.values()) > corpora["val"].floor
    # Near enough for the bound to be worth something: what is left are names and things from further back.
    assert min(losses.values()) < corpora["val"].floor + 0.25


def test_a_model_that_sees_the_future_or_the_answers_crosses_the_floor(corpora: dict[str, stories.Corpus]) -> None:
    train, val = corpora["train"].text.encode(), corpora["val"].text.encode()
    floor = corpora["val"].floor
    assert ngram_loss(train, val, 6, peek=1) < floor
    assert ngram_loss(val, val, 24) < floor


def test_floors_of_many_seeds_spread_as_their_errors_say() -> None:
    corpora = [stories.write_corpus(seed, "val", 20_000) for seed in range(40)]
    floors, errors = np.array([c.floor for c in corpora]), np.array([c.floor_error for c in corpora])
    # A sample standard deviation of 40 lies within 40 % of the true one except once in 3000 times.
    assert 0.6 < np.std(floors, ddof=1) / errors.mean() < 1.4


# The corpus


def test_a_corpus_is_whole_stories_and_its_floor_their_mean() -> None:
    corpus = stories.write_corpus(3, "train", 10_000)
    parts = [part + stories.END for part in corpus.text.split(stories.END)[:-1]]
    assert "".join(parts) == corpus.text
    assert 10_000 <= len(corpus.text) < 10_000 + len(parts[-1])
    assert math.isclose(corpus.floor, -sum(map(log_probability, parts)) / len(corpus.text), rel_tol=1e-12)


def test_a_corpus_is_the_same_on_every_machine() -> None:
    """If this fails because the stories were changed on purpose, the new digest belongs here."""
    digests = {
        split: hashlib.sha256(stories.write_corpus(1337, split, 20_000).text.encode()).hexdigest()[:16]
        for split in ("train", "val")
    }
    assert digests == {"train": "7fc9674d6caabb7b", "val": "b52f92beb828b5d7"}


def test_splits_and_seeds_have_no_story_in_common() -> None:
    texts = [
        set(stories.write_corpus(seed, split, 100_000).text.split(stories.END)) - {""}
        for seed in (0, 1)
        for split in ("train", "val")
    ]
    for one, other in itertools.combinations(texts, 2):
        assert not one & other


def test_the_alphabet_is_complete_and_has_no_letter_too_many() -> None:
    assert "".join(sorted(set(stories.write_corpus(0, "train", 300_000).text))) == stories.ALPHABET


def test_every_story_begins_with_the_prompt() -> None:
    assert all(write_story(np.random.default_rng(i)).text.startswith(stories.PROMPT) for i in range(100))


# Consistency


@pytest.fixture
def lost_and_found() -> str:
    rng = np.random.default_rng(0)
    stories_of_loss = (text for text in iter(lambda: write_story(rng).text, "") if "could not find" in text)
    return next(text for text in stories_of_loss if "has" not in text)


def test_stories_are_consistent_wherever_they_are_cut() -> None:
    text = stories.write_corpus(4, "val", 3000).text
    for end in range(1, 1500, 7):
        assert consistency_errors(text[:end]) == []
    assert consistency_errors(text) == []


def test_a_changed_fact_is_named() -> None:
    text = "Once upon a time there was a little fox named Mia. Mia was very shy.\n"
    text += "One sunny morning, Mia could not find her "
    assert consistency_errors(text + "red kite. Mia looked and looked, but the kite was gone.") == []
    [error] = consistency_errors(text + "red kite. Mia looked and looked, but the drum was gone.")
    assert error.startswith("'kite' became 'drum'")
    [error] = consistency_errors(text + "red kite. Zoe looked and looked, but the kite was gone.")
    assert error.startswith("'Mia' became 'Zoe'")
    [error] = consistency_errors(text.removesuffix("her ") + "his red kite.")
    assert error.startswith("'her' became 'his'")


def test_a_sentence_that_no_story_has_is_named_and_the_next_story_is_still_read() -> None:
    good = write_story(np.random.default_rng(5)).text
    [error] = consistency_errors("Once upon a time there was a little fax named Mia." + stories.END + good)
    assert error.startswith("not a sentence")
    assert "fax" in error


# The engine


def test_a_grammar_with_an_unknown_rule_or_slot_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown rule \[nowhere\]"):
        Grammar({"story": ["[nowhere]"]}, {}, {})
    with pytest.raises(ValueError, match=r"unknown slot \{hero.hat\}"):
        Grammar({"story": ["{hero} {hero.hat}"]}, {"hero": "name"}, {"name": {"Mia": {}}})
