"""Documents: every separator becomes one end-of-text token, in every tokenizer, and generation stops there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt_common.commands import SampleCommand
from gpt_common.config import ModelConfig
from gpt_common.data import Dataset
from gpt_common.data.documents import separator_of, split_documents
from gpt_common.data.listing import summary
from gpt_common.data.prepare import prepare_named, prepare_texts
from gpt_common.data.tokenizers import (
    CharTokenizer,
    Gpt2Tokenizer,
    Tokenizer,
    default_prompt,
    load_tokenizer,
    train_bpe_on,
)
from gpt_common.data.tokenizers.extended import with_tokens
from gpt_common.errors import UserError
from gpt_common.prompting.samples import print_samples
from gpt_common.sampling import until_end
from gpt_common.training.source import Source
from tests.borrowed import tiny_shakespeare
from tests.gpt_common.data.corpora import fails, prepare_characters, rewrite_meta, silent

END = "<|endoftext|>"
STORY = "Once there was a cat.\nIt sat.\n"
STORIES = f"{STORY}{END}\n" * 300


def prepared(folder: Path, text: str | bytes, tokenizer: str = "char", name: str = "t", **options: Any) -> Dataset:
    (folder / f"{name}.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return prepare_texts([folder / f"{name}.txt"], name, folder / "data", tokenizer, on_progress=silent, **options)


def documents(tokens: Any, tokenizer: Tokenizer) -> list[str]:
    """The texts between the end tokens."""
    ids = tokens.tolist()
    ends = [-1, *(i for i, token in enumerate(ids) if token == tokenizer.end_of_text), len(ids)]
    return [tokenizer.decode(ids[a + 1 : b]) for a, b in pairwise(ends)]


# --- finding them


@given(
    text=st.lists(st.sampled_from([END, END[:-1], "<|", "a", "\n", "\r\n", " ", "|>"]), max_size=30).map("".join),
    size=st.integers(1, 40),
)
@example(text=f"a\n{END}", size=14)
@example(text=f"a\n{END}\r\nb", size=15)
def test_blocks_do_not_change_what_is_found(text: str, size: int) -> None:
    whole = list(split_documents([text], END))
    blocks = [text[i : i + size] for i in range(0, len(text), size)]
    parts = list(split_documents(blocks, END))
    assert "".join(part for _, part in parts) == text
    assert all(part for _, part in parts)
    assert [part for found, part in parts if found] == [part for found, part in whole if found]
    assert sum(found for found, _ in parts) == text.count(END)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"a\n{END}\nb", ["a\n", "b"]),
        (f"a\r\n{END}\r\nb", ["a\r\n", "b"]),
        (f"a{END}b", ["a", "b"]),
        (f"a {END}\nb", ["a ", "\nb"]),
        (f"{END}\na", ["a"]),
        (f"a\n{END}\n{END}\n\nb", ["a\n", "\nb"]),
        (f"a\n{END}", ["a\n"]),
    ],
)
def test_a_separator_takes_the_end_of_the_line_that_it_fills(text: str, found: list[str]) -> None:
    assert [part for is_separator, part in split_documents([text], END) if not is_separator] == found


def test_what_the_flag_means() -> None:
    assert [separator_of(choice) for choice in (None, "none", "---", r"\n\n\n")] == [END, None, "---", "\n\n\n"]
    with pytest.raises(UserError, match="--separator is empty"):
        separator_of("")


# --- in every tokenizer


@pytest.fixture(params=["char", "gpt2", "bpe", "saved bpe", "llama 3's end", "characters of a run"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path, gpt2_vocabulary: None) -> str:  # noqa: ARG001
    if request.param == "saved bpe":
        train_bpe_on([STORY * 9], 300).save(tmp_path / "saved.json")
    elif request.param == "llama 3's end":
        train_bpe_on([STORY * 9], 300).save(tmp_path / "saved.json")
        saved = (tmp_path / "saved.json").read_text().replace(END, "<|end_of_text|>")
        (tmp_path / "saved.json").write_text(saved)
    elif request.param == "characters of a run":
        checkpoint = tmp_path / "run" / "checkpoints" / "step-000010"
        checkpoint.mkdir(parents=True)
        CharTokenizer("".join(sorted(set(STORY))), end_of_text=True).save(checkpoint / "tokenizer.json")
        return str(tmp_path / "run")
    else:
        return str(request.param)
    return str(tmp_path / "saved.json")


@pytest.mark.parametrize("piece", [50, 1 << 18])
def test_every_separator_is_an_end(tmp_path: Path, tokenizer: str, piece: int) -> None:
    data = prepared(tmp_path, STORIES, tokenizer, piece_characters=piece)
    train, val = (documents(tokens, data.tokenizer) for tokens in (data.train, data.val))
    assert train == [STORY] * 270 + [""]
    assert val == [STORY] * 30 + [""]
    assert data.documents == (270, 30)
    meta = json.loads((tmp_path / "data" / "t" / "meta.json").read_text())
    assert (meta["separator"], meta["end_of_text"]) == (END, data.tokenizer.end_of_text)
    assert meta["splits"]["val"]["documents"] == 30
    assert re.search(rf"documents +300, an end-of-text token for each '{re.escape(END)}'", summary(data, tmp_path))


def test_a_vocabulary_is_made_of_documents_alone(tmp_path: Path) -> None:
    characters = prepared(tmp_path, STORIES)
    assert isinstance(characters.tokenizer, CharTokenizer)
    assert characters.tokenizer.characters == "".join(sorted(set(STORY)))
    assert characters.tokenizer.vocab_size == len(set(STORY)) + 1
    bpe = prepared(tmp_path, STORIES, "bpe", "b", bpe_vocab_size=300)
    assert bpe.tokenizer.fingerprint == train_bpe_on([STORY * 270], 300).fingerprint


@pytest.mark.parametrize("separator", ["none", "---", r"\n\n"])
def test_a_separator_of_ones_own_and_none_at_all(tmp_path: Path, separator: str) -> None:
    text = {"none": STORIES, "---": STORIES.replace(END, "---"), r"\n\n": f"{STORY}\n" * 300}[separator]
    data = prepared(tmp_path, text, separator=separator)
    if separator == "none":
        assert data.separator is None
        assert data.tokenizer.decode(data.train) + data.tokenizer.decode(data.val) == text  # type: ignore[arg-type]
        assert "documents" not in summary(data, tmp_path)
    else:
        assert data.separator == separator_of(separator)
        found = documents(data.train, data.tokenizer) + documents(data.val, data.tokenizer)
        assert [text.rstrip() for text in found if text] == [STORY.rstrip()] * 300


def test_files_end_documents_and_not_twice(tmp_path: Path) -> None:
    for name, text in (("a", f"one\n{END}\ntwo\n{END}\n"), ("b", "three\n"), ("c", f"four\n{END}\n")):
        (tmp_path / name).write_text(text)
    files = [tmp_path / name for name in "abc"]
    data = prepare_texts(files, "t", tmp_path / "data", "char", val_fraction=0.4, on_progress=silent)
    assert documents(data.train, data.tokenizer) == ["one\n", "two\n", ""]
    assert documents(data.val, data.tokenizer) == ["three\n", "four\n", ""]


@pytest.mark.parametrize("share", np.linspace(0.25, 0.75, 60).tolist())
def test_validation_begins_with_a_document(tmp_path: Path, share: float) -> None:
    """Wherever the cut would fall: in a text, in a separator, before or in its line end."""
    text = f"{STORY}{END}\r\n" * 9
    data = prepared(tmp_path, text, val_fraction=share)
    assert documents(data.val, data.tokenizer)[0] == STORY
    assert data.tokenizer.vocab_size == len(set(STORY)) + 1


def test_a_last_document_longer_than_the_validation_split_is_divided(tmp_path: Path) -> None:
    data = prepared(tmp_path, f"abc\n{END}\n" + "abc" * 1000)
    assert len(data.val) == pytest.approx(300, abs=3)


def test_what_cannot_be_divided_is_said(tmp_path: Path) -> None:
    CharTokenizer("".join(sorted(set(STORIES)))).save(tmp_path / "old.json")
    with fails(r"'<\|endoftext\|>' 300 times .*old.json has no end-of-text token: --separator none"):
        prepared(tmp_path, STORIES, str(tmp_path / "old.json"))
    data = prepared(tmp_path, STORIES, str(tmp_path / "old.json"), separator="none")
    assert data.tokenizer.end_of_text is None
    assert data.documents is None
    with fails("--separator '===' does not occur in the text"):
        prepared(tmp_path, STORY, separator="===", name="u")
    with fails("--separator is empty"):
        prepared(tmp_path, STORY, separator="", name="u")


# --- what was there before


def test_old_vocabularies_and_the_named_corpora_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"kind": "char", "characters": "ab"}')
    old = load_tokenizer(tmp_path)
    assert (old.vocab_size, old.end_of_text) == (2, None)
    # SHA-256 of {"characters":"ab","kind":"char"}: what datasets and checkpoints have recorded.
    assert old.fingerprint == "d7c902bb1925eb660821e868465c60d50d753b749e136911ea074cabc8325000"
    assert CharTokenizer("ab").fingerprint == old.fingerprint
    assert CharTokenizer("ab", end_of_text=True).fingerprint != old.fingerprint
    source, text = tiny_shakespeare(tmp_path)
    data = prepare_named("shakespeare_char", tmp_path, from_file=source, text=text, on_progress=silent)
    assert (data.tokenizer.vocab_size, data.tokenizer.end_of_text) == (65, None)


def test_a_sidecar_from_before_opens(tmp_path: Path) -> None:
    from gpt_common.data import open_dataset

    prepare_characters(tmp_path)

    def forget(meta: dict[str, Any]) -> None:
        del meta["separator"], meta["end_of_text"]
        for split in meta["splits"].values():
            del split["documents"]

    rewrite_meta(tmp_path / "data" / "mine", forget)
    data = open_dataset("mine", tmp_path / "data")
    assert (data.separator, data.documents) == (None, None)


# --- generation


def test_generation_stops_at_the_end() -> None:
    tokenizer = CharTokenizer("abc", end_of_text=True)
    asked: list[int] = []

    def tokens() -> Any:
        for token in (0, 1, 3, 2):
            asked.append(token)
            yield token

    assert list(until_end(tokens(), tokenizer)) == [0, 1]
    assert asked == [0, 1, 3], "nothing is computed behind the end"
    assert list(until_end([0, 1, 2], CharTokenizer("abc"))) == [0, 1, 2]
    talks = with_tokens(tokenizer, ("<|im_start|>", "<|im_end|>"))  # ids 4 and 5
    assert list(until_end([0, 4, 1, 5, 2], talks)) == [0, 4, 1], "nor behind a turn"


@pytest.mark.parametrize("count", [1, 3])
def test_a_sample_ends_with_its_document(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = CharTokenizer("abc\n", end_of_text=True)
    source = Source(Path("run"), ModelConfig(block_size=8), tokenizer, "\n")
    command = SampleCommand(prompt="a", num_samples=count)

    print_samples(command, source, Telling(["bc"] * count, tokenizer))
    assert capsys.readouterr().out.count("abc\n") == count


class Telling:
    """Says to each sequence its own text, and ends; what is behind the end is never asked for."""

    def __init__(self, texts: Sequence[str], tokenizer: CharTokenizer) -> None:
        assert tokenizer.end_of_text is not None
        self.ids = [[*tokenizer.encode(text), tokenizer.end_of_text] for text in texts]
        self.size = tokenizer.vocab_size

    def next_logits(self, contexts: Mapping[int, Sequence[int]]) -> dict[int, Any]:
        return {
            number: 50.0 * np.eye(self.size)[self.ids[number][len(context) - 1]] for number, context in contexts.items()
        }

    def all_logits(self, tokens: Sequence[int]) -> Any:
        raise NotImplementedError


def test_samples_stand_in_order_however_long_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """They are made together; one that says nothing is mentioned."""
    tokenizer = CharTokenizer("abc\n", end_of_text=True)
    source = Source(Path("run"), ModelConfig(block_size=8), tokenizer, "\n")
    texts = ["bbbb", "", "c", "cccccc", "ab", "b", "a", "ccc", "bb", "c", ""]
    print_samples(SampleCommand(prompt="a", num_samples=len(texts)), source, Telling(texts, tokenizer))
    told = capsys.readouterr()
    heads = [f"--- sample {i} of {len(texts)} (seed 1337)\na{text}\n" for i, text in enumerate(texts, 1)]
    assert told.out == "".join(heads)
    assert told.err.count("the model ended the document at once") == texts.count("")


@pytest.mark.parametrize("characters", ["abc", " abc", "\n abc", "é"])
def test_a_vocabulary_without_a_line_end_has_a_prompt(characters: str) -> None:
    for tokenizer in (CharTokenizer(characters), CharTokenizer(characters, end_of_text=True)):
        assert default_prompt(tokenizer) == ("\n" if "\n" in characters else characters[0])
        assert tokenizer.encode(default_prompt(tokenizer))


def test_a_vocabulary_of_bytes_starts_with_a_line(gpt2_vocabulary: None) -> None:  # noqa: ARG001 (provides it)
    assert default_prompt(Gpt2Tokenizer()) == "\n"
    assert default_prompt(train_bpe_on([STORY], 260)) == "\n"
