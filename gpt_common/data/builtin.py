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
QA_SOURCES = (*SOURCES, *(f"conversations/{name}.py" for name in ("stories_qa", "marking", "written")))
STORIES = {"train": 12_000, "val": 500}
"""Of stories-worlds, with their notes."""
CONVERSATIONS = {"train": 16_000, "val": 1_000}
"""Of stories-qa."""
QA_VOCABULARY = 512
"""Of both: nearly every word of theirs is one token."""


def open_built_in(name: str, data_dir: Path, on_progress: Progress) -> Dataset:
    """The built-in dataset in `data_dir/name`, generated if absent, damaged, or made by other source code.

    Raises:
        UserError: it cannot be written, or the folder holds files that are not a dataset's.
    """
    folder, recipe = data_dir / name, _recipe(name)
    with _alone_in(data_dir):
        try:
            if read_meta(folder).get("recipe") == recipe:
                return open_folder(folder, on_progress)
            reason = "the generator has changed"
        except UserError:
            reason = "what is there cannot be used" if folder.exists() else "once"
        refuse_existing(folder, overwrite=True)
        size, what = {
            BUILT_IN: (CHARACTERS, "characters"),
            "stories-worlds": (STORIES, "stories"),
            "stories-qa": (CONVERSATIONS, "conversations"),
        }[name]
        on_progress(f"generating the built-in corpus into {folder} ({reason}): {sum(size.values()):,} {what}")
        if name == BUILT_IN:
            _generate(folder, recipe)
        else:
            _generate_worlds(folder, recipe)
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


def _generate_worlds(folder: Path, recipe: dict[str, Any]) -> None:
    """Both corpora of small worlds: the one that a base learns, and the questions; one tokenizer for both."""
    from gpt_common.data.conversations.marking import Marker, joined
    from gpt_common.data.conversations.reading import Conversation
    from gpt_common.data.conversations.stories_qa import write_conversations, write_texts
    from gpt_common.data.conversations.written import END, TURN, chatml
    from gpt_common.data.tokenizers import train_bpe_on
    from gpt_common.data.tokenizers.extended import with_tokens

    asked = folder.name == "stories-qa"
    learnt = [chatml(conversation).text for conversation, _ in write_conversations(SEED, "train", 1_000)]
    plain = [text.replace(TURN, "").replace(END, "") for text in learnt]
    plain += [text for text, _ in write_texts(SEED, "train", 300)]
    tokenizer = with_tokens(train_bpe_on(plain, QA_VOCABULARY - 2), (TURN, END))
    marker, parts, nats = Marker(tokenizer, "answers"), {}, 0.0
    for split in SPLITS:
        marked, split_nats = [], 0.0
        if asked:
            for conversation, cost in write_conversations(SEED, split, CONVERSATIONS[split]):
                marked.append(marker.mark(conversation, chatml(conversation)))
                split_nats += cost
        else:
            for text, cost in write_texts(SEED, split, STORIES[split]):
                conversation = Conversation("stories-worlds", text=text)
                marked.append(marker.mark(conversation, chatml(conversation)))
                split_nats += cost
        parts[split] = joined(marked)
        nats = split_nats / int(parts[split].counted.sum())
    write_dataset(
        folder,
        tokenizer,
        {split: [np.asarray(part.tokens)] for split, part in parts.items()},
        prompt="".join(learnt[0].partition(f"{TURN}assistant\n")[:2])
        if asked
        else "Mia is a fox. Leo is a hen.\nLeo is a",
        recipe=recipe,
        sources=[],
        floor=nats,
        floor_error=0.0,
        examples=parts,
        overwrite=True,
    )


def _recipe(name: str) -> dict[str, Any]:
    """What decides every byte of the corpus; the sidecar records it, and a difference means that it is stale."""
    here = Path(__file__).parent
    source = b"".join((here / file).read_bytes() for file in (SOURCES if name == BUILT_IN else QA_SOURCES))
    size: dict[str, Any] = {"characters": CHARACTERS}
    if name != BUILT_IN:
        size = {"stories": STORIES, "conversations": CONVERSATIONS, "vocabulary": QA_VOCABULARY}
    return {"generator": name, "source_sha256": hashlib.sha256(source).hexdigest(), "seed": SEED, **size}
