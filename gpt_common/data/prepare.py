"""Preparing a corpus: the text is read once to count and check it, and once to encode it."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from gpt_common.data.catalogue import open_dataset
from gpt_common.data.dataset import BUILT_IN, PREPARABLE, Dataset, check_name
from gpt_common.data.download import TINY_SHAKESPEARE, Progress, Text, check_local, fetch
from gpt_common.data.encode import PIECE_CHARACTERS, Ids, Span, encoder, jobs
from gpt_common.data.tokenizers import (
    CharTokenizer,
    Gpt2Tokenizer,
    Tokenizer,
    cut_pieces,
    last_cut_before_whitespace,
    load_tokenizer,
    train_bpe_on,
)
from gpt_common.data.writer import SPLITS, refuse_existing, write_dataset
from gpt_common.errors import UserError, nearest

TOKENIZERS = {"shakespeare": "gpt2", "shakespeare_char": "char"}
"""The corpora that have names, as in nanoGPT's `data/`, and their tokenizers."""

SCAN_BYTES = 1 << 20
PIECES_PER_WORKER = 16
"""A process of its own pays off from about this much text."""


def prepare_named(
    name: str,
    data_dir: Path,
    *,
    from_file: Path | None = None,
    overwrite: bool = False,
    workers: int = 0,
    on_progress: Progress,
    text: Text = TINY_SHAKESPEARE,
) -> Dataset:
    """Prepare Tiny Shakespeare as nanoGPT does, 90 % for training: by characters, or with GPT-2's vocabulary.

    Args:
        name: `shakespeare_char` or `shakespeare`.
        from_file: the text, instead of a download to `data_dir/downloads`.
        text: where it comes from and what it must be.

    Raises:
        UserError: unknown name, existing dataset, no network, or not the text that nanoGPT uses.
    """
    if name not in PREPARABLE:
        hint = f"for a text of your own: --text {name if Path(name).exists() else 'FILE'} --name NAME --tokenizer char"
        raise UserError(f"no corpus '{name}' ({nearest(name, PREPARABLE)}); {hint}")
    refuse_existing(data_dir / name, overwrite=overwrite)
    if from_file is not None:
        check_local(text, from_file)
    source = from_file or fetch(text, data_dir / "downloads", on_progress)
    return prepare_texts(
        [source], name, data_dir, TOKENIZERS[name], overwrite=overwrite, workers=workers, on_progress=on_progress
    )


def prepare_texts(
    files: Sequence[Path],
    name: str,
    data_dir: Path,
    tokenizer: str,
    *,
    bpe_vocab_size: int | None = None,
    val_fraction: float = 0.1,
    overwrite: bool = False,
    workers: int = 0,
    piece_characters: int = PIECE_CHARACTERS,
    on_progress: Progress,
) -> Dataset:
    """Prepare UTF-8 files, one after the other, with <|endoftext|> between two where the tokenizer has it.

    The last `val_fraction` of all characters is the validation split.

    Args:
        tokenizer: `char` (the characters of the text), `gpt2`, `bpe` (trained on the training split), or the path
            of a tokenizer, or of a folder with one.
        bpe_vocab_size: size of the vocabulary that `bpe` trains.
        workers: processes; 0 means one per core. Their number does not change the result.
        piece_characters: how much is encoded at once; it does not change the result.

    Raises:
        UserError: impossible arguments, existing dataset, unreadable file, character outside the vocabulary.
    """
    if check_name(name) == BUILT_IN:
        raise UserError(f"the name '{name}' belongs to the built-in corpus: take another --name")
    if not 0 < val_fraction < 1:
        raise UserError(f"--val-fraction is {val_fraction:g}: it must be above 0 and below 1")
    if (tokenizer == "bpe") != (bpe_vocab_size is not None):
        raise UserError("a BPE vocabulary is trained by --tokenizer bpe with --bpe-vocab-size N, both of them")
    if workers < 0:
        raise UserError(f"--workers is {workers}: it must be at least 1, or 0 for one per core")
    refuse_existing(data_dir / name, overwrite=overwrite)
    known = None if tokenizer in ("char", "bpe") else _known_tokenizer(tokenizer)
    sources, characters = _scan(files, known, on_progress)
    total = sum(source.characters for source in sources)
    cut = int(total * (1 - val_fraction))  # to the character, as nanoGPT
    spans = {"train": _spans(sources, 0, cut), "val": _spans(sources, cut, total)}
    maker = known or _tokenizer_of(spans["train"], characters, bpe_vocab_size, on_progress)

    if workers != 1:
        workers = min(workers or os.cpu_count() or 1, total // (PIECES_PER_WORKER * piece_characters))
    with encoder(maker, workers) as encode:

        def ids_of(split: str) -> Iterator[Ids]:
            done = 0 if split == "train" else cut
            for count, ids in encode(jobs(spans[split], maker, piece_characters)):
                done += count
                on_progress("encoding", done, total)
                yield ids
            _refuse_changed(sources)

        write_dataset(
            data_dir / name,
            maker,
            {split: ids_of(split) for split in SPLITS},
            prompt=_prompt(maker),
            recipe={
                "command": "python -m gpt_common.data prepare",
                "tokenizer": tokenizer if known is None else known.kind,
                "bpe_vocab_size": bpe_vocab_size,
                "val_fraction": val_fraction,
                "versions": {package: version(package) for package in ("tiktoken", "tokenizers", "numpy")},
            },
            sources=[{"file": s.path.name, "bytes": s.bytes, "sha256": s.sha256} for s in sources],
            overwrite=overwrite,
        )
    return open_dataset(name, data_dir)


@dataclass(frozen=True)
class Source:
    """A text file as the first reading found it."""

    path: Path
    bytes: int
    mtime_ns: int
    sha256: str
    characters: int


def _scan(files: Sequence[Path], known: Tokenizer | None, on_progress: Progress) -> tuple[list[Source], set[str]]:
    """Count and hash the files and, for a vocabulary that is to be made of them, collect their characters.

    Raises:
        UserError: no such file, not UTF-8, or a character that a `known` vocabulary of characters does not have.
    """
    for path in files:
        if not path.is_file():
            raise UserError(f"{path} is not a file" if path.exists() else f"no such file: {path}")
    total, done = sum(path.stat().st_size for path in files), 0
    sources, characters = [], set[str]()
    for path in files:
        status, digest, count, lines = path.stat(), hashlib.sha256(), 0, 1
        for block, text in _decoded(path):
            digest.update(block)
            if known is None:
                characters.update(text)
            elif isinstance(known, CharTokenizer) and (strange := set(text).difference(known.characters)):
                position = next(i for i, c in enumerate(text) if c in strange)
                line = lines + text.count("\n", 0, position)
                raise UserError(known.outside(text[position], f"line {line:,} of {path}"))
            count, lines, done = count + len(text), lines + text.count("\n"), done + len(block)
            on_progress("reading", done, total)
        sources.append(Source(path, status.st_size, status.st_mtime_ns, digest.hexdigest(), count))
    return sources, characters


def _decoded(path: Path) -> Iterator[tuple[bytes, str]]:
    """A file in blocks, and the text that each completes."""
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        with path.open("rb") as file:
            while block := file.read(SCAN_BYTES):
                position += len(block)
                yield block, decoder.decode(block)
        decoder.decode(b"", final=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        where = position - len(error.object) + error.start
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {where:,}): convert it first, for example with iconv"
        ) from None


def _refuse_changed(sources: Sequence[Source]) -> None:
    for source in sources:
        status = source.path.stat() if source.path.exists() else None
        if status is None or (status.st_size, status.st_mtime_ns) != (source.bytes, source.mtime_ns):
            raise UserError(f"{source.path} changed while it was read: repeat when nothing writes it")


def _spans(sources: Sequence[Source], start: int, stop: int) -> list[Span]:
    """Characters `start` to `stop` of all files taken together, file by file."""
    spans, offset = [], 0
    for source in sources:
        first, last = max(start - offset, 0), min(stop - offset, source.characters)
        if first < last:
            spans.append(Span(source.path, first, last))
        offset += source.characters
    return spans


def _known_tokenizer(choice: str) -> Tokenizer:
    """GPT-2's tokenizer, or the one at a path."""
    if choice == "gpt2":
        return Gpt2Tokenizer()
    if not Path(choice).exists():
        hint = nearest(choice, ("char", "gpt2", "bpe"))
        raise UserError(f"--tokenizer '{choice}' is neither a kind ({hint}) nor the path of a tokenizer.json")
    return load_tokenizer(Path(choice))


def _tokenizer_of(
    training: Sequence[Span], characters: set[str], bpe_vocab_size: int | None, on_progress: Progress
) -> Tokenizer:
    """A tokenizer made from the text: BPE from its training split, or all its characters."""
    if bpe_vocab_size is None:
        return CharTokenizer("".join(sorted(characters)))
    on_progress("training the BPE vocabulary", 0, 1)
    pieces = (p for span in training for p in cut_pieces(span.blocks(PIECE_CHARACTERS), last_cut_before_whitespace))
    tokenizer = train_bpe_on(pieces, bpe_vocab_size)
    on_progress("training the BPE vocabulary", 1, 1)
    return tokenizer


def _prompt(tokenizer: Tokenizer) -> str:
    """What samples start from: a line end, as in nanoGPT, where the vocabulary has it."""
    if isinstance(tokenizer, CharTokenizer) and "\n" not in tokenizer.characters:
        return tokenizer.characters[0]
    return "\n"
