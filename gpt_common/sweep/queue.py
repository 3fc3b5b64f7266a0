"""The runs of a sweep, one after the other or some side by side; whatever ends the queue, it goes on where it was.

What is done stands in the runs' own folders, nowhere else: a queue may be killed, moved, or joined by another one, on
this machine or on one that shares the folder. A run belongs to the process that holds its folder (folder.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from gpt_common.config import RunConfig, differences, load_toml, to_toml
from gpt_common.errors import UserError
from gpt_common.files import cannot_write, write_atomically
from gpt_common.sweep.definition import Cell, Sweep
from gpt_common.training.report.past import PastRun, read_run

State = Literal["waiting", "running", "stopped", "done"]
BETWEEN_LOOKS = 0.2
"""Seconds."""
SETTLED = {"model.vocab_size": 0, "train.device": "auto", "train.dtype": "auto"}
"""Fields with the value that leaves them open: a run that has begun says what they came to."""
ASKED_FOR = "queue-"
"""Begins the names of files that say which processes work at a sweep."""


def unlike(wanted: RunConfig, held: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Fields in which a run is not the one that was wanted, `{"optim.beta2": (wanted, held)}`; what the wanted one
    leaves open may be anything."""
    return {
        name: values
        for name, values in differences(wanted, held).items()
        if name not in SETTLED or values[0] != SETTLED[name]
    }


def run_of(sweep: Sweep, cell: Cell) -> PastRun | None:
    """What is known of a run; None where there is none yet.

    Raises:
        UserError: its folder holds a run with another configuration.
    """
    folder = sweep.folder_of(cell)
    if not (folder / "config.toml").exists():
        return None
    if changed := unlike(cell.config, load_toml(folder / "config.toml")):
        name, (wanted, found) = next(iter(changed.items()))
        raise UserError(
            f"{folder} holds another run: its {name} is {found!r}, the sweep's {wanted!r}; move it, or take another "
            "--out"
        )
    return read_run(folder)


def state_of(sweep: Sweep, cell: Cell) -> State:
    """How far a run is."""
    run = run_of(sweep, cell)
    if run is None:
        return "waiting"
    return "running" if run.going else "done" if run.finished else "stopped"


@dataclass
class Queue:
    """Trains the runs of a sweep.

    Args:
        jobs: runs side by side.
        threads: of each on a CPU; None leaves it to the frameworks.
        tell: hears a line for people.
    """

    sweep: Sweep
    jobs: int = 1
    threads: int | None = None
    tell: Callable[[str], None] = print
    failed: dict[str, int] = field(default_factory=dict)
    """By name the exit codes of runs that failed; they are not tried again by this queue."""
    _going: dict[str, tuple[Cell, subprocess.Popen[bytes], IO[bytes]]] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)
    """Names of runs that need not be looked at again."""
    _stopping: bool = False

    def work(self) -> bool:
        """Train what is not done yet; whether all of it is, in the end.

        Raises:
            UserError: the folder cannot be written, or one holds another run.
        """
        for cell in self.sweep.cells:
            state_of(self.sweep, cell)  # before anything begins: another run in one of the folders
        try:
            (self.sweep.folder / "logs").mkdir(parents=True, exist_ok=True)
            mine = self.sweep.folder / f"{ASKED_FOR}{os.getpid()}"
            mine.touch()
        except OSError as error:
            raise cannot_write(self.sweep.folder, error) from None
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while self._look() or self._going:
                time.sleep(BETWEEN_LOOKS)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            mine.unlink(missing_ok=True)
        return all(state_of(self.sweep, cell) == "done" for cell in self.sweep.cells)

    def _look(self) -> bool:
        """Take up who has ended, begin others; whether something waits that this queue may begin."""
        for name, (cell, process, log) in list(self._going.items()):
            if (code := process.poll()) is not None:
                del self._going[name]
                log.close()
                self._ended(cell, code)
        if self._stopping or len(self._going) >= self.jobs:  # who trains is not disturbed by reading all logs again
            return False
        settled = self._going.keys() | self.failed.keys() | self._done
        waiting = []
        for cell in [cell for cell in self.sweep.cells if cell.name not in settled]:
            state = state_of(self.sweep, cell)
            if state == "done":
                self._done.add(cell.name)
            elif state != "running":
                waiting.append(cell)
        for cell in waiting[: self.jobs - len(self._going)]:
            self._begin(cell)
        return bool(waiting)

    def _begin(self, cell: Cell) -> None:
        folder = self.sweep.folder_of(cell)
        if run_of(self.sweep, cell) is None:
            file = self.sweep.folder / "logs" / f"{cell.name}.toml"
            write_atomically(file, to_toml(cell.config))
            words = ["--config", str(file), "--out", str(folder)]
            how = "begins"
        else:
            words, how = ["--resume", str(folder)], "goes on"
        log = (self.sweep.folder / "logs" / f"{cell.name}.log").open("ab")
        command = [sys.executable, "-m", f"{self.sweep.twin}.train", *words]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(), start_new_session=True
        )
        self._going[cell.name] = cell, process, log
        self.tell(f"{cell.name} {how}")

    def _environment(self) -> Mapping[str, str]:
        if self.threads is None:
            return os.environ
        count = str(self.threads)
        return {**os.environ, "OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count, "VECLIB_MAXIMUM_THREADS": count}

    def _ended(self, cell: Cell, code: int) -> None:
        try:
            state = state_of(self.sweep, cell)
        except UserError:
            state = "waiting"
        if state == "done":
            run = run_of(self.sweep, cell)
            best = run.course.best if run is not None else None
            self.tell(f"{cell.name} is done" + (f": best validation loss {best[1]:.4f}" if best else ""))
        elif self._stopping:
            self.tell(f"{cell.name} is stopped")
        elif state == "running":  # another queue was faster
            self.tell(f"{cell.name} is trained by another queue")
        else:
            self.failed[cell.name] = code
            log = self.sweep.folder / "logs" / f"{cell.name}.log"
            self.tell(f"{cell.name} failed (exit code {code}): {_last_line(log)}")

    def _stop(self, *_: object) -> None:
        """End: each run saves, and ends."""
        self._stopping = True
        for _cell, process, _log in self._going.values():
            process.terminate()


def _last_line(log: Path) -> str:
    lines = log.read_bytes()[-4000:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:300] if lines else "nothing was said"


def stop(sweep: Sweep) -> int:
    """Ask the queues of this machine that work at a sweep to end; how many there were."""
    count = 0
    for path in sweep.folder.glob(f"{ASKED_FOR}*"):
        number = path.name.removeprefix(ASKED_FOR)
        try:
            os.kill(int(number), signal.SIGTERM)
            count += 1
        except ProcessLookupError:
            path.unlink(missing_ok=True)  # it was killed
        except (ValueError, PermissionError):
            continue
    return count
