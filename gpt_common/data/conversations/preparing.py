"""Preparing conversations: read, written out by a template, encoded, marked, shown, and put on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice, tee
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gpt_common.data.batches import Examples, Rows
from gpt_common.data.catalogue import open_dataset
from gpt_common.data.conversations.marking import Marked, Marker, TrainOn, joined
from gpt_common.data.conversations.reading import Conversation, read_conversations
from gpt_common.data.conversations.summary import summary_lines, to_show
from gpt_common.data.conversations.templates import settings_of, template_beside
from gpt_common.data.conversations.written import END, TURN, Template
from gpt_common.data.corpora.cutting import check_share
from gpt_common.data.dataset import Dataset, check_new_name
from gpt_common.data.download import Progress
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer, known_tokenizer, train_bpe_on
from gpt_common.data.tokenizers.bpe import default_bpe_vocab_size
from gpt_common.data.tokenizers.extended import with_tokens
from gpt_common.data.writer import refuse_existing, write_dataset
from gpt_common.errors import UserError
from gpt_common.files import sha256_of


def prepare_conversations(
    files: Sequence[Path],
    name: str,
    data_dir: Path,
    tokenizer: str,
    *,
    template: str | None = None,
    train_on: TrainOn = "answers",
    block_size: int | None = None,
    bpe_vocab_size: int | None = None,
    val_fraction: float | None = None,
    overwrite: bool = False,
    on_progress: Progress,
    say: Callable[[str], None] = print,
) -> Dataset:
    """Prepare files of JSON lines; the last `val_fraction` of the examples is the validation split.

    Args:
        tokenizer: `char`, `gpt2`, `bpe`, or the path of a tokenizer, or of the folder of a dataset, checkpoint or run.
        template: `chatml`, or a file of Jinja; None: the one that stands beside the tokenizer, else ChatML.
        train_on: which tokens count.
        block_size: longer examples are cut to it and one more; None: none is.
        say: is told, line by line, what will be learnt, before anything is written.

    Raises:
        UserError: impossible arguments, existing dataset, a line that is no example or has no answer; names it.
    """
    check_new_name(name)
    share = check_share(val_fraction)
    if block_size is not None and block_size < 1:
        raise UserError(f"--block-size is {block_size}: it must be at least 1")
    refuse_existing(data_dir / name, overwrite=overwrite)
    conversations = _Files(tuple(files))
    count = sum(1 for _ in conversations)
    if count < 2:
        raise UserError(f"{files[0]} has {count} examples: at least one is for training and one for validation")
    made = _tokenizer(tokenizer, conversations, bpe_vocab_size)
    form = template_beside(template, tokenizer)
    if form.source is None:
        made = with_tokens(made, (TURN, END))
    marker = Marker(made, train_on, 0 if block_size is None else block_size + 1)
    marked = _marked(conversations, count, form, marker, on_progress)
    wanted, shown, cut = to_show(count), dict[int, Marked](), 0

    def seen() -> Iterator[Marked]:
        nonlocal cut
        for number, example in marked:
            cut += example.cut
            if number in wanted:
                shown[number] = example
            yield example

    examples, for_training = seen(), count - min(count - 1, max(1, round(count * share)))
    parts: dict[Literal["train", "val"], Examples] = {
        "train": joined(islice(examples, for_training)),
        "val": joined(examples),
    }
    if sum(len(part.ends) for part in parts.values()) != count:
        raise UserError(f"{files[0]} has changed while it was read: repeat the command")
    block = block_size or max(1, max(int(part.lengths.max()) for part in parts.values()) - 1)
    say(f"{data_dir / name}")
    rows = [Rows(part, block, packing=True) for part in parts.values()]
    for line in summary_lines(rows, shown, cut, made, block):
        say(line)
    first = parts["val"].tokens[: parts["val"].ends[0]]
    write_dataset(
        data_dir / name,
        made,
        {split: [np.asarray(part.tokens)] for split, part in parts.items()},
        prompt=made.decode(first[: int(parts["val"].counted.argmax())].tolist()),
        recipe={
            "command": "python -m gpt_common.data prepare --conversations",
            "template": form.name,
            "template_sha256": None if form.source is None else hashlib.sha256(form.source.encode()).hexdigest(),
            "train_on": train_on,
            "block_size": block_size,
            "val_fraction": share,
            "versions": {package: version(package) for package in ("jinja2", "tokenizers", "numpy")},
        },
        sources=[_source(path) for path in files],
        examples=parts,
        settings=None if form.source is None else settings_of(form),
        overwrite=overwrite,
    )
    return open_dataset(name, data_dir)


@dataclass(frozen=True)
class _Files:
    """What is said in them, read anew each time it is asked for: it may be more than fits into memory."""

    paths: tuple[Path, ...]

    def __iter__(self) -> Iterator[Conversation]:
        return read_conversations(self.paths)


def _marked(
    conversations: Iterable[Conversation], count: int, template: Template, marker: Marker, on_progress: Progress
) -> Iterator[tuple[int, Marked]]:
    """Every example with its number."""
    checked, kept = tee(marker.check(conversation) for conversation in conversations)
    with template.writer() as write:
        for number, (conversation, written) in enumerate(zip(kept, write(checked), strict=True)):
            yield number, marker.mark(conversation, written)
            if (number + 1) % 1000 == 0 or number + 1 == count:
                on_progress("encoding", number + 1, count)


def _tokenizer(choice: str, conversations: Iterable[Conversation], bpe_vocab_size: int | None) -> Tokenizer:
    def texts() -> Iterator[str]:
        for conversation in conversations:
            yield from ([conversation.text] if conversation.text else [])
            yield from (f"{message.role}\n{message.content}\n" for message in conversation.messages)
            yield from ([f"Tools:\n{conversation.tools}\n\n"] if conversation.tools else [])

    if bpe_vocab_size is not None and choice != "bpe":
        raise UserError("--bpe-vocab-size is for --tokenizer bpe: leave one of them out")
    if choice == "char":
        return CharTokenizer("".join(sorted({letter for text in texts() for letter in text})), end_of_text=True)
    if choice == "bpe":
        size = bpe_vocab_size or default_bpe_vocab_size(sum(map(len, texts())))
        return train_bpe_on(texts(), size)
    return known_tokenizer(choice, ("char", "bpe"))


def _source(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
