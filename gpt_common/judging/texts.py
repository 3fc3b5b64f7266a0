"""Loss over whole texts: every token once, behind as much as the model can see; in units that compare.

Long texts take hours: what is done is kept, a line for every stretch, and the same command goes on from there.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.data.documents import split_documents
from gpt_common.data.encode import PIECE_CHARACTERS, Span
from gpt_common.data.reading import Source, read_files, refuse_changed
from gpt_common.data.tokenizers import CharTokenizer, Tokenizer, cut_pieces, prefix_token
from gpt_common.errors import UserError
from gpt_common.files import write_atomically
from gpt_common.judging.comparison import ratio
from gpt_common.judging.scoring import Part, Scored, Scorer, parts_of, score
from gpt_common.training.whole_text import byte_lengths
from gpt_common.words import one_line

PIECE_BYTES = 4096
"""Of a document: what one figure is kept of, for the error of the whole and for comparing two models pair by pair."""
STRETCH = 1 << 16
"""Tokens that are predicted before what was found is kept."""
Piece = tuple[int, int]
"""Number of the document, and of the piece in it."""


@dataclass
class Loss:
    """What a model makes of a text."""

    name: str
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    """Of the text in UTF-8, without separators."""
    characters: int = 0
    pieces: dict[Piece, tuple[float, float]] = field(default_factory=dict)
    """Of each its bytes, and what they cost in nats."""

    @property
    def nats(self) -> float:
        """Of all tokens."""
        return math.fsum(nats for _, nats in self.pieces.values())

    @property
    def loss(self) -> float:
        """Nats per token: depends on the tokenizer."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """The same loss whatever the tokenizer."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def bits_per_character(self) -> float:
        """The same in letters, where a letter may be several bytes."""
        return self.nats / math.log(2) / self.characters if self.characters else math.nan

    @property
    def error(self) -> float:
        """Standard error of the bits per byte over pieces of the text; NaN of fewer than ten."""
        sizes, nats = np.array(list(self.pieces.values())).reshape(-1, 2).T
        return ratio(nats / math.log(2), sizes).error

    def as_json(self) -> dict[str, Any]:
        """The figures."""
        names = ("name", "documents", "tokens", "bytes", "characters", "loss", "perplexity", "bits_per_byte")
        return {name: getattr(self, name) for name in (*names, "bits_per_character", "error")}


@dataclass(frozen=True)
class Document:
    """A text that stands for itself: nothing before it is seen."""

    file: int
    ids: npt.NDArray[np.uint32]
    bytes: int
    characters: int


def read_texts(files: Sequence[Path], tokenizer: Tokenizer, separator: str | None) -> list[Source]:
    """The first reading: what the files are, and that the model's vocabulary can say all of it.

    Raises:
        UserError: no text, or characters that the vocabulary does not have.
    """
    characters = tokenizer.characters if isinstance(tokenizer, CharTokenizer) else None
    reading = read_files(files, separator, characters, lambda *_: None)
    if characters is not None and reading.outside:
        worst, count = reading.outside.most_common(1)[0]
        raise UserError(
            f"{len(reading.outside)} characters of the text are not in the model's vocabulary of "
            f"{len(characters)}, {worst!r} for one ({count:,} times, first in {reading.first_outside[worst]}): "
            "it says nothing about them; take them out"
        )
    return reading.sources


def documents_of(sources: Sequence[Source], tokenizer: Tokenizer, separator: str | None) -> Iterator[Document]:
    """The documents of the files, encoded one by one; a file ends one, and so does a separator."""
    for number, source in enumerate(sources):
        blocks = Span(source.path, 0, source.characters).blocks(PIECE_CHARACTERS)
        for is_separator, parts in groupby(split_documents(blocks, separator), key=lambda part: part[0]):
            if is_separator:
                continue
            ids, size, length = list[npt.NDArray[np.uint32]](), 0, 0
            for text in cut_pieces((text for _, text in parts), tokenizer.last_cut, at_least=PIECE_CHARACTERS):
                ids.append(np.array(tokenizer.encode(text), np.uint32))
                size, length = size + len(text.encode()), length + len(text)
            yield Document(number, np.concatenate(ids), size, length)


def loss_of(
    scorer: Scorer,
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    *,
    separator: str | None,
    stride: int,
    kept: Kept,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Loss]:
    """The loss of each file.

    Args:
        stride: see `parts_of`.
        kept: what was found before, and where more of it is kept.
        advance: hears how many bytes of text more are done.
    """
    found = [Loss(source.path.name) for source in sources]
    lengths, before = byte_lengths(tokenizer), [prefix_token(tokenizer)]
    open_documents: dict[int, tuple[Loss, npt.NDArray[np.int64]]] = {}  # of each token, in which piece it begins

    def windows() -> Iterator[Part]:
        for number, document in enumerate(documents_of(sources, tokenizer, separator)):
            mine, sizes = found[document.file], lengths[document.ids]
            mine.documents += 1
            mine.tokens += len(document.ids)
            mine.bytes += document.bytes
            mine.characters += document.characters
            pieces = (np.cumsum(sizes) - sizes) // PIECE_BYTES
            for piece, size in enumerate(np.bincount(pieces, sizes).tolist()):
                mine.pieces[number, piece] = (size, 0.0)
            open_documents[number] = mine, pieces
            yield from parts_of(document.ids, before, scorer.block_size, stride, number)

    for number, parts in enumerate(_stretches(windows())):
        if number not in kept.stretches:
            pieces = {owner: open_documents[owner][1] for owner in open_documents}
            kept.add(number, _by_piece(score(scorer, parts, likeliest=False), pieces))
        for owner, piece, nats in kept.stretches[number]:
            sums = open_documents[owner][0].pieces
            sums[owner, piece] = sums[owner, piece][0], sums[owner, piece][1] + nats
        predicted = (lengths[list(part.predicted)].sum() for part in parts)
        advance(int(sum(predicted)))
        for owner in [owner for owner in open_documents if owner < parts[-1].owner]:
            del open_documents[owner]
    refuse_changed(sources)
    kept.forget()
    return found


def _stretches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    stretch: list[Part] = []
    count = 0
    for part in parts:
        stretch.append(part)
        count += len(part.predicted)
        if count >= STRETCH:
            yield stretch
            stretch, count = [], 0
    if stretch:
        yield stretch


def _by_piece(scored: Iterable[Scored], pieces: dict[int, npt.NDArray[np.int64]]) -> list[Sum]:
    sums: dict[Piece, list[float]] = {}
    for each in scored:
        part = each.part
        for piece, nats in zip(pieces[part.owner][part.first :], each.nats, strict=False):
            sums.setdefault((part.owner, int(piece)), []).append(float(nats))
    return [(owner, piece, math.fsum(nats)) for (owner, piece), nats in sorted(sums.items())]


Sum = tuple[int, int, float]
"""Number of a document, of a piece in it, and nats of tokens that begin there."""


class Kept:
    """What was found of a text so far, a line for every stretch.

    Args:
        path: where; None keeps nothing.
        key: what it was found of. Lines of anything else are not taken up.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.stretches = path, dict[int, list[Sum]]()
        if path is None:
            return
        with suppress(OSError, ValueError):
            first, *lines = path.read_text(encoding="utf-8").split("\n")
            if json.loads(first) == key:
                for line in lines[:-1]:  # what a process that was killed was writing has no end
                    number, sums = json.loads(line)
                    self.stretches[int(number)] = [(int(owner), int(piece), float(nats)) for owner, piece, nats in sums]
        text = "".join(json.dumps(each) + "\n" for each in (key, *self.stretches.items()))
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, text)
        except (OSError, UserError):
            self._keep_no_more()

    def add(self, number: int, stretch: list[Sum]) -> None:
        """Keep one stretch more.

        Each says which it is: two evaluations of one text at once write into one file.
        """
        self.stretches[number] = stretch
        if self.path is not None:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps((number, stretch)) + "\n")
            except OSError:  # a full disk: no reason to throw away what was worked out
                self._keep_no_more()

    def _keep_no_more(self) -> None:
        assert self.path is not None
        print(
            f"note: nothing can be kept in {one_line(str(self.path.parent))}: if this is stopped, it is lost",
            file=sys.stderr,
        )
        self.path = None

    def forget(self) -> None:
        """It is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
