"""Files and folders that are whole or not there at all: written beside their place, synced, and renamed.

What is not finished yet is called `NAME.tmp-<pid>`, so that whoever comes next can tell what a dead process left from
what a living one is writing.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from gpt_common.errors import UserError
from gpt_common.words import in_bytes

MOST_CONTAINERS = 1 << 21
"""Lists and objects in a JSON file: each takes a hundred bytes of memory, and two on the disk."""


def require_file(path: Path) -> None:
    """Refuse what would be waited for or read without end: a pipe, a device, a folder.

    Raises:
        OSError: it is no regular file, or is not there.
    """
    _require_regular(path.stat(), path)


def _require_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def open_file(path: Path) -> BufferedReader:
    """A regular file, opened for reading; nothing is waited for.

    Raises:
        OSError: it is no regular file, or cannot be read.
    """
    require_file(path)
    # It may be another one by now, and a pipe without a writer would be waited for.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    try:
        _require_regular(os.fstat(file.fileno()), path)
    except OSError:
        file.close()
        raise
    return file


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a regular file.

    Raises:
        OSError: it is no regular file, or cannot be read.
    """
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bytes(path: Path, largest: int) -> bytes:
    """The content of a regular file that has at most `largest` bytes.

    Raises:
        OSError: it is no regular file, or cannot be read.
        ValueError: it is larger.
    """
    with open_file(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"it is larger than {in_bytes(largest)}")
    return content


def read_json(path: Path, largest: int) -> Any:
    """The document in a JSON file of at most `largest` bytes; every number is finite, every key stands there once.

    Raises:
        OSError: it is no regular file, or cannot be read.
        ValueError: it is larger, no JSON, or JSON that nobody writes in earnest; says what is wrong.
    """
    content = read_bytes(path, largest)
    if content.count(b"[") + content.count(b"{") > MOST_CONTAINERS:
        raise ValueError("it holds millions of lists")
    try:
        return parse_json(content.decode("utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_json(text: str) -> Any:
    """The document in a text of JSON; every number is finite, every key stands there once.

    Raises:
        ValueError: it is no such JSON; says what is wrong.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=unique_keys, parse_constant=_finite_number, parse_float=_finite_number)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, for `object_pairs_hook`; raises ValueError where one key stands twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice[:80]!r} stands in it twice")
    return entries


def _finite_number(written: str) -> float:
    if not math.isfinite(value := float(written)):
        raise ValueError(f"it holds the number {written[:20]}")
    return value


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


@contextmanager
def written_whole(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Where the block writes what will be the file or folder `path`: whole, or not at all.

    Args:
        temporary: that place; of this process, beside `path`.

    Raises:
        UserError: it cannot be written; what was there before is untouched.
    """
    temporary = temporary or temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_leftovers(path.parent, path.name)
        with discard_on_error(temporary):
            yield temporary
            move_into_place(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from None


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
