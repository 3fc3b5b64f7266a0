"""Which processes work at a sweep: queues, and the runs that they began.

A queue holds a lock on a file of its own, and a run on the log that its words go into. A lock dies with its process, so
that a number which the system has given to another one since, or which means one on another machine, is never taken for
one of these.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from gpt_common.files import temporary_beside

QUEUE, LOGS, PROCESS = "queue-", "logs", ".process"
"""How the file of a queue begins; the folder of the runs' words; how the file that names the process of a run ends."""


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Be known as a queue that works in this folder, for as long as it lasts.

    Raises:
        OSError: the folder cannot be written.
    """
    (folder / LOGS).mkdir(parents=True, exist_ok=True)
    for path in folder.glob(f"{QUEUE}*"):
        if _host(path) == socket.gethostname() and not is_locked(path):
            path.unlink(missing_ok=True)  # it was killed
    mine = folder / f"{QUEUE}{os.getpid()}@{socket.gethostname()}"
    temporary = temporary_beside(folder / "begins")
    with temporary.open("wb") as held:
        locked(held)
        temporary.replace(mine)  # nobody sees it without its lock
        try:
            yield
        finally:
            with suppress(OSError):
                mine.unlink()


def locked(file: IO[bytes]) -> bool:
    """Lock a file for this process, and for those that inherit it; whether no other one has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks: each queue is then alone, as far as it knows.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def is_locked(path: Path) -> bool:
    """Whether a living process has the lock on a file."""
    try:
        with path.open("rb") as file:
            return not locked(file)
    except OSError:
        return False


def name_process(log: Path, process: int) -> None:
    """Write down which process writes into a log, and whose it is; who asks believes it while the log is locked."""
    log.with_suffix(PROCESS).write_text(f"{process} {os.getpid()} {socket.gethostname()}\n", encoding="utf-8")


def forget_process(log: Path) -> None:
    """It has ended."""
    log.with_suffix(PROCESS).unlink(missing_ok=True)


@dataclass
class Asked:
    """Who was asked to end."""

    queues: int = 0
    runs: int = 0
    """Whose queue is gone."""
    elsewhere: set[str] = field(default_factory=set)
    """Machines on which queues work that cannot be reached from here."""

    def said(self, folder: Path) -> str:
        """For people, a line."""

        def counted(count: int, what: str) -> str:
            return f"{count} {what}" + ("s" if count > 1 else "")

        parts = []
        if self.queues:
            parts.append(f"{counted(self.queues, 'queue')} asked to end; what is trained is saved first")
        if self.runs:
            parts.append(f"{counted(self.runs, 'run')} without a queue asked to save and end")
        if self.elsewhere:
            parts.append(f"others work on {', '.join(sorted(self.elsewhere))}: stop them there")
        return "; ".join(parts) or f"nothing works at {folder} on this machine"


def ask_to_end(folder: Path) -> Asked:
    """Ask the queues of this machine that work in a folder to end, and runs that a killed queue has left."""
    asked, here, queues = Asked(), socket.gethostname(), set()
    for path in folder.glob(f"{QUEUE}*@*"):
        if not is_locked(path):
            continue
        if (host := _host(path)) != here:
            asked.elsewhere.add(host)
            continue
        with suppress(ProcessLookupError, PermissionError, ValueError):
            number = int(path.name.removeprefix(QUEUE).partition("@")[0])
            os.kill(number, signal.SIGTERM)
            queues.add(number)
    asked.queues = len(queues)
    for path in (folder / LOGS).glob(f"*{PROCESS}"):
        with suppress(OSError, ValueError):
            process, queue, host = path.read_text(encoding="utf-8").split()
            # One whose queue lives hears of it from that: a second signal would end it unsaved.
            if host == here and int(queue) not in queues and is_locked(path.with_suffix(".log")):
                os.kill(int(process), signal.SIGTERM)
                asked.runs += 1
    return asked


def _host(path: Path) -> str:
    return path.name.partition("@")[2] or socket.gethostname()
