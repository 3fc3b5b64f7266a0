"""What the clocks of several ranks say: how long they wait, for whom, and what they are worth against one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypedDict

from gpt_common.training.ranks.agreement import Agreement
from gpt_common.words import milliseconds, share

BEHIND = 0.1
"""Of a step: where the others wait so long for a rank, it is named."""


class Timed(TypedDict):
    """The fields of a logged step that only several ranks have."""

    tps_per_rank: float | None
    dt_ranks: float | None
    slowest_rank: int | None
    dt_behind: float | None
    efficiency: float | None


class RankTimes:
    """Of one run.

    Args:
        step: steps done.
        told: whether what a rank waits in sums tells who is late: not where another engine waits during the step.
        note: takes a line.
    """

    def __init__(self, ranks: Agreement, step: int, note: Callable[[str], None], *, told: bool) -> None:
        self.ranks, self.told, self.note = ranks, told, note
        self.alone: float | None = None
        """Seconds of a step that one rank makes alone, where that was asked for."""
        self._recorded, self._first = step, step
        self._waited, self._seconds, self._steps = ranks.seconds, 0.0, 0
        self._named = False

    def begin(self) -> None:
        """Training begins: what was waited before is no part of it."""
        self._waited = self.ranks.seconds
        self.ranks.count_from_here()

    def of_step(self, step: int, tokens: float, dt: float) -> Timed:
        """What is logged after so many steps.

        Args:
            tokens: per second.
            dt: seconds of a step, NaN where none was timed.
        """
        if self.ranks.world == 1:
            return Timed(tps_per_rank=None, dt_ranks=None, slowest_rank=None, dt_behind=None, efficiency=None)
        steps, self._recorded = max(1, step - self._recorded), step
        waited, self._waited = self.ranks.seconds - self._waited, self.ranks.seconds
        rank, behind = self.ranks.slowest() if self.told else (None, None)
        if step > self._first + 1:  # the first is not timed
            self._seconds, self._steps = self._seconds + waited, self._steps + steps
        if rank is not None and behind is not None:
            behind /= steps
            self._name(rank, behind, dt)
        return Timed(
            tps_per_rank=tokens / self.ranks.world,
            dt_ranks=waited / steps,
            slowest_rank=rank,
            dt_behind=behind,
            efficiency=self.efficiency(dt),
        )

    def efficiency(self, dt: float) -> float | None:
        """Steps per second and rank, as a share of those that one makes alone."""
        return None if self.alone is None or math.isnan(dt) else self.alone / (dt * self.ranks.world)

    def _name(self, rank: int, behind: float, dt: float) -> None:
        """Say once who is late, if it is by much."""
        if not self._named and behind > BEHIND * dt:
            self._named = True
            longer = f"{milliseconds(behind)} ms ({share(behind / dt)} of a step) longer"
            self.note(f"rank {rank} is the slowest: another waits {longer} in each sum")

    def in_words(self, tokens: float, dt: float) -> str:
        """For the summary: `2, 410 tokens/s each, 12 % of a step in sums`.

        Args:
            tokens: per second, of all.
            dt: mean seconds of a step.
        """
        said = f"{self.ranks.world}, {tokens / self.ranks.world:,.0f} tokens/s each"
        if self._steps:
            said += f", {share(min(1.0, self._seconds / self._steps / dt))} of a step in sums"
        found = self.efficiency(dt)
        return said if found is None else f"{said}, {share(found)} of one alone"
