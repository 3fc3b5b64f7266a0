"""The loss over a whole text counts every token once, and its bytes are those of the text."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_common.data.batches import NumpyBatch
from gpt_common.data.conversations.written import END, TURN
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer, train_bpe_on
from gpt_common.data.tokenizers.extended import with_tokens
from gpt_common.training.whole_text import byte_lengths, whole_batches, whole_text


@given(st.integers(2, 200), st.integers(1, 17), st.integers(1, 5))
def test_every_token_but_the_first_is_a_label_once_after_its_own_past(n: int, block: int, rows: int) -> None:
    tokens = np.arange(n).astype(np.uint16)
    labels = []
    for batch in whole_batches(tokens, block_size=block, batch_size=rows):
        assert batch.tokens.shape[0] <= rows
        assert batch.tokens.shape[1] <= block
        assert (batch.tokens + 1 == batch.labels).all()
        labels += batch.labels.ravel().tolist()
    assert labels == list(range(1, n))


def test_the_mean_is_over_tokens_and_not_over_batches() -> None:
    # Labels are their own loss: a short last block must not weigh as much as a full one.
    tokens = np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 3], np.uint16)

    def losses(batches: Iterable[NumpyBatch]) -> list[float]:
        return [float(batch.labels.mean()) for batch in batches]

    found = whole_text(tokens, CharTokenizer("abcd"), losses, block_size=4, batch_size=1)
    assert found is not None
    assert found.loss == pytest.approx((8 * 1 + 3) / 9)
    assert (found.tokens, found.bytes) == (9, 9)
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2))


@pytest.mark.parametrize("text", ["häßlich — naïve 日本 🙂\n" * 7])
def test_bytes_are_those_of_the_text(text: str) -> None:
    tokenizers: list[Tokenizer] = [CharTokenizer("".join(sorted(set(text)))), train_bpe_on([text], 280)]
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text)
        assert byte_lengths(tokenizer)[ids].sum() == len(text.encode())


def test_the_end_of_a_document_has_no_bytes() -> None:
    tokenizer = train_bpe_on(["some text, some more"], 270)
    assert tokenizer.end_of_text is not None
    ids = np.array([*tokenizer.encode("some"), tokenizer.end_of_text, *tokenizer.encode("more")])
    assert byte_lengths(tokenizer)[ids].sum() == 8


def test_what_divides_a_conversation_has_no_bytes() -> None:
    tokenizer = with_tokens(CharTokenizer("ab"), (TURN, END))
    ids = [tokenizer.specials[TURN], *tokenizer.encode("ab"), tokenizer.specials[END]]
    assert byte_lengths(tokenizer)[ids].sum() == 2


def test_uniform_guessing_costs_the_logarithm_of_the_vocabulary() -> None:
    tokenizer = CharTokenizer("abcdefgh")
    tokens = np.random.default_rng(0).integers(0, 8, 100).astype(np.uint16)
    found = whole_text(tokens, tokenizer, lambda batches: [math.log(8) for _ in batches], block_size=16, batch_size=3)
    assert found is not None
    assert found.bits_per_byte == pytest.approx(3)


def test_it_can_be_enough() -> None:
    asked: list[int] = []

    def losses(batches: Iterable[NumpyBatch]) -> list[float]:
        asked.extend(1 for _ in batches)
        return [1.0 for _ in asked]

    tokens = np.zeros(100, np.uint16)
    sizes = {"block_size": 4, "batch_size": 2}
    assert whole_text(tokens, CharTokenizer("ab"), losses, **sizes, enough=lambda: len(asked) == 3) is None
    assert len(asked) == 3
