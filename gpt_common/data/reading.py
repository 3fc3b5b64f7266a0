"""The first reading of text files: they are counted, hashed, and refused if they are no plain UTF-8 text."""

from __future__ import annotations

import codecs
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpt_common.data.documents import split_documents
from gpt_common.data.download import Progress
from gpt_common.errors import UserError

SCAN_BYTES = 1 << 20
CONTROL = [c for c in map(chr, range(32)) if c not in "\t\n\v\f\r\x1b"]
MOST_CONTROL = 0.02
"""Share of control characters in a plain text, at most; UTF-16 that passes for UTF-8 has a fifth to a half."""

FILE_KINDS = {
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"PK\x03\x04": "a zip archive, or a document that is one: unpack it, or save it as plain text",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"%PDF-": "a PDF: save it as plain text",
    b"PAR1": "a Parquet table: write the column of the text to a file",
    b"\xff\xfe\0\0": "UTF-32: convert it, with `iconv -f UTF-32 -t UTF-8`",
    b"\xff\xfe": "UTF-16: convert it, with `iconv -f UTF-16 -t UTF-8`",
    b"\xfe\xff": "UTF-16: convert it, with `iconv -f UTF-16 -t UTF-8`",
}
"""What is no UTF-8 text, by its first bytes."""
JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Source:
    """A text file as the first reading found it."""

    path: Path
    bytes: int
    mtime_ns: int
    sha256: str
    characters: int
    """With its separators, without a byte-order mark."""


@dataclass
class Reading:
    """What the files hold."""

    sources: list[Source] = field(default_factory=list)
    characters: set[str] = field(default_factory=set)
    """Those of the documents, without the separators between them."""
    separators: int = 0
    outside: Counter[str] = field(default_factory=Counter)
    """How often characters occur that the vocabulary does not have."""
    first_outside: dict[str, str] = field(default_factory=dict)
    """Where each of them occurs first: line and file."""


def read_files(files: Sequence[Path], separator: str | None, vocabulary: str | None, on_progress: Progress) -> Reading:
    """Count and hash the files, and collect their characters.

    Args:
        separator: what stands between two documents, if anything.
        vocabulary: the characters that a given vocabulary has; None: it is none of characters, or not made yet.

    Raises:
        UserError: no such file, all of them empty, not UTF-8, or not plain text.
    """
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is not a file" if path.exists() else f"no such file: {path}")
        _refuse_other_kinds(path)
    total, done, found = sum(path.stat().st_size for path in files), 0, Reading()
    for path in files:
        status, digest, count, lines = path.stat(), hashlib.sha256(), 0, 1

        def texts(path: Path = path, digest: hashlib._Hash = digest) -> Iterator[str]:
            nonlocal done
            for block, text in _decoded(path):
                digest.update(block)
                done += len(block)
                on_progress("reading", done, total)
                yield text

        for is_separator, text in split_documents(texts(), separator):
            if is_separator:
                found.separators += 1
            else:
                found.characters |= (these := set(text))
                for c in these.difference(vocabulary or these):
                    found.outside[c] += text.count(c)
                    if c not in found.first_outside:
                        found.first_outside[c] = f"line {lines + text.count(chr(10), 0, text.index(c)):,} of {path}"
            count, lines = count + len(text), lines + text.count("\n")
        found.sources.append(Source(path, status.st_size, status.st_mtime_ns, digest.hexdigest(), count))
    if not any(source.characters for source in found.sources):
        raise UserError(f"{files[0]} is empty" if len(files) == 1 else "all files are empty")
    return found


def refuse_changed(sources: Sequence[Source]) -> None:
    """Raise a UserError if a file is not what it was at the first reading."""
    for source in sources:
        status = source.path.stat() if source.path.exists() else None
        if status is None or (status.st_size, status.st_mtime_ns) != (source.bytes, source.mtime_ns):
            raise UserError(f"{source.path} changed while it was read: repeat when nothing writes it")


def _refuse_other_kinds(path: Path) -> None:
    if path.suffix.lower() in JSON_LINES:
        raise UserError(
            f"{path} holds JSON lines, and --text takes plain text: write the field with the text to a file, perhaps "
            f"by `jq -r .text {path.name} > {path.stem}.txt`; to train on the JSON itself, rename the file"
        )
    try:
        with path.open("rb") as file:
            begin = file.read(8)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    for magic, kind in FILE_KINDS.items():
        if begin.startswith(magic):
            raise UserError(f"{path} is not UTF-8 text but {kind}")


def _decoded(path: Path) -> Iterator[tuple[bytes, str]]:
    """A file in blocks, and the text that each completes; without a byte-order mark in front."""
    decoder, position = codecs.getincrementaldecoder("utf-8-sig")(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(SCAN_BYTES):
                position += len(block)
                text = decoder.decode(block)
                _refuse_control(path, text)
                yield block, text
        decoder.decode(b"", final=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        where = position - len(error.object) + error.start
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {where:,}): convert it first, for example with iconv"
        ) from None


def _refuse_control(path: Path, text: str) -> None:
    """Refuse a block that is mostly no text, as of UTF-16 without a mark, whose bytes pass for UTF-8 with NULs."""
    counts = {c: text.count(c) for c in CONTROL}
    if sum(counts.values()) <= 1 + MOST_CONTROL * len(text):
        return
    worst = max(counts, key=counts.__getitem__)
    places = [i for i, c in enumerate(text[:4000]) if c == worst]
    odd = sum(i % 2 for i in places)
    if len(places) > 1 and odd in (0, len(places)):
        which = "LE" if odd else "BE"
        raise UserError(f"{path} looks like UTF-16 without a mark: convert it, with `iconv -f UTF-16{which} -t UTF-8`")
    name = "NUL" if worst == "\0" else f"U+{ord(worst):04X}"
    raise UserError(f"{path} is not plain text: {counts[worst]:,} of {len(text):,} characters are {name}")
