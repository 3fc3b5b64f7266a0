"""A run's folder: one process claims it, and holds it until it ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from gpt_common.errors import UserError
from gpt_common.files import cannot_write, is_system_file
from gpt_common.words import one_line

RUNS = Path("runs")
"""Where runs lie if nothing else is said."""


LARGEST_ABOUT = 1 << 26
"""Bytes of a run.json: fifty thousand sessions."""
ATTEMPTS, BETWEEN_ATTEMPTS = 5, 0.02
"""To hold a folder, and seconds between two of them."""


@dataclass
class RunFolder:
    """A folder that no other process of ours writes into, from `claim` until this process ends.

    The system holds the lock on the folder itself: it dies with its process, and leaves no file behind.
    """

    path: Path
    """Once claimed; before that the one that is wanted."""
    new: bool
    """Made for this run."""
    or_next: bool = False
    """If the one that is wanted is taken by then, take the next free name."""
    claimed: bool = False
    _descriptor: int | None = None

    def claim(self) -> None:
        """Make a new folder, the moment before something is written into it; raises as `claim_new`."""
        if not self.claimed:
            made = claim_new(self.path, or_next=self.or_next)
            self.path, self._descriptor, self.claimed = made.path, made._descriptor, True

    def release(self) -> None:
        """Let others have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def discard_unused(self) -> None:
        """Remove a new folder in which nothing was ever logged or saved: the start failed."""
        log = self.path / "metrics.jsonl"
        if (
            self.new
            and self.claimed
            and not (self.path / "checkpoints").exists()
            and not (log.exists() and log.stat().st_size)
        ):
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
            _make(path)
        except FileExistsError:
            if or_next:
                continue
            refuse_used(path)
        except OSError as error:
            raise cannot_write(path, error) from None
        held = _held(path)
        if held is not None:
            # Between looking and holding another process may have come and gone.
            if _is_empty(path):
                return RunFolder(path, True, claimed=True, _descriptor=held)
            os.close(held)
        if not or_next:
            refuse_used(path)
            raise UserError(f"{path} is there already: another process begins a run in it; name another --out")
    raise AssertionError("numbers do not end")


def _make(path: Path) -> None:
    """Make a folder, and those above it, which may be taken away meanwhile: an empty runs/ of a start that failed."""
    for attempt in range(ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            break
        except FileNotFoundError:
            if attempt == ATTEMPTS - 1:
                raise


def refuse_used(path: Path) -> None:
    """Refuse a folder for a new run that holds something already; raises UserError."""
    if not path.exists() or (path.is_dir() and _is_empty(path)):
        return
    raise UserError(
        f"{path} already holds a run: continue it with --resume {path}, or name another --out"
        if (path / "run.json").exists() or (path / "checkpoints").exists()
        else f"{path} is there already and is no empty folder: name another --out"
    )


def take_up(path: Path) -> RunFolder:
    """Hold the folder of a run that is continued.

    Raises:
        UserError: another process trains it at this moment.
    """
    descriptor = _held(path)
    if descriptor is None:
        raise UserError(f"{path} is being trained by another process: wait until it ends, or start a run of its own")
    return RunFolder(path, False, claimed=True, _descriptor=descriptor)


def is_held(path: Path) -> bool:
    """Whether a process trains the run in this folder at this moment."""
    try:
        descriptor = _lock(path)
    except OSError:  # not ours to open
        return False
    # Held for a moment, in which who wants it is made to wait: see `_held`.
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def _is_empty(path: Path) -> bool:
    """Whether nothing of a person's is in it: a folder that Finder has looked at is still empty to who made it."""
    try:
        return all(is_system_file(found) for found in path.iterdir())
    except FileNotFoundError:  # taken away meanwhile
        return True


def _names(wanted: Path) -> Iterator[Path]:
    yield wanted
    yield from (wanted.with_name(f"{wanted.name}-{number}") for number in count(2))


def _held(path: Path) -> int | None:
    """A descriptor that holds the folder which has this name now; None where another process has it.

    Who only looks whether a run is going holds it too, for a moment: that is waited for.

    Raises:
        UserError: it cannot be opened.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(BETWEEN_ATTEMPTS)
        try:
            descriptor = _lock(path)
            if descriptor is not None:
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
                os.close(descriptor)  # it was removed, and another has its name
        except FileNotFoundError:
            return None
        except OSError as error:
            raise cannot_write(path, error) from None
    return None


def _lock(path: Path) -> int | None:
    """A descriptor that holds the lock; None where another process has it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            return None
        # Some network file systems have no locks: the run goes on without.
    return descriptor


def named_or_newest(named: Sequence[str], doing: str) -> list[Path]:
    """The runs or checkpoints that a command line names; if none, the newest run, which is said.

    Args:
        doing: what is done with it, as "sampling from".

    Raises:
        UserError: nothing is named, and there is no run.
    """
    if named:
        return [Path(word) for word in named]
    run = newest_run()
    print(f"{doing} the newest run, {one_line(str(run))}", file=sys.stderr)
    return [run]


def newest_run(folder: Path = RUNS) -> Path:
    """The run that was saved last.

    Raises:
        UserError: there is none.
    """
    saved = {}
    for path in folder.glob("*/checkpoints/latest"):
        with contextlib.suppress(OSError):  # gone meanwhile, or no file
            saved[path.parent.parent] = path.stat().st_mtime
    if not saved:
        raise UserError(f"no run in {folder} yet: train one, or say which run or checkpoint")
    return max(saved, key=lambda run: saved[run])
