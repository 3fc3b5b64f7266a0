"""Files and folders that are whole or not there at all: written beside their place, synced, and renamed.

What is not finished yet is called `NAME.tmp-<pid>`, so that whoever comes next can tell what a dead process left from
what a living one is writing.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt_common.errors import UserError


def temporary_beside(path: Path, what: str = "") -> Path:
    """Where this process keeps what will be called `path`, or, with `what`, what was."""
    return path.with_name(f"{path.name}.tmp-{what}{os.getpid()}")


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def discard_on_error(path: Path) -> Iterator[None]:
    """Remove `path` if the block that fills it fails, so that nothing half-written stays."""
    try:
        yield
    except BaseException:
        remove(path)
        raise


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by `text` in one step: a reader sees the old one or the new one, never a part.

    Raises:
        OSError: it cannot be written; the old one is untouched.
    """
    temporary = temporary_beside(path)
    with discard_on_error(temporary):
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)


def move_into_place(temporary: Path, path: Path, *, may_replace: Callable[[], None] = lambda: None) -> None:
    """Give a finished file or folder its name, whatever other processes do with that name meanwhile.

    Everything is on disk before the name changes; what was there before goes last.

    Args:
        may_replace: asked before a full folder gives way; raises if it must not.

    Raises:
        OSError: the system refuses.
    """
    for part in (*temporary.rglob("*"), temporary):
        sync(part)
    replaced = temporary_beside(path, "replaced-")
    while True:
        try:
            temporary.replace(path)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        may_replace()
        # A folder cannot be renamed onto a full one: the old one steps aside. Those who read it keep their files.
        try:
            path.rename(replaced)
        except FileNotFoundError:
            continue
        # At once: another process may take the name first, and its folder must step aside to the same place.
        shutil.rmtree(replaced, ignore_errors=True)
    sync(path.parent)


def sweep_leftovers(folder: Path, name: str = "") -> None:
    """Remove what killed processes left in `folder` of `name`, or of anything; processes that live are left alone."""
    for leftover in folder.glob(f"{glob.escape(name) or '*'}.tmp-*"):
        process = re.fullmatch(r".*\.tmp-(?:[a-z]+-)?(\d+)(?:\.\w+)?", leftover.name)
        if process and not _another_alive(int(process[1])):
            remove(leftover)


def _another_alive(process: int) -> bool:
    if process == os.getpid():  # a number that is used again
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def is_system_file(path: Path) -> bool:
    """Whether Finder or Explorer leaves such a file in a folder that it shows: nobody's work, nobody's loss."""
    names = {".DS_Store", ".localized", "Icon\r", "Thumbs.db", "desktop.ini", ".directory"}
    return path.name in names or path.name.startswith("._")


def cannot_write(path: Path, error: OSError) -> UserError:
    """The message for a write that failed: no space, read-only folder, or whatever the system said."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left to write {path}: free some and repeat; everything saved before is intact")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"cannot write {path}: the folder is read-only; everything saved before is intact")
    return UserError(f"cannot write {path}: {error.strerror or error}; everything saved before is intact")
