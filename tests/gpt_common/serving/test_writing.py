"""Text of an answer: given out as soon as it can be no stop string, and never more of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_common.data.tokenizers import BpeTokenizer, CharTokenizer, Tokenizer, train_bpe_on
from gpt_common.serving.writing import Said, Writer, likely, told
from tests.gpt_common.serving.served import LETTERS

CHARACTERS = CharTokenizer(LETTERS)


def written(tokenizer: Tokenizer, ids: list[int], stops: tuple[str, ...]) -> tuple[list[str], list[int], bool]:
    """The pieces of an answer, the tokens that were told with them, and whether it stopped."""
    writer, pieces, told_ids = Writer(tokenizer, stops), [], list[int]()
    for token in ids:
        said = Said(likely(tokenizer, token, 0.0), (), writer.length)
        piece = writer.push(token, said)
        assert [one.token.id for one in piece.tokens] == piece.ids
        pieces.append(piece.text)
        told_ids += piece.ids
        if writer.stopped:
            return pieces, told_ids, True
    piece = writer.finish()
    return [*pieces, piece.text], told_ids + piece.ids, writer.stopped


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    return train_bpe_on(["the cat sat on the mat, the rain 雨 fell on the cat " * 20], 300)


def test_a_stop_string_over_several_tokens(bpe: BpeTokenizer) -> None:
    ids = bpe.encode("the cat sat on the mat")
    pieces, told_ids, stopped = written(bpe, ids, ("t sat o",))
    assert stopped
    assert "".join(pieces) == "the ca"
    assert bpe.decode(told_ids).startswith("the ca")
    assert "t sat" not in bpe.decode(told_ids)[: len("the ca")]


def test_what_only_begins_as_a_stop_string_is_given_out_later() -> None:
    pieces, _, stopped = written(CHARACTERS, CHARACTERS.encode("abcabd"), ("abca!", "bd!"))
    assert not stopped
    assert pieces == ["", "", "", "", "abc", "a", "bd"]


def test_the_first_of_several_stop_strings_counts() -> None:
    assert "".join(written(CHARACTERS, CHARACTERS.encode("one two three"), ("three", "wo"))[0]) == "one t"
    assert "".join(written(CHARACTERS, CHARACTERS.encode("aab"), ("ab", "aab"))[0]) == ""


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_an_answer_is_its_text_up_to_the_first_stop(text: str, stops: list[str]) -> None:
    """The stop that is complete first ends it; of those that are complete at once, the one that begins first."""
    pieces, told_ids, stopped = written(CHARACTERS, CHARACTERS.encode(text), tuple(stops))
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert ("".join(pieces), stopped, len(told_ids)) == (text, False, len(text))
        return
    seen = text[: min(ends)]
    expected = min(seen.find(stop) for stop in stops if stop in seen)
    assert ("".join(pieces), stopped) == (text[:expected], True)
    assert len(told_ids) == expected


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_nothing_is_held_back_that_can_be_no_stop(text: str, stops: list[str]) -> None:
    writer, shown = Writer(CHARACTERS, stops), ""
    for at, token in enumerate(CHARACTERS.encode(text), 1):
        shown += writer.push(token, None).text
        if writer.stopped:
            return
        held = text[len(shown) : at]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_holding_nothing_back_is_found(monkeypatch: pytest.MonkeyPatch, bpe: BpeTokenizer) -> None:
    """The mutant: text goes out at once, and a stop string over two tokens with it."""
    monkeypatch.setattr(Writer, "_could_be_a_stop", lambda _: 0)
    with pytest.raises(AssertionError):
        test_a_stop_string_over_several_tokens(bpe)


def test_a_character_of_several_tokens() -> None:
    bytes_only = train_bpe_on(["ab"], 258)
    ids = bytes_only.encode("雨a")
    assert len(ids) == 4
    pieces, told_ids, _ = written(bytes_only, ids, ("b",))
    assert pieces == ["", "", "雨", "a", ""]
    assert told_ids == ids
    assert likely(bytes_only, ids[0], 0.0).text == "bytes:\\xe9"
    assert "".join(written(bytes_only, ids[:2], ())[0]) == "\ufffd"


def test_probabilities_are_the_models_own() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32)) + 7
    tokenizer = CharTokenizer("abcd")
    chosen, top = told(tokenizer, 3, logits, 2)
    assert chosen.text == "d"
    assert chosen.logprob == pytest.approx(np.log(0.125), abs=1e-6)
    assert [one.text for one in top] == ["a", "b", "d"], "the chosen one is told, whether or not it is likely"
    assert told(tokenizer, 3, logits, 0)[1] == ()
    assert [one.text for one in told(tokenizer, 2, logits, 3)[1]] == ["a", "b", "c"], "of equal ones the first"
