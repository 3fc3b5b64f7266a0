"""Where a benchmark is and how long it will still take: a line for each finished task, a bar for the one under way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpt_common.progress import Progress
from gpt_common.words import WIDTH, duration

BAR_WIDTH = 48
"""Columns that the bar and its share take."""


@dataclass
class Task:
    """Something that takes time."""

    name: str
    """What it is; tasks of one name take about equally long."""
    estimate: float
    """Seconds, before one of this name has been done."""
    spent: float | None = None
    """Seconds it took."""


class Display:
    """The tasks in their order.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, tasks: Sequence[Task], clock: Callable[[], float] = time.monotonic) -> None:
        self._tasks = list(tasks)
        self._clock = clock
        self._at = -1
        self._began = clock()
        self._bar: Progress | None = None

    def begin(self) -> None:
        """The next task starts."""
        self._at += 1
        self._began = self._clock()
        # One for each task: what is said between two of them goes to the standard output.
        self._bar = Progress(plain_lines=False, tells_left=False).__enter__()

    def progress(self, phase: str, share: float) -> None:
        """Move the bar."""
        if self._bar is not None:
            left = f": {duration(self.left())} left"
            text = f"{self._where()} {self._tasks[self._at].name}, {phase}"
            self._bar(text[: WIDTH - BAR_WIDTH - len(left)] + left, round(100 * share), 100)

    def end(self, line: str) -> None:
        """The task is done; `line` says with what result."""
        self._tasks[self._at].spent = self._clock() - self._began
        self.close()
        print(f"{self._where()} {line}", flush=True)

    def skip(self, name: str) -> None:
        """No more tasks of this name."""
        self._tasks = [task for i, task in enumerate(self._tasks) if i <= self._at or task.name != name]

    def left(self) -> float:
        """Seconds until all tasks are done, from what tasks of the same name took."""
        now = max(0.0, self._expected(self._tasks[self._at]) - (self._clock() - self._began)) if self._at >= 0 else 0.0
        return now + sum(self._expected(task) for task in self._tasks[self._at + 1 :])

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def _expected(self, task: Task) -> float:
        took = [other.spent for other in self._tasks if other.name == task.name and other.spent is not None]
        # The last of them: the first may have compiled what the later ones find ready.
        return took[-1] if took else task.estimate

    def _where(self) -> str:
        width = len(str(len(self._tasks)))
        return f"[{self._at + 1:>{width}}/{len(self._tasks)}]"
