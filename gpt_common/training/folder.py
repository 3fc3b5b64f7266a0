"""A run's folder: one process claims it, and holds it until it ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from gpt_common.errors import UserError
from gpt_common.files import cannot_write, is_system_file

RUNS = Path("runs")
"""Where runs lie if nothing else is said."""


@dataclass
class RunFolder:
    """A folder that no other process of ours writes into while this one lives.

    The system holds the lock on the folder itself: it dies with its process, and leaves no file behind.
    """

    path: Path
    new: bool
    """Made for this run."""
    _descriptor: int | None

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def discard_unused(self) -> None:
        """Remove a new folder in which nothing was ever logged or saved: the start failed."""
        log = self.path / "metrics.jsonl"
        if self.new and not (self.path / "checkpoints").exists() and not (log.exists() and log.stat().st_size):
            shutil.rmtree(self.path, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()  # runs/, if it was made for this


def claim_new(wanted: Path, *, or_next: bool) -> RunFolder:
    """Make the folder of a new run; two runs that ask at one moment get two folders.

    Args:
        wanted: its path.
        or_next: take `wanted-2`, `wanted-3` ... where it is there already, instead of refusing.

    Raises:
        UserError: it holds something already, or cannot be made.
    """
    for path in _names(wanted) if or_next else (wanted,):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except FileExistsError:
            if or_next:
                continue
            if path.is_dir() and _is_empty(path) and (held := _lock(path)) is not None:
                return RunFolder(path, True, held)
            raise UserError(
                f"{path} already holds a run: continue it with --resume {path}, or name another --out"
                if (path / "run.json").exists() or (path / "checkpoints").exists()
                else f"{path} is there already and is no empty folder: name another --out"
            ) from None
        except OSError as error:
            raise cannot_write(path, error) from None
        return RunFolder(path, True, _lock(path))
    raise AssertionError("numbers do not end")


def take_up(path: Path) -> RunFolder:
    """Hold the folder of a run that is continued.

    Raises:
        UserError: another process trains it at this moment.
    """
    descriptor = _lock(path)
    if descriptor is None:
        raise UserError(f"{path} is being trained by another process: wait until it ends, or start a run of its own")
    return RunFolder(path, False, descriptor)


def is_held(path: Path) -> bool:
    """Whether a process trains the run in this folder at this moment."""
    try:
        descriptor = _lock(path)
    except OSError:  # not ours to open
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def _is_empty(path: Path) -> bool:
    """Whether nothing of a person's is in it: a folder that Finder has looked at is still empty to who made it."""
    return all(is_system_file(found) for found in path.iterdir())


def _names(wanted: Path) -> Iterator[Path]:
    yield wanted
    yield from (wanted.with_name(f"{wanted.name}-{number}") for number in count(2))


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock; None where another process has it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            return None
        # Some network file systems have no locks: the run goes on without.
    return descriptor


def newest_run(folder: Path = RUNS) -> Path:
    """The run that was saved last.

    Raises:
        UserError: there is none.
    """
    saved = {path.parent.parent: path.stat().st_mtime for path in folder.glob("*/checkpoints/latest")}
    if not saved:
        raise UserError(f"no run in {folder} yet: train one, or say which run or checkpoint")
    return max(saved, key=lambda run: saved[run])
