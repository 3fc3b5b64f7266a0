"""Validation text in the training text is found however it was put there; texts that repeat themselves are not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpt_common.data import Dataset
from gpt_common.data.conversations.stories_qa import Split, write_conversations
from gpt_common.data.conversations.written import END, TURN, chatml
from gpt_common.data.leakage import rolling, validation
from gpt_common.data.leakage.rolling import Among, Letters, Prefixes
from gpt_common.data.leakage.validation import WINDOW, Leakage, leakage
from gpt_common.data.stories import ALPHABET, write_corpus
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer, train_bpe_on
from gpt_common.data.tokenizers.extended import with_tokens
from gpt_common.training.health.leak_alarm import leak_alarm
from tests.borrowed import tiny_shakespeare

CHARACTERS = CharTokenizer(ALPHABET + "\t")
TRAIN, VAL = write_corpus(5, "train", 600_000).text, write_corpus(5, "val", 60_000).text
BPE = train_bpe_on([TRAIN[:50_000]], 400)


def ids(text: str, tokenizer: Tokenizer) -> npt.NDArray[np.uint16]:
    return np.array(tokenizer.encode(text), np.uint16)


def found(train: str, val: str, tokenizer: Tokenizer = CHARACTERS, most: int | None = None) -> Leakage:
    leak = leakage(ids(train, tokenizer), ids(val, tokenizer), tokenizer, most)
    assert leak is not None
    return leak


def by_hand(train: str, val: str) -> float:
    """The share of windows of `val` in `train`, without sampling or hashes."""
    train, val = (re.sub(r"\s", "", text) for text in (train, val))
    known = {train[i : i + WINDOW] for i in range(len(train) - WINDOW + 1)}
    windows = [val[i : i + WINDOW] for i in range(len(val) - WINDOW + 1)]
    return sum(window in known for window in windows) / len(windows)


@pytest.mark.parametrize("tokenizer", [CHARACTERS, BPE], ids=["characters", "bpe"])
def test_stories_repeat_themselves_and_do_not_ring(tokenizer: Tokenizer) -> None:
    leak = found(TRAIN, VAL, tokenizer)
    assert not leak.is_leak
    assert len(leak.chance) >= 9


LEAKS = {
    "whole": lambda val: val,
    "a fifth of it": lambda val: val[20_000:32_000],
    "with every space another": lambda val: val.replace(" ", "\n\t "),
    "without line ends": lambda val: val.replace("\n", " ").replace(". ", ".  "),
}


@pytest.mark.parametrize("kind", LEAKS)
@pytest.mark.parametrize("tokenizer", [CHARACTERS, BPE], ids=["characters", "bpe"])
def test_a_planted_leak_rings(kind: str, tokenizer: Tokenizer) -> None:
    leaked = LEAKS[kind](VAL)
    leak = found(TRAIN[:300_123] + leaked + TRAIN[300_123:], VAL, tokenizer)
    assert leak.is_leak
    assert leak.share == pytest.approx(0.2 if "fifth" in kind else 1.0, abs=0.03)


def test_the_share_is_that_of_a_count_by_hand() -> None:
    train, val = TRAIN[:30_000] + VAL[3_000:4_500], VAL[:7_000]
    leak = found(train, val)
    assert leak.sampled == 1, "so short a text is looked at whole"
    assert leak.share == pytest.approx(by_hand(train, val), abs=1e-12)
    longer = found(train, VAL[:30_000])
    assert longer.sampled > 1
    assert longer.share == pytest.approx(by_hand(train, VAL[:30_000]), abs=0.01)


def test_a_text_that_says_the_same_over_and_over_does_not_ring() -> None:
    """Mutant: chance left out. Every window of this validation text stands in the training text."""
    leak = found("The cat sat on the mat. " * 5_000, "The cat sat on the mat. " * 500)
    assert leak.share == 1
    assert min(leak.chance) == 1
    assert not leak.is_leak


def test_a_leak_rings_in_a_text_that_repeats_most_of_itself() -> None:
    """Mutant: twice as much as a share of 0.7. Nothing is, and what is new in the validation text tells instead."""
    draw = np.random.default_rng(4)
    formulas = [TRAIN[i : i + 1_200] for i in range(0, 24_000, 1_200)]

    def some(begin: int, count: int) -> str:
        new = [TRAIN[begin + 300 * i : begin + 300 * (i + 1)] for i in range(count)]
        return "".join(formulas[draw.integers(20)] + one for one in new)

    train, val = some(30_000, 400), some(200_000, 50)
    natural, leak = found(train, val), found(train[:100_000] + val + train[100_000:], val)
    assert min(natural.expected, leak.expected) > 0.5
    assert not natural.is_leak
    assert leak.share > 0.99
    assert leak.is_leak


def test_a_stretch_is_not_found_in_itself() -> None:
    """Mutant: its own place not left out. Then chance is all, and nothing ever rings."""
    assert max(found(TRAIN, VAL).chance) < 0.05


def test_texts_of_few_kilobytes_do_not_ring_and_their_leaks_do() -> None:
    draw = np.random.default_rng(3)
    words = ["".join(draw.choice(list("abcdefghilmnoprst"), draw.integers(2, 8))) for _ in range(300)]
    text = ". ".join(" ".join(draw.choice(words, 9)) for _ in range(400))
    for size in (2_000, 5_000, 20_000):
        train, val = text[: size * 9 // 10], text[size * 9 // 10 : size]
        leak = leakage(ids(train, CHARACTERS), ids(val, CHARACTERS), CHARACTERS)
        assert leak is None or not leak.is_leak
    assert found(text[:18_000] + " " + text[18_000:18_800], text[18_000:20_000]).is_leak


def test_a_leak_that_was_put_in_twice_rings_too() -> None:
    """The training text then repeats itself as well, but not everywhere."""
    leak = found(VAL + TRAIN[:300_000] + VAL + TRAIN[300_000:], VAL)
    assert max(leak.chance) > 0.3
    assert leak.is_leak


def test_a_text_with_twins_of_its_own_passages_does_not_ring_for_some_more() -> None:
    """Mutant: the largest stretch left out. Code says much twice, in some places and not in others."""
    parts = [TRAIN[i : i + 4_000] for i in range(0, 80_000, 4_000)]
    parts[12] = parts[6][:2_000] + parts[12][2_000:]
    leak = found("".join(parts), parts[19][:1_500] + VAL[:6_500])
    assert 0.05 < leak.share < 0.3
    assert np.quantile(leak.chance, 0.75) < leak.share / 4
    assert not leak.is_leak


def test_of_a_large_validation_text_a_part_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "READ_AT_ONCE", 2_000)
    leak = found(TRAIN + VAL, VAL, most=160_000)
    assert leak.windows * leak.sampled < 25_000
    assert leak.is_leak


def test_a_passage_quoted_once_is_no_leak() -> None:
    leak = found(TRAIN + VAL[2_000:2_300], VAL[:5_000])
    assert leak.share > 0.01
    assert not leak.is_leak


def test_conversations_do_not_ring_and_one_that_is_in_both_splits_does() -> None:
    """Every one begins with the same instruction, and its questions are few."""
    sizes: dict[Split, int] = {"train": 240, "val": 40}
    told = {
        split: [
            "Answer in one sentence and only from what was told before; say nothing that is not in the story, and do "
            "not make up animals, names, places or things, nor repeat the question before you answer it.\n"
            + chatml(conversation).text
            for conversation, _ in write_conversations(4, split, count)
        ]
        for split, count in sizes.items()
    }
    tokenizer = with_tokens(train_bpe_on(["".join(told["train"][:40])], 350), (TURN, END))

    def leak(train: list[str]) -> Leakage:
        ids = [np.array(tokenizer.encode_written("".join(texts)), np.uint16) for texts in (train, told["val"])]
        found = leakage(ids[0], ids[1], tokenizer)
        assert found is not None
        return found

    assert leak(told["train"]).share > 0.01
    assert not leak(told["train"]).is_leak
    assert leak(told["train"][:100] + told["val"] + told["train"][100:]).is_leak


def test_shakespeare_does_not_ring(tmp_path: Path) -> None:
    text = tiny_shakespeare(tmp_path)[0].read_text()
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    cut = len(text) * 9 // 10
    assert not found(text[:cut], text[cut:], tokenizer).is_leak
    leaked = text[: cut // 2] + text[cut : cut + 20_000].replace("\n", "  ") + text[cut // 2 : cut]
    assert found(leaked, text[cut:], tokenizer).is_leak


def test_of_a_large_training_text_parts_are_read_and_the_share_is_scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "READ_AT_ONCE", 5_000)
    leak = found(TRAIN[:300_000] + VAL + TRAIN[300_000:], VAL, most=300_000)
    assert leak.read == pytest.approx(1 / 3, abs=0.05)
    assert leak.share > 0.7
    assert leak.is_leak
    assert not found(TRAIN, VAL, most=300_000).is_leak


def test_no_window_is_lost_between_what_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = TRAIN[:20_000] + VAL[3_000:8_000], VAL[:10_000]
    whole = found(train, val)
    monkeypatch.setattr(rolling, "AT_ONCE", 700)
    assert found(train, val) == whole


def test_the_alarm_before_training_says_how_much() -> None:
    def dataset(train: str) -> Dataset:
        floor: dict[str, Any] = {"floor": None, "floor_error": None, "unigram_entropy": 1.0, "prompt": ""}
        return Dataset("own", ids(train, CHARACTERS), ids(VAL, CHARACTERS), CHARACTERS, "", **floor)

    assert leak_alarm(dataset(TRAIN)) is None
    said = leak_alarm(dataset(TRAIN + VAL)) or ""
    assert said.startswith("validation text stands in the training text: 100.0% of it")


def test_a_validation_text_shorter_than_a_window_is_not_asked() -> None:
    assert leakage(ids(TRAIN[:1000], CHARACTERS), ids("Once", CHARACTERS), CHARACTERS) is None


def test_equal_letters_have_equal_hashes_wherever_they_stand() -> None:
    letters = Letters(CHARACTERS).of(ids("One sunny morning, One sun ny  morning,", CHARACTERS))
    length = len("Onesunnymorning,")
    hashes = Prefixes(letters).windows(length)
    assert hashes[0] == hashes[length]
    assert len(np.unique(hashes)) == len(hashes) - 1
    assert len(Prefixes(letters).windows(1000)) == 0


def test_letters_are_the_same_in_every_vocabulary_however_they_are_cut() -> None:
    text = VAL[:5_000]
    wanted = re.sub(r"\s", "", text).encode()
    for tokenizer in (CHARACTERS, BPE):
        tokens = ids(text, tokenizer)
        letters = Letters(tokenizer)
        assert letters.of(tokens).tobytes() == wanted
        assert letters.count(tokens) == len(wanted)


def test_only_what_is_looked_for_is_found() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 5_000, np.uint64)
    wanted = np.unique(hashes[::7])
    places = Among(wanted).places(hashes)
    assert sorted(wanted[places]) == sorted(hashes[::7])
    assert len(Among(wanted[:0]).places(hashes)) == 0
