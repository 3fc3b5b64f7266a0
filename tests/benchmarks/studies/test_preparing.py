"""Preparing a corpus beside `datasets.map`: the same ids or no figure. Nothing here is timed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="extra hub")

# isort: split
from benchmarks.studies import preparing, turns
from benchmarks.studies.preparing import IDS, TEXT, TOKENIZER, PreparingStudy, compare, main, ours, proof_of
from gpt_common.data.tokenizers import load_tokenizer
from gpt_common.errors import UserError, WorkFailed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus."""
    place = tmp_path_factory.mktemp("corpus")
    preparing.write_corpus(place, PreparingStudy(megabytes=1, vocabulary=300))
    return place


def test_ours_is_every_story_and_its_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    from gpt_common.data.corpora import hub

    for name in ("describe", "fetch"):
        monkeypatch.setattr(hub, name, getattr(hub, name))  # put back when the test ends

    stories = pyarrow.parquet.read_table(folder / TEXT)["text"].to_pylist()
    tokenizer = load_tokenizer(folder / TOKENIZER)
    expected = np.concatenate([[*tokenizer.encode(story), tokenizer.end_of_text] for story in stories])
    expected.astype("<u2").tofile(folder / IDS)
    proof = proof_of(folder / IDS)
    assert proof[0] == 2 * len(expected) > 500_000
    assert proof_of(ours(folder)) == proof, "and again, over what is there"
    assert compare({"ours": proof, "datasets": proof_of(ours(folder))}, "datasets") == 0
    expected[5] += 1
    expected.astype("<u2").tofile(folder / IDS)
    with pytest.raises(WorkFailed, match="other ids than ours: no figure"):
        compare({"ours": proof, "datasets": proof_of(folder / IDS)}, "datasets")


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr(turns, "TURNS", 1)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    main(["--megabytes", "1", "--vocabulary", "300", "--rounds", "1", "--json", str(tmp_path / "figures.json")])
    found = json.loads((tmp_path / "figures.json").read_text())
    assert set(found["seconds"]) == {"ours", "datasets"}
    assert len(found["ratio"]["ratios"]) == 1
    said = capfd.readouterr()
    assert "million tokens/s" in said.out
    assert "at least 1.5" in said.out
    assert os.path.basename(TEXT) not in said.err


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="megabytes is 0"):
        PreparingStudy(megabytes=0)
    monkeypatch.setattr(preparing, "find_spec", lambda package: None if package == "datasets" else package)
    with pytest.raises(UserError, match="needs datasets: pip install datasets"):
        main([])
