"""Mixtures of prepared corpora: shares, whole documents, the same bytes again, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_common.data import Dataset
from gpt_common.data.__main__ import main
from gpt_common.data.corpora import mixing
from gpt_common.data.corpora.mixing import parse_shares, prepare_mixture, units_of
from gpt_common.data.tokenizers import CharTokenizer
from gpt_common.data.writer import write_dataset
from tests.gpt_common.data.corpora import fails, silent

LETTERS = "abcdefghijklmnopqrstuvwxyz"
END = 26


def corpus(folder: Path, name: str, ids: npt.NDArray[Any], letters: str = LETTERS) -> None:
    """A prepared corpus whose validation split is a tenth of its training split."""
    part = ids[: max(1, len(ids) // 10)]
    maker = CharTokenizer(letters, end_of_text=True)
    write_dataset(
        folder / name, maker, {"train": [ids], "val": [part]}, prompt="a", recipe={}, sources=[], overwrite=False
    )


def documents(seed: int, tokens: int, letters: tuple[int, int], longest: int = 200) -> npt.NDArray[np.uint16]:
    """Documents of some of the letters, each different from all others, with an end of text behind each."""
    choose = np.random.default_rng(seed)
    parts: list[Any] = []
    while sum(map(len, parts)) < tokens:
        parts.append(np.append(choose.integers(*letters, choose.integers(20, longest)), END))
    return np.concatenate(parts).astype(np.uint16)


def split_at_ends(ids: npt.NDArray[Any]) -> list[bytes]:
    ends = np.flatnonzero(np.asarray(ids) == END) + 1
    return [part.tobytes() for part in np.split(np.asarray(ids), ends) if len(part)]


def mixed(folder: Path, *shares: str, name: str = "mixed", **options: Any) -> Dataset:
    return prepare_mixture(shares, name, folder, on_progress=silent, **options)


def test_shares_are_met_by_whole_documents(tmp_path: Path) -> None:
    texts = {"low": documents(1, 400_000, (0, 13)), "high": documents(2, 300_000, (13, 26))}
    for name, ids in texts.items():
        corpus(tmp_path, name, ids)
    found = mixed(tmp_path, "low:0.7", "high:0.3")
    train = np.asarray(found.train)
    parts = split_at_ends(train)
    assert len(set(parts)) == len(parts)
    for name, share, below in (("low", 0.7, True), ("high", 0.3, False)):
        mine = [part for part in parts if (np.frombuffer(part, np.uint16)[0] < 13) == below]
        assert sum(map(len, mine)) / train.nbytes == pytest.approx(share, rel=1e-3)
        # Every one of them is a document of the corpus, from its first token to its end.
        assert set(mine) <= set(split_at_ends(texts[name]))
    # The corpus that is smaller for its share is used up, the other as far as that goes.
    assert len(train) == pytest.approx(len(texts["low"]) / 0.7, rel=1e-3)
    # They take turns: each tenth has about these shares. Of some 500, 30 % are 150, give or take 10: 5 times that.
    for stretch in np.array_split(train, 10):
        assert (stretch[stretch != END] < 13).mean() == pytest.approx(0.7, abs=0.1)


def test_the_same_seed_gives_the_same_bytes_and_another_others(tmp_path: Path) -> None:
    corpus(tmp_path, "low", documents(1, 40_000, (0, 13)))
    corpus(tmp_path, "high", documents(2, 40_000, (13, 26)))
    shares = ("low:0.5", "high:0.5")
    files = [
        [(tmp_path / name / f"{split}.bin").read_bytes() for split in ("train", "val")]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
        if mixed(tmp_path, *shares, name=name, seed=seed, max_tokens=30_000)
    ]
    assert files[0] == files[1]
    assert files[0][0] != files[2][0]
    assert len(files[0][0]) == pytest.approx(2 * 30_000, rel=1e-3)
    # What another seed takes are other documents, not the same in another order.
    assert set(split_at_ends(np.frombuffer(files[0][0], "<u2"))) != set(
        split_at_ends(np.frombuffer(files[2][0], "<u2"))
    )


def test_a_corpus_without_documents_is_taken_in_windows(tmp_path: Path) -> None:
    text = np.arange(100_000) % 26
    corpus(tmp_path, "plain", text.astype(np.uint16))
    corpus(tmp_path, "high", documents(2, 100_000, (13, 26)))
    found = mixed(tmp_path, "plain:0.25", "high:0.75")
    sources = json.loads((tmp_path / "mixed" / "meta.json").read_text())["sources"]
    tokens = [source["tokens"]["train"] for source in sources]
    assert sum(tokens) == len(found.train)
    assert tokens[0] / sum(tokens) == pytest.approx(0.25, rel=1e-3)
    assert sources[0]["units"]["train"] == -(-tokens[0] // 1024)
    assert sources[0]["share"] == 0.25


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 3000), min_size=2, max_size=60),
    share=st.floats(0.02, 0.98),
    most=st.none() | st.integers(4000, 20_000),
    seed=st.integers(0, 9),
)
def test_small_corpora_meet_their_shares_too(lengths: list[int], share: float, most: int | None, seed: int) -> None:
    texts = [np.concatenate([np.append(np.ones(n, np.uint16), END) for n in part]) for part in (lengths, lengths[::-1])]
    generators = [np.random.default_rng(seed + i) for i in range(2)]
    low, high = mixing._taken(texts, [share, 1 - share], generators, END, most)
    # Rounding and the two ends of text that may be added are whole tokens.
    assert low.total == pytest.approx(share * (low.total + high.total), rel=1e-3, abs=2)
    for each in (low, high):
        order = np.argsort(each.starts)
        assert (each.stops[order][:-1] <= each.starts[order][1:]).all()
        cut = sum(each.tokens[stop - 1] != END for stop in each.stops)
        assert cut <= 1


def test_very_many_documents_are_taken_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "MOST_UNITS", 100)
    monkeypatch.setattr(mixing, "CHUNK_TOKENS", 1000)
    ids = documents(1, 40_000, (0, 13), longest=60)
    ends, whole = units_of(ids, END)
    assert whole
    assert 80 < len(ends) <= 100 + len(ids) // 1000 + 1
    assert (ids[ends - 1] == END).all()
    assert ends[-1] == len(ids)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("low:0.7 hihg:0.3 --name x", "no dataset 'hihg' in .*did you mean 'high'"),
        ("low:0.7 high:0 --name x", "--mix high:0: a share must be above 0"),
        ("low:1.5 high:-0.5 --name x", "--mix high:-0.5: a share must be above 0"),
        ("low:0.7 high:nan --name x", "write NAME:SHARE"),
        ("low:0.7 high:inf --name x", "must be above 0"),
        ("low:0.7 high --name x", "--mix high: write NAME:SHARE"),
        ("low:0.7 :0.3 --name x", "write NAME:SHARE"),
        ("low:0.7 high:0.2 --name x", "are 0.9 taken together: they must be 1"),
        ("low:0.7 low:0.3 --name x", "names 'low' twice"),
        ("low:1 --name x", "at least two corpora"),
        ("low:0.7 other:0.3 --name x", r"'low' and 'other' have different tokenizers \(char 27, char 7\)"),
        ("low:0.7 high:0.3 --name low", "'low' is one of the corpora that are mixed"),
        ("low:0.7 high:0.3", "--mix needs --name NAME as well"),
        ("low:0.7 high:0.3 --name x --max-tokens 0", "--max-tokens is 0"),
        ("low:0.7 high:0.3 --name x --tokenizer gpt2", "--tokenizer is for .*: leave it out"),
        ("low:0.7 ../low:0.3 --name x", r"no dataset '\.\./low'"),
    ],
)
def test_arguments(tmp_path: Path, given: str, words: str) -> None:
    corpus(tmp_path, "low", documents(1, 4000, (0, 13)))
    corpus(tmp_path, "high", documents(2, 4000, (13, 26)))
    corpus(tmp_path, "other", documents(3, 400, (0, 6)) % 6, letters="abcdef")
    with fails(words):
        main(["prepare", "--data-dir", str(tmp_path), "--mix", *given.split()])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["high", "low", "other"]


def test_the_command_says_what_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus(tmp_path, "low", documents(1, 40_000, (0, 13)))
    corpus(tmp_path, "high", documents(2, 40_000, (13, 26)))
    main(["prepare", "--data-dir", str(tmp_path), "--mix", "low:0.7", "high:0.3", "--name", "x", "--seed", "3"])
    said = capsys.readouterr().out
    assert "of low: " in said
    assert parse_shares(["low:0.7", "high:0.3"]) == {"low": 0.7, "high": 0.3}
