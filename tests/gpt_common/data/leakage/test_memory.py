"""The longest stretch of a text that stands in the training text, against a search by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gpt_common.data.leakage import rolling
from gpt_common.data.leakage.memory import longest_runs
from gpt_common.data.stories import ALPHABET, write_corpus
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer, train_bpe_on

CHARACTERS = CharTokenizer(ALPHABET + "\tXQ@")
TRAIN = write_corpus(8, "train", 20_000).text
BPE = train_bpe_on([TRAIN], 350)


def by_hand(text: str, train: str) -> int:
    text, train = (re.sub(r"\s", "", each) for each in (text, train))
    best = 0
    for begin in range(len(text)):
        while begin + best < len(text) and text[begin : begin + best + 1] in train:
            best += 1
    return best


@pytest.mark.parametrize("tokenizer", [CHARACTERS, BPE], ids=["characters", "bpe"])
def test_the_longest_run_is_the_one_found_by_hand(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling, "AT_ONCE", 997)
    copied = TRAIN[7_000:7_400]
    texts = [
        write_corpus(9, "val", 600).text,
        "XQ@" + copied.replace(" ", "\n\t") + "@QX",
        "X" + TRAIN[:40],
        "@",
        "",
    ]
    ids = [np.array(tokenizer.encode(text), np.uint16) for text in texts]
    found = longest_runs(ids, np.array(tokenizer.encode(TRAIN), np.uint16), tokenizer)
    assert [run.letters for run in found] == [by_hand(text, TRAIN) for text in texts]
    assert [run.of for run in found] == [len(re.sub(r"\s", "", text)) for text in texts]
    assert found[1].letters >= len(re.sub(r"\s", "", copied))
    for run, each in zip(found, ids, strict=True):
        shown = re.sub(r"\s", "", tokenizer.decode(each[run.begin : run.end].tolist()))
        if tokenizer is CHARACTERS:
            assert len(shown) == run.letters
            assert shown in re.sub(r"\s", "", TRAIN)
        else:  # tokens at both ends may reach beyond
            assert run.letters <= len(shown) <= run.letters + 40
