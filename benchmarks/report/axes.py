"""Axes: where a value lies between two ends, and which round numbers to write beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A logarithmic or linear axis from `low` to `high`."""

    low: float
    high: float
    logarithmic: bool = True

    def at(self, value: float) -> float:
        """Position of a value in per cent, kept within the axis."""
        low, high, x = self.low, self.high, value
        if self.logarithmic:
            low, high, x = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return round(min(100.0, max(0.0, 100 * (x - low) / (high - low))), 3)

    def ticks(self, most: int = 6) -> list[float]:
        """Round numbers on the axis, at most so many."""
        for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = self._decades(steps) if self.logarithmic else []
            if 2 <= len(found) <= most:
                return found
        return self._linear(most)

    def _decades(self, steps: Sequence[float]) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        values = (step * 10.0**power for power in range(first, last + 1) for step in steps)
        return [value for value in values if self.low <= value <= self.high]

    def _linear(self, most: int) -> list[float]:
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
        first = math.ceil(self.low / step - 1e-9)
        return [round(step * i, 12) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def around(values: Sequence[float], margin: float = 0.06, *, logarithmic: bool = True) -> Axis:
    """An axis that holds all values, with a margin on both sides as a share of its length."""
    low, high = min(values), max(values)
    if logarithmic:
        span = max(math.log(high / low), 0.05)
        return Axis(low * math.exp(-margin * span), high * math.exp(margin * span))
    span = max(high - low, 1e-9 + 0.05 * abs(high))
    return Axis(low - margin * span, high + margin * span, logarithmic=False)


def tick_text(value: float) -> str:
    """`0.5`, `20`, `1500`: no more digits than the value has."""
    return f"{value:.6g}"
