"""Small corpora for the tests of data, and ways to damage them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_common.data import Dataset
from gpt_common.data.prepare import prepare_texts
from gpt_common.errors import UserError

PARAGRAPH = "It was a cold day.\n\nThe  fox's den had 12 rooms;\tnobody knew (été, 中文 🙂).\r\n   Why?\n\n\n"


def silent(_phase: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""


def prepare_characters(folder: Path, name: str = "mine", text: str = "abcdefghij" * 20, **options: Any) -> Dataset:
    """A dataset of characters in `folder / "data"`."""
    (folder / "text.txt").write_text(text, encoding="utf-8", newline="")
    return prepare_texts([folder / "text.txt"], name, folder / "data", "char", on_progress=silent, **options)


def rewrite_meta(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    change(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def fails(message: str) -> Any:
    """A UserError of one or two lines that says `message`."""
    return pytest.raises(UserError, match=rf"(?s)\A(?=.*{message})[^\n]*(\n[^\n]*)?\Z")


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def with_id(value: int, position: int) -> Callable[[Path], None]:
    """A training split with one id replaced, and a sidecar that vouches for it."""

    def change(folder: Path) -> None:
        ids = np.fromfile(folder / "train.bin", np.uint16)
        ids[position] = value
        ids.tofile(folder / "train.bin")
        digest = hashlib.sha256((folder / "train.bin").read_bytes()).hexdigest()
        rewrite_meta(folder, lambda meta: meta["splits"]["train"].update(sha256=digest))

    return change
