"""Every token is predicted once, behind what it may see and nothing else; sums are sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.parity.mutants.planted import Edit, planted
from gpt_common.judging import scoring
from gpt_common.judging.scoring import Part, parts_of, passed, score
from tests.gpt_common.judging.made_up import Remembering

VOCABULARY = 11


@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 24), st.data())
def test_every_token_is_predicted_once_behind_as_much_as_there_can_be(
    count: int, before: int, block: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, block))
    text = list(range(1000, 1000 + before + count))
    parts = list(parts_of(text[before:], text[:before], block, stride))
    assert [token for part in parts for token in part.predicted] == text[before:]
    assert [part.first for part in parts] == np.cumsum([0, *(len(p.predicted) for p in parts)])[:-1].tolist()
    for number, part in enumerate(parts):
        begin = part.predicted[0]
        assert list(part.seen) == list(range(begin - len(part.seen), begin)), "what stands right before it"
        assert len(part) <= block
        assert len(part) == min(block, begin - 1000 + len(part.predicted) - 1), "as much as the block holds"
        if number:
            assert len(part.seen) >= min(block - stride + 1, begin - 1000)


def test_one_window_is_one_pass_and_windows_side_by_side_are_the_fewest() -> None:
    assert len(list(parts_of(range(24), [0], 24, 3))) == 1
    assert len(list(parts_of(range(96), [0], 24, 24))) == 4
    assert len(list(parts_of(range(96), [0], 24, 12))) == 7


def by_hand(model: Remembering, seen: tuple[int, ...], predicted: tuple[int, ...]) -> list[float]:
    """Nats of each token, one pass for each of them."""
    found = []
    for i, token in enumerate(predicted):
        found.append(-model.exact([*seen, *predicted[:i]])[-1, token])
    return found


def some_parts(model: Remembering, count: int = 60) -> list[Part]:
    rng = np.random.default_rng(3)
    shared = tuple(rng.integers(0, VOCABULARY, 9).tolist())
    parts = []
    for owner in range(count):
        seen = shared if owner % 3 == 0 else tuple(rng.integers(0, VOCABULARY, rng.integers(1, 12)).tolist())
        most = model.block_size - len(seen) + 1
        predicted = tuple(rng.integers(0, VOCABULARY, rng.integers(1, min(6, most) + 1)).tolist())
        parts.append(Part(seen, predicted, owner))
    return parts


def check(model: Remembering, parts: list[Part]) -> None:
    """What is scored is what is counted by hand; in float32 as a twin gives it."""
    found = {each.part.owner: each for each in score(model, parts)}
    assert sorted(found) == sorted(part.owner for part in parts)
    for part in parts:
        want = by_hand(model, part.seen, part.predicted)
        np.testing.assert_allclose(found[part.owner].nats, want, rtol=0, atol=2e-6)
        assert math.isclose(found[part.owner].nats.sum(), sum(want), abs_tol=1e-5)


def test_what_is_scored_is_what_one_pass_for_each_token_gives() -> None:
    model = Remembering(VOCABULARY, 16)
    check(model, some_parts(model))
    assert any(shared for *_, shared in model.asked), "alike beginnings are gone through once"
    assert max(rows for rows, *_ in model.asked) > 10, "side by side"


@pytest.mark.parametrize("limit", ["logits", "tokens"])
def test_memory_bounds_the_rows_and_changes_no_figure(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Remembering(VOCABULARY, 16)
    if limit == "logits":
        model.logits_at_once = 400
    else:
        monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", 400)
    check(model, some_parts(model))
    numbers = VOCABULARY if limit == "logits" else 1
    assert max(rows * length * numbers for rows, length, _ in model.asked) <= 400


@pytest.mark.parametrize("logits_at_once", [1 << 20, 100])
def test_progress_tells_the_tokens_that_are_gone_through(logits_at_once: int) -> None:
    model, heard = Remembering(VOCABULARY, 16), list[int]()
    model.logits_at_once = logits_at_once  # few: what is shared belongs to several batches, and is told once
    parts = some_parts(model)
    for _ in score(model, parts, heard.append):
        pass
    assert sum(heard) == passed(parts) < sum(map(len, parts))


FAULTS = {
    "padding attended": Edit(
        "gpt_common/judging/scoring.py",
        "_score",
        "tokens[row, : len(ids) - 1], labels[row, : len(ids) - 1] = ids[:-1], ids[1:]",
        "tokens[row, longest - len(ids) + 1 :], labels[row, : len(ids) - 1] = ids[:-1], ids[1:]",
    ),
    "first token skipped": Edit(
        "gpt_common/judging/scoring.py",
        "_score",
        "end - len(part.predicted), end)",
        "end - len(part.predicted) + 1, end)",
    ),
    "boundary one off": Edit(
        "gpt_common/judging/scoring.py",
        "_score",
        "span = slice(end - len",
        "end -= 1\n            span = slice(end - len",
    ),
    "shared without its beginning": Edit(
        "gpt_common/judging/scoring.py", "together", "(seen[:-1], beside)", "(seen[1:-1], beside)"
    ),
}
"""Ways to be wrong, each in one place."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault: str) -> None:
    model = Remembering(VOCABULARY, 16)
    with planted(FAULTS[fault]), pytest.raises((AssertionError, ValueError)):
        check(model, some_parts(model))


def test_an_overlap_that_is_counted_twice_is_caught() -> None:
    twice = Edit(
        "gpt_common/judging/scoring.py",
        "parts_of",
        "whole[begin + done : end]",
        "whole[max(1, end - block_size) : end]",
    )
    with planted(twice), pytest.raises(AssertionError):
        test_every_token_is_predicted_once_behind_as_much_as_there_can_be.hypothesis.inner_test(60, 1, 16, Fixed(8))  # type: ignore[attr-defined]


class Fixed:
    """Draws one number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def draw(self, _: object) -> int:
        return self.number
