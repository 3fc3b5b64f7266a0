"""Datasets: nothing unchecked is opened, and the built-in corpus is never stale."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_common.data import builtin, check_block, dataset, open_dataset, writer
from gpt_common.data.download import TINY_SHAKESPEARE
from gpt_common.data.prepare import prepare_named
from gpt_common.data.tokenizers import CharTokenizer
from gpt_common.files import move_into_place
from tests.borrowed import has_gpt2_vocabulary, tiny_shakespeare
from tests.gpt_common.data.corpora import PARAGRAPH, fails, flip, prepare_characters, rewrite_meta, silent, with_id

# --- what is opened is what was prepared


def test_a_text_becomes_its_ids(tmp_path: Path) -> None:
    text = PARAGRAPH * 30
    data = prepare_characters(tmp_path, text=text)
    cut = int(len(text) * 0.9)
    assert data.tokenizer.decode(data.train) + data.tokenizer.decode(data.val) == text  # type: ignore[arg-type]
    assert (len(data.train), len(data.val)) == (cut, len(text) - cut)
    assert data.train.dtype == np.uint16
    counts = np.array([text[:cut].count(c) for c in sorted(set(text[:cut]))])
    assert data.unigram_entropy == pytest.approx(-(counts / cut * np.log(counts / cut)).sum(), rel=1e-12)
    assert (data.floor, data.floor_error, data.prompt) == (None, None, "\n")
    assert sorted(path.name for path in (tmp_path / "data" / "mine").iterdir()) == [
        "meta.json",
        "tokenizer.json",
        "train.bin",
        "val.bin",
    ]


def test_the_sidecar_says_what_was_prepared(tmp_path: Path) -> None:
    data = prepare_characters(tmp_path)
    folder = tmp_path / "data" / "mine"
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["tokenizer"] == {"kind": "char", "vocab_size": 11, "fingerprint": data.tokenizer.fingerprint}
    for split in ("train", "val"):
        recorded = hashlib.sha256((folder / f"{split}.bin").read_bytes()).hexdigest()
        assert meta["splits"][split]["sha256"] == recorded
    text = (tmp_path / "text.txt").read_bytes()
    assert meta["sources"] == [{"file": "text.txt", "bytes": 200, "sha256": hashlib.sha256(text).hexdigest()}]
    assert str(tmp_path) not in (folder / "meta.json").read_text(), "a sidecar is shared: no paths of this machine"


def test_the_fingerprint_follows_tokenizer_and_both_splits(tmp_path: Path) -> None:
    texts = {"a": "abcdefghij" * 20, "b": "abcdefghij" * 19 + "jihgfedcba", "c": "jihgfedcba" + "abcdefghij" * 19}
    prints = {name: prepare_characters(tmp_path, name, text).fingerprint for name, text in texts.items()}
    prints["other alphabet"] = prepare_characters(tmp_path, "d", "ABCDEFGHIJ" * 20).fingerprint  # the same ids
    assert len(set(prints.values())) == 4
    assert prepare_characters(tmp_path, "e", texts["a"]).fingerprint == prints["a"]


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    tokenizer = CharTokenizer("".join(chr(i) for i in range(0x10000, 0x10000 + 65_537)))
    ids = np.array([0, 65_536, 65_535], np.uint32)
    arguments: dict[str, Any] = {"prompt": "", "recipe": {}, "sources": [], "overwrite": False}
    writer.write_dataset(tmp_path / "large", tokenizer, {"train": [ids], "val": [ids]}, **arguments)
    data = open_dataset("large", tmp_path)
    assert data.train.dtype == np.uint32
    assert data.train.tolist() == ids.tolist()


@pytest.mark.usefixtures("gpt2_vocabulary")
@pytest.mark.parametrize(
    ("name", "train", "val", "vocabulary"),
    [("shakespeare_char", 1_003_854, 111_540, 65), ("shakespeare", 301_966, 36_059, 50_257)],
)
def test_tiny_shakespeare_is_prepared_as_by_nanogpt(
    tmp_path: Path, name: str, train: int, val: int, vocabulary: int
) -> None:
    source, expected = tiny_shakespeare(tmp_path)
    data = prepare_named(name, tmp_path, from_file=source, text=expected, on_progress=silent)
    text = source.read_text(encoding="utf-8")
    if name == "shakespeare" and not (expected == TINY_SHAKESPEARE and has_gpt2_vocabulary()):
        # nanoGPT's numbers are of its text and OpenAI's tokens: of others, each split is encoded in one piece.
        train, val = (len(data.tokenizer.encode(part)) for part in (text[:1_003_854], text[1_003_854:]))
    assert (len(data.train), len(data.val), data.tokenizer.vocab_size) == (train, val, vocabulary)
    assert data.tokenizer.decode(data.train) == text[:1_003_854]  # type: ignore[arg-type]
    assert data.tokenizer.decode(data.val) == text[1_003_854:]  # type: ignore[arg-type]


# --- what must not be opened


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda f: f.rename(f.with_name("mime")), r"no dataset 'mine' .*did you mean 'mime'\?.*--name mine"),
    "no sidecar": (lambda f: (f / "meta.json").unlink(), "has no meta.json.*prepare --text"),
    "sidecar is no JSON": (lambda f: (f / "meta.json").write_text("{"), "cannot read .*meta.json.*--overwrite"),
    "sidecar is a list": (lambda f: (f / "meta.json").write_text("[]"), "not of format version 1"),
    "newer format": (lambda f: rewrite_meta(f, lambda m: m.update(format_version=2)), "not of format version 1"),
    "sidecar lacks a key": (
        lambda f: rewrite_meta(f, lambda m: m.pop("splits")),
        "meta.json lacks or garbles 'splits'",
    ),
    "sidecar garbled": (lambda f: rewrite_meta(f, lambda m: m.update(dtype="x")), "meta.json lacks or garbles"),
    "no split": (lambda f: (f / "val.bin").unlink(), "val.bin is missing.*--overwrite"),
    "empty split": (lambda f: (f / "val.bin").write_bytes(b""), "val.bin is empty.*--overwrite"),
    "truncated": (lambda f: os.truncate(f / "train.bin", 358), "train.bin has 358 bytes where 360 were"),
    "truncated inside an id": (lambda f: os.truncate(f / "train.bin", 359), "train.bin has 359 bytes where 360 were"),
    "too long": (lambda f: os.truncate(f / "train.bin", 362), "train.bin has 362 bytes where 360 were"),
    "flipped bit": (lambda f: flip(f / "val.bin", 6), "val.bin has changed since .*SHA-256"),
    "first id too large": (with_id(11, 0), "token id 11 at position 0, outside the vocabulary of 11"),
    "last id too large": (with_id(65_535, 179), "token id 65535 at position 179, outside the vocabulary of 11"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer at .*mine/tokenizer.json"),
    "another tokenizer": (
        lambda f: CharTokenizer("jihgfedcba").save(f / "tokenizer.json"),
        "tokenizer.json is not the tokenizer that made this dataset.*--overwrite",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_dataset_is_refused(tmp_path: Path, damage: str) -> None:
    prepare_characters(tmp_path)
    change, message = DAMAGE[damage]
    change(tmp_path / "data" / "mine")
    with fails(message):
        open_dataset("mine", tmp_path / "data")


def test_ids_are_checked_in_every_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_characters(tmp_path)
    monkeypatch.setattr(dataset, "CHUNK_TOKENS", 7)
    assert len(open_dataset("mine", tmp_path / "data").train) == 180  # and the hash over chunks is the file's
    for position in (6, 7, 100, 179):
        with_id(11, position)(tmp_path / "data" / "mine")
        with fails(f"token id 11 at position {position}"):
            open_dataset("mine", tmp_path / "data")
        with_id(9, position)(tmp_path / "data" / "mine")


def test_a_missing_dataset_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with fails(r"'shakespeare' is not in .* yet: run `python -m gpt_common.data prepare shakespeare --data-dir"):
        open_dataset("shakespeare", tmp_path)
    with fails(r"no dataset 'storys' .*did you mean 'stories'\?"):
        open_dataset("storys", tmp_path / "absent")


@pytest.mark.parametrize("name", ["../mine", "/etc", "", ".hidden", "a.tmp-1", "a b"])
def test_a_dataset_name_is_not_a_path(tmp_path: Path, name: str) -> None:
    with fails("is no name for a dataset"):
        open_dataset(name, tmp_path)
    with fails("is no name for a dataset"):
        prepare_characters(tmp_path, name)


def test_a_split_shorter_than_a_block_and_its_labels_is_refused(tmp_path: Path) -> None:
    data = prepare_characters(tmp_path)  # 180 and 20 tokens
    check_block(data, 19)
    with fails("block_size 20 needs 21 tokens in each split, and 'mine' has 180 .* 20 .*: take a block_size up to 19"):
        check_block(data, 20)
    with fails("180 for training and 20 for validation: take a block_size up to 19"):
        check_block(data, 180)
    few = prepare_characters(tmp_path, "few", "ab", val_fraction=0.5)
    with fails("1 for training and 1 for validation: take more text"):
        check_block(few, 1)


def test_a_large_file_is_hashed_once_and_again_when_it_was_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_characters(tmp_path)
    monkeypatch.setattr(dataset, "HASH_ALWAYS_BYTES", 100)  # train.bin has 360 bytes, val.bin 40
    folder = tmp_path / "data" / "mine"
    said: list[str] = []
    for _ in range(2):
        open_dataset("mine", tmp_path / "data", on_progress=said.append)
    assert said == [f"checking {folder}/train.bin and its SHA-256 (once)", f"checking {folder}/train.bin"]
    before = (folder / "train.bin").stat()
    flip(folder / "train.bin", 6)
    os.utime(folder / "train.bin", ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same mtime
    with fails("train.bin has changed since"):
        open_dataset("mine", tmp_path / "data")
    with_id(11, 100)(folder)
    with fails("token id 11 at position 100"):
        open_dataset("mine", tmp_path / "data")
    (folder / "verified.json").write_text("[")
    with_id(3, 100)(folder)
    open_dataset("mine", tmp_path / "data")


# --- the built-in corpus


@pytest.fixture
def small_stories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "CHARACTERS", {"train": 20_000, "val": 4_000})


@pytest.mark.usefixtures("small_stories")
def test_stories_are_generated_once(tmp_path: Path) -> None:
    from gpt_common.data import stories

    said: list[str] = []
    first = open_dataset("stories", tmp_path, on_progress=said.append)
    assert len(said) == 1
    assert "generating the built-in corpus" in said[0]
    before = (tmp_path / "stories" / "train.bin").stat()
    second = open_dataset("stories", tmp_path, on_progress=said.append)
    assert len(said) == 1
    assert (tmp_path / "stories" / "train.bin").stat() == before
    assert second.fingerprint == first.fingerprint
    corpus = stories.write_corpus(builtin.SEED, "val", 4_000)
    assert first.tokenizer.decode(first.val) == corpus.text  # type: ignore[arg-type]
    assert (first.floor, first.floor_error) == (corpus.floor, corpus.floor_error)
    assert first.prompt == stories.PROMPT
    assert first.floor is not None
    assert 0 < first.floor < first.unigram_entropy


@pytest.mark.usefixtures("small_stories")
@pytest.mark.parametrize(
    "harm",
    [
        lambda f: rewrite_meta(f, lambda m: m["recipe"].update(source_sha256="0" * 64)),
        lambda f: rewrite_meta(f, lambda m: m["recipe"].update(seed=1)),
        lambda f: flip(f / "train.bin", 100),
        lambda f: os.truncate(f / "val.bin", 10),
        lambda f: (f / "meta.json").unlink(),
        lambda f: (f / "meta.json").write_text("{"),
    ],
)
def test_a_stale_or_damaged_cache_is_generated_again(tmp_path: Path, harm: Callable[[Path], Any]) -> None:
    good = open_dataset("stories", tmp_path)
    harm(tmp_path / "stories")
    said: list[str] = []
    again = open_dataset("stories", tmp_path, on_progress=said.append)
    assert again.fingerprint == good.fingerprint
    assert len(said) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["stories"]


def test_the_cache_depends_on_all_source_that_makes_the_corpus() -> None:
    """Every module of ours that the generator imports is in the hash."""
    here = Path(builtin.__file__).parent
    hashed = {(here / name).resolve() for name in builtin.SOURCES}
    for path in sorted(hashed - {here.parent / "keyed.py"}):  # of which only the random generator matters
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("gpt_common"):
                assert here.parents[1] / (node.module.replace(".", "/") + ".py") in hashed


OPEN_AT_ONCE = """
import sys
from pathlib import Path
from gpt_common.data import builtin, open_dataset
builtin.CHARACTERS = {"train": 20_000, "val": 4_000}
print("ready", flush=True)
sys.stdin.readline()
print(open_dataset("stories", Path(sys.argv[1])).fingerprint)
"""


def test_processes_that_start_at_once_share_one_cache(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_AT_ONCE, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert len(set(results)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["stories"]


def test_whoever_finishes_later_takes_the_name_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process finishes between our last look and our rename."""
    prepare_characters(tmp_path, "other")
    (tmp_path / "data" / "other").rename(tmp_path / "elsewhere")

    def overtaken(temporary: Path, folder: Path, *, may_replace: Callable[[], None]) -> None:
        (tmp_path / "elsewhere").rename(folder)
        move_into_place(temporary, folder, may_replace=may_replace)

    monkeypatch.setattr(writer, "move_into_place", overtaken)
    with fails("mine exists already"):
        prepare_characters(tmp_path)
    (tmp_path / "data" / "mine").rename(tmp_path / "elsewhere")
    assert prepare_characters(tmp_path, text="xyz" * 100, overwrite=True).tokenizer.vocab_size == 4
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine"]
