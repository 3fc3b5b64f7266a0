"""Stretches whose ids are remembered: a text has the ids that the library gives for it as a whole, by every rule."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFace

from gpt_common.data.tokenizers import BpeTokenizer, remembered
from gpt_common.data.tokenizers.remembered import Remembered, safe_blanks
from tests.gpt_common.data.test_cutting import ALL, WORDS, made

KNOWN = {"gpt2": " \n", "smollm": " \n", "llama3": " ", "qwen": " ", "composed": " \n"}
"""Rules by which something is remembered, and before which blanks a word may end."""
# Blanks to Python and not to the libraries, to all, or to none; letters and signs that they might join.
ODD = ["\x1c", "\x1f", "\x85", "\u2028", "\u3000", "\u200b", "\v", "\f", "\r", "!", "'", "'s", "'S", "x", "É", "3", "٣"]
TEXTS = st.lists(st.sampled_from([*WORDS, *ODD]), max_size=40).map("".join)


def whole(rule: str) -> Any:
    """The library itself."""
    library = HuggingFace.from_str(json.dumps(made(rule)._document["tokenizer"]))
    library.encode_special_tokens = True
    return lambda text: library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("rule", ALL)
@settings(deadline=None, max_examples=100)
@given(text=TEXTS | st.text(max_size=30))
def test_the_ids_are_those_of_the_whole_text(rule: str, text: str) -> None:
    assert made(rule).encode(text) == whole(rule)(text)


@pytest.mark.parametrize("rule", ALL)
def test_by_which_rules_something_is_remembered(rule: str) -> None:
    definition = made(rule)._document["tokenizer"]
    assert safe_blanks(definition) == KNOWN.get(rule, "")
    for other in (
        {"normalizer": {"type": "Lowercase"}},
        {"added_tokens": [{"content": "a b", "special": False}]},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
    ):
        assert safe_blanks({**definition, **other}) == ""


@pytest.mark.parametrize(("rule", "blanks"), [("llama3", " \n"), ("no rule", " "), ("added words", " ")])
def test_another_rule_s_blanks_would_change_ids(rule: str, blanks: str) -> None:
    encode = whole(rule)
    cut = Remembered(encode, blanks)
    text = "".join(["cold.\n\nNew York  fox's 12,345...\n\n x=y; cold"] * 3)
    assert cut.ids(text) != encode(text)


def test_what_is_remembered_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST", 3)
    asked: list[str] = []

    def encode(text: str) -> list[int]:
        asked.append(text)
        return [len(text)]

    stretches = Remembered(encode, " ")
    long = "a" * (remembered.LONGEST + 1)
    text = f"one two {long} one three four two four one"
    assert stretches.ids(text) == [3, 4, len(long) + 1, 4, 6, 5, 4, 5, 4]
    assert list(stretches) == ["one", " two", " one"]
    assert asked == ["one", " two", f" {long}", " one", " three", " four", " four"]
    assert stretches.ids("") == []
    assert stretches.ids(" \t ") == [3]


def test_a_loaded_tokenizer_remembers_and_saves_as_before(tmp_path: Any) -> None:
    tokenizer = made("smollm")
    tokenizer.encode("cold cold")
    again = BpeTokenizer(tokenizer._document["tokenizer"])
    assert again.fingerprint == tokenizer.fingerprint
    tokenizer.save(tmp_path / "tokenizer.json")
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == tokenizer._document
