"""A model that has learnt its text by heart is told from one that writes new text of the same kind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpt_common.data import Dataset
from gpt_common.data.stories import write_corpus
from gpt_common.judging import memorisation
from gpt_common.judging.memorisation import MemorisationResult, memorised
from tests.gpt_common.judging.probes.models import CHARACTERS, Model, blind

TRAIN, VAL, OTHER = (write_corpus(3, "train", 60_000).text, *(write_corpus(s, "val", 20_000).text for s in (3, 4)))


class Reciting:
    """Writes what stands behind its prompt in a text, sample by sample from another place."""

    def __init__(self, text: str) -> None:
        self.ids = CHARACTERS.encode(text)

    def next_logits(self, contexts: Mapping[int, Sequence[int]]) -> dict[int, npt.NDArray[np.float32]]:
        said = {}
        for number, context in contexts.items():
            said[number] = np.full(CHARACTERS.vocab_size, -1e4, np.float32)
            said[number][self.ids[(number * 911 + len(context)) % len(self.ids)]] = 0
        return said

    def all_logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        raise NotImplementedError


def looked(text: str, train: str = TRAIN) -> MemorisationResult:
    more: dict[str, Any] = {"floor": None, "floor_error": None, "unigram_entropy": 1.0}
    ids, val = (np.array(CHARACTERS.encode(each), np.uint16) for each in (train, VAL))
    model = Model(blind)
    model.batch = Reciting(text)
    return memorised(model, Dataset("own", ids, val, CHARACTERS, "", prompt="Once upon a time", **more))


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorisation, "SAMPLES", 4)


def test_what_was_learnt_by_heart_is_longer_than_what_new_text_shares() -> None:
    found = looked(TRAIN)
    assert all(run.letters == run.of for run in found.samples), "every letter of it"
    assert max(run.letters for run in found.validation) < min(run.of for run in found.validation)
    assert found.longest in TRAIN
    assert found.leak is not None
    assert not found.leak.is_leak
    lines = list(found.lines())
    assert max(map(len, lines)) <= 80
    json.dumps(found.as_json(), allow_nan=False)


def test_new_text_shares_no_more_than_validation_text_does() -> None:
    found = looked(OTHER)
    assert all(run.letters < run.of for run in found.samples)
    assert list(looked(TRAIN).against(found))


def test_a_leak_is_said() -> None:
    assert any("A LEAK" in line for line in looked(OTHER, TRAIN + VAL).lines())
