"""Timed samples: two clocks around each, and marks on those that must not count.

A computer that sleeps stops one of its clocks and not the other, so a suspended machine is told from a slow step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from benchmarks.readings import Mark, Samples

ASLEEP_SECONDS = 0.1
"""The clocks differ by microseconds while the machine is awake."""
OUTLIER_RANGES = 3.0
"""Beyond so many interquartile ranges from the quartiles a sample is marked (Tukey's "far out"); it still counts."""
INVALID: tuple[Mark, ...] = ("asleep", "throttled")
"""Marks that keep a sample out of the statistics. "outlier" does not."""


def sleeping_clock() -> float:
    """Seconds that go on while the machine sleeps; `time.perf_counter` stands still then on Linux and macOS."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        # mach_continuous_time; perf_counter is mach_absolute_time.
        return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)
    return time.time()


@dataclass(frozen=True)
class Clocks:
    """The two clocks; tests have their own."""

    awake: Callable[[], float] = time.perf_counter
    always: Callable[[], float] = sleeping_clock


@dataclass
class Series:
    """Samples of one kind in one process, in columns."""

    steps_per_sample: int
    """1 in a latency series (waited for after each step); the length of a block in a throughput series."""
    clocks: Clocks = field(default_factory=Clocks)
    start: list[float] = field(default_factory=list)
    """When each sample began, seconds of the clock that never stops."""
    seconds: list[float] = field(default_factory=list)
    """Time of each sample (not per step), data left out."""
    data_seconds: list[float] = field(default_factory=list)
    """Time to make the sample's batches, measured apart."""
    marks: dict[int, list[Mark]] = field(default_factory=dict)
    """What is wrong with which sample."""

    def take(self, prepare: Callable[[], Any], work: Callable[[Any], None]) -> float:
        """Prepare data, time the work on them, keep the sample; returns its seconds."""
        began = self.clocks.awake()
        data = prepare()
        start, always = self.clocks.awake(), self.clocks.always()
        work(data)
        seconds, elapsed = self.clocks.awake() - start, self.clocks.always() - always
        if elapsed - seconds > ASLEEP_SECONDS:
            self.mark(len(self.seconds), "asleep")
        self.start.append(always)
        self.seconds.append(seconds)
        self.data_seconds.append(start - began)
        return seconds

    def mark(self, index: int, mark: Mark) -> None:
        """Mark a sample; a mark that it has already is not repeated."""
        marks = self.marks.setdefault(index, [])
        if mark not in marks:
            marks.append(mark)

    def mark_since(self, index: int, mark: Mark) -> None:
        """Mark every sample from `index` on."""
        for i in range(index, len(self.seconds)):
            self.mark(i, mark)

    def mark_outliers(self) -> None:
        """Mark what lies far outside of the middle half."""
        if len(self.seconds) < 4:
            return
        low, high = np.percentile(self.seconds, [25, 75])
        margin = OUTLIER_RANGES * (high - low)
        for i, seconds in enumerate(self.seconds):
            if not low - margin <= seconds <= high + margin:
                self.mark(i, "outlier")

    def samples(self) -> Samples:
        """For the result, to the microsecond; `start` counts from the first sample, at `began`."""
        began = self.start[0] if self.start else 0.0
        return Samples(
            steps_per_sample=self.steps_per_sample,
            began=round(began, 6),
            start=[round(t - began, 6) for t in self.start],
            seconds=[round(s, 7) for s in self.seconds],
            data_seconds=[round(s, 7) for s in self.data_seconds],
            marks={str(i): marks for i, marks in sorted(self.marks.items())},
        )


def invalid(samples: Samples, index: int) -> bool:
    """Whether a sample must not count."""
    return any(mark in INVALID for mark in samples.marks.get(str(index), ()))


def valid(samples: Samples, column: Literal["seconds", "data_seconds"] = "seconds") -> list[float]:
    """The figures that count, per step."""
    figures: list[float] = getattr(samples, column)
    return [value / samples.steps_per_sample for i, value in enumerate(figures) if not invalid(samples, i)]


def marked(samples: Samples, mark: Mark) -> int:
    """How many samples bear a mark."""
    return sum(mark in marks for marks in samples.marks.values())


def median_of(values: Sequence[float]) -> float | None:
    """The median, None of nothing."""
    return float(np.median(values)) if len(values) else None
