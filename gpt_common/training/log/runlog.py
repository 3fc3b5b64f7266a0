"""What a run writes down: metrics.jsonl and samples.jsonl, the console, optional trackers.

A row is one line, written whole and at once, so a crash leaves at most one torn line, and re-opening repairs it.
Rows of metrics.jsonl are of five kinds, told apart by their keys: a logged step ("loss"), an evaluation ("val_loss"),
one of the whole split ("whole_val_loss"), an alarm ("alarm") and an event ("event"; "resume" says that the rows after
its step are run again, "start" how long it took to begin, "pace" how many steps fit into the time, "end" why the run
ended early, "energy" what a session used). Each says how long its session had been going ("time").
"""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gpt_common.errors import UserError
from gpt_common.files import open_file
from gpt_common.machine.power_samples import Energy
from gpt_common.training.log.console import Progress, open_console
from gpt_common.training.log.record import StepRecord
from gpt_common.training.log.trackers import Tracker, open_trackers
from gpt_common.training.whole_text import WholeText
from gpt_common.words import milliseconds

if TYPE_CHECKING:
    from rich.console import Console

# A missing measurement is null without comment; any other non-finite number is spelt out beside its null.
LONGEST_LINE, LARGEST_LOG = 1 << 20, 1 << 28
"""Bytes: a row has 250, and some thousands with the loads of many experts."""
LARGEST_STEP = 1 << 53
MEASUREMENTS = ("dt", "dt_data", "sps", "tps", "mfu", "tps_per_rank", "dt_ranks")
SELDOM = ("expert_load", "tps_per_rank", "dt_ranks", "slowest_rank", "dt_behind", "efficiency")
"""Left out of a row where there is no such thing."""


class RunLog:
    """Metrics, samples, console and trackers of one run. Close it, or use it as a context manager.

    Args:
        folder: the run's folder; must exist.
        max_steps: steps of the whole schedule.
        first_step: steps done already; above 0 the run is a resumed one, and the log says so.
        trackers: names out of `gpt_common.training.log.trackers.TRACKERS`.
        config: the resolved configuration, for the trackers.
        run_name: the run's name, for the trackers.
        console: for tests; None takes stdout.
        clock: seconds; for tests.

    Raises:
        UserError: the folder cannot be written to, or a tracker is unknown, missing or refuses to start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_steps: int,
        first_step: int,
        trackers: Sequence[str],
        config: dict[str, Any],
        run_name: str,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._step = first_step
        self._clock, self._opened = clock, clock()
        self.alarms: list[str] = []
        """What rang so far."""
        with ExitStack() as files:
            self._metrics = files.enter_context(closing(_JsonLines(folder / "metrics.jsonl")))
            self._samples = files.enter_context(closing(_JsonLines(folder / "samples.jsonl")))
            # A tracker may print while it starts: before the live bar does.
            self._trackers: dict[str, Tracker] = open_trackers(
                trackers, folder=folder, run_name=run_name, config=config, first_step=first_step
            )
            self._files = files.pop_all()
        self._console = open_console(Progress(max_steps, first_step), console)
        if self._metrics.had_rows or first_step > 0:
            self.event("resume", first_step)

    def note(self, text: str) -> None:
        """One line on the console, above the progress bar."""
        self._console.note(text)

    def waiting(self, text: str) -> None:
        """On a terminal, what is waited for at this moment; empty: nothing any more."""
        self._console.waiting(text)

    def warn(self, text: str) -> None:
        """An alarm: on the console, in metrics.jsonl, and again in the summary."""
        self.alarms.append(text)
        self._write({"step": self._step, "alarm": text})
        self._console.warn(text)

    def started(self, step: int, *, start_up: float, first_step_seconds: float) -> None:
        """Write down how long it took to begin, and how long the first step took; when that is done."""
        row = {"start_up": round(start_up, 3), "first_step_seconds": round(first_step_seconds, 6)}
        self.event("start", step, **row)

    def event(self, name: str, step: int, **values: Any) -> None:
        """Write down what happened after `step` steps."""
        self._write({"event": name, "step": step, **values})

    def reschedule(self, step: int, max_steps: int, seconds_per_step: float) -> None:
        """Write down how many steps the schedule has after all, and what a step takes, by which that was found."""
        self.event("pace", step, max_steps=max_steps, seconds_per_step=round(seconds_per_step, 6))
        self._console.reschedule(max_steps)
        self.note(f"at {milliseconds(seconds_per_step)} ms a step the schedule has {max_steps} steps")

    def energy(self, step: int, found: Energy | None) -> None:
        """Write down what the session used, if a source told."""
        if found is not None:
            told = {"joules": round(found.joules, 6), "seconds": round(found.seconds, 6), "gpu_usage": found.gpu_usage}
            self.event("energy", step, **told, source=found.source)

    def whole_text(self, step: int, found: WholeText) -> None:
        """Write the loss on the whole validation split down."""
        row = {
            "step": step,
            "whole_val_loss": found.loss,
            "bits_per_byte": found.bits_per_byte,
            "tokens": found.tokens,
            "bytes": found.bytes,
        }
        self._write(row)
        self._track(row)

    def tick(self, step: int) -> None:
        """Tell the progress bar that `step` steps are done. Call it every step: it is cheap."""
        self._step = step
        self._console.tick(step)

    def step(self, record: StepRecord) -> None:
        """Write a logged step down."""
        self._step = record.step
        row = dataclasses.asdict(record)
        row |= {key: None for key in MEASUREMENTS if row[key] is not None and math.isnan(row[key])}
        for name in SELDOM:
            if row[name] is None:
                del row[name]
        self._write(row)
        self._track(row)
        self._console.step(record)

    def evaluation(
        self, step: int, *, train_loss: float | None, val_loss: float, floor: float | None, best: bool
    ) -> None:
        """Write an evaluation down.

        Args:
            step: steps done.
            train_loss: loss on fixed training batches, nats per token, where it was measured.
            val_loss: validation loss, nats per token.
            floor: best possible validation loss, where the corpus has a known one.
            best: the lowest validation loss so far.
        """
        self._step = step
        row = {"step": step, "train_loss": train_loss, "val_loss": val_loss, "floor": floor, "best": best}
        self._write(row)
        self._track(row)
        self._console.evaluation(step, train_loss=train_loss, val_loss=val_loss, floor=floor, best=best)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """Write down `text`, the model's continuation of `prompt`."""
        self._samples.append({"step": step, "prompt": prompt, "text": text})
        self._console.sample(step, prompt, text)

    def summary(self, *, title: str, rows: Sequence[tuple[str, str]], command_hint: str | None = None) -> None:
        """The closing table, the alarms once more, and the command to go on with. Ends the progress bar."""
        self._console.summary(title, rows, self.alarms, command_hint)

    def close(self) -> None:
        """Close files and trackers and take the progress bar off the terminal. Harmless a second time."""
        self._console.close()
        while self._trackers:
            name, tracker = self._trackers.popitem()
            try:
                tracker.close()
            except Exception as error:
                self._console.warn(f"tracker {name} did not close: {_one_line(error)}")
        self._files.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def encoding(self) -> str:
        """Of what the console prints."""
        return self._console.encoding

    def _write(self, row: Mapping[str, Any]) -> None:
        self._metrics.append({**row, "time": round(self._clock() - self._opened, 3)})

    def _track(self, row: Mapping[str, Any]) -> None:
        """Hand the numbers of a row to every tracker; one that fails is dropped: it must not cost the run."""
        values = {key: float(value) for key, value in row.items() if key != "step" and _is_number(value)}
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(values, row["step"])
            except Exception as error:
                del self._trackers[name]
                self.warn(f"tracker {name} failed and is left out from here on: {_one_line(error)}")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, in order, as if the run had never been interrupted.

    A torn last line (the run was killed, or is writing it now) is left out, and so are rows that a resumed run made
    again: those beyond the step of a later "resume" event.

    Raises:
        UserError: no such file, or a line that is not a JSON object.
    """
    path = folder / "metrics.jsonl"
    rows: list[dict[str, Any]] = []
    try:
        for number, line in enumerate(read_lines(path), start=1):
            row = _parsed(line)
            if row is None:
                if not line.endswith(b"\n"):
                    break
                raise UserError(f"{path}, line {number} is not a JSON object: mend or delete the line")
            step = row.get("step", 0)
            if type(step) is not int or not 0 <= step < LARGEST_STEP:
                raise UserError(f"{path} is damaged: line {number} has step {step!r:.80}: mend or delete the line")
            rows.append(row)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: is {folder} the folder of a run?") from None
    except ValueError as error:
        raise UserError(f"cannot read {path}: {error}") from None
    # From the end, so that many resumptions cost one pass: what lies beyond the step of a later one was run again.
    kept, least = [], LARGEST_STEP
    for row in reversed(rows):
        if row.get("step", 0) <= least:
            kept.append(row)
        if row.get("event") == "resume":
            least = min(least, row.get("step", 0))
    return kept[::-1]


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a log, with their ends; the last one may be torn.

    Raises:
        OSError: it is no regular file, or cannot be read.
        ValueError: it, or a line of it, is longer than any log.
    """
    with open_file(path) as file:
        read = 0
        while line := file.readline(LONGEST_LINE + 1):
            read += len(line)
            if len(line) > LONGEST_LINE or read > LARGEST_LOG:
                raise ValueError(
                    f"{'a line of it' if len(line) > LONGEST_LINE else 'it'} is longer than anything that a run writes"
                )
            yield line


class _JsonLines:
    """An append-only file of JSON objects, one per line, unbuffered.

    Raises:
        UserError: the file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            end = _repaired_end(path)
            self.had_rows = end > 0
            # Unbuffered: a line is in the operating system's hands when `append` returns, so only a
            # power cut can lose it, and a full disk is noticed here and not when the file is closed.
            self._file = path.open("ab", buffering=0)
            self._file.truncate(end)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None

    def append(self, row: Mapping[str, Any]) -> None:
        line = json.dumps(_finite(row), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from None

    def close(self) -> None:
        self._file.close()


def _repaired_end(path: Path) -> int:
    """Where the next line may begin: a torn last line is cut off, one that only lacks its end gets it."""
    if not path.exists() and not path.is_symlink():
        return 0
    if path.is_symlink():  # whatever it names is not the run's to cut and to add to
        raise OSError(errno.EINVAL, "it is a link", str(path))
    with open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LONGEST_LINE))
        tail = file.read()
    torn = tail[tail.rfind(b"\n") + 1 :]
    if torn and _parsed(torn) is not None:
        with path.open("ab") as file:
            file.write(b"\n")
        return size + 1
    return size - len(torn)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line, or None."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that JSON can carry: non-finite numbers become null and are spelt out in "non_finite"."""
    strange = {key: value for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    if not strange:
        return dict(row)
    spelt = ", ".join(f"{key} {value}" for key, value in strange.items())
    return {**row, **dict.fromkeys(strange), "non_finite": spelt}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
