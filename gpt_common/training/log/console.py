"""How a run looks: a live progress bar in a terminal, plain lines anywhere else. Both fit 80 columns."""

from __future__ import annotations

import math
import sys
import textwrap
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING

from gpt_common.training.log.record import StepRecord
from gpt_common.words import WIDTH, duration, milliseconds, printable, rate, share, usage, watts

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REDRAWS_PER_SECOND = 5
# Plain output shows at most so many steps of a run, but never stays silent for longer than so many seconds.
PLAIN_ROWS, PLAIN_SILENCE = 200, 10.0
# Columns of the plain rows, of 80 characters at most: without power, and with it.
PLAIN_WIDTHS = {"step": 8, "loss": 8, "lr": 9, "grad": 7, "ms/step": 9, "tokens/s": 9, "MFU": 7, "left": 9}
POWER_WIDTHS = {
    "step": 8,
    "loss": 8,
    "lr": 9,
    "grad": 7,
    "ms/step": 7,
    "tokens/s": 8,
    "watts": 5,
    "GPU": 4,
    "MFU": 6,
    "left": 8,
}


class Progress:
    """How far a run is, and how long it will still take.

    Args:
        max_steps: steps of the whole schedule.
        first_step: steps done before this process began.
        clock: seconds; for tests.
    """

    def __init__(self, max_steps: int, first_step: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_steps = max_steps
        self.step = self._first_step = first_step
        self.clock = clock
        self._marks: deque[tuple[int, float]] = deque()

    def mark(self) -> None:
        """Remember when this step was done; call it at every logged step."""
        self._marks.append((self.step, self.clock()))
        # The recent half of the steps: long enough to hold its share of evaluations and checkpoints.
        half = (self._first_step + self.step) / 2
        while len(self._marks) > 2 and self._marks[1][0] <= half:
            self._marks.popleft()

    def left(self) -> str:
        """Time left at the recent rate, everything that a run does between steps included: `1:02:33`."""
        if len(self._marks) < 2 or self._marks[-1][0] == self._marks[0][0]:
            return "-"
        (first, since), (last, until) = self._marks[0], self._marks[-1]
        return duration((self.max_steps - self.step) * (until - since) / (last - first))


class RunConsole(ABC):
    """What a run says; the two below differ in how it gets to the person."""

    step_label = "step {}"

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @property
    @abstractmethod
    def encoding(self) -> str:
        """Of what is printed."""

    @abstractmethod
    def _print(self, line: str, style: str = "") -> None:
        """Print a line as it is."""

    @abstractmethod
    def tick(self, step: int) -> None:
        """`step` steps are done. Called at every step."""

    @abstractmethod
    def step(self, record: StepRecord) -> None:
        """A logged step."""

    @abstractmethod
    def close(self) -> None:
        """Leave the terminal as it was. Harmless a second time."""

    def reschedule(self, max_steps: int) -> None:
        """The schedule has so many steps after all."""
        self._progress.max_steps = max_steps

    def waiting(self, text: str) -> None:  # noqa: B027 (a file is told once, by a note)
        """What is waited for at this moment; empty: nothing any more. Called all the time."""

    def note(self, text: str) -> None:
        """A line by the way."""
        self._print(printable(text))

    def warn(self, text: str) -> None:
        """A line that must not be overlooked."""
        self._print(f"warning: {printable(text)}", "bold yellow")

    def evaluation(
        self, step: int, *, train_loss: float | None, val_loss: float, floor: float | None, best: bool
    ) -> None:
        """`step 250 validation loss 1.2345, 0.1234 above the floor, best`."""
        parts = [f"{self.step_label.format(step)} validation loss {val_loss:.4f}"]
        if train_loss is not None:
            parts.append(f"train {train_loss:.4f}")
        if floor is not None:
            parts.append(f"{abs(val_loss - floor):.4f} {'below' if val_loss < floor else 'above'} the floor")
        if best and step > 0:
            parts.append("best")
        self._print(", ".join(parts), "bold")

    def sample(self, step: int, prompt: str, text: str) -> None:
        """A prompt with its continuation, indented and wrapped."""
        self._print(f"\nsample at step {step}:", "dim")
        for line in printable(prompt + text).split("\n"):
            for part in textwrap.wrap(line, WIDTH - 1, initial_indent="    ", subsequent_indent="    ") or [""]:
                self._print(part)
        self._print("")

    def summary(self, title: str, rows: Sequence[tuple[str, str]], alarms: Sequence[str], command: str | None) -> None:
        """The closing table."""
        self.close()
        self._print(f"\n{printable(title)}", "bold")
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:
            self._print(f"  {name:<{width}}  {printable(value)}")
        for alarm in alarms:
            self.warn(alarm)
        if command:
            self._print(f"\n  {printable(command)}", "bold")


class PlainConsole(RunConsole):
    """One line after the other, no escape codes, nothing wrapped: for files, pipes and dumb terminals."""

    step_label = "{:>8}"  # in line with the rows

    def __init__(self, progress: Progress, file: IO[str]) -> None:
        super().__init__(progress)
        self._file = file
        self._last_row = (-1.0, -math.inf)
        self._needs_header = True
        self._shows_power = False

    @property
    def encoding(self) -> str:
        """Of the file."""
        return getattr(self._file, "encoding", None) or "utf-8"

    def _print(self, line: str, style: str = "") -> None:  # noqa: ARG002
        print(line.encode(self.encoding, "replace").decode(self.encoding), file=self._file, flush=True)

    def tick(self, step: int) -> None:
        """Plain output shows logged steps only."""
        self._progress.step = step

    def step(self, record: StepRecord) -> None:
        """A row, unless rows come so thick that nobody could read them: metrics.jsonl has them all."""
        progress = self._progress
        progress.step = record.step
        progress.mark()
        stride = max(1.0, progress.max_steps / PLAIN_ROWS)
        row, now = record.step // stride, progress.clock()
        if not (row > self._last_row[0] or now - self._last_row[1] >= PLAIN_SILENCE):
            return
        self._last_row = (row, now)
        if record.power_watts is not None and not self._shows_power:
            self._shows_power = self._needs_header = True
        values = {
            "step": f"{record.step}",
            "loss": f"{record.loss:.4f}",
            "lr": f"{record.lr:.2e}",
            "grad": f"{record.grad_norm:.2f}",
            "ms/step": milliseconds(record.dt),
            "tokens/s": rate(record.tps),
            "watts": watts(record.power_watts),
            "GPU": usage(record.gpu_usage),
            "MFU": share(record.mfu),
            "left": progress.left(),
        }
        widths = POWER_WIDTHS if self._shows_power else PLAIN_WIDTHS
        if self._needs_header:
            self._print(" ".join(f"{name:>{width}}" for name, width in widths.items()))
            self._needs_header = False
        self._print(" ".join(f"{values[name]:>{width}}" for name, width in widths.items()))

    def sample(self, step: int, prompt: str, text: str) -> None:
        """A prompt with its continuation; after so much text the rows need their header again."""
        super().sample(step, prompt, text)
        self._needs_header = True

    def close(self) -> None:
        """Nothing to restore."""


class LiveConsole(RunConsole):
    """A terminal: what is said scrolls by, and the last two lines always show where the run is."""

    def __init__(self, progress: Progress, console: Console) -> None:
        from rich.live import Live

        super().__init__(progress)
        self._console = console
        self._record: StepRecord | None = None
        self._next_redraw = -math.inf
        self._waiting = ""
        # No thread redraws behind the training step's back: `tick` does, when it is time.
        # Standard error stays what it is where it goes to a file.
        errors_here = sys.stderr.isatty()
        self._live = Live(
            get_renderable=self._bar, console=console, auto_refresh=False, transient=True, redirect_stderr=errors_here
        )

    @property
    def encoding(self) -> str:
        """Of the terminal."""
        return self._console.encoding

    def _print(self, line: str, style: str = "") -> None:
        self._console.print(line, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """A line by the way; a long one continues beneath itself."""
        for line in self._lines(printable(text)):
            self._print(line)

    def warn(self, text: str) -> None:
        """A line that must not be overlooked; a long one continues beneath itself."""
        for line in self._lines(f"warning: {printable(text)}"):
            self._print(line, "bold yellow")

    def _lines(self, text: str) -> list[str]:
        width = max(min(self._console.width, WIDTH) - 1, 20)
        return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) or [
            ""
        ]

    def tick(self, step: int) -> None:
        """Move the bar, some times a second."""
        self._progress.step = step
        now = self._progress.clock()
        if now >= self._next_redraw:
            self._next_redraw = now + 1 / REDRAWS_PER_SECOND
            self._live.start()
            self._live.refresh()

    def waiting(self, text: str) -> None:
        """In place of the figures."""
        self._waiting = printable(text)
        self._live.start()
        self._live.refresh()

    def step(self, record: StepRecord) -> None:
        """New figures beneath the bar."""
        self._record = record
        self._progress.step = record.step
        self._progress.mark()

    def close(self) -> None:
        """Take the bar away."""
        self._live.stop()

    def _bar(self) -> RenderableType:
        """The two live lines, for as many columns as the terminal has."""
        from rich.text import Text

        progress = self._progress
        columns = min(self._console.width, WIDTH) - 1
        left = progress.left()
        head, tail = f"step {progress.step}/{progress.max_steps} ", "" if left == "-" else f" {left} left"
        cells = max(columns - len(head) - len(tail), 0)
        done = min(round(cells * progress.step / progress.max_steps), cells)
        figures = self._figures()
        while len(figures) > columns and "  " in figures:
            figures = figures.rpartition("  ")[0]
        full, empty = ("#", "-") if self._console.options.ascii_only else ("━", "━")
        return Text.assemble(
            head, (full * done, "cyan"), (empty * (cells - done), "dim"), f"{tail}\n{figures}", no_wrap=True
        )

    def _figures(self) -> str:
        """The line beneath the bar, dispensable figures last."""
        record = self._record
        if record is None or self._waiting:
            return self._waiting
        power, lr = record.power_watts is not None, f"lr {record.lr:.2e}"
        figures = [f"loss {record.loss:.4f}", *([] if power else [lr]), f"grad {record.grad_norm:.2f}"]
        if not math.isnan(record.dt):
            figures += [f"{milliseconds(record.dt)} ms/step", f"{rate(record.tps)} tokens/s"]
        if power:
            figures.append(f"{watts(record.power_watts)} W")
        if record.gpu_usage is not None:
            figures.append(f"GPU {usage(record.gpu_usage)}")
        if share(record.mfu) != "-":
            figures.append(f"MFU {share(record.mfu)}")
        if record.slowest_rank is not None and record.dt_behind is not None:
            figures.append(f"rank {record.slowest_rank} last by {milliseconds(record.dt_behind)} ms")
        return "  ".join([*figures, lr] if power else figures)


def open_console(progress: Progress, console: Console | None = None) -> RunConsole:
    """The live console where `console` (stdout if None) is a terminal that can move its cursor, else the plain one."""
    if console is None:
        if not sys.stdout.isatty():
            return PlainConsole(progress, sys.stdout)
        from rich.console import Console

        console = Console()
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveConsole(progress, console)
    return PlainConsole(progress, console.file)
