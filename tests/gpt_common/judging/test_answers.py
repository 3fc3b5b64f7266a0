"""Answers are counted question by question, however many are answered together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from gpt_common.errors import UserError
from gpt_common.judging.answers import AT_ONCE, Put, judge
from gpt_common.sampling import Logits


class Adding:
    """Says the last token and one; after a 7 it says 0."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def next_logits(self, contexts: Mapping[int, Sequence[int]]) -> dict[int, Logits]:
        self.asked.append(len(contexts))
        return {
            number: np.eye(10, dtype=np.float32)[0 if context[-1] == 7 else context[-1] + 1]
            for number, context in contexts.items()
        }

    def all_logits(self, tokens: Sequence[int]) -> Logits:
        raise NotImplementedError


RIGHT = Put("right", (1,), ((2, 3, 4), (2, 3)))
"""The shorter one is right, and said first."""
WRONG = Put("wrong", (1, 1), ((2, 4),))
ENDS = Put("right", (9, 6), ((7, 0),))
TOO_SHORT = Put("wrong", (3,), ((4, 5, 9),))


def test_each_is_right_or_wrong() -> None:
    assert judge([RIGHT, WRONG, ENDS, TOO_SHORT, RIGHT], Adding(), 8) == [True, False, True, False, True]


def test_more_than_are_answered_together() -> None:
    batch = Adding()
    assert judge([RIGHT, WRONG] * AT_ONCE, batch, 8) == [True, False] * AT_ONCE
    assert max(batch.asked) == AT_ONCE
    assert len(batch.asked) == 4, "two steps for each half: who is settled makes room"


def test_nothing_is_computed_behind_what_is_settled() -> None:
    batch = Adding()
    judge([WRONG], batch, 8)
    assert len(batch.asked) == 2


def test_a_question_that_does_not_fit() -> None:
    batch = Adding()
    with pytest.raises(UserError, match="have 4 tokens, the model's block holds 3"):
        judge([WRONG, RIGHT], batch, 3)
    assert not batch.asked
