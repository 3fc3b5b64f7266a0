"""Where a corpus of tokens is divided: the last part is for validation, and no document stands in both."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from gpt_common.errors import UserError

DEFAULT_SHARE = 0.1
"""Of all tokens, what is for validation if nothing else is said."""


def check_share(val_fraction: float | None) -> float:
    """What `--val-fraction` means.

    Raises:
        UserError: not between 0 and 1.
    """
    share = DEFAULT_SHARE if val_fraction is None else val_fraction
    if not 0 < share < 1:
        raise UserError(f"--val-fraction is {share:g}: it must be above 0 and below 1")
    return share


def cut_at_end_of_text(
    chunks: Iterable[npt.NDArray[np.integer]], start: int, total: int, end_of_text: int | None, *, opens: bool
) -> int:
    """Where to divide `total` tokens at `start` or behind it: where the next document begins.

    Where none begins before half of the rest is gone, at `start`.

    Args:
        chunks: the tokens from `start` on.
        opens: the end of text stands before each document, as in llm.c's shards, and not behind it.
    """
    position, last = start, start + (total - start) // 2
    for chunk in chunks if end_of_text is not None else ():
        found = np.flatnonzero(chunk == end_of_text)
        if len(found):
            cut = position + int(found[0]) + (0 if opens else 1)
            return cut if cut <= last else start
        position += len(chunk)
        if position > last:
            break
    return start
