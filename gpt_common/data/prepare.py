"""Preparing a corpus: the text is read once to count and check it, and once to encode it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from gpt_common.data.catalogue import open_dataset
from gpt_common.data.corpora.cutting import check_share
from gpt_common.data.dataset import PREPARABLE, SHAKESPEARE, Dataset, check_new_name
from gpt_common.data.documents import cut_at_document, separator_of, split_documents
from gpt_common.data.download import (
    TINY_SHAKESPEARE,
    TINY_STORIES,
    TINY_STORIES_VALIDATION,
    Progress,
    Text,
    check_local,
    fetch,
)
from gpt_common.data.encode import PIECE_CHARACTERS, Ids, Span, encoder, jobs
from gpt_common.data.reading import Reading, Source, read_files, refuse_changed
from gpt_common.data.tokenizers import (
    CharTokenizer,
    Tokenizer,
    cut_pieces,
    default_bpe_vocab_size,
    default_prompt,
    known_tokenizer,
    last_cut_before_whitespace,
    train_bpe_on,
)
from gpt_common.data.writer import SPLITS, refuse_existing, write_dataset
from gpt_common.errors import UserError, nearest

TOKENIZERS = {"shakespeare": "gpt2", "shakespeare_char": "char", "tinystories": "bpe"}
"""The corpora that have names, two of them as in nanoGPT's `data/`, and their tokenizers."""
TINY_STORIES_VOCABULARY = 10_000

PIECES_PER_WORKER = 16
"""A process of its own pays off from about this much text."""
LISTED = 20
"""Characters outside the vocabulary that are named, at most."""


def prepare_named(
    name: str,
    data_dir: Path,
    *,
    from_file: Path | None = None,
    overwrite: bool = False,
    workers: int = 0,
    on_progress: Progress,
    text: Text | None = None,
    validation: Text = TINY_STORIES_VALIDATION,
) -> Dataset:
    """Prepare a corpus that has a name.

    Tiny Shakespeare as nanoGPT does, 90 % for training: by characters, or with GPT-2's vocabulary. TinyStories as its
    paper does: a vocabulary of 10 000 trained on it, and its own validation text.

    Args:
        name: `shakespeare_char`, `shakespeare` or `tinystories`.
        from_file: the text, instead of a download to `data_dir/downloads`; for TinyStories with the validation text
            beside it, or one of the two texts alone, whose last tenth is then for validation.
        text: where it comes from and what it must be.
        validation: the same for TinyStories' second text.

    Raises:
        UserError: unknown name, existing dataset, no network, or not the text that the name stands for.
    """
    if name not in PREPARABLE:
        hint = f"for a text of your own: --text {name if Path(name).exists() else 'FILE'} --name NAME --tokenizer char"
        raise UserError(f"no corpus '{name}' ({nearest(name, PREPARABLE)}); {hint}")
    refuse_existing(data_dir / name, overwrite=overwrite)
    is_shakespeare = name in SHAKESPEARE
    text = text or (TINY_SHAKESPEARE if is_shakespeare else TINY_STORIES)
    texts = (text,) if is_shakespeare else (text, validation)
    if from_file is None:
        files = [fetch(one, data_dir / "downloads", on_progress) for one in texts]
    else:
        alone = validation if not is_shakespeare and from_file.name == validation.file_name else text
        check_local(alone, from_file)
        files, beside = [from_file], from_file.with_name(validation.file_name)
        if alone is text and not is_shakespeare and beside.exists():
            check_local(validation, beside)
            files.append(beside)
    return prepare_texts(
        files,
        name,
        data_dir,
        TOKENIZERS[name],
        bpe_vocab_size=None if is_shakespeare else TINY_STORIES_VOCABULARY,
        training_files=1 if len(files) > 1 else None,
        overwrite=overwrite,
        workers=workers,
        on_progress=on_progress,
    )


def prepare_texts(
    files: Sequence[Path],
    name: str,
    data_dir: Path,
    tokenizer: str,
    *,
    bpe_vocab_size: int | None = None,
    separator: str | None = None,
    unknown: str | None = None,
    val_fraction: float | None = None,
    training_files: int | None = None,
    overwrite: bool = False,
    workers: int = 0,
    piece_characters: int = PIECE_CHARACTERS,
    on_progress: Progress,
) -> Dataset:
    """Prepare UTF-8 files, one after the other, with an end-of-text token between two where the tokenizer has it.

    The last `val_fraction` of all characters is the validation split; in a text of documents, from where one begins.

    Args:
        tokenizer: `char` (the characters of the text), `gpt2`, `bpe` (trained on the training split), or the path
            of a tokenizer, or of the folder of a dataset, checkpoint or run.
        bpe_vocab_size: size of the vocabulary that `bpe` trains; None: by the size of the text.
        separator: the text between two documents, for which the end-of-text token stands; None: <|endoftext|> where
            the text has it; `none`: one document.
        unknown: what to write for characters outside a given vocabulary of characters; `drop` leaves them out.
        training_files: how many of the files, from the first, are for training and the others for validation; None:
            `val_fraction` decides.
        workers: processes; 0 means one per core. Their number does not change the result.
        piece_characters: how much is encoded at once; it does not change the result.

    Raises:
        UserError: impossible arguments, existing dataset, unreadable file, character outside the vocabulary.
    """
    check_new_name(name)
    share = check_share(val_fraction)
    if tokenizer != "bpe" and bpe_vocab_size is not None:
        raise UserError(
            "--bpe-vocab-size is the size of a vocabulary that --tokenizer bpe trains: leave one of them out"
        )
    if workers < 0:
        raise UserError(f"--workers is {workers}: it must be at least 1, or 0 for one per core")
    if separator == "":
        raise UserError("--separator is empty: give the text between two documents, or none")
    refuse_existing(data_dir / name, overwrite=overwrite)
    known = None if tokenizer in ("char", "bpe") else known_tokenizer(tokenizer, ("char", "bpe"))
    vocabulary = known.characters if isinstance(known, CharTokenizer) else None
    if unknown is not None and (vocabulary is None or (unknown != "drop" and unknown not in set(vocabulary))):
        raise UserError(
            f"--unknown is '{unknown}': it must be drop or a character of the vocabulary"
            if vocabulary
            else "--unknown is for a vocabulary of characters that --tokenizer takes from a file, dataset or run"
        )
    between = separator_of(separator)
    reading = read_files(files, between, vocabulary, on_progress)
    between = _checked_separator(between, separator, reading, known, tokenizer)
    if reading.outside and unknown is None:
        raise UserError(_outside(reading, len(vocabulary or ""), tokenizer))
    sources, total = reading.sources, sum(source.characters for source in reading.sources)
    cut = int(total * (1 - share))  # to the character, as nanoGPT
    if training_files is not None:
        cut = sum(source.characters for source in sources[:training_files])
    elif between is not None:
        start = max(0, cut - len(between) - 3)
        parts = (
            part
            for span in _spans(sources, start, total)
            for part in split_documents(span.blocks(piece_characters), between)
        )
        cut = cut_at_document(parts, cut, total, start)
    spans = {"train": _spans(sources, 0, cut), "val": _spans(sources, cut, total)}
    if tokenizer == "bpe":
        size = bpe_vocab_size or default_bpe_vocab_size(cut)
        maker: Tokenizer = _trained_bpe(spans["train"], between, size, on_progress)
    else:
        maker = known or CharTokenizer("".join(sorted(reading.characters)), end_of_text=name not in SHAKESPEARE)
    replacements = dict.fromkeys(map(ord, reading.outside), None if unknown == "drop" else unknown)

    if workers != 1:
        workers = min(workers or os.cpu_count() or 1, total // (PIECES_PER_WORKER * piece_characters))
    with encoder(maker, workers) as encode:

        def ids_of(split: str) -> Iterator[Ids]:
            done, end = (0, cut) if split == "train" else (cut, total)
            for count, ids in encode(jobs(spans[split], maker, piece_characters, between, replacements)):
                done += count
                on_progress("encoding", done, total)
                yield ids
            if done < end:  # separators, and characters that were left out
                on_progress("encoding", end, total)
            refuse_changed(sources)

        write_dataset(
            data_dir / name,
            maker,
            {split: ids_of(split) for split in SPLITS},
            prompt=default_prompt(maker),
            separator=between,
            recipe={
                "command": "python -m gpt_common.data prepare",
                "tokenizer": tokenizer if known is None else known.kind,
                "bpe_vocab_size": size if tokenizer == "bpe" else None,
                "val_fraction": share,
                "unknown": unknown,
                "versions": {package: version(package) for package in ("tiktoken", "tokenizers", "numpy")},
            },
            sources=[{"file": s.path.name, "bytes": s.bytes, "sha256": s.sha256} for s in sources],
            overwrite=overwrite,
        )
    return open_dataset(name, data_dir)


def _checked_separator(
    between: str | None, asked: str | None, reading: Reading, known: Tokenizer | None, tokenizer: str
) -> str | None:
    """The separator, None where it was not asked for and the text has none.

    Raises:
        UserError: it was asked for and is not there, or the tokenizer has no token for it.
    """
    if between is None or (not reading.separators and asked is None):
        return None
    if not reading.separators:
        raise UserError(f"--separator {asked!r} does not occur in the text")
    if known is not None and known.end_of_text is None:
        raise UserError(
            f"the text has {between!r} {reading.separators:,} times between its documents, and the tokenizer "
            f"{tokenizer} has no end-of-text token: --separator none takes it as ordinary text"
        )
    return between


def _outside(reading: Reading, size: int, tokenizer: str) -> str:
    """What to say of characters that a vocabulary of `size` characters does not have."""
    found = sorted(reading.outside.items(), key=lambda entry: (-entry[1], entry[0]))
    listed = [f"{c!r} {count:,} x" for c, count in found[:LISTED]]
    listed[0] += f" (first in {reading.first_outside[found[0][0]]})"
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    characters = f"{len(found)} characters of the text are" if len(found) > 1 else "a character of the text is"
    return (
        f"{characters} not among the {size} of {tokenizer}: {', '.join(listed)}{more}. "
        "--unknown drop leaves them out, --unknown CHAR writes CHAR in their place"
    )


def _spans(sources: Sequence[Source], start: int, stop: int) -> list[Span]:
    """Characters `start` to `stop` of all files taken together, file by file."""
    spans, offset = [], 0
    for source in sources:
        first, last = max(start - offset, 0), min(stop - offset, source.characters)
        if first < last:
            spans.append(Span(source.path, first, last))
        offset += source.characters
    return spans


def _trained_bpe(training: Sequence[Span], separator: str | None, vocab_size: int, on_progress: Progress) -> Tokenizer:
    """BPE from the documents of the training split."""
    on_progress("training the BPE vocabulary", 0, 1)
    documents = (
        text
        for span in training
        for is_separator, text in split_documents(span.blocks(PIECE_CHARACTERS), separator)
        if not is_separator
    )
    tokenizer = train_bpe_on(cut_pieces(documents, last_cut_before_whitespace), vocab_size)
    on_progress("training the BPE vocabulary", 1, 1)
    return tokenizer
