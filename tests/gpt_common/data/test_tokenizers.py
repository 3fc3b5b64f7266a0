"""Tokenizers: nothing is lost on the way to ids and back, and a text may be cut where they say so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt_common.data.tokenizers import (
    END_OF_TEXT,
    BpeTokenizer,
    CharTokenizer,
    Gpt2Tokenizer,
    TextStream,
    Tokenizer,
    cut_pieces,
    last_cut_before_whitespace,
    load_tokenizer,
    train_bpe,
    train_bpe_on,
)
from gpt_common.errors import UserError
from tests.borrowed import has_gpt2_vocabulary

ALPHABET = "\n abcé中🙂"
# Long runs of whitespace, so that the trained vocabulary has tokens for them and a wrong cut shows.
TRAINING_TEXT = (
    "The cat sat on the mat, and the other cats sat on the other mats.\n\n\nThere was    nothing else to do;\t\t\t"
    "the dog's 12 bones weren't there, l'été 2024, 中文 🙂 <|endoftext|>\r\n\r\n\r\n    nobody remembered them.  \n"
) * 20
quick = settings(deadline=None, max_examples=150)


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    return train_bpe_on([TRAINING_TEXT], 330)


@pytest.fixture(scope="module")
def gpt2(gpt2_vocabulary: None) -> Gpt2Tokenizer:  # noqa: ARG001 (provides it)
    return Gpt2Tokenizer()


@pytest.fixture(scope="module", params=["char", "gpt2", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return CharTokenizer(ALPHABET) if request.param == "char" else request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=["gpt2", "bpe"])
def byte_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


# Every character that Python, or anyone, takes for whitespace, and one of each kind that the splitting rule knows.
WHITESPACE = "".join(chr(i) for i in range(0x3001) if chr(i).isspace()) + "\u180e\u200b\ufeff"
TEXTS = st.text() | st.text(WHITESPACE + "  \n\n\r\t'stll1é中🙂.,") | st.just(END_OF_TEXT)


@quick
@given(text=st.text(ALPHABET))
def test_characters_round_trip(text: str) -> None:
    tokenizer = CharTokenizer(ALPHABET)
    assert tokenizer.encode(text) == [ALPHABET.index(c) for c in text]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@quick
@given(text=TEXTS)
@example(text=f"a{END_OF_TEXT}b <|fim|>")
def test_any_text_round_trips_and_special_tokens_in_it_are_text(byte_tokenizer: Tokenizer, text: str) -> None:
    ids = byte_tokenizer.encode(text)
    assert byte_tokenizer.decode(ids) == text
    assert byte_tokenizer.end_of_text not in ids
    assert all(0 <= i < byte_tokenizer.vocab_size for i in ids)


def merged(word: bytes, tokenizer: Gpt2Tokenizer) -> list[int]:
    """Byte-pair encoding as its paper tells it: of all adjacent pairs, join the one whose token came first."""
    ids = {tokenizer.decode_bytes([i]): i for i in range(tokenizer.vocab_size - 1)}
    parts = [bytes([byte]) for byte in word]
    while pairs := [(ids[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]:
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ids[part] for part in parts]


def test_gpt2_encodes_as_published(gpt2: Gpt2Tokenizer) -> None:
    text = "Hello world"
    assert gpt2.encode(text) == [*merged(b"Hello", gpt2), *merged(b" world", gpt2)]
    if has_gpt2_vocabulary():
        # The ids that OpenAI's encoder.py gives for this text.
        assert gpt2.encode(text) == [15496, 995]
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.decode([50256]) == END_OF_TEXT


@quick
@given(text=TEXTS, more=TEXTS)
@example(text="a\n\n", more="b")
@example(text="x  ", more="y")
def test_a_text_can_be_cut_where_the_tokenizer_says(byte_tokenizer: Tokenizer, text: str, more: str) -> None:
    cut = byte_tokenizer.last_cut(text)
    assert 0 <= cut <= len(text)
    parts = byte_tokenizer.encode(text[:cut]) + byte_tokenizer.encode(text[cut:] + more)
    assert parts == byte_tokenizer.encode(text + more)


def test_cutting_after_the_whitespace_instead_would_change_the_ids(byte_tokenizer: Tokenizer) -> None:
    """The mutant of the test above: where many programs cut."""
    whole = byte_tokenizer.encode("mat.\n\nThe")
    assert byte_tokenizer.encode("mat.\n\n") + byte_tokenizer.encode("The") != whole
    assert byte_tokenizer.encode("mat.") + byte_tokenizer.encode("\n\nThe") == whole


@quick
@given(text=TEXTS, size=st.integers(1, 7))
def test_pieces_make_the_text(text: str, size: int) -> None:
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    pieces = list(cut_pieces(blocks, last_cut_before_whitespace))
    assert "".join(pieces) == text
    assert all(pieces)
    assert list(cut_pieces(blocks, len)) == blocks


def test_pieces_are_really_cut() -> None:
    assert list(cut_pieces(["one two", " three\nfo", "ur"], last_cut_before_whitespace)) == [
        "one",
        " two three",
        "\nfour",
    ]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> Iterator[str]:
    stream = TextStream(tokenizer)
    yield from (stream.push(i) for i in ids)
    yield stream.finish()


@quick
@given(data=st.data())
def test_streamed_text_is_the_decoded_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))  # mostly no valid UTF-8
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_is_streamed_with_the_token_that_completes_it(bpe: BpeTokenizer) -> None:
    ids = bpe.encode("é€")  # not in these pairings in the training text: one token per byte
    assert len(ids) > 2
    pieces = list(streamed(bpe, ids))
    assert "".join(pieces) == "é€"
    assert "" in pieces[:-1]
    assert "�" not in "".join(pieces)
    assert "".join(streamed(bpe, ids[:-1])) == "é�"


@pytest.mark.parametrize("wrong", ["vocab_size", -1])
def test_an_id_outside_the_vocabulary_is_named(tokenizer: Tokenizer, wrong: str | int) -> None:
    token = tokenizer.vocab_size if wrong == "vocab_size" else int(wrong)
    with pytest.raises(UserError, match=rf"token id {token} is outside .* {tokenizer.vocab_size}"):
        tokenizer.decode([0, token])


def test_numpy_ids_are_ids(tokenizer: Tokenizer) -> None:
    ids = np.array(tokenizer.encode("abc"), np.uint16)
    assert tokenizer.decode(ids) == "abc"  # type: ignore[arg-type]


def test_a_character_outside_the_vocabulary_is_named_with_its_place() -> None:
    with pytest.raises(UserError, match=r"character 'x' at position 3 is not one of the 8 in the vocabulary: '\\n ab"):
        CharTokenizer(ALPHABET).encode("ab x")


def test_half_a_surrogate_pair_is_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"'\\udc80' at position 2"):
        tokenizer.encode("ab\udc80")


@pytest.mark.parametrize("characters", ["", "aba"])
def test_a_vocabulary_has_each_character_once(characters: str) -> None:
    with pytest.raises(UserError, match="each of them once"):
        CharTokenizer(characters)


def test_saving_and_loading_changes_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer.json")
    for path in (tmp_path / "tokenizer.json", tmp_path):
        loaded = load_tokenizer(path)
        assert (loaded.kind, loaded.vocab_size) == (tokenizer.kind, tokenizer.vocab_size)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.end_of_text == tokenizer.end_of_text
        assert loaded.encode("abc é") == tokenizer.encode("abc é")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_fingerprints_tell_mappings_apart(bpe: BpeTokenizer, gpt2: Gpt2Tokenizer) -> None:
    others: list[Tokenizer] = [CharTokenizer("ab"), CharTokenizer("ba"), bpe, train_bpe_on([TRAINING_TEXT], 331), gpt2]
    assert len({other.fingerprint for other in others}) == len(others)


def test_bpe_training_is_deterministic_and_learns_merges(tmp_path: Path, bpe: BpeTokenizer) -> None:
    file = tmp_path / "text"
    file.write_bytes(TRAINING_TEXT.encode())
    again = train_bpe([file], 330)
    assert again.fingerprint == bpe.fingerprint
    pieces = cut_pieces([TRAINING_TEXT[i : i + 50] for i in range(0, len(TRAINING_TEXT), 50)], again.last_cut)
    assert train_bpe_on(pieces, 330).fingerprint == bpe.fingerprint
    assert again.vocab_size == 330
    assert again.end_of_text == 0
    assert len(again.encode(TRAINING_TEXT)) < len(TRAINING_TEXT) / 2


def test_bpe_decodes_as_its_library_does(bpe: BpeTokenizer, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Reference

    bpe.save(tmp_path / "t")
    reference = Reference.from_str(json.dumps(json.loads((tmp_path / "t").read_text())["tokenizer"]))
    for i in range(bpe.vocab_size):
        assert bpe.decode([i]) == reference.decode([i], skip_special_tokens=False)


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("words", [("õ",), ("<début>", "čaj", "数"), ("Ġx", "ÿ"), ("ab", "<|ende_für_heute|>", " ž")])
def test_added_tokens_are_text_and_not_letters_of_bytes(
    words: tuple[str, ...], special: bool, bpe: BpeTokenizer, tmp_path: Path
) -> None:
    # Vocabulary entries spell bytes with letters such as Ġ and õ; a token that was added is the text that it says.
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Library

    bpe.save(tmp_path / "saved.json")
    library = Library.from_str(json.dumps(json.loads((tmp_path / "saved.json").read_text())["tokenizer"]))
    add = library.add_special_tokens if special else library.add_tokens
    add([AddedToken(word, normalized=False) for word in words])
    library.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    assert [ours.decode([library.token_to_id(word) or 0]) for word in words] == list(words)
    text = "the " + " cat ".join(words) + " sat."
    assert ours.decode(ours.encode(text)) == text
    assert ours.encode(text) == library.encode(text, add_special_tokens=False).ids or special


@pytest.mark.parametrize(("size", "message"), [(256, "256 is too small.*257"), (0, "too small")])
def test_a_bpe_vocabulary_holds_all_bytes(size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_bpe_on(["text"], size)


def test_bpe_training_needs_readable_text(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("binary", "missing"):
        with pytest.raises(UserError, match=f"cannot read .*{name}"):
            train_bpe([tmp_path / name], 300)


def definition_of(bpe: BpeTokenizer, tmp_path: Path, **changes: Any) -> Path:
    """The tokenizer as a plain Hugging Face file, with changes."""
    bpe.save(tmp_path / "ours.json")
    definition = json.loads((tmp_path / "ours.json").read_text())["tokenizer"]
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps({**definition, **changes}))
    return path


def test_a_hugging_face_file_is_a_tokenizer(bpe: BpeTokenizer, tmp_path: Path) -> None:
    loaded = load_tokenizer(definition_of(bpe, tmp_path))
    assert loaded.fingerprint == bpe.fingerprint
    assert loaded.last_cut("one two") == 3


def test_truncation_and_padding_in_a_hugging_face_file_do_not_cut_a_text(bpe: BpeTokenizer, tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    loaded = load_tokenizer(definition_of(bpe, tmp_path, truncation=truncation))
    assert loaded.decode(loaded.encode("one two three four five")) == "one two three four five"


def test_a_text_is_not_cut_for_a_tokenizer_whose_splitting_rule_is_not_known(bpe: BpeTokenizer, tmp_path: Path) -> None:
    splitter = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    loaded = load_tokenizer(definition_of(bpe, tmp_path, pre_tokenizer=splitter))
    assert loaded.last_cut("one two") == 0
    normalized = load_tokenizer(definition_of(bpe, tmp_path, normalizer={"type": "NFC"}))
    assert normalized.last_cut("one two") == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always"}}, "not a byte-level BPE"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "not a byte-level BPE"),
        ({"model": {"type": "BPE", "dropout": 0.1, "vocab": {}, "merges": []}}, "one text has many encodings"),
        ({"model": {"type": "BPE", "vocab": 1, "merges": []}}, "not a Hugging Face tokenizer"),
    ],
)
def test_other_hugging_face_files_are_refused(
    bpe: BpeTokenizer, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_tokenizer(definition_of(bpe, tmp_path, **changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot read tokenizer"),
        (b"\xff", "cannot read tokenizer"),
        (b"[]", "not a tokenizer"),
        (b'{"kind": "chars"}', "unknown kind 'chars': did you mean 'char'"),
        (b'{"kind": "char"}', "not a tokenizer"),
        (b'{"kind": "char", "characters": "aa"}', "each of them once"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no tokenizer at {tmp_path}/tokenizer.json"):
        load_tokenizer(tmp_path)


def test_without_network_gpt2_says_how_to_provide_its_vocabulary(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import requests
    import tiktoken.registry

    def refuse(*_: Any, **__: Any) -> None:
        raise requests.ConnectionError("no network")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(requests, "get", refuse)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    with pytest.raises(UserError, match=r"cannot be downloaded .*TIKTOKEN_CACHE_DIR"):
        Gpt2Tokenizer()
