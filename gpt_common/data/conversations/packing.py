"""Which examples share a row: every row has room for so many tokens, and an example is never divided."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def pack(lengths: Integers, room: int) -> tuple[Integers, Integers]:
    """Rows by best fit, the longest examples first; the same lengths give the same rows.

    Best fit decreasing needs at most 11/9 of the fewest rows, and one more (Johnson et al. 1974).

    Args:
        lengths: tokens of every example, (E,), none more than `room`.
        room: tokens of a row.

    Returns:
        Examples in the order of their rows, (E,), and where in that order each row ends, (R,).
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(room + 1)]
    # Bit n says whether a row has room for exactly n tokens more: the fullest row that holds an example is one shift
    # and one lowest bit away, however many rows there are.
    rooms = 0
    for example in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[example])
        above = rooms >> length
        if above:
            left = length + (above & -above).bit_length() - 1
            row = with_room[left].pop()
            if not with_room[left]:
                rooms &= ~(1 << left)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(example)
        with_room[left - length].append(row)
        rooms |= 1 << (left - length)
    order = np.array([example for row in rows for example in row], np.int64)
    return order, np.cumsum([len(row) for row in rows], dtype=np.int64)


def alone(lengths: Integers) -> tuple[Integers, Integers]:
    """Every example in a row of its own, as `pack` returns it."""
    return np.arange(len(lengths), dtype=np.int64), np.arange(1, len(lengths) + 1, dtype=np.int64)
