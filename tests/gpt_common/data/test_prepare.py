"""Preparing a corpus: no shortcut changes an id, and nothing half-written is left."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_common.data import encode, open_dataset, prepare
from gpt_common.data.prepare import prepare_texts
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer, load_tokenizer, train_bpe_on
from gpt_common.errors import Stopped, UserError
from tests.borrowed import start_worker
from tests.gpt_common.data.corpora import PARAGRAPH, fails, prepare_characters, silent

# --- encoding in pieces and in processes


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    train_bpe_on([PARAGRAPH * 20], 350).save(path)
    return {"char": "char", "gpt2": "gpt2", "bpe": str(path)}


@pytest.mark.parametrize("kind", ["char", "gpt2", "bpe"])
def test_pieces_and_processes_do_not_change_a_byte(
    tmp_path: Path,
    gpt2_vocabulary: None,  # noqa: ARG001 (provides it)
    tokenizers: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    text = PARAGRAPH * 40
    (tmp_path / "text").write_text(text, encoding="utf-8", newline="")
    processes: list[int] = []
    original = encode.encoder
    monkeypatch.setattr(encode, "_start_worker", start_worker)

    def counted(tokenizer: Tokenizer, workers: int) -> Any:
        processes.append(workers)
        return original(tokenizer, workers)

    monkeypatch.setattr(prepare, "encoder", counted)
    for name, workers, piece in (("whole", 1, 1 << 20), ("pieces", 1, 37), ("parallel", 2, 101)):
        prepare_texts(
            [tmp_path / "text"],
            name,
            tmp_path,
            tokenizers[kind],
            workers=workers,
            piece_characters=piece,
            on_progress=silent,
        )
    assert processes == [1, 1, 2]
    whole = {split: (tmp_path / "whole" / f"{split}.bin").read_bytes() for split in ("train", "val")}
    tokenizer, cut = load_tokenizer(tmp_path / "whole"), int(len(text) * 0.9)
    assert np.frombuffer(whole["train"], np.uint16).tolist() == tokenizer.encode(text[:cut])
    assert np.frombuffer(whole["val"], np.uint16).tolist() == tokenizer.encode(text[cut:])
    for name in ("pieces", "parallel"):
        assert {split: (tmp_path / name / f"{split}.bin").read_bytes() for split in whole} == whole


def test_a_text_of_another_splitting_rule_stays_in_one_piece(tmp_path: Path, tokenizers: dict[str, str]) -> None:
    document = json.loads(Path(tokenizers["bpe"]).read_text())
    document["tokenizer"]["pre_tokenizer"]["use_regex"] = False  # merges may now span words
    (tmp_path / "t.json").write_text(json.dumps(document))
    (tmp_path / "text").write_text(PARAGRAPH, encoding="utf-8", newline="")
    data = prepare_texts(
        [tmp_path / "text"], "mine", tmp_path, str(tmp_path / "t.json"), piece_characters=9, on_progress=silent
    )
    assert data.train.tolist() == data.tokenizer.encode(PARAGRAPH[: int(len(PARAGRAPH) * 0.9)])


def test_files_are_one_text_with_end_of_text_between_them(tmp_path: Path, tokenizers: dict[str, str]) -> None:
    texts = ["one fish " * 9, "two fish " * 9, "red fish blue"]
    files = [tmp_path / str(i) for i in range(3)]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    data = prepare_texts(files, "b", tmp_path, tokenizers["bpe"], val_fraction=0.2, on_progress=silent)
    cut = int(175 * 0.8) - 81  # the split lies in the second file
    encoded, end = data.tokenizer.encode, data.tokenizer.end_of_text
    assert data.train.tolist() == [*encoded(texts[0]), end, *encoded(texts[1][:cut])]
    assert data.val.tolist() == [*encoded(texts[1][cut:]), end, *encoded(texts[2])]
    characters = prepare_texts(files, "c", tmp_path, "char", on_progress=silent)
    assert characters.tokenizer.end_of_text == characters.tokenizer.vocab_size - 1
    assert len(characters.train) + len(characters.val) == 175 + 2
    assert characters.documents == (2, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_the_text(workers: int) -> None:
    taken = 0

    def work() -> Iterator[encode.Job]:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield ["ab"]

    with encode.encoder(CharTokenizer("ab"), workers) as encoded:
        results = encoded(work())
        for expected in range(1, 4):
            assert next(results)[1].tolist() == [0, 1]
            assert taken <= expected + 2 * workers


def test_bpe_is_trained_on_the_training_split(tmp_path: Path) -> None:
    text = "low lower lowest " * 100 + "newest widest " * 10
    (tmp_path / "text").write_text(text)
    data = prepare_texts([tmp_path / "text"], "mine", tmp_path, "bpe", bpe_vocab_size=300, on_progress=silent)
    cut = int(len(text) * 0.9)
    assert data.tokenizer.fingerprint == train_bpe_on([text[:cut]], 300).fingerprint
    assert data.tokenizer.fingerprint != train_bpe_on([text], 300).fingerprint


# --- what is asked for in vain


def test_what_cannot_be_prepared_is_refused(tmp_path: Path, tokenizers: dict[str, str]) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9 au lait, s'il vous pla\xeet")
    (tmp_path / "cut").write_bytes("été".encode()[:-1])
    (tmp_path / "ascii").write_text("plain\ntext, strange: ~\n")
    (tmp_path / "two").write_text("ab")
    (tmp_path / "empty").write_text("")
    CharTokenizer("plaintex \n,srg:").save(tmp_path / "narrow.json")

    def attempt(file: str, tokenizer: str = "char", name: str = "mine", **options: Any) -> None:
        prepare_texts([tmp_path / file], name, tmp_path / "data", tokenizer, on_progress=silent, **options)

    for call, message in (
        (lambda: attempt("absent"), "no such file: .*absent"),
        (lambda: attempt("data"), "data is not a file"),
        (lambda: attempt("latin"), r"latin is not UTF-8 text \(invalid continuation byte at byte 3\)"),
        (lambda: attempt("cut"), r"cut is not UTF-8 text \(unexpected end of data at byte 3\)"),
        (
            lambda: attempt("ascii", str(tmp_path / "narrow.json")),
            r"among the 15 of .*narrow.json: '~' 1 x \(first in line 2 of .*--unknown",
        ),
        (lambda: attempt("ascii", "chars"), r"--tokenizer 'chars' is neither a kind \(did you mean 'char'"),
        (lambda: attempt("ascii", "char", bpe_vocab_size=300), "--tokenizer bpe trains: leave one of them out"),
        (lambda: attempt("ascii", "bpe", bpe_vocab_size=100), "BPE vocabulary of 100 is too small"),
        (lambda: attempt("ascii", val_fraction=0.0), "--val-fraction is 0"),
        (lambda: attempt("ascii", val_fraction=1.0), "--val-fraction is 1"),
        (lambda: attempt("two", val_fraction=0.9), "train split of .* would be empty"),
        (lambda: attempt("empty"), "empty is empty"),
        (lambda: attempt("empty", tokenizers["bpe"]), "empty is empty"),
        (lambda: attempt("ascii", workers=-1), "--workers is -1"),
        (lambda: attempt("ascii", name="stories"), "belongs to a built-in corpus"),
    ):
        (tmp_path / "data").mkdir(exist_ok=True)
        with fails(message):
            call()
        assert not list((tmp_path / "data").iterdir()), "nothing may be left"


def test_a_text_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    def grow(phase: str, _done: int, _total: int) -> None:
        if phase == "encoding":
            with (tmp_path / "text").open("a") as file:
                file.write("more")

    def shrink(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("reading", total):
            (tmp_path / "text").write_text("abc")

    for meddle in (grow, shrink):
        (tmp_path / "text").write_text("abc" * 100)
        with fails("text changed while it was read"):
            prepare_texts([tmp_path / "text"], "mine", tmp_path / "data", "char", on_progress=meddle)
        assert not list((tmp_path / "data").iterdir())


def test_an_existing_dataset_stays_unless_overwritten(tmp_path: Path) -> None:
    first = prepare_characters(tmp_path)
    with fails("data/mine exists already: add --overwrite"):
        prepare_characters(tmp_path, text="xyz" * 100)
    assert open_dataset("mine", tmp_path / "data").fingerprint == first.fingerprint
    assert prepare_characters(tmp_path, text="xyz" * 100, overwrite=True).tokenizer.vocab_size == 4
    assert first.tokenizer.decode(first.val) == "abcdefghij" * 2  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine"]


def test_overwriting_never_deletes_what_is_not_ours(tmp_path: Path) -> None:
    prepare_characters(tmp_path)
    (tmp_path / "data" / "mine" / "notes.txt").write_text("mine alone")
    with fails("holds notes.txt, which is no part of a dataset"):
        prepare_characters(tmp_path, overwrite=True)
    (tmp_path / "data" / "stories").mkdir()
    (tmp_path / "data" / "stories" / "draft.txt").write_text("mine alone")
    with fails("holds draft.txt"):
        open_dataset("stories", tmp_path / "data")


# --- interruption


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("blow", [KeyboardInterrupt(), Stopped(15), OSError(errno.ENOSPC, "no space")])
def test_an_interruption_leaves_nothing_and_what_was_there_before(
    tmp_path: Path, workers: int, blow: BaseException
) -> None:
    first = prepare_characters(tmp_path)

    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == "encoding" and done > total / 2:
            raise blow

    (tmp_path / "other").write_text("xyz" * 1000)
    with pytest.raises(UserError if isinstance(blow, OSError) else type(blow)):
        prepare_texts(
            [tmp_path / "other"],
            "mine",
            tmp_path / "data",
            "char",
            overwrite=True,
            workers=workers,
            piece_characters=50,
            on_progress=interrupt,
        )
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine"]
    assert open_dataset("mine", tmp_path / "data").fingerprint == first.fingerprint


PREPARE_SLOWLY = """
import sys, time
from gpt_common.data import prepare
from gpt_common.data.__main__ import main
from gpt_common.errors import run_main
original = prepare.jobs
def slow_jobs(*args):
    for job in original(*args):
        yield job
        print("piece", flush=True)
        time.sleep(0.05)
prepare.jobs = slow_jobs
prepare.PIECES_PER_WORKER = 1
prepare.prepare_texts.__kwdefaults__["piece_characters"] = 10
if __name__ == "__main__":
    run_main(main)
"""


@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [(signal.SIGTERM, 143, 1), (signal.SIGINT, 130, 2), (signal.SIGKILL, -signal.SIGKILL, 2)],
)
def test_a_signal_leaves_nothing_half_written(tmp_path: Path, number: int, code: int, workers: int) -> None:
    (tmp_path / "text").write_text("abc" * 10_000)
    (tmp_path / "slow.py").write_text(PREPARE_SLOWLY)
    command = f"prepare --text {tmp_path}/text --name mine --tokenizer char --data-dir {tmp_path}/data"
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "slow.py"), *command.split(), "--workers", str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        start_new_session=True,
    )
    assert process.stdout is not None
    for _ in range(8):
        assert process.stdout.readline() == "piece\n"
    # Ctrl-C reaches the whole group of processes; other signals one.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    # Reads to the end of the pipes, which the processes of the pool hold too: they must end with the first one.
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    left = [path.name for path in (tmp_path / "data").iterdir()]
    if number != signal.SIGKILL:
        assert left == []
        return
    assert [re.sub(r"\d+", "N", name) for name in left] == ["mine.tmp-N"]
    with fails("no dataset 'mine'"):
        open_dataset("mine", tmp_path / "data")
    prepare_characters(tmp_path)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine"], "the next preparation cleans up"


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    living = tmp_path / "data" / f"mine.tmp-{os.getppid()}"
    living.mkdir(parents=True)
    prepare_characters(tmp_path)
    assert living.exists()
