"""Long texts in pieces: no piece changes an id, whatever rule a tokenizer splits by, and none grows with the text."""

from __future__ import annotations

import functools
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HuggingFace

from gpt_common.data.tokenizers import BpeTokenizer, Gpt2Tokenizer, cut_pieces
from gpt_common.data.tokenizers.cutting import last_checked_cut
from tests.gpt_common.data.corpora import PARAGRAPH

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def by_rule(*rules: str) -> Any:
    splits = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in rules]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
RULES: dict[str, Any] = {
    "gpt2": BYTE_LEVEL,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL]),
    "llama3": by_rule(LLAMA3),
    "qwen": by_rule(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
    "gpt4o": by_rule(GPT4O),
    "deepseek3": by_rule(r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3),
    "a space in front": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "no rule": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
}
WORDS = [
    "cold",
    "  ",
    "\n",
    "\n\n",
    "\n\n\n  ",
    "fox's",
    " ",
    " ",
    " ",
    "12,345",
    "...",
    ".\n\n",
    "été",
    "中文。",
    "\r\n",
    "\t",
]
WORDS += ["🙂", "New York", "I'LL", "x=y;", "    ", "e\u0301", "—", "a\u00a0b"]


def text_of(seed: int, words: int) -> str:
    return "".join(np.random.default_rng(seed).choice(WORDS, words))


@functools.cache
def made(rule: str) -> BpeTokenizer:
    """A vocabulary that likes to join what stands side by side, so that a wrong cut shows."""
    tokenizer = HuggingFace(models.BPE())
    tokenizer.pre_tokenizer = RULES.get(rule, BYTE_LEVEL)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Without a rule, one text is one word: a merge needs several of them.
    tokenizer.train_from_iterator([text_of(seed, 60) for seed in range(200)] + [PARAGRAPH] * 20, trainer)
    if rule == "composed":
        tokenizer.normalizer = normalizers.NFC()
    if rule == "added words":
        tokenizer.add_tokens(["New York", AddedToken("fox", lstrip=True), ".\n\n\n"])
    return BpeTokenizer(json.loads(tokenizer.to_str()))


ALL = [*RULES, "composed", "added words"]


@pytest.mark.parametrize("rule", ALL)
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 1 << 30), size=st.sampled_from([400, 1000, 3000]))
def test_pieces_encode_as_the_whole(rule: str, seed: int, size: int) -> None:
    tokenizer, text = made(rule), text_of(seed, 4000)
    pieces = list(cut_pieces((text[i : i + size] for i in range(0, len(text), size)), tokenizer.last_cut))
    assert "".join(pieces) == text
    assert [i for piece in pieces for i in tokenizer.encode(piece)] == tokenizer.encode(text)
    assert len(pieces) > 2
    assert max(map(len, pieces)) < 2 * size + 6000


@pytest.mark.parametrize("rule", ALL)
def test_a_cut_holds_whatever_follows(rule: str) -> None:
    tokenizer = made(rule)
    for seed in range(20):
        text = text_of(seed, 400)
        cut = tokenizer.last_cut(text)
        for more in ("", "x", " x", "\n", "\n\n x", "12", "'s", "York", "\u0301"):
            parts = tokenizer.encode(text[:cut]) + tokenizer.encode(text[cut:] + more)
            assert parts == tokenizer.encode(text + more)


def test_a_cut_at_any_line_end_would_change_the_ids() -> None:
    """The mutant of the tests above: a cut that is not tried out."""
    text = "One.\n\n" * 400
    for rule in ("llama3", "no rule"):
        encode = made(rule).encode
        naive = list(cut_pieces([text], lambda text: text.rfind("\n")))
        assert [i for piece in naive for i in encode(piece)] != encode(text)


def test_a_text_of_one_letter_is_cut_nowhere_it_is_not_known_to_be_safe() -> None:
    assert last_checked_cut("a" * 5000, made("llama3").encode) == 0
    assert last_checked_cut("a b" * 100, made("llama3").encode) == 0, "what follows is not known yet"


# --- what has no cut at all


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("x" * 25, ["x" * 10, "x" * 10, "x" * 5]),
        ("ab cd efgh ij", ["ab cd", " efgh ij"]),
        ("ab\ncd efgh ij", ["ab\n", "cd efgh ij"]),
        ("a\n\nb\ncdefghij", ["a\n\n", "b\ncdefghij"]),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 10, 100])
def test_a_piece_has_an_end_however_long_the_text(text: str, ends: list[str], size: int) -> None:
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(cut_pieces(blocks, lambda _: 0, longest=10)) == ends


def test_known_cuts_come_before_any_other() -> None:
    text = "abc|def ghi jkl mno pqr|stu|v"
    for size in (1, 4, 7, 50):
        blocks = [text[i : i + size] for i in range(0, len(text), size)]
        pieces = list(cut_pieces(blocks, lambda text: max(0, text.rfind("|")), longest=8))
        assert pieces == ["abc", "|def", " ghi", " jkl", " mno", " pqr", "|stu", "|v"]


def test_many_blanks_before_a_word(gpt2_vocabulary: None) -> None:  # noqa: ARG001 (provides it)
    """tiktoken panics after a million blanks before a word."""
    tokenizer = Gpt2Tokenizer()
    for blank in ("\n", " ", "\t", "\u3000", "\r\n"):
        for count in (99_998, 120_000):
            text = "Some text." + blank * count + "And  on."
            assert tokenizer.encode(text) == tokenizer._encoding.encode_ordinary(text)
    text = "a" + "\n" * 1_100_000 + "b\n" + " " * 1_100_000 + "\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
