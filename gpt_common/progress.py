"""How far a command is: a bar on a terminal, plain lines anywhere else. On stderr, where it disturbs no output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from gpt_common.words import in_bytes

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Used as `with Progress() as progress`; `progress(phase, done, total)` may be called at any rate.

    Args:
        of_bytes: what is done is counted in bytes: the bar shows their rate, and plain lines come when time has
            passed; otherwise they come with every quarter of a phase.
        plain_lines: say something where there is no terminal too.
        tells_left: the bar tells how long a phase will still take; without, its name may.
    """

    def __init__(self, *, of_bytes: bool = False, plain_lines: bool = True, tells_left: bool = True) -> None:
        self._of_bytes, self._plain_lines = of_bytes, plain_lines
        self._phase, self._quarter, self._last_line = "", -1, time.monotonic() if of_bytes else 0.0
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                TaskProgressColumn,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )
            from rich.progress import Progress as Bar

            figures = (DownloadColumn(), TransferSpeedColumn()) if of_bytes else (TaskProgressColumn(),)
            left = (TimeRemainingColumn(),) if tells_left else ()
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), *figures, *left)
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Progress:
        """Show the bar, where there is a terminal."""
        if self._bar is not None:
            self._bar.start()
        return self

    def __call__(self, phase: str, done: int, total: int) -> None:
        """`done` of `total` of a phase are done; a new phase begins a new bar."""
        if self._bar is not None:
            if phase != self._phase:
                for task in self._bar.task_ids:
                    self._bar.remove_task(task)
                self._task = self._bar.add_task(phase, total=total)
            self._bar.update(self._task, completed=done)
        elif not self._plain_lines:
            return
        elif self._of_bytes:
            if time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
                self._last_line = time.monotonic()
                print(f"{phase}: {in_bytes(done)} of {in_bytes(total)}", file=sys.stderr, flush=True)
        elif phase != self._phase or 4 * done // max(total, 1) > self._quarter:
            print(f"{phase}: {100 * done // max(total, 1)} %", file=sys.stderr, flush=True)
            self._quarter = 4 * done // max(total, 1)
        self._phase = phase

    def counting(self, phase: str, total: int) -> Callable[[int], None]:
        """A function that is told how much more of a phase is done."""
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self(phase, done, total)

        return advance

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
