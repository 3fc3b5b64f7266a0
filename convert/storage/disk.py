"""Files of gigabytes: the disk works while the rest is still computed, and memory is used again."""

from __future__ import annotations

import io
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

BYTES_BETWEEN_SYNCS = 1 << 28
"""Bytes after which writing to disk begins; the kernel itself waits for a tenth of the memory."""


def create(path: Path) -> BinaryIO:
    """A new file whose bytes are sent to disk in the background, so that a sync at the end finds little to do.

    Raises:
        OSError: it cannot be created; later, from writing or closing: its bytes cannot be written.
    """
    return io.BufferedRandom(_Draining(path, "w+b"))


class _Draining(io.FileIO):
    """A file that another thread syncs again and again while it grows."""

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._sync: Future[None] | None = None
        self._unsynced = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        written = super().write(data)
        self._unsynced += written
        if self._unsynced >= BYTES_BETWEEN_SYNCS and (self._sync is None or self._sync.done()):
            self._finish()
            self._unsynced = 0
            self._sync = self._thread.submit(_drain, self.fileno())
        return written

    def close(self) -> None:
        try:
            self._finish()
        finally:
            self._thread.shutdown()
            super().close()

    def _finish(self) -> None:
        """Wait for the running sync; the kernel reports a failure once, so it must be raised."""
        sync, self._sync = self._sync, None
        if sync is not None:
            sync.result()


def _drain(file: int) -> None:
    """To disk, then out of the page cache where the system takes such advice (Linux): what is written next goes there.

    Fresh pages cost more than the copy into them where a virtual machine must ask its host for each.
    """
    os.fsync(file)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
