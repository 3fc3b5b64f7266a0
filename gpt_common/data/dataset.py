"""Opening a dataset: token ids that were checked, every one of them, before a framework sees them.

A prepared corpus is a folder `data_dir/NAME`:

    train.bin, val.bin   token ids, little-endian uint16 (vocabularies up to 65 536) or uint32, nothing else
    tokenizer.json       what `gpt_common.data.tokenizers` saved
    train.examples, ...  of conversations: where each example ends, uint64, then a byte per token: 1 where it counts
    meta.json            the sidecar: format version, tokenizer, dtype, tokens, documents and SHA-256 per split, unigram
                         entropy, floor, prompt, separator, source files with their SHA-256, how it was made
    verified.json        size, times and SHA-256 of large files when they were last hashed; may be deleted

Sizes, the tokenizer and every id are checked at each open, and so is the SHA-256 of files up to 256 MB. A larger
file is hashed only when its size or one of its times has changed since it was last found right (verified.json).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_common.data.batches import Examples, Rows, Source, Split, Stream, Windows
from gpt_common.data.conversations.stored import open_examples
from gpt_common.data.tokenizers import Tokenizer, load_tokenizer
from gpt_common.data.writer import FORMAT_VERSION, SPLITS, TokenIds
from gpt_common.errors import UserError
from gpt_common.files import write_atomically

BUILT_IN = "stories"
BUILT_INS = (BUILT_IN, "stories-worlds", "stories-qa")
"""Made at first use: stories, and small worlds told, and asked about."""
SHAKESPEARE = ("shakespeare", "shakespeare_char")
PREPARABLE = (*SHAKESPEARE, "tinystories")
HASH_ALWAYS_BYTES = 256 << 20
CHUNK_TOKENS = 1 << 22

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Dataset:
    """A corpus as token ids."""

    name: str
    """What `--dataset` called it."""
    train: TokenIds
    """Memory-mapped training split, (N,), uint16 or uint32."""
    val: TokenIds
    """Memory-mapped validation split, (N,), uint16 or uint32."""
    tokenizer: Tokenizer
    """What made the ids."""
    fingerprint: str
    """SHA-256 (hex) over the tokenizer's fingerprint and both splits' SHA-256."""
    unigram_entropy: float
    """Nats per token: the loss of a model that knows only how often each id occurs in the training split."""
    floor: float | None
    """Best possible validation loss in nats per token, where the corpus was generated and it is known."""
    floor_error: float | None
    """Standard error of `floor`."""
    prompt: str
    """What samples start from if no prompt is given."""
    separator: str | None = None
    """The text that stood between two documents, where the tokenizer's end of text now stands."""
    documents: tuple[int, int] | None = None
    """How many there are in the training and in the validation split, where their ends are known."""
    examples: tuple[Examples, Examples] | None = None
    """Of conversations: where each ends in the training and in the validation split, and which tokens count."""
    stream: Stream | None = None
    """Of a preparation that is followed: all that is trained on; `train` is what it begins with."""
    preparation: dict[str, Any] | None = None
    """And what is prepared: data set, commit, column and what else decides its tokens."""

    @property
    def identity(self) -> dict[str, Any]:
        """What runs and checkpoints record of the dataset that they were trained on."""
        more = {} if self.preparation is None else {"preparation": self.preparation}
        return {"name": self.name, "fingerprint": self.fingerprint, **more}

    def splits(self, block_size: int, *, packing: bool) -> tuple[Source, Split]:
        """Where training and validation batches come from: the texts, windows of a stream, or the examples in rows."""
        if self.stream is not None:
            return Windows(self.stream, block_size), self.val
        if self.examples is None:
            return self.train, self.val
        pad = self.tokenizer.end_of_text or 0
        train, val = (Rows(part, block_size, packing=packing, pad=pad) for part in self.examples)
        return train, val


def open_folder(folder: Path, on_progress: Progress) -> Dataset:
    """The prepared corpus in `folder`; raises as `open_dataset`."""
    meta = read_meta(folder)
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    try:
        recorded, dtype = meta["tokenizer"], np.dtype(meta["dtype"]).newbyteorder("<")
        if tokenizer.fingerprint != recorded["fingerprint"] or tokenizer.vocab_size != recorded["vocab_size"]:
            raise UserError(f"{folder}/tokenizer.json is not the tokenizer that made this dataset: {_again(folder)}")
        splits = {
            split: _open_split(folder, split, meta["splits"][split], dtype, tokenizer, on_progress) for split in SPLITS
        }
        hashes = [tokenizer.fingerprint, *(meta["splits"][split]["sha256"] for split in SPLITS)]
        examples = None
        if meta.get("examples") is not None:
            hashes += [meta["examples"][split]["sha256"] for split in SPLITS]
            train, val = (open_examples(folder, split, splits[split], meta["examples"][split]) for split in SPLITS)
            examples = train, val
        documents = [meta["splits"][split].get("documents") for split in SPLITS]  # not in older sidecars
        return Dataset(
            name=folder.name,
            train=splits["train"],
            val=splits["val"],
            tokenizer=tokenizer,
            fingerprint=hashlib.sha256("".join(hashes).encode()).hexdigest(),
            unigram_entropy=float(meta["unigram_entropy"]),
            floor=meta["floor"],
            floor_error=meta["floor_error"],
            prompt=meta["prompt"],
            separator=meta.get("separator"),
            documents=(documents[0], documents[1]) if None not in documents else None,
            examples=examples,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/meta.json lacks or garbles {error}: {_again(folder)}") from None


def check_name(name: str) -> str:
    """`name`, if a folder of a dataset may be called so.

    Raises:
        UserError: it is a path, or would be taken for the trace of an interrupted preparation.
    """
    if not re.fullmatch(r"\w[\w.-]*", name) or ".tmp-" in name:
        raise UserError(f"'{name}' is no name for a dataset: letters, digits, '_', '-' and '.' only")
    return name


def check_new_name(name: str) -> None:
    """Refuse a name that a corpus of one's own cannot have.

    Raises:
        UserError: it is none for a folder of a dataset, or that of a built-in corpus.
    """
    if check_name(name) in BUILT_INS:
        raise UserError(f"the name '{name}' belongs to a built-in corpus: take another --name")


def check_block(dataset: Dataset, block_size: int) -> None:
    """Refuse a dataset with a split too short for one block and its labels, block_size + 1 tokens.

    Raises:
        UserError: names the largest block size that both splits hold.
    """
    if dataset.examples is not None:
        longest = max(int(part.lengths.max()) for part in dataset.examples)
        if longest > block_size + 1:
            raise UserError(
                f"the longest example of '{dataset.name}' has {longest} tokens, and a block of {block_size} holds "
                f"{block_size + 1}: prepare it again with --block-size {block_size}, or train with a block_size of "
                f"{longest - 1}"
            )
        return
    shortest = min(len(dataset.train), len(dataset.val))
    if shortest < block_size + 1:
        smaller = f"take a block_size up to {shortest - 1}, or more text" if shortest > 1 else "take more text"
        raise UserError(
            f"block_size {block_size} needs {block_size + 1} tokens in each split, and '{dataset.name}' has "
            f"{len(dataset.train)} for training and {len(dataset.val)} for validation: {smaller}"
        )


def read_meta(folder: Path) -> dict[str, Any]:
    """The sidecar of a prepared corpus.

    Raises:
        UserError: missing, unreadable, or of another format version.
    """
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no meta.json, so what its ids mean is not known: "
            "prepare the text with `python -m gpt_common.data prepare --text FILE --name NAME`"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): {_again(folder)}") from None
    if not isinstance(meta, dict) or meta.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path} is not of format version {FORMAT_VERSION}: {_again(folder)}")
    return meta


def _open_split(
    folder: Path,
    split: str,
    recorded: dict[str, Any],
    dtype: np.dtype[Any],
    tokenizer: Tokenizer,
    on_progress: Progress,
) -> TokenIds:
    """Memory-map one split after checking its size, its ids and its SHA-256."""
    path = folder / f"{split}.bin"
    try:
        status = path.stat()
        expected = recorded["tokens"] * dtype.itemsize
        if status.st_size == 0:
            raise UserError(f"{path} is empty: {_again(folder)}")
        if status.st_size != expected:
            raise UserError(f"{path} has {status.st_size} bytes where {expected} were written: {_again(folder)}")
        tokens = np.memmap(path, dtype, mode="r")
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, recorded["sha256"]]
        must_hash = status.st_size <= HASH_ALWAYS_BYTES or _verified(folder).get(path.name) != stamp
        if status.st_size > HASH_ALWAYS_BYTES:
            on_progress(f"checking {path}" + (" and its SHA-256 (once)" if must_hash else ""))
        digest = hashlib.sha256()
        for start in range(0, len(tokens), CHUNK_TOKENS):
            chunk = tokens[start : start + CHUNK_TOKENS]
            # MLX reads, and in the backward pass writes, foreign memory at an id outside the embedding.
            if chunk.max() >= tokenizer.vocab_size:
                position = start + int((chunk >= tokenizer.vocab_size).argmax())
                raise UserError(
                    f"{path} holds token id {tokens[position]} at position {position}, outside the vocabulary of "
                    f"{tokenizer.vocab_size}: {_again(folder)}"
                )
            if must_hash:
                digest.update(chunk.data)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {_again(folder)}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if must_hash and digest.hexdigest() != recorded["sha256"]:
        raise UserError(f"{path} has changed since it was written (its SHA-256 differs): {_again(folder)}")
    if must_hash and status.st_size > HASH_ALWAYS_BYTES:
        _remember(folder, path.name, stamp)
    return tokens


def _verified(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / "verified.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _remember(folder: Path, name: str, stamp: list[Any]) -> None:
    record = {**_verified(folder), name: stamp}
    with contextlib.suppress(OSError):  # in a read-only folder: hashed again next time
        write_atomically(folder / "verified.json", json.dumps(record) + "\n")


def prepare_command(name: str, data_dir: Path, *, overwrite: bool = False) -> str:
    """The command that makes the dataset `name`."""
    command = f"python -m gpt_common.data prepare {name if name in PREPARABLE else f'--text FILE --name {name}'}"
    command += "" if data_dir == Path("data") else f" --data-dir {data_dir}"
    return command + (" --overwrite" if overwrite else "")


def _again(folder: Path) -> str:
    return f"make it again with `{prepare_command(folder.name, folder.parent, overwrite=True)}`"
