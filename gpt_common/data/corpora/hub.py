"""Preparing a data set of a hub: file after file, row after row, in shards that a killed preparation keeps.

Each row is a document, with an end of text behind it. A shard ends with the row that fills it, so where one begins and
ends follows from the rows alone: the bytes are the same for any number of processes and of interruptions. All files are
of one commit, which is looked up once and recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.data.catalogue import open_dataset
from gpt_common.data.corpora.cutting import check_share, cut_at_end_of_text
from gpt_common.data.corpora.ids import write_ids
from gpt_common.data.corpora.repository import Repository, describe, fetch, files_of, repository
from gpt_common.data.corpora.rows import require_pyarrow, rows_of
from gpt_common.data.corpora.work import COMMAND, Finished, Work, work_folder, working
from gpt_common.data.dataset import Dataset, check_new_name
from gpt_common.data.download import Progress
from gpt_common.data.encode import PIECE_CHARACTERS, Encoded, Job, encoder
from gpt_common.data.tokenizers import Tokenizer, cut_pieces, default_prompt, known_tokenizer
from gpt_common.data.writer import SPLITS, refuse_existing, write_dataset
from gpt_common.errors import UserError
from gpt_common.files import remove

SHARD_CHARACTERS = 1 << 25
"""Text in a shard, about 8 million tokens: what a kill can cost."""
WORTH_PROCESSES = 1 << 22
"""Tokens from which several processes pay off."""


def prepare_hub(
    name_on_hub: str,
    name: str,
    data_dir: Path,
    tokenizer: str,
    *,
    config: str | None = None,
    split: str = "train",
    column: str = "text",
    revision: str | None = None,
    max_tokens: int | None = None,
    val_fraction: float | None = None,
    overwrite: bool = False,
    workers: int = 0,
    shard_characters: int = SHARD_CHARACTERS,
    on_progress: Progress,
) -> Dataset:
    """Make a dataset of a column of text; the last `val_fraction` of its tokens, in whole documents, is for validation.

    Args:
        name_on_hub: OWNER/NAME.
        tokenizer: `gpt2`, or the path of a tokenizer, or of the folder of a dataset or run.
        config, split: which part of the data set; None: its only or default configuration.
        revision: branch, tag or commit; None: main.
        max_tokens: the first documents that have no more together.
        workers: processes that encode; 0: one per core.
        shard_characters: text in a shard; part of what must be the same to go on.

    Raises:
        UserError: impossible arguments, pyarrow missing, nothing there of that name, files that cannot be read, or a
            preparation that was begun of another commit or with other arguments.
    """
    check_new_name(name)
    share = check_share(val_fraction)
    if max_tokens is not None and max_tokens < 2:
        raise UserError(f"--max-tokens is {max_tokens}: it must be at least 2")
    if workers < 0:
        raise UserError(f"--workers is {workers}: it must be at least 1, or 0 for one per core")
    data = repository(name_on_hub, revision)
    require_pyarrow()
    refuse_existing(data_dir / name, overwrite=overwrite)
    maker = known_tokenizer(tokenizer, ())
    if maker.end_of_text is None:
        raise UserError(f"the tokenizer {tokenizer} has no end-of-text token, and each row is a document: take another")
    described = describe(data)
    files = files_of(data, described, config, split)
    plan = {
        "repository": data.name,
        "commit": described.commit,
        "config": config,
        "split": split,
        "column": column,
        "files": files,
        "tokenizer": maker.fingerprint,
        "max_tokens": max_tokens,
        "shard_characters": shard_characters,
    }
    if workers == 0:
        workers = (os.cpu_count() or 1) if max_tokens is None or max_tokens > WORTH_PROCESSES else 1
    with working(work_folder(name, data_dir), plan, maker, overwrite=overwrite) as work:
        with encoder(maker, workers) as encode:
            rows = Rows(data, described.commit, files, column, on_progress)
            shards = _Shards(work, rows, maker, shard_characters, max_tokens)
            while not (work.finished and work.finished[-1].last):
                shards.make(encode, on_progress)
        recipe: dict[str, Any] = {"command": COMMAND, **plan, "tokenizer": maker.kind}
        recipe["versions"] = {package: version(package) for package in ("tiktoken", "tokenizers", "numpy", "pyarrow")}
        _assemble(work, data_dir / name, maker, share, recipe, overwrite=overwrite, on_progress=on_progress)
        remove(work.folder)
    return open_dataset(name, data_dir)


class Rows:
    """The rows of all files, one after the other.

    Args:
        files: by name, in this order.
        column: which holds the text.
    """

    def __init__(self, data: Repository, commit: str, files: Sequence[str], column: str, on_progress: Progress) -> None:
        self.data, self.commit, self.files, self.column, self.on_progress = data, commit, files, column, on_progress
        self.hashes: dict[int, str] = {}
        """What the hub says of those that were opened."""

    def begin(self, file: int, row: int) -> Iterator[tuple[int, int, str]]:
        """Number of the file, row, and text, from a row on."""
        for number in range(file, len(self.files)):
            path, self.hashes[number] = fetch(self.data, self.files[number], self.commit, self.on_progress)
            shown = f"{self.files[number]} of {self.data.name}"
            for at, text in rows_of(path, shown, self.column, row if number == file else 0):
                yield number, at, text


class _Shards:
    """Makes one shard after the other."""

    def __init__(self, work: Work, rows: Rows, maker: Tokenizer, shard_characters: int, max_tokens: int | None) -> None:
        self.work, self.rows, self.maker = work, rows, maker
        self.shard_characters, self.max_tokens = shard_characters, max_tokens
        last = work.finished[-1] if work.finished else None
        self.reading = rows.begin(last.next_file, last.next_row) if last else rows.begin(0, 0)
        self.places: list[tuple[int, int]] = []
        """File and row of each document of the shard that is made."""
        self.ended = False
        """There are no more rows."""

    def make(self, encode: Callable[[Iterable[Job]], Iterator[Encoded]], on_progress: Progress) -> None:
        """The next shard, written and vouched for."""
        done = sum(record.tokens for record in self.work.finished)
        left = None if self.max_tokens is None else self.max_tokens - done
        self.places, self.ended = [], False
        full = False

        def arrays() -> Iterator[npt.NDArray[np.integer]]:
            nonlocal full
            tokens = 0
            for _, ids in encode(self._jobs()):
                if left is not None and tokens + len(ids) >= left:
                    full = True
                    ids = ids[: left - tokens]
                yield ids
                tokens += len(ids)
                if self.max_tokens is None:
                    on_progress("encoding", self.places[-1][0], len(self.rows.files))
                else:
                    on_progress("encoding", done + tokens, self.max_tokens)
                if full:
                    return

        number = len(self.work.finished)
        path = self.work.shard(number)
        tokens, sha256 = write_ids(path, arrays(), self.work.dtype)
        places = self.places
        if full:
            tokens, sha256, places = self._whole(path, tokens, places)
        if not places and not number:
            what = "its first document has more tokens than --max-tokens" if full else "it has no text"
            raise UserError(f"{self.rows.data}: nothing can be taken, {what}")
        file, row = places[-1] if places else (len(self.rows.files), -1)
        self.work.keep(Finished(tokens, sha256, self._sources(places), file, row + 1, full or self.ended))

    def _jobs(self) -> Iterator[Job]:
        """The documents of one shard."""
        assert self.maker.end_of_text is not None
        job: Job = []
        size = characters = 0
        for file, row, text in self.reading:
            self.places.append((file, row))
            pieces: Iterable[str] = [text]
            if len(text) > PIECE_CHARACTERS:
                pieces = cut_pieces([text], self.maker.last_cut, at_least=PIECE_CHARACTERS)
            for piece in pieces:
                job.append(piece)
                size += len(piece)
                if size >= PIECE_CHARACTERS:
                    yield job
                    job, size = [], 0
            job.append(self.maker.end_of_text)
            characters += len(text) + 1
            if characters >= self.shard_characters:
                break
        else:
            self.ended = True
        if job:
            yield job

    def _whole(self, path: Path, tokens: int, places: list[tuple[int, int]]) -> tuple[int, str, list[tuple[int, int]]]:
        """Without the document that --max-tokens cut: tokens, SHA-256 and documents of the shard."""
        ids = np.fromfile(path, self.work.dtype)
        ends = np.flatnonzero(ids[:tokens] == self.maker.end_of_text)
        kept = ids[: int(ends[-1]) + 1 if len(ends) else 0]
        return *write_ids(path, [kept], self.work.dtype), places[: len(ends)]

    def _sources(self, places: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        ranges: dict[int, list[int]] = {}
        for file, row in places:
            ranges.setdefault(file, [row, row])[1] = row
        return [
            {"file": self.rows.files[file], "hash": self.rows.hashes[file], "first": first, "last": last}
            for file, (first, last) in ranges.items()
        ]


def _assemble(
    work: Work,
    folder: Path,
    maker: Tokenizer,
    share: float,
    recipe: dict[str, Any],
    *,
    overwrite: bool,
    on_progress: Progress,
) -> None:
    """The dataset out of its shards."""
    total = sum(record.tokens for record in work.finished)
    cut = int(total * (1 - share))
    cut = cut_at_end_of_text(work.chunks(cut, total), cut, total, maker.end_of_text, opens=False)
    parts = {"train": (0, cut), "val": (cut, total)}

    def ids_of(split: str) -> Iterator[npt.NDArray[np.integer]]:
        done, stop = parts[split]
        for ids in work.chunks(done, stop):
            yield ids
            done += len(ids)
            on_progress("writing", done, total)

    write_dataset(
        folder,
        maker,
        {split: ids_of(split) for split in SPLITS},
        prompt=default_prompt(maker),
        recipe={**recipe, "val_fraction": share, "cut": cut},
        sources=[{"tokens": each.tokens, "sha256": each.sha256, "rows": each.rows} for each in work.finished],
        overwrite=overwrite,
    )
