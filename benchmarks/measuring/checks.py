"""Is a measurement physically possible? What fails here is rejected, and the row says why.

Timers lie in one direction: they stop before the work is done. So each check asks for something that a timer which
does not wait cannot deliver.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from benchmarks.readings import Readings, SelfTest

LEFT_SHARE, LEFT_SECONDS = 0.1, 1e-3
"""After waiting, copying results to the host may take this share of a step, or this long, whichever is more."""
LEAST_GROWTH = 3.0
"""Twice the width is 8 times the work; overheads and a busy machine may eat some of that, not most."""
PEAK_MARGIN = 1.05
"""A measured peak is the best of a few tries: a little above it is noise."""
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
"""Relative difference of the first losses between rows that claim the same work."""
DROPOUT_TOLERANCE = 5e-2
"""The same where each framework drops other activations."""


def product_peak(products: Mapping[str, float]) -> float | None:
    """FLOP/s of the fastest product; one of two n x n matrices takes 2 n^3 operations."""
    return max((2 * int(n) ** 3 / seconds for n, seconds in products.items()), default=None)


def not_waiting(self_test: SelfTest, products: Mapping[str, float]) -> str | None:
    """Why the timer of this process does not wait for the device, or None.

    Args:
        products: seconds of one matrix product by width.
    """
    left, step = self_test.left_seconds, self_test.step_seconds
    if left > max(LEFT_SECONDS, LEFT_SHARE * step):
        return f"the timer does not wait: {1000 * left:.1f} ms of work were left after a step of {1000 * step:.1f} ms"
    widths = sorted(products, key=int)
    for small, large in list(pairwise(widths))[-1:]:
        growth = products[large] / products[small]
        if growth < LEAST_GROWTH:
            return (
                f"the timer does not wait: a product of width {large} took {growth:.1f} times as long as one of "
                f"{small}, for 8 times the work"
            )
    return None


def above_peak(what: str, flops_per_second: float | None, peak: float | None, source: str) -> str | None:
    """Why a rate cannot be true, or None if it can or if nothing is known."""
    if flops_per_second is None or peak is None or flops_per_second <= PEAK_MARGIN * peak:
        return None
    return f"{what} at {flops_per_second / 1e12:.3g} TFLOP/s is above the {source} of {peak / 1e12:.3g}: impossible"


def other_work(
    losses: Sequence[float | None], expected: Sequence[float | None], dtype: str, dropout: bool = False
) -> str | None:
    """Why two processes did not do the same work, or None: the losses of their first steps must agree."""
    tolerance = max(LOSS_TOLERANCE[dtype], DROPOUT_TOLERANCE if dropout else 0.0)
    for step, pair in enumerate(zip(losses, expected, strict=False), 1):
        loss, other = (math.nan if value is None else value for value in pair)
        # Not `>`: a NaN agrees with nothing.
        if not abs(loss - other) <= tolerance * abs(other):
            return f"it does other work: loss {loss:.5f} at step {step}, the others have {other:.5f}"
    return None


def other_weights(found: int | None, expected: int | None) -> str | None:
    """Why a model is not kept as its row says, or None: the bytes of its weights must be those of its shapes."""
    if found is None or expected is None or found == expected:
        return None
    return f"its weights take {found:,} bytes, those of this row {expected:,}: they are kept in another way"


def rejection(process: Readings, published_peak: float | None) -> str | None:
    """Why a process's figures cannot be believed on their own, or None."""
    return not_waiting(process.self_test, process.products) or above_peak(
        "a matrix product", product_peak(process.products), published_peak, "chip's published peak"
    )
