"""`evaluate --text`: the loss over whole texts, in figures that compare between models and tokenizers."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_common.data.documents import separator_of
from gpt_common.data.reading import Source as File
from gpt_common.data.tokenizers import prefix_token
from gpt_common.errors import UserError
from gpt_common.judging.comparison import WIDE, ratio
from gpt_common.judging.measure import Asked
from gpt_common.judging.scoring import Scorer
from gpt_common.judging.texts import Kept, Loss, loss_of, read_texts
from gpt_common.progress import Progress
from gpt_common.training.manifest import STATE_FILE
from gpt_common.words import one_line, shortened

BITS = 1 / math.log(2)
"""In a nat."""


@dataclass(frozen=True)
class TextResult:
    """The loss of each file, and of all."""

    files: list[Loss]
    total: Loss
    before: str
    """What stands before the first token of a document."""
    block_size: int
    stride: int

    def lines(self) -> Iterator[str]:
        """A line for each file, and one for all."""
        yield f"  windows of {self.block_size} tokens, {self.stride} on at a time"
        yield f"  the first token of a document is predicted behind {self.before}"
        yield f"  {'text':<18} {'tokens':>11} {'nats/token':>10} {'bits/byte':>16} {'bits/char':>9} {'perpl.':>8}"
        for each in [*self.files, self.total] if len(self.files) > 1 else self.files:
            error = f"±{each.error:.4f}" if each.error == each.error else ""
            yield (
                f"  {shortened(one_line(each.name), 18):<18} {each.tokens:>11,} {each.loss:>10.4f} "
                f"{each.bits_per_byte:>8.4f} {error:>7} {each.bits_per_character:>9.4f} {each.perplexity:>8.4g}"
            )

    def as_json(self) -> dict[str, Any]:
        """The same, with every file's bytes and characters."""
        return {
            "predicted_behind": self.before,
            "block_size": self.block_size,
            "stride": self.stride,
            "files": [each.as_json() for each in self.files],
            "total": self.total.as_json(),
        }

    def against(self, other: TextResult) -> Iterator[str]:
        """Bits per byte, piece by piece of the text."""
        mine, theirs = self.total.pieces, other.total.pieces
        sizes: dict[Any, float] = {}
        nats: dict[Any, float] = {}
        # Two tokenizers cut the text at other places: a piece's bytes are those that either counts to it.
        for pieces, sign in ((mine, 1), (theirs, -1)):
            for piece, (size, cost) in pieces.items():
                sizes[piece] = sizes.get(piece, 0.0) + size / 2
                nats[piece] = nats.get(piece, 0.0) + sign * cost
        found = ratio([nats[piece] * BITS for piece in sizes], list(sizes.values()))
        difference = self.total.bits_per_byte - other.total.bits_per_byte
        low, high = (difference + side * WIDE * found.error for side in (-1, 1))
        better = sum(cost < 0 for cost in nats.values())
        interval = f" (95 %: {low:+.4f} to {high:+.4f})" if found.error == found.error else " (too short for an error)"
        yield (
            f"  bits/byte: {self.total.bits_per_byte:.4f} against {other.total.bits_per_byte:.4f}, "
            f"{difference:+.4f}{interval}"
        )
        yield f"  fewer bits in {better:,} of {len(nats):,} pieces of 4 kB"


class TextMeasure:
    """Asks for the loss of texts.

    Args:
        stride: tokens by which windows move on; 0 means half a block.
        separator: as `--separator` says it.
    """

    name = "text"

    def __init__(self, files: Sequence[Path], stride: int, separator: str | None) -> None:
        self.files, self.stride, self.separator = files, stride, separator_of(separator)
        self.read: dict[str, list[File]] = {}

    @property
    def about(self) -> str:
        """The text's name, or how many there are."""
        return self.files[0].name if len(self.files) == 1 else f"{len(self.files)} texts"

    def prepare(self, asked: Asked) -> None:
        """Read the texts once."""
        if self.stride > asked.source.model.block_size:
            raise UserError(
                f"--stride {self.stride} is more than the model's block of {asked.source.model.block_size}: windows "
                "would leave out tokens between them"
            )
        tokenizer = asked.source.tokenizer
        self.read[tokenizer.fingerprint] = read_texts(self.files, tokenizer, self.separator)

    def ask(self, scorer: Scorer, asked: Asked) -> TextResult:
        """Go through all of it."""
        tokenizer = asked.source.tokenizer
        files = self.read[tokenizer.fingerprint]
        stride = self.stride or max(1, scorer.block_size // 2)
        total_bytes = sum(file.bytes for file in files)
        kept = Kept(*self._place(asked, files, stride))
        try:
            with Progress(of_bytes=True) as progress:
                found = loss_of(
                    scorer,
                    files,
                    tokenizer,
                    separator=self.separator,
                    stride=stride,
                    kept=kept,
                    advance=progress.counting("scoring", total_bytes),
                )
        except KeyboardInterrupt:
            if kept.path is not None and kept.stretches:
                print("\nwhat is done is kept: the same command goes on from there", file=sys.stderr)
            raise
        total = Loss("all")
        for each in found:
            for name in ("documents", "tokens", "bytes", "characters"):
                setattr(total, name, getattr(total, name) + getattr(each, name))
            total.pieces |= each.pieces
        before = prefix_token(tokenizer)
        said = "<|endoftext|>" if before == tokenizer.end_of_text else repr(tokenizer.decode([before]))
        return TextResult(found, total, said, scorer.block_size, stride)

    def _place(self, asked: Asked, files: Sequence[File], stride: int) -> tuple[Path | None, str]:
        """Where what is done is kept, and of what it is: the weights, the texts, and how they are gone through."""
        state = (asked.source.checkpoint / STATE_FILE).read_bytes()
        of = [hashlib.sha256(state).hexdigest(), *(file.sha256 for file in files), stride, self.separator, asked.dtype]
        key = hashlib.sha256(json.dumps(of).encode()).hexdigest()
        return asked.run and asked.run / "evaluation" / f"text-{key[:16]}.part", key
