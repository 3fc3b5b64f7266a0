"""Ready token shards, as llm.c and modded-nanogpt write them: `fineweb_val_000000.bin`, `fineweb_train_000001.bin` ...

A shard is a header of 256 int32 (magic 20240520, version 1, number of tokens, zeros) and that many ids, uint16, all
little-endian (llm.c, `dev/data/data_common.py`). Before each document stands GPT-2's end-of-text token. The ids are
copied: a dataset has one file per split, with nothing in it but ids, which every reader maps into memory as it is.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.data.catalogue import open_dataset
from gpt_common.data.corpora.cutting import check_share, cut_at_end_of_text
from gpt_common.data.corpora.ids import changed, parts_of, read_ids
from gpt_common.data.dataset import Dataset, check_new_name
from gpt_common.data.download import Progress
from gpt_common.data.tokenizers import Tokenizer, default_prompt, known_tokenizer
from gpt_common.data.writer import SPLITS, refuse_existing, write_dataset
from gpt_common.errors import UserError
from gpt_common.files import open_file, sha256_of

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 256 * 4

Ids = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Shard:
    """A file of tokens whose header was read and agrees with its size."""

    path: Path
    tokens: int
    mtime_ns: int

    @property
    def for_validation(self) -> bool:
        """Whether its name says so."""
        return "val" in self.path.name

    def chunks(self, start: int, stop: int, vocab_size: int) -> Iterator[Ids]:
        """Its ids from `start` to `stop`, CHUNK_TOKENS at a time.

        Raises:
            UserError: unreadable, not what it was when its header was read, or an id outside the vocabulary.
        """
        position = start
        for ids in read_ids(self.path, np.dtype("<u2"), start, stop, header=HEADER_BYTES):
            if ids.max() >= vocab_size:
                where = int((ids >= vocab_size).argmax())
                raise UserError(
                    f"{self.path} holds token id {ids[where]} at position {position + where:,}, outside the "
                    f"vocabulary of {vocab_size:,}: name the tokenizer that made it with --tokenizer"
                )
            yield ids
            position += len(ids)

    def refuse_changed(self) -> None:
        """Raise a UserError if it is not the file whose header was read."""
        try:
            status = self.path.stat()
        except OSError:
            status = None
        if status is None or (status.st_size, status.st_mtime_ns) != (HEADER_BYTES + 2 * self.tokens, self.mtime_ns):
            raise UserError(changed(self.path))


@dataclass(frozen=True)
class Part:
    """Tokens `start` to `stop` of a shard."""

    shard: Shard
    start: int
    stop: int


def prepare_shards(
    patterns: Sequence[str],
    name: str,
    data_dir: Path,
    tokenizer: str = "gpt2",
    *,
    val_fraction: float | None = None,
    overwrite: bool = False,
    on_progress: Progress,
) -> Dataset:
    """Make a dataset of token shards: those with `val` in their names are for validation.

    Where no name has it, the last `val_fraction` of all tokens is, from where a document begins.

    Args:
        patterns: files, or patterns of their names, in this order; the files of a pattern in the order of their names.
        tokenizer: what made the ids: `gpt2`, or the path of a tokenizer, or of the folder of a dataset or run.

    Raises:
        UserError: impossible arguments, existing dataset, no such file, no shard, or ids outside the vocabulary.
    """
    check_new_name(name)
    share = check_share(val_fraction)
    refuse_existing(data_dir / name, overwrite=overwrite)
    shards = [read_header(path) for path in _files(patterns)]
    named = {"train": [s for s in shards if not s.for_validation], "val": [s for s in shards if s.for_validation]}
    if named["val"] and val_fraction is not None:
        raise UserError(
            f"--val-fraction and {named['val'][0].path.name}, which is for validation: leave one of them out"
        )
    if not named["train"]:
        raise UserError(f"all {len(shards)} files have 'val' in their names: none is left for training")
    maker = known_tokenizer(tokenizer, ())
    parts: dict[str, list[Part]] = {split: [Part(shard, 0, shard.tokens) for shard in named[split]] for split in SPLITS}
    if not parts["val"]:
        parts = _divided(shards, share, maker)
    sources: list[dict[str, Any]] = []
    total, done = sum(shard.tokens for shard in shards), 0

    def ids_of(split: str) -> Iterator[Ids]:
        nonlocal done
        written = 0
        for part in parts[split]:
            for ids in part.shard.chunks(part.start, part.stop, maker.vocab_size):
                yield ids
                done += len(ids)
                on_progress("copying", done, total)
            length = part.stop - part.start
            place = {"split": split, "tokens": [written, written + length], "from": part.start}
            size = HEADER_BYTES + 2 * part.shard.tokens
            # Of the whole file, header included: what its publisher lists.
            sha256 = sha256_of(part.shard.path)
            sources.append({"file": part.shard.path.name, "bytes": size, "sha256": sha256, **place})
            part.shard.refuse_changed()
            written += length

    write_dataset(
        data_dir / name,
        maker,
        {split: ids_of(split) for split in SPLITS},
        prompt=default_prompt(maker),
        recipe={
            "command": "python -m gpt_common.data prepare --shards",
            "tokenizer": maker.kind,
            "val_fraction": None if named["val"] else share,
        },
        sources=sources,  # filled as they are copied
        overwrite=overwrite,
    )
    return open_dataset(name, data_dir)


def read_header(path: Path) -> Shard:
    """A shard, if its magic number, version and size are right.

    Raises:
        UserError: says which is not.
    """
    try:
        status = path.stat()
        with open_file(path) as file:
            begin = file.read(HEADER_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    header = np.frombuffer(begin, "<i4") if len(begin) == HEADER_BYTES else np.zeros(3, np.int32)
    magic, version, tokens = (int(value) for value in header[:3])
    if magic != MAGIC:
        raise UserError(
            f"{path} is no token shard of llm.c or modded-nanogpt: it does not begin with a header of {HEADER_BYTES:,} "
            f"bytes and the number {MAGIC}"
        )
    if version != VERSION:
        raise UserError(f"{path} is a token shard of version {version}: only {VERSION} is read, ids of 16 bits")
    held = status.st_size - HEADER_BYTES
    if tokens < 1:
        raise UserError(f"{path} says that it holds {tokens:,} tokens: it was not written to the end")
    if held != 2 * tokens:
        raise UserError(
            f"{path} says that it holds {tokens:,} tokens, and has {held:,} bytes of them where {2 * tokens:,} are "
            "right: fetch it again"
        )
    return Shard(path, tokens, status.st_mtime_ns)


def _files(patterns: Sequence[str]) -> list[Path]:
    """The files that are meant, each once."""
    found: list[Path] = []
    for pattern in patterns:
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise UserError(f"no file matches --shards {pattern}")
        found += [Path(match) for match in matches]
    twice = next((path for i, path in enumerate(found) if path in found[:i]), None)
    if twice is not None:
        raise UserError(f"--shards names {twice} twice: leave one out")
    return found


def _divided(shards: Sequence[Shard], share: float, maker: Tokenizer) -> dict[str, list[Part]]:
    """Training and validation where no name tells them apart: the last tokens are for validation."""
    total = sum(shard.tokens for shard in shards)
    first = next(shards[0].chunks(0, 1, maker.vocab_size))
    cut = int(total * (1 - share))
    rest = (ids for p in _parts(shards, cut, total) for ids in p.shard.chunks(p.start, p.stop, maker.vocab_size))
    cut = cut_at_end_of_text(rest, cut, total, maker.end_of_text, opens=first[0] == maker.end_of_text)
    return {"train": _parts(shards, 0, cut), "val": _parts(shards, cut, total)}


def _parts(shards: Sequence[Shard], start: int, stop: int) -> list[Part]:
    """Tokens `start` to `stop` of all shards taken together."""
    lengths = [shard.tokens for shard in shards]
    return [Part(shards[number], first, last) for number, first, last in parts_of(lengths, start, stop)]
