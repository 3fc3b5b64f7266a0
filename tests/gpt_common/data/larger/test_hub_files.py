"""Which files of a data set hold a split, and the rows of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="extra hub")

# isort: split
from gpt_common.data.corpora.repository import Described, Repository, files_of
from gpt_common.data.corpora.rows import rows_of
from tests.gpt_common.data.corpora import fails
from tests.gpt_common.data.larger.hub import FIRST, json_lines, parquet, texts

ONE, TWO = texts(1, 40), texts(2, 30)

LINES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b'{"text": "a"}\n{"text": \n', "line 2 of .* is no JSON"),
    "no object": (b"[1]\n", "line 1 of .* is no JSON object"),
    "no column": (b'{"txt": "a"}\n', "line 1 of .* has no 'text': .*'?txt"),
    "a number": (b'{"text": 3}\n', "row 0 of .* has no text in 'text': int"),
    "deep": (b"[" * 100_000 + b"\n", "line 1 of .* is no JSON"),
    "half a surrogate": (b'{"text": "\\ud800"}\n', "not valid Unicode"),
    "no UTF-8": (b'{"text": "\xff\xfe"}\n', "not valid Unicode|is no JSON"),
}


@pytest.mark.parametrize("fault", LINES)
def test_lines_that_are_refused(tmp_path: Path, fault: str) -> None:
    data, words = LINES[fault]
    (tmp_path / "a.jsonl").write_bytes(data)
    with fails(words):
        list(rows_of(tmp_path / "a.jsonl", "a.jsonl of x/y", "text", 0))


def test_rows_from_any_row_on(tmp_path: Path) -> None:
    rows = [*ONE, None, "", *TWO]
    (tmp_path / "a.parquet").write_bytes(parquet(rows))
    (tmp_path / "a.jsonl").write_bytes(json_lines(rows))
    expected = [(i, text) for i, text in enumerate(rows) if text]
    for name in ("a.parquet", "a.jsonl"):
        for start in (0, 1, 6, 7, 8, 41, len(rows) - 1, len(rows)):
            assert list(rows_of(tmp_path / name, name, "text", start)) == [row for row in expected if row[0] >= start]


CARD = [
    {
        "config_name": "en",
        "data_files": [{"split": "train", "path": "en/*.parquet"}, {"split": "dev", "path": "d.jsonl"}],
    },
    {"config_name": "de", "data_files": "de/**"},
]


@pytest.mark.parametrize(
    ("files", "configs", "config", "split", "expected"),
    [
        (["train.jsonl", "valid.jsonl"], [], None, "train", ["train.jsonl"]),
        (["train.jsonl", "valid.jsonl"], [], None, "validation", ["valid.jsonl"]),
        (["b.parquet", "a.parquet", "a.jsonl"], [], None, "train", ["a.parquet", "b.parquet"]),
        (["en/train-0.parquet", "de/train-0.parquet"], [], "de", "train", ["de/train-0.parquet"]),
        (["en/c4-train.0.json.gz", "en/c4-validation.0.json.gz"], [], "en", "train", ["en/c4-train.0.json.gz"]),
        (["data/constraint.parquet", "data/train.parquet"], [], None, "train", ["data/train.parquet"]),
        (["en/a.parquet", "en/x/b.parquet", "de/x/c.parquet", "d.jsonl"], CARD, "en", "train", ["en/a.parquet"]),
        (["en/a.parquet", "de/x/c.parquet", "d.jsonl"], CARD, "de", "train", ["de/x/c.parquet"]),
        (["en/a.parquet", "de/x/c.parquet", "d.jsonl"], CARD, "en", "dev", ["d.jsonl"]),
        (["en/a.parquet"], CARD, None, "train", "several configurations"),
        (["en/a.parquet"], CARD, "fr", "train", "no configuration 'fr': choose from: de, en"),
        (["en/a.parquet"], CARD, "en", "test", "no split 'test'"),
        (["a.csv"], [], None, "train", "no file of parquet or JSON lines"),
    ],
)
def test_which_files_hold_a_split(
    files: list[str], configs: list[dict[str, Any]], config: str | None, split: str, expected: list[str] | str
) -> None:
    data, described = Repository("x/y", "main"), Described(FIRST, sorted(files), configs)
    if isinstance(expected, list):
        assert files_of(data, described, config, split) == expected
    else:
        with fails(expected):
            files_of(data, described, config, split)
