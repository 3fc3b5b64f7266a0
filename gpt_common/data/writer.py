"""Writing a prepared corpus: `data/NAME/{train.bin, val.bin, tokenizer.json, meta.json}`, complete or not at all."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gpt_common.data.batches import Examples
from gpt_common.data.conversations.stored import write_examples
from gpt_common.data.conversations.templates import SETTINGS
from gpt_common.data.tokenizers import Tokenizer, identity
from gpt_common.errors import UserError
from gpt_common.files import (
    cannot_write,
    discard_on_error,
    is_system_file,
    move_into_place,
    sweep_leftovers,
    temporary_beside,
)

FORMAT_VERSION = 1
SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")
OUR_FILES = {
    "train.bin", "val.bin", "tokenizer.json", "meta.json", "verified.json", "train.examples", "val.examples", SETTINGS,
}  # fmt: skip

TokenIds = npt.NDArray[np.integer[Any]]


def write_dataset(
    folder: Path,
    tokenizer: Tokenizer,
    splits: Mapping[str, Iterable[TokenIds]],
    *,
    prompt: str,
    separator: str | None = None,
    recipe: Mapping[str, Any],
    sources: list[dict[str, Any]],
    floor: float | None = None,
    floor_error: float | None = None,
    examples: Mapping[Literal["train", "val"], Examples] | None = None,
    settings: str | None = None,
    overwrite: bool,
) -> None:
    """Write a dataset folder from token ids that are made as they are needed.

    Everything goes to `NAME.tmp-<pid>`, is synced, and takes its name by a rename: an interruption leaves nothing.

    Args:
        folder: `data_dir/NAME`.
        splits: arrays of token ids for "train" and for "val", in this order.
        separator: the text between two documents, for which the tokenizer's end of text stands; for the sidecar.
        recipe: how it was made, for the sidecar.
        sources: file names, sizes and SHA-256 of the texts, for the sidecar.
        floor, floor_error: best possible loss in nats per token, where it is known.
        examples: of conversations: where they end and what of them counts; the token ids are those of `splits`.
        settings: of the tokenizer: the template by which conversations were written out, if it is not ours.
        overwrite: replace a dataset of that name.

    Raises:
        UserError: the folder exists and is not to be replaced, or holds other files; a split is empty; no space.
    """
    refuse_existing(folder, overwrite=overwrite)
    temporary = temporary_beside(folder)
    dtype = dtype_of_ids(tokenizer.vocab_size)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(folder.parent, folder.name)
        with discard_on_error(temporary):
            temporary.mkdir()
            written, counts = {}, {}
            for split in SPLITS:
                path = temporary / f"{split}.bin"
                written[split], counts[split] = _write_tokens(path, splits[split], dtype, tokenizer)
                if not counts[split].any():
                    raise UserError(f"the {split} split of {folder} would be empty: there is too little text")
            learnt = counts["train"]
            if examples is not None:
                learnt = np.bincount(examples["train"].tokens[examples["train"].counted == 1])
            tokenizer.save(temporary / "tokenizer.json")
            if settings is not None:
                (temporary / SETTINGS).write_text(settings, encoding="utf-8")
            meta = {
                "format_version": FORMAT_VERSION,
                "tokenizer": identity(tokenizer),
                "dtype": dtype.name,
                "splits": written,
                "unigram_entropy": entropy(learnt),
                "floor": floor,
                "floor_error": floor_error,
                "prompt": prompt,
                "separator": separator,
                "end_of_text": tokenizer.end_of_text,
                "recipe": dict(recipe),
                "sources": sources,
                "examples": None
                if examples is None
                else {split: write_examples(temporary / f"{split}.examples", examples[split]) for split in SPLITS},
            }
            (temporary / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            move_into_place(
                temporary, folder, may_replace=functools.partial(refuse_existing, folder, overwrite=overwrite)
            )
    except OSError as error:
        raise cannot_write(folder, error) from None


def dtype_of_ids(vocab_size: int) -> np.dtype[Any]:
    """The smallest that holds every id; little-endian."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def refuse_existing(folder: Path, *, overwrite: bool) -> None:
    """Raise a UserError if `folder` exists and is not to be replaced, or holds files that are not a dataset's."""
    if not folder.exists():
        return
    if not overwrite:
        raise UserError(f"{folder} exists already: add --overwrite to replace it, or take another name")
    names = {path.name for path in folder.iterdir() if not is_system_file(path)} if folder.is_dir() else {folder.name}
    foreign = sorted(names - OUR_FILES)
    if foreign:
        raise UserError(f"{folder} holds {foreign[0]}, which is no part of a dataset: move it before it is replaced")


def entropy(counts: npt.NDArray[np.int64]) -> float:
    """Entropy of the distribution that `counts`, (V,), give, in nats."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def _write_tokens(
    path: Path, arrays: Iterable[TokenIds], dtype: np.dtype[Any], tokenizer: Tokenizer
) -> tuple[dict[str, Any], npt.NDArray[np.int64]]:
    """Write one split; returns its entry in the sidecar and how often each id occurs, (V,)."""
    digest, counts, last = hashlib.sha256(), np.zeros(tokenizer.vocab_size, np.int64), -1
    opens, end = False, tokenizer.end_of_text
    with path.open("wb") as file:
        for ids in arrays:
            opens = opens or (last == -1 and len(ids) > 0 and ids[0] == end)
            data = ids.astype(dtype).tobytes()
            file.write(data)
            digest.update(data)
            counts += np.bincount(ids, minlength=tokenizer.vocab_size)
            last = int(ids[-1]) if len(ids) else last
    # Ready tokens may have the end of text before each document instead.
    documents = None if end is None else int(counts[end]) + (last != end and not opens)
    return {"tokens": int(counts.sum()), "documents": documents, "sha256": digest.hexdigest()}, counts
