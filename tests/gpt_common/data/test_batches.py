"""Batches traced to their split by position, and what changes them: corpora whose ids are their own positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_common.data import Dataset
from gpt_common.data.batches import NumpyBatch, evaluation_batches, training_batch
from tests.gpt_common.data.corpora import prepare_characters

Ids = npt.NDArray[np.integer]
KEY = {"seed": 5, "step": 3}
sizes = given(n=st.integers(20, 300), block=st.integers(1, 16), rows=st.integers(1, 6))


def drawn(tokens: Ids, block: int, rows: int) -> list[NumpyBatch]:
    """A training batch and three evaluation batches."""
    evaluated = evaluation_batches(tokens, block_size=block, batch_size=rows, batches=3)
    return [training_batch(tokens, block_size=block, batch_size=rows, **KEY), *evaluated]


def equal(one: Ids, other: Ids) -> bool:
    return np.array_equal(one, other)


@sizes
def test_every_row_stands_at_one_place_of_the_split(n: int, block: int, rows: int) -> None:
    for batch in drawn(np.arange(n), block, rows):
        assert batch.tokens.shape == batch.labels.shape == (rows, block)
        assert equal(batch.tokens, batch.tokens[:, :1] + np.arange(block))
        assert equal(batch.labels, batch.tokens + 1)
        assert batch.tokens.min() >= 0
        assert batch.labels.max() < n


@sizes
def test_places_are_chosen_whatever_stands_there(n: int, block: int, rows: int) -> None:
    """Another text of the same length, in either width of ids: the same places."""
    text = np.random.default_rng(n).integers(0, 60_000, n)
    places = drawn(np.arange(n), block, rows)
    for kind in (np.uint16, np.uint32):
        for batch, at in zip(drawn(text.astype(kind), block, rows), places, strict=True):
            assert equal(batch.tokens, text[at.tokens])
            assert equal(batch.labels, text[at.labels])


@sizes
def test_a_block_and_a_split_cut_alike_leave_the_beginning_of_every_row(n: int, block: int, rows: int) -> None:
    """As many places are left, so the same are drawn."""
    cut = block // 2
    for long, short in zip(drawn(np.arange(n), block, rows), drawn(np.arange(n - cut), block - cut, rows), strict=True):
        assert equal(long.tokens[:, : block - cut], short.tokens)
        assert equal(long.labels[:, : block - cut], short.labels)


@sizes
def test_a_split_that_begins_later_shifts_every_row(n: int, block: int, rows: int) -> None:
    whole = np.arange(n + 40)
    for first, shifted in zip(drawn(whole[:n], block, rows), drawn(whole[40:], block, rows), strict=True):
        assert equal(first.tokens + 40, shifted.tokens)


@given(n=st.integers(100, 500), block=st.integers(1, 16), rows=st.integers(1, 6), batches=st.integers(1, 5))
def test_an_evaluation_is_of_the_same_windows_in_batches_of_any_size(
    n: int, block: int, rows: int, batches: int
) -> None:
    def begins(rows: int, batches: int) -> list[int]:
        found = evaluation_batches(np.arange(n), block_size=block, batch_size=rows, batches=batches)
        return sorted(int(row[0]) for batch in found for row in batch.tokens)

    windows = begins(rows, batches)
    assert windows == begins(1, rows * batches) == begins(rows * batches, 1)
    assert len(set(windows)) == rows * batches
    assert windows[0] == 0
    assert windows[-1] == (n - block - 1 if rows * batches > 1 else 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpora")


def positions(folder: Path, length: int, val_fraction: float) -> Dataset:
    """A corpus in which no character stands twice, so that an id is the position of the character in the text."""
    text = "".join(chr(0x4E00 + place) for place in range(length))
    return prepare_characters(folder, text=text, val_fraction=val_fraction, overwrite=True, workers=1)


@given(length=st.integers(40, 400), val_fraction=st.floats(0.2, 0.8))
@settings(max_examples=10, deadline=None, derandomize=True)
def test_the_splits_share_no_position_and_leave_none_out(folder: Path, length: int, val_fraction: float) -> None:
    dataset = positions(folder, length, val_fraction)
    assert equal(np.concatenate([dataset.train, dataset.val]), np.arange(length))
    assert len(dataset.train) == int(length * (1 - val_fraction))
    for batch in drawn(dataset.train, 4, 5):
        assert batch.labels.max() < len(dataset.train)
    for batch in drawn(dataset.val, 4, 5):
        assert batch.tokens.min() >= len(dataset.train)
