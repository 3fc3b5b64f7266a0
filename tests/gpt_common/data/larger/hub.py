"""A hub on this machine with a data set, and files for it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.hub_server import File, Hub, Refused

FIRST, SECOND = "1" * 40, "2" * 40
"""Commits."""
NAME = "someone/texts"
LETTERS = "abcdefghijklmnopqrstuvwxyz "


def texts(seed: int, count: int) -> list[str]:
    choose = np.random.default_rng(seed)
    return ["".join(choose.choice(list(LETTERS), choose.integers(5, 80))) for _ in range(count)]


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
        kind, owner, name, _, revision, *parts = [*path[asks:], "", "", ""]
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
