"""Text files: what is in front of a text or is none is told, and characters that a vocabulary lacks are listed."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from gpt_common.data import Dataset, open_dataset
from gpt_common.data.prepare import prepare_texts
from gpt_common.data.tokenizers import CharTokenizer, Gpt2Tokenizer, default_bpe_vocab_size, load_tokenizer
from tests.gpt_common.data.corpora import fails, prepare_characters, silent

TEXT = "Über dem Fluß,\nunder the tree.\n" * 40
MARK = "\ufeff"


def prepared(folder: Path, *contents: bytes, tokenizer: str = "char", suffix: str = ".txt", **options: Any) -> Dataset:
    files = [folder / f"part{i}{suffix}" for i in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    return prepare_texts(files, "t", folder / "data", tokenizer, on_progress=silent, **options)


# --- marks, and other encodings


def test_a_byte_order_mark_is_no_character(tmp_path: Path) -> None:
    first = prepared(tmp_path, (MARK + TEXT).encode(), (MARK + TEXT).encode())
    (tmp_path / "other").mkdir()
    second = prepared(tmp_path / "other", TEXT.encode(), TEXT.encode())
    assert first.fingerprint == second.fingerprint
    assert isinstance(first.tokenizer, CharTokenizer)
    assert MARK not in first.tokenizer.characters


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("utf-16"), "is not UTF-8 text but UTF-16: convert it, with `iconv -f UTF-16 -t UTF-8`"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "is not UTF-8 text but UTF-16"),
        (TEXT.encode("utf-32"), "is not UTF-8 text but UTF-32"),
        (TEXT.replace("Ü", "U").replace("ß", "s").encode("utf-16-le"), "looks like UTF-16 .*iconv -f UTF-16LE"),
        (TEXT.replace("Ü", "U").replace("ß", "s").encode("utf-16-be"), "looks like UTF-16 .*iconv -f UTF-16BE"),
        ("мир и мир\n".encode("utf-16-le") * 40, "looks like UTF-16 .*iconv -f UTF-16LE"),
        (b"plain\n" * 9 + bytes(99), "is not plain text: 99 of 153 characters are NUL"),
        (gzip.compress(TEXT.encode(), mtime=0), "compressed by gzip: unpack it first"),
        (b"%PDF-1.7 a text", "is not UTF-8 text but a PDF"),
        (b"PAR1 a table", "but a Parquet table"),
        (TEXT.encode("latin-1"), "is not UTF-8 text .*iconv"),
        (b"", "part0.txt is empty"),
        (MARK.encode(), "part0.txt is empty"),
    ],
)
def test_what_is_no_utf8_text_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with fails(message):
        prepared(tmp_path, content)
    assert not (tmp_path / "data").exists()


def test_an_empty_file_among_others_is_no_fault(tmp_path: Path) -> None:
    data = prepared(tmp_path, TEXT.encode(), b"", TEXT.encode())
    assert data.documents == (2, 1)
    with fails("all files are empty"):
        prepared(tmp_path, b"", b"", overwrite=True)


def test_a_stray_control_character_is_text(tmp_path: Path) -> None:
    data = prepared(tmp_path, (TEXT + "\x0c page two \x00\n").encode())
    assert "\x00" in data.tokenizer.decode(range(data.tokenizer.vocab_size))


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".JSONL"])
def test_json_lines_are_not_taken_for_text(tmp_path: Path, suffix: str) -> None:
    with fails(rf"holds JSON lines, and --text takes plain text: .*jq -r .text part0{suffix} > part0.txt.*rename"):
        prepared(tmp_path, b'{"text": "a"}\n' * 99, suffix=suffix)


# --- characters outside a vocabulary


def narrow(folder: Path) -> str:
    """The tokenizer of a run that knows ASCII letters."""
    checkpoint = folder / "runs" / "x" / "checkpoints" / "step-000009"
    checkpoint.mkdir(parents=True)
    CharTokenizer("\n ,.Fbdefhlmnrtu").save(checkpoint / "tokenizer.json")
    return str(folder / "runs" / "x")


def test_characters_outside_a_vocabulary_are_listed(tmp_path: Path) -> None:
    with fails(
        r"2 characters of the text are not among the 16 of .*runs/x: 'Ü' 40 x \(first in line 1 of .*part0.txt\), "
        r"'ß' 40 x. --unknown drop leaves them out, --unknown CHAR"
    ):
        prepared(tmp_path, TEXT.encode(), tokenizer=narrow(tmp_path))
    many = "".join(chr(0x4E00 + i) * (i + 1) for i in range(30))
    with fails(r"30 characters .*: '丝' 30 x .* and 10 more\. "):
        prepared(tmp_path, many.encode(), tokenizer=str(tmp_path / "runs" / "x" / "checkpoints" / "step-000009"))


@pytest.mark.parametrize("workers", [1, 2])
def test_they_are_dropped_or_replaced(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt_common.data.prepare.PIECES_PER_WORKER", 1)
    base = narrow(tmp_path)
    for choice, written in (("drop", ""), ("e", "e")):
        options: dict[str, Any] = {"unknown": choice, "workers": workers, "piece_characters": 100, "overwrite": True}
        data = prepared(tmp_path, TEXT.encode(), tokenizer=base, **options)
        text = data.tokenizer.decode(data.train) + data.tokenizer.decode(data.val)  # type: ignore[arg-type]
        assert text == TEXT.replace("Ü", written).replace("ß", written)
        assert data.tokenizer.fingerprint == load_tokenizer(Path(base)).fingerprint


def test_what_to_do_with_them_must_make_sense(tmp_path: Path) -> None:
    for choice in ("Q", "ee", ""):
        with fails("must be drop or a character of the vocabulary"):
            prepared(tmp_path, TEXT.encode(), tokenizer=narrow(tmp_path / (choice or "none")), unknown=choice)
    for kind in ("char", "bpe"):
        with fails("--unknown is for a vocabulary of characters"):
            prepared(tmp_path, TEXT.encode(), tokenizer=kind, unknown="drop")


# --- tokenizers of runs


def test_a_run_a_checkpoint_and_a_dataset_are_tokenizers(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    for step in (5, 10):
        (run / "checkpoints" / f"step-{step:06}").mkdir(parents=True)
        CharTokenizer("ab" + "c" * (step == 10)).save(run / "checkpoints" / f"step-{step:06}" / "tokenizer.json")
    assert load_tokenizer(run).vocab_size == 3
    assert load_tokenizer(run / "checkpoints").vocab_size == 3
    assert load_tokenizer(run / "checkpoints" / "step-000005").vocab_size == 2
    data = prepare_characters(tmp_path)
    assert load_tokenizer(tmp_path / "data" / "mine").fingerprint == data.tokenizer.fingerprint
    (tmp_path / "empty").mkdir()
    with fails("no tokenizer at .*empty"):
        load_tokenizer(tmp_path / "empty")


def test_gpt2_needs_no_download_once_it_is_saved(
    tmp_path: Path,
    gpt2_vocabulary: None,  # noqa: ARG001 (provides it)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tiktoken

    first = Gpt2Tokenizer()
    data = prepared(tmp_path, TEXT.encode(), tokenizer="gpt2")

    def refuse(_: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    again = load_tokenizer(tmp_path / "data" / "t")
    assert (again.kind, again.fingerprint, again.end_of_text) == ("gpt2", first.fingerprint, 50256)
    assert again.encode(TEXT) == first.encode(TEXT)
    assert open_dataset("t", tmp_path / "data").fingerprint == data.fingerprint
    again.save(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == (tmp_path / "data" / "t" / "tokenizer.json").read_bytes()
    other = prepare_texts(
        [tmp_path / "part0.txt"], "u", tmp_path / "data", str(tmp_path / "data" / "t"), on_progress=silent
    )
    assert other.fingerprint == data.fingerprint
    (tmp_path / "old.json").write_text('{"kind": "gpt2"}')
    with fails("GPT-2's vocabulary is not here"):
        load_tokenizer(tmp_path / "old.json")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ('["a"]', "has 50256 different tokens"),
        ("[1]", "not written in GPT-2's letters"),
        ('["中"]', "not written in GPT-2's letters"),
    ],
)
def test_a_damaged_vocabulary_is_refused(tmp_path: Path, tokens: str, message: str) -> None:
    (tmp_path / "t.json").write_text(f'{{"kind": "gpt2", "tokens": {tokens}}}', encoding="utf-8")
    with fails(message):
        load_tokenizer(tmp_path / "t.json")


# --- the size of a vocabulary that nobody chose


def test_the_default_size_follows_the_text(tmp_path: Path) -> None:
    sizes = {1: 512, 300_000: 512, 1_000_000: 1024, 1_100_000: 2048, 5_000_000: 8192, 10**8: 32768, 2 * 10**9: 32768}
    assert {characters: default_bpe_vocab_size(characters) for characters in sizes} == sizes
    data = prepared(tmp_path, TEXT.encode(), tokenizer="bpe")
    assert 257 <= data.tokenizer.vocab_size <= 512, "a small text gives fewer"


# --- what is nobody's file


@pytest.mark.parametrize("name", [".DS_Store", "._train.bin", "Thumbs.db", ".localized"])
def test_what_a_file_browser_leaves_does_not_stop_a_replacement(tmp_path: Path, name: str) -> None:
    prepare_characters(tmp_path)
    (tmp_path / "data" / "mine" / name).write_bytes(b"\0")
    (tmp_path / "data" / name).write_bytes(b"\0")
    assert prepare_characters(tmp_path, text="xyz" * 100, overwrite=True).tokenizer.vocab_size == 4
    (tmp_path / "data" / "mine" / ".mine").write_bytes(b"\0")
    with fails("holds .mine, which is no part of a dataset"):
        prepare_characters(tmp_path, overwrite=True)
