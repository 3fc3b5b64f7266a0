"""What a model's quantisation cost, as a table in 80 columns."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt_common.adapting.closeness import Closeness
from gpt_common.adapting.quantisation import NOT_QUANTISED, Grids, Shapes, bits_per_weight
from gpt_common.words import in_bytes


@dataclass(frozen=True)
class Row:
    """One model of the table."""

    name: str
    bits: float
    """Of the file for each weight."""
    bytes: float
    """Of the file."""
    closeness: Closeness
    """To the float model."""
    speed: float
    """Tokens per second of one text."""


def row_of(name: str, shapes: Shapes, grids: Grids, float_bits: int, closeness: Closeness, speed: float) -> Row:
    """A model by its shapes and grids.

    Args:
        float_bits: of what is not a word.
    """
    bits = bits_per_weight(shapes, grids, float_bits)
    numbers = sum(map(math.prod, shapes.values()))
    return Row(name, bits, bits * numbers / 8, closeness, speed)


def float_row(shapes: Shapes, float_bits: int, closeness: Closeness, speed: float) -> Row:
    """The float model, from how near another is to it."""
    itself = Closeness(closeness.tokens, 0.0, closeness.teacher_sum, closeness.teacher_sum, closeness.tokens)
    return row_of("float", shapes, NOT_QUANTISED, float_bits, itself, speed)


def lines_of(rows: list[Row], text: str, floor: float | None) -> list[str]:
    """The table.

    Args:
        text: what the models were judged by.
        floor: the lowest loss that there can be on it, where that is known.
    """
    tokens = int(rows[0].closeness.tokens)
    above = f"{'above floor':>12}" if floor is not None else ""
    head = f"{'':<8}{'bits/weight':>11}{'size':>10}{'divergence':>11}{'loss':>9}{above}{'same':>7}{'tokens/s':>10}"
    lines = [f"on {tokens:,} tokens of {text}, nats per token:", "", head]
    for row in rows:
        loss = row.closeness.student_loss
        rest = f"{loss - floor:>12.4f}" if floor is not None else ""
        lines.append(
            f"{row.name:<8}{row.bits:>11.2f}{in_bytes(row.bytes):>10}{row.closeness.divergence:>11.4f}{loss:>9.4f}"
            f"{rest}{row.closeness.agreement:>7.1%}{row.speed:>10.0f}"
        )
    rounded = next((row for row in rows if row.name == "rounded"), None)
    if rounded is not None and rows[-1] is not rounded and rounded.closeness.divergence > 0:
        closed = 1 - rows[-1].closeness.divergence / rounded.closeness.divergence
        lines += ["", f"calibration took {closed:.0%} of the divergence that rounding causes"]
    return lines
