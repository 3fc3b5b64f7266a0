"""A hub on this machine with a data set, and files for it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_common.data import Dataset, batches
from gpt_common.data.batches import Windows
from gpt_common.data.corpora import following
from gpt_common.data.corpora.following import follow
from gpt_common.data.corpora.hub import prepare_hub
from gpt_common.data.corpora.work import Work
from gpt_common.data.tokenizers import CharTokenizer
from tests.gpt_common.data.corpora import silent
from tests.hub_server import File, Hub, Refused, ask_with_empty_cache, serving

FIRST, SECOND = "1" * 40, "2" * 40
"""Commits."""
NAME = "someone/texts"
LETTERS = "abcdefghijklmnopqrstuvwxyz "


def texts(seed: int, count: int) -> list[str]:
    choose = np.random.default_rng(seed)
    return ["".join(choose.choice(list(LETTERS), choose.integers(5, 80))) for _ in range(count)]


ONE, TWO, THREE = texts(1, 40), texts(2, 30), texts(3, 20)


def parquet(rows: Sequence[str | None], *, group: int = 7, column: str = "text") -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    table = pyarrow.table({"id": list(range(len(rows))), column: pyarrow.array(rows, pyarrow.string())})
    pyarrow.parquet.write_table(table, buffer, row_group_size=group)
    return buffer.getvalue()


def json_lines(rows: Sequence[str | None]) -> bytes:
    return "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()


@dataclass
class Texts(Hub):
    """The one data set there is, someone/texts."""

    files: dict[str, bytes] = field(default_factory=dict)
    configs: list[dict[str, object]] | None = None
    """What its card lists."""
    commit: str | None = FIRST
    """What main is at; both commits may be asked for."""

    def found(self, path: list[str]) -> File | dict[str, Any]:
        asks = path[0] == "api"
        kind, owner, name, _, revision, *parts = [*path[asks:], *[""] * 5]
        if [kind, owner, name] != ["datasets", NAME.split("/")[0], NAME.split("/")[1]]:
            raise Refused(404, "RepoNotFound")
        if NAME in self.gated:
            raise Refused(403, "GatedRepo")
        if revision not in ("", "main", FIRST, SECOND):
            raise Refused(404, "RevisionNotFound")
        commit = revision if revision in (FIRST, SECOND) else self.commit
        if asks:
            siblings = [{"rfilename": name} for name in self.files]
            card = None if self.configs is None else {"configs": self.configs}
            return {"id": NAME, "sha": commit, "siblings": siblings, "cardData": card}
        file = "/".join(part for part in parts if part)
        if file not in self.files:
            raise Refused(404, "EntryNotFound")
        data = self.files[file]
        return File(file, data, str(commit), hashlib.sha256(data).hexdigest(), linked=True)


@contextmanager
def three_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Texts]:
    """The server, asked by this process, whose cache is empty and which works in `folder`; three files of parquet."""
    with serving(Texts()) as hub:
        hub.files = {
            "data/train-00000-of-00003.parquet": parquet(ONE),
            "data/train-00001-of-00003.parquet": parquet(TWO),
            "data/train-00002-of-00003.parquet": parquet(THREE),
            "data/test-00000-of-00001.parquet": parquet(texts(4, 20)),
            "README.md": b"#",
        }
        ask_with_empty_cache(hub.url, folder / "cache", monkeypatch)
        CharTokenizer(LETTERS, end_of_text=True).save(folder / "tokenizer.json")
        monkeypatch.chdir(folder)
        yield hub


def prepared(name: str = "mine", **options: Any) -> Dataset:
    """What it has, as a dataset."""
    given: dict[str, Any] = {"workers": 1, "shard_characters": 600, "on_progress": silent, **options}
    repository = given.pop("repository", NAME)
    return prepare_hub(repository, name, Path("data"), "tokenizer.json", **given)


class Killed(BaseException):
    """What ends a preparation as a kill does: nothing is tidied up that a killed process would leave."""


def one_more_shard(**options: Any) -> None:
    """A preparation that is killed when its next shard is finished; behind the last one it makes the dataset."""
    keep = Work.keep

    def stop(work: Work, record: Any) -> None:
        keep(work, record)
        raise Killed

    with pytest.MonkeyPatch.context() as patch, suppress(Killed):
        patch.setattr(Work, "keep", stop)
        prepared(**options)


def opened(block_size: int = 8) -> tuple[Dataset, Windows]:
    """What a run that follows it begins with."""
    found = follow("mine", Path("data"), print)
    windows, val = found.splits(block_size, packing=True)
    assert isinstance(windows, Windows)
    assert val is found.val
    return found, windows


def small_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of 100 tokens, and nobody is waited for."""
    monkeypatch.setattr(batches, "POOL_TOKENS", 100)
    monkeypatch.setattr(following, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(following, "GRACE_SECONDS", 0.0)
