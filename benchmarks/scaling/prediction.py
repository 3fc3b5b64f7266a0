"""A loss that was foretold, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """A loss with its interval of 90 %."""

    loss: float
    low: float
    high: float
    floor: float
    """The lowest loss that is possible, as it is known, else as the law believes it."""

    def error(self, came: float) -> float:
        """By how much it was off, as a share of the excess of what came over the floor; above 0: too high."""
        return (self.loss - came) / (came - self.floor) if came > self.floor else float("inf")

    def holds(self, came: float) -> bool:
        """Whether the interval does."""
        return self.low <= came <= self.high

    def said(self, floor: float | None) -> str:
        """For people; `floor` is the known one."""
        above = f", {self.loss - floor:.4f} above the floor" if floor is not None else ""
        return f"{self.loss:.4f} ({self.low:.4f} to {self.high:.4f}, 90 %){above}"
