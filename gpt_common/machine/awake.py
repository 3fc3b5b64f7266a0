"""A Mac that does not fall asleep in the middle of a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def awake(note: Callable[[str], None], *, wanted: bool = True) -> Iterator[None]:
    """Keep a Mac from falling asleep for want of a user, while it lasts; elsewhere nothing is done.

    Closing the lid is no want of a user: it still sends a laptop to sleep.

    Args:
        note: is told that it is so, or why not.
        wanted: whether to do it at all.
    """
    program = shutil.which("caffeinate") if wanted and sys.platform == "darwin" else None
    if program is None:
        yield
        return
    try:
        # -w: it ends with this process, in whatever way that ends; a session of its own: not with the first Ctrl-C.
        keeper = subprocess.Popen(
            [program, "-i", "-w", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        note(f"the Mac may fall asleep during the run: {program}: {error.strerror}")
        yield
        return
    note("the Mac is kept awake for the length of the run, while its lid is open (--let-sleep: not)")
    try:
        yield
    finally:
        keeper.terminate()
        keeper.wait()
