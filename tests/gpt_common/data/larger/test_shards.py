"""Token shards of llm.c and modded-nanogpt: what becomes of them, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpt_common.data import Dataset
from gpt_common.data.__main__ import main
from gpt_common.data.corpora.ids import CHUNK_TOKENS, read_ids
from gpt_common.data.corpora.shards import prepare_shards
from gpt_common.data.tokenizers import CharTokenizer
from gpt_common.errors import UserError
from gpt_common.training.log.runlog import read_metrics
from tests.gpt_common.data.corpora import fails, silent
from tests.twins import TINY, TWINS, train

LETTERS = "".join(map(chr, range(256, 1255)))
END = len(LETTERS)
"""The end of text of a small vocabulary: GPT-2's takes a second to open."""


def write_shard(path: Path, ids: npt.NDArray[Any], *, magic: int = 20240520, version: int = 1) -> Path:
    """As `write_datafile` of llm.c."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids)
    path.write_bytes(header.tobytes() + ids.astype("<u2").tobytes())
    return path


def documents(seed: int, count: int, *, longest: int = 40) -> npt.NDArray[np.uint16]:
    """Documents of random ids, each behind an end of text, as llm.c writes them."""
    choose = np.random.default_rng(seed)
    parts = [np.append(END, choose.integers(0, END, choose.integers(5, longest))) for _ in range(count)]
    return np.concatenate(parts).astype(np.uint16)


def vocabulary(folder: Path) -> str:
    path = folder / "tokenizer.json"
    CharTokenizer(LETTERS, end_of_text=True).save(path)
    return str(path)


def prepared(folder: Path, *patterns: str, **options: Any) -> Dataset:
    return prepare_shards(
        patterns or (f"{folder}/*.bin",), "mine", folder / "data", vocabulary(folder), on_progress=silent, **options
    )


def test_files_with_val_in_their_names_are_for_validation(tmp_path: Path) -> None:
    first, second, third = (documents(seed, 50) for seed in range(3))
    write_shard(tmp_path / "web_train_000002.bin", second)
    write_shard(tmp_path / "web_train_000001.bin", first)
    write_shard(tmp_path / "web_val_000000.bin", third)
    found = prepared(tmp_path)
    np.testing.assert_array_equal(found.train, np.concatenate([first, second]))
    np.testing.assert_array_equal(found.val, third)
    assert found.documents == (100, 50)
    meta = json.loads((tmp_path / "data" / "mine" / "meta.json").read_text())
    n = len(first)
    assert [(each["file"], each["split"], each["tokens"]) for each in meta["sources"]] == [
        ("web_train_000001.bin", "train", [0, n]),
        ("web_train_000002.bin", "train", [n, n + len(second)]),
        ("web_val_000000.bin", "val", [0, len(third)]),
    ]
    for each in meta["sources"]:
        assert each["sha256"] == hashlib.sha256((tmp_path / each["file"]).read_bytes()).hexdigest()


@pytest.mark.parametrize("opens", [True, False])
def test_otherwise_the_last_tokens_are_and_no_document_stands_in_both(tmp_path: Path, opens: bool) -> None:
    ids = documents(1, 200)
    if not opens:
        ids = np.append(ids[1:], ids[:1])
    for number, part in enumerate(np.array_split(ids, 3)):
        write_shard(tmp_path / f"part{number}.bin", part)
    found = prepared(tmp_path, val_fraction=0.25)
    np.testing.assert_array_equal(np.concatenate([found.train, found.val]), ids)
    assert (found.val[0] if opens else found.train[-1]) == END
    # Behind the share that was asked for, by less than a document of 40 tokens.
    assert 0 <= len(found.train) - int(len(ids) * 0.75) < 40
    assert sum(found.documents or ()) == 200


@pytest.mark.usefixtures("gpt2_vocabulary")
def test_the_vocabulary_is_gpt2s_if_nothing_else_is_said(tmp_path: Path) -> None:
    ids = np.array([50256, 1, 2, 3] * 20)
    write_shard(tmp_path / "a.bin", ids)
    found = prepare_shards([f"{tmp_path}/a.bin"], "mine", tmp_path / "data", on_progress=silent)
    assert found.tokenizer.kind == "gpt2"
    assert found.documents == (18, 2)
    write_shard(tmp_path / "a.bin", ids + 1)
    with fails("token id 50257 at position"):
        prepare_shards([f"{tmp_path}/a.bin"], "mine", tmp_path / "data", overwrite=True, on_progress=silent)


def test_a_file_of_many_chunks_without_documents_is_cut_to_the_token(tmp_path: Path) -> None:
    ids = np.arange(2 * CHUNK_TOKENS + 12345).astype(np.uint16) % 999
    write_shard(tmp_path / "a.bin", ids)
    found = prepared(tmp_path)
    assert len(found.train) == int(len(ids) * 0.9)
    np.testing.assert_array_equal(np.concatenate([found.train, found.val]), ids)


def test_both_twins_train_on_them_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("web").mkdir()
    vocabulary(tmp_path)
    for seed, name in enumerate(("train_000001", "val_000000")):
        write_shard(Path(f"web/web_{name}.bin"), documents(seed, 100))
    main(["prepare", "--shards", "web/*.bin", "--name", "web", "--tokenizer", "tokenizer.json"])
    losses = []
    for twin in TWINS:
        train(twin, *TINY, "--dataset", "web", "--max-steps", "2", "--dropout", "0", "--out", twin)
        losses.append([row["loss"] for row in read_metrics(Path(twin)) if "loss" in row])
    assert len(losses[0]) == 2
    # float32, sums in another order: some units in the last place of 7.
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def broken(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(change(path.read_bytes())), None)[1]


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no header": (lambda path: path.write_bytes(b"ab" * 900), "is no token shard of llm.c or modded-nanogpt"),
    "empty": (lambda path: path.write_bytes(b""), "is no token shard"),
    "a shorter header": (broken(lambda data: data[:1000]), "is no token shard"),
    "another magic": (lambda path: write_shard(path, documents(1, 9), magic=20240801), "20240520"),
    "another version": (lambda path: write_shard(path, documents(1, 9), version=2), "of version 2: only 1"),
    "cut short": (broken(lambda data: data[:-2]), "fetch it again"),
    "half a token": (broken(lambda data: data[:-1]), "fetch it again"),
    "too long": (broken(lambda data: data + b"ab"), "fetch it again"),
    "not finished": (lambda path: write_shard(path, np.zeros(0)), "says that it holds 0 tokens"),
    "negative": (broken(lambda data: data[:8] + b"\xff\xff\xff\xff" + data[12:]), "says that it holds -1 tokens"),
    "outside": (lambda path: write_shard(path, np.array([1, 2, 1000])), "token id 1000 at position 2, outside"),
    "a folder": (a_folder, "cannot read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_shard_is_refused_in_a_line_and_leaves_nothing(tmp_path: Path, fault: str) -> None:
    spoil, words = FAULTS[fault]
    write_shard(tmp_path / "a.bin", documents(1, 50))
    spoil(write_shard(tmp_path / "b.bin", documents(2, 50)))
    with fails(words) as caught:
        prepared(tmp_path)
    assert "b.bin" in str(caught.value)
    assert not list((tmp_path / "data").glob("*"))


def test_what_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.bin", documents(1, 50))
    write_shard(tmp_path / "val.bin", documents(2, 50))

    def meanwhile(_phase: str, done: int, _total: int) -> None:
        if done:
            write_shard(path, documents(3, 50))

    with fails("a.bin changed while it was read"):
        prepare_shards([f"{tmp_path}/*.bin"], "mine", tmp_path / "data", vocabulary(tmp_path), on_progress=meanwhile)
    assert not list((tmp_path / "data").glob("*"))


@pytest.mark.parametrize("held", [0, 4, 5])
def test_a_file_with_fewer_ids_than_it_had_is_refused(tmp_path: Path, held: int) -> None:
    (tmp_path / "ids.bin").write_bytes(bytes(range(6))[:held])
    with fails("ids.bin changed while it was read"):
        list(read_ids(tmp_path / "ids.bin", np.dtype("<u2"), 0, 3))
    (tmp_path / "ids.bin").write_bytes(bytes(range(6)))
    assert [ids.tolist() for ids in read_ids(tmp_path / "ids.bin", np.dtype("<u2"), 1, 3)] == [[0x0302, 0x0504]]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--shards a.bin val.bin", "--shards needs --name NAME as well"),
        ("--shards none*.bin --name x", r"no file matches --shards none\*\.bin"),
        ("--shards a.bin a.bin --name x", "names a.bin twice"),
        ("--shards val.bin --name x", "none is left for training"),
        ("--shards *.bin --name x --val-fraction 0.2", "--val-fraction and val.bin"),
        ("--shards a.bin --name x --val-fraction 1", "above 0 and below 1"),
        ("--shards a.bin --name x --tokenizer gtp2", "did you mean 'gpt2'"),
        ("--shards a.bin --name x --tokenizer char", "choose from: gpt2"),
        ("--shards a.bin --name stories", "belongs to a built-in corpus"),
        ("--shards a.bin --name shakespeare", "belongs to Tiny Shakespeare"),
        ("--shards a.bin --name x --separator none", "--separator is for --text: leave it out"),
        ("--shards a.bin --name x --from-file a.bin", "--from-file is for corpora that have a name"),
        ("--shards a.bin --name x --text a.bin", "say which corpus"),
    ],
)
def test_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_shard(Path("a.bin"), documents(1, 20))
    write_shard(Path("val.bin"), documents(2, 20))
    with fails(words):
        main(["prepare", *given.split()])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "val.bin"]


def test_an_existing_dataset_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", documents(1, 50))
    before = prepared(tmp_path).fingerprint
    write_shard(tmp_path / "a.bin", documents(2, 50))
    with pytest.raises(UserError, match="exists already"):
        prepared(tmp_path)
    assert prepared(tmp_path, overwrite=True).fingerprint != before
