"""The built-in corpus on disk: generated at first use, kept like a prepared corpus, generated again when stale."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from gpt_common.data.dataset import BUILT_IN, Dataset, Progress, open_folder, read_meta
from gpt_common.data.tokenizers import CharTokenizer
from gpt_common.data.writer import SPLITS, refuse_existing, write_dataset
from gpt_common.errors import UserError
from gpt_common.files import cannot_write

SEED = 1337
CHARACTERS = {"train": 4_000_000, "val": 400_000}
SOURCES = ("stories.py", "grammar.py", "../keyed.py")  # every module of ours that the text depends on


def open_stories(data_dir: Path, on_progress: Progress) -> Dataset:
    """The `stories` dataset in `data_dir/stories`, generated if absent, damaged, or made by other source code.

    Raises:
        UserError: it cannot be written, or the folder holds files that are not a dataset's.
    """
    folder, recipe = data_dir / BUILT_IN, _recipe()
    with _alone_in(data_dir):
        try:
            if read_meta(folder).get("recipe") == recipe:
                return open_folder(folder, on_progress)
            reason = "the generator has changed"
        except UserError:
            reason = "what is there cannot be used" if folder.exists() else "once"
        refuse_existing(folder, overwrite=True)
        on_progress(f"generating the built-in corpus into {folder} ({reason}): {sum(CHARACTERS.values()):,} characters")
        _generate(folder, recipe)
        return open_folder(folder, on_progress)


@contextmanager
def _alone_in(data_dir: Path) -> Iterator[None]:
    """One process at a time: runs that start together wait for the first, and find what it made."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data_dir, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(data_dir, error) from None
    try:
        # Not every network file system has locks; without one each run makes the corpus, and the last one stays.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _generate(folder: Path, recipe: dict[str, Any]) -> None:
    from gpt_common.data import stories

    tokenizer = CharTokenizer(stories.ALPHABET)
    corpora = {split: stories.write_corpus(SEED, split, CHARACTERS[split]) for split in SPLITS}
    write_dataset(
        folder,
        tokenizer,
        {split: [np.array(tokenizer.encode(corpus.text), np.uint16)] for split, corpus in corpora.items()},
        prompt=stories.PROMPT,
        recipe=recipe,
        sources=[],
        floor=corpora["val"].floor,
        floor_error=corpora["val"].floor_error,
        overwrite=True,
    )


def _recipe() -> dict[str, Any]:
    """What decides every byte of the corpus; the sidecar records it, and a difference means that it is stale."""
    here = Path(__file__).parent
    source = b"".join((here / name).read_bytes() for name in SOURCES)
    return {
        "generator": BUILT_IN,
        "source_sha256": hashlib.sha256(source).hexdigest(),
        "seed": SEED,
        "characters": CHARACTERS,
    }
