"""Where a benchmark is and how long it will still take: one live line in a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from gpt_common.words import WIDTH, duration


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

    def __init__(
        self, tasks: Sequence[Task], file: IO[str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tasks = list(tasks)
        self._file = file or sys.stdout
        self._live = self._file.isatty()
        self._clock = clock
        self._at = -1
        self._began = clock()
        self._drawn = False

    def begin(self) -> None:
        """The next task starts."""
        self._at += 1
        self._began = self._clock()
        self.progress("start", 0.0)

    def end(self, line: str) -> None:
        """The task is done; `line` says with what result."""
        self._tasks[self._at].spent = self._clock() - self._began
        self.say(f"{self._where()} {line}")

    def skip(self, name: str) -> None:
        """No more tasks of this name."""
        self._tasks = [task for i, task in enumerate(self._tasks) if i <= self._at or task.name != name]

    def say(self, line: str) -> None:
        """A line that stays."""
        self._clear()
        print(line, file=self._file, flush=True)

    def progress(self, phase: str, share: float) -> None:
        """Redraw the live line."""
        if not self._live:
            return
        self._clear()
        text = f"{self._where()} {self._tasks[self._at].name}: {phase} {share:.0%}, {duration(self.left())} left"
        self._file.write(text[: WIDTH - 1])
        self._file.flush()
        self._drawn = True

    def left(self) -> float:
        """Seconds until all tasks are done, from what tasks of the same name took."""
        now = max(0.0, self._expected(self._tasks[self._at]) - (self._clock() - self._began)) if self._at >= 0 else 0.0
        return now + sum(self._expected(task) for task in self._tasks[self._at + 1 :])

    def close(self) -> None:
        """Leave a clean line."""
        self._clear()

    def _expected(self, task: Task) -> float:
        took = [other.spent for other in self._tasks if other.name == task.name and other.spent is not None]
        # The last of them: the first may have compiled what the later ones find ready.
        return took[-1] if took else task.estimate

    def _where(self) -> str:
        width = len(str(len(self._tasks)))
        return f"[{self._at + 1:>{width}}/{len(self._tasks)}]"

    def _clear(self) -> None:
        if self._drawn:
            self._file.write("\r\x1b[K")
            self._drawn = False
