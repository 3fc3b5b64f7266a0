"""A clock that knows what a training step is.

Evaluation, checkpoints, compilation and a machine that fell asleep have no place in the time of a step: with them
inside, a laptop that slept once reports a day of training at a tenth of its speed.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

# Calendar and clock drift apart by this much only when the machine sleeps, or somebody sets the calendar.
SLEEP_SECONDS = 10.0


class StepTimer:
    """Times training steps and nothing else.

    A block is the steps between two waits for the device: one step where every step waits. The first block (it
    compiles) and blocks in which the machine slept or was throttled are left out of the mean, the latter counted.

    Args:
        clock: seconds that only go forward, and stand still while the machine sleeps.
        wall: seconds of the calendar.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock, self._wall = clock, wall
        self._block_start = (clock(), wall())
        self._block_steps = 0
        self._first = True
        self._durations: deque[float] = deque(maxlen=101)
        self._window_seconds, self._window_steps, self._window_skipped = 0.0, 0, 0
        self.total_seconds, self.total_steps = 0.0, 0
        """All that was timed, over the whole run."""
        self.first_seconds: float | None = None
        """Of the first block: one step, with compilation, where the first step is waited for."""
        self.skipped = 0
        """Steps left out so far because the machine slept or was throttled."""

    def lap(self, step: int, *, waited: bool = True) -> list[str]:
        """A step is done; `waited` if its results are there and not only queued. Returns alarms."""
        self._block_steps += 1
        if not waited:
            return []
        now, steps = (self._clock(), self._wall()), self._block_steps
        seconds = now[0] - self._block_start[0]
        asleep = now[1] - self._block_start[1] - seconds
        self._block_start, self._block_steps = now, 0
        if self._first:
            self._first = False
            self.first_seconds = seconds
            return []
        # Ten times the median for a single step; a block of many must also be three times as long as usual.
        usual = median(self._durations) if len(self._durations) >= 5 else math.inf
        limit = max(steps + 9, 3 * steps) * usual
        self._durations.append(seconds / steps)
        if seconds < limit and asleep < SLEEP_SECONDS:
            self._window_seconds += seconds
            self._window_steps += steps
            self.total_seconds += seconds
            self.total_steps += steps
            return []
        self._window_skipped += steps
        self.skipped += steps
        return self._slow_alarm(step, steps, seconds, asleep, usual)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside (evaluation, checkpoint, sampling) out of the step's time."""
        since = (self._clock(), self._wall())
        try:
            yield
        finally:
            clock, wall = self._block_start
            self._block_start = (clock + self._clock() - since[0], wall + self._wall() - since[1])

    def restart(self) -> None:
        """Training begins now: what was done since the timer was made is no part of the first block."""
        self._block_start, self._block_steps = (self._clock(), self._wall()), 0

    def window(self) -> tuple[float, int]:
        """Mean seconds per step since the last call (NaN if no step was timed), and how many steps were left out."""
        mean = self._window_seconds / self._window_steps if self._window_steps else math.nan
        skipped = self._window_skipped
        self._window_seconds, self._window_steps, self._window_skipped = 0.0, 0, 0
        return mean, skipped

    def _slow_alarm(self, step: int, steps: int, seconds: float, asleep: float, usual: float) -> list[str]:
        # The first, and then every time their number has doubled: a throttled machine must not flood the log.
        if self.skipped - steps > 0 and self.skipped.bit_length() == (self.skipped - steps).bit_length():
            return []
        so_far = f"left out of the averages ({self.skipped} so far)"
        if asleep >= SLEEP_SECONDS:
            return [f"step {step}: the machine slept for {asleep:.0f} s (or its clock was set); {so_far}"]
        times = f"{seconds / usual / steps:.0f} times the median"
        return [f"step {step} took {seconds:.2f} s, {times}: throttled or busy; {so_far}"]
