"""The runs of a sweep, one after the other or some side by side; whatever ends the queue, it goes on where it was.

What is done stands in the runs' own folders, nowhere else: a queue may be killed, moved, or joined by another one, on
this machine or on one that shares the folder. A run belongs to the process that holds its folder (folder.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from gpt_common.config import RunConfig, differences, load_toml, to_toml
from gpt_common.errors import UserError, nobody_listens
from gpt_common.files import cannot_write, write_atomically
from gpt_common.sweep.definition import Cell, Sweep
from gpt_common.sweep.processes import LOGS, at_work, forget_process, locked, name_process
from gpt_common.training.folder import take_up
from gpt_common.training.report.past import PastRun, read_run

State = Literal["waiting", "running", "stopped", "done"]
FAILED = "error: "
"""Begins the last words of a run that failed: after its last step, too, as where that is NaN or cannot be saved."""
BETWEEN_LOOKS = 0.2
"""Seconds."""
SETTLED = {"model.vocab_size": 0, "train.device": "auto", "train.dtype": "auto"}
"""Fields with the value that leaves them open: a run that has begun says what they came to."""


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
    if run.going:
        return "running"
    return "done" if is_done(run, log_of(sweep, cell)) else "stopped"


def is_done(run: PastRun, log: Path) -> bool:
    """Whether a run has come to its end, and has not failed there."""
    return run.finished and not last_words(log).startswith(FAILED)


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
    stopped_by: int | None = None
    """The signal after which it ends, if one came."""
    _going: dict[str, tuple[Cell, subprocess.Popen[bytes], IO[bytes]]] = field(default_factory=dict)
    _done: set[str] = field(default_factory=set)
    """Names of runs that need not be looked at again."""
    _asked: set[str] = field(default_factory=set)
    """Names of runs that were asked to end."""
    _at_once: bool = False

    def work(self) -> bool:
        """Train what is not done yet; whether all of it is, in the end.

        SIGINT, SIGTERM and SIGHUP end it, each run saved; a second SIGINT ends the runs as they are.

        Raises:
            UserError: the folder cannot be written, or one holds another run.
        """
        states = [state_of(self.sweep, cell) for cell in self.sweep.cells]  # another run in one of the folders
        self._done = {cell.name for cell, state in zip(self.sweep.cells, states, strict=True) if state == "done"}
        # Who was started deaf to the end of the terminal, by nohup, stays so.
        deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        numbers = (signal.SIGINT, signal.SIGTERM, *(() if deaf else (signal.SIGHUP,)))
        try:
            with at_work(self.sweep.folder):
                before = {number: signal.signal(number, self._heard) for number in numbers}
                try:
                    while self._look() or self._going:
                        time.sleep(BETWEEN_LOOKS)
                finally:
                    self._let_go()
                    for number, handler in before.items():
                        signal.signal(number, handler)
        except OSError as error:
            raise cannot_write(self.sweep.folder, error) from None
        return all(self._state(cell) == "done" for cell in self.sweep.cells)

    def _look(self) -> bool:
        """Take up who has ended, begin others; whether something waits that this queue may begin."""
        for name, (cell, process, log) in list(self._going.items()):
            if (code := process.poll()) is not None:
                del self._going[name]
                forget_process(self._log(cell))
                log.close()
                self._ended(cell, code)
        if self.stopped_by is not None:
            self._end_runs()
            return False
        if len(self._going) >= self.jobs:  # who trains is not disturbed by reading all logs again
            return False
        settled = self._going.keys() | self.failed.keys() | self._done
        waiting = []
        for cell in [cell for cell in self.sweep.cells if cell.name not in settled]:
            try:
                state = state_of(self.sweep, cell)
            except UserError as error:  # changed or damaged since this queue began
                self._fails(cell, 2, str(error))
                continue
            if state == "done":
                self._done.add(cell.name)
            elif state != "running":
                waiting.append(cell)
        for cell in waiting:
            if len(self._going) < self.jobs:
                self._begin(cell)
        return bool(waiting)

    def _begin(self, cell: Cell) -> None:
        folder, path = self.sweep.folder_of(cell), self._log(cell)
        log = path.open("ab")
        if not locked(log):  # another queue has just begun it
            log.close()
            return
        try:
            how = "begins"
            if run_of(self.sweep, cell) is not None and not any((folder / "checkpoints").glob("step-*")):
                # Killed before its first checkpoint: there is nothing to go on with.
                held = take_up(folder)
                shutil.rmtree(folder)
                held.release()
                how = "begins again: nothing was saved of it"
            if run_of(self.sweep, cell) is None:
                file = path.with_suffix(".toml")
                write_atomically(file, to_toml(cell.config))
                words = ["--config", str(file), "--out", str(folder)]
            else:
                words, how = ["--resume", str(folder)], "goes on"
            command = [sys.executable, "-m", f"{self.sweep.twin}.train", *words]
            forget_process(path)
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                start_new_session=True,
            )
        except BaseException as error:
            log.close()
            if isinstance(error, UserError):
                self._fails(cell, 2, str(error))
                return
            raise
        self._going[cell.name] = cell, process, log
        name_process(path, process.pid)
        self.tell(f"{cell.name} {how}")

    def _environment(self) -> Mapping[str, str]:
        if self.threads is None:
            return os.environ
        count = str(self.threads)
        return {**os.environ, "OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count, "VECLIB_MAXIMUM_THREADS": count}

    def _log(self, cell: Cell) -> Path:
        return log_of(self.sweep, cell)

    def _state(self, cell: Cell) -> State | None:
        """How far a run is; None where its folder cannot be read, or holds another one."""
        try:
            return state_of(self.sweep, cell)
        except UserError:
            return None

    def _ended(self, cell: Cell, code: int) -> None:
        state = self._state(cell)
        if state == "done":
            self._done.add(cell.name)
            run = run_of(self.sweep, cell)
            best = run.course.best if run is not None else None
            said = f"{cell.name} is done" + (f": best validation loss {best[1]:.4f}" if best else "")
            self.tell(f"{said} ({len(self._done)} of {len(self.sweep.cells)})")
        elif self.stopped_by is not None:
            self.tell(f"{cell.name} is stopped")
        elif state == "running":  # somebody else was faster
            self.tell(f"{cell.name} is trained by another process")
        else:
            self._fails(cell, code, last_words(self._log(cell)) or "nothing was said")

    def _fails(self, cell: Cell, code: int, why: str) -> None:
        self.failed[cell.name] = code
        how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
        self.tell(f"{cell.name} failed ({how}): {why}")

    def _heard(self, number: int, _: object) -> None:
        """A signal: what it asks for is done between two looks, when no run is half begun."""
        if number == signal.SIGHUP:
            nobody_listens()
        self._at_once = self.stopped_by is not None and number == signal.SIGINT
        self.stopped_by = self.stopped_by or number

    def _end_runs(self) -> None:
        """Ask each run once to end, which it does saved: a second time would end it at once."""
        if self._going and not self._asked and self.stopped_by is not None:
            again = "; Ctrl-C again ends them unsaved" if self.stopped_by == signal.SIGINT else ""
            self.tell(f"{signal.Signals(self.stopped_by).name}: each run finishes its step and saves ...{again}")
        for name, (_cell, process, _log) in self._going.items():
            if self._at_once:
                process.kill()
            elif name not in self._asked:
                process.terminate()
            self._asked.add(name)

    def _let_go(self) -> None:
        """Where an error ends the queue: its runs end too, saved."""
        for name, (cell, process, log) in self._going.items():
            if name not in self._asked:
                process.terminate()
            process.wait()
            forget_process(self._log(cell))
            log.close()


def log_of(sweep: Sweep, cell: Cell) -> Path:
    """Where the words of a run go."""
    return sweep.folder / LOGS / f"{cell.name}.log"


def last_words(log: Path) -> str:
    """The last line of a log; nothing where there is none."""
    try:
        lines = log.read_bytes()[-4000:].decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
