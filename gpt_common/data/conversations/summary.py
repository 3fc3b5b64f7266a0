"""What `prepare --conversations` says before it writes: how much there is, and what of it will be learnt."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gpt_common.data.batches import Rows
from gpt_common.data.conversations.marking import Marked
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.words import WIDTH, printable

LEARNT, READ = "> ", "  "
"""At the beginning of a line: what is to be predicted, and what is only read."""
SHOWN, LINES = 3, 14
"""Examples that are shown, and lines of each."""


def to_show(count: int) -> list[int]:
    """Numbers of the examples that are shown of so many: some of the beginning, the middle and the end."""
    return [int(number) for number in np.linspace(0, count - 1, min(SHOWN, count))]


def summary_lines(
    rows: Sequence[Rows], examples: Mapping[int, Marked], cut: int, tokenizer: Tokenizer, block: int
) -> Iterator[str]:
    """Figures of both splits, and three examples.

    Args:
        rows: of the training and of the validation split.
        examples: those `to_show`, by number.
        cut: answers of which the block left a part out.
        block: of which the rows are, in tokens.
    """
    tokens = sum(len(part.examples.tokens) for part in rows)
    counted = sum(int(part.examples.counted.sum()) for part in rows)
    longest = max(int(part.examples.lengths.max()) for part in rows)
    train, val = (len(part.examples.ends) for part in rows)
    yield f"  examples   {train + val:,}: {train:,} for training, {val:,} for validation"
    yield f"  tokens     {tokens:,}, the longest example has {longest:,}"
    yield f"  answers    {counted:,} tokens count, {counted / tokens:.1%} of all"
    yield f"  packing    {train / len(rows[0]):.2f} examples to a row of {block:,} tokens, {rows[0].filled:.1%} filled"
    if cut:
        yield f"  cut        {cut:,} answers: beyond the block (--block-size)"
    for number, example in sorted(examples.items()):
        yield f"example {number + 1:,}; what is learnt has {LEARNT.strip()!r} before it:"
        yield from shown(example, tokenizer)


def shown(example: Marked, tokenizer: Tokenizer) -> list[str]:
    """An example in lines that fit a screen, each marked as learnt or as read; a long one without its middle."""
    lines: list[str] = []
    changes = np.flatnonzero(np.diff(example.counted)) + 1
    for part, learnt in zip(
        np.split(example.ids, changes), example.counted[np.concatenate([[0], changes]).astype(int)], strict=True
    ):
        text = printable(tokenizer.decode(part.tolist())).removesuffix("\n")
        text = text.removeprefix("\n") if lines else text
        for line in text.split("\n"):
            wrapped = textwrap.wrap(line, WIDTH - 2, drop_whitespace=False, replace_whitespace=False) or [""]
            lines += [(LEARNT if learnt else READ) + each for each in wrapped]
    if len(lines) > LINES:
        left_out = len(lines) - LINES + 1
        lines = [*lines[: LINES // 2], f"{READ}... {left_out} lines ...", *lines[left_out + LINES // 2 :]]
    return [line.rstrip() for line in lines]
