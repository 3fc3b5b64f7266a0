"""What a preparation has done so far: a folder of finished shards, in which a killed one is gone on with.

    data/NAME.tmp-hub/
      plan.json             what is prepared, and how; whoever goes on must want the same
      tokenizer.json        what makes the ids
      shard-00000.bin       token ids, as in a dataset
      shard-00000.json      written last: tokens, SHA-256, rows they are of, and the row where the next shard begins

What is not vouched for by its json was not finished, and is made again. Who prepares holds a lock on the folder, which
dies with its process; others may read in it meanwhile (following.py).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt_common.data.corpora.ids import parts_of, read_ids
from gpt_common.data.tokenizers import Tokenizer
from gpt_common.data.writer import dtype_of_ids
from gpt_common.errors import UserError
from gpt_common.files import cannot_write, remove, sha256_of, sync, write_atomically

COMMAND = "python -m gpt_common.data prepare --hub"
"""In the recipe of a dataset that was prepared so."""
PLANNED = (
    "repository", "commit", "config", "split", "column", "files", "tokenizer", "max_tokens", "shard_characters",
)  # fmt: skip
"""What a plan has; it decides every token, and stands in the recipe too."""
PLAN, TOKENIZER = "plan.json", "tokenizer.json"
ATTEMPTS, BETWEEN_ATTEMPTS = 5, 0.02
"""To hold the folder, and seconds between two of them."""


@dataclass(frozen=True)
class Finished:
    """A shard that is on the disk."""

    tokens: int
    sha256: str
    """Of its ids."""
    rows: list[dict[str, Any]]
    """Which it is of: `file`, `hash`, `first` and `last` row."""
    next_file: int
    next_row: int
    """Where the next one begins."""
    last: bool
    """None comes behind it."""


class Work:
    """The folder, held by one process.

    Args:
        dtype: of the ids.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any]) -> None:
        self.folder, self.dtype = folder, dtype
        self.finished: list[Finished] = []

    def shard(self, number: int) -> Path:
        """The ids of a shard."""
        return shard_path(self.folder, number)

    def load(self) -> None:
        """Take up the shards that are whole; what else lies there goes."""
        wanted = {PLAN, TOKENIZER}
        while (record := self._record(len(self.finished))) is not None:
            wanted |= {self.shard(len(self.finished)).name, self._beside(len(self.finished)).name}
            self.finished.append(record)
        for path in self.folder.iterdir():
            if path.name not in wanted:
                remove(path)

    def keep(self, record: Finished) -> None:
        """A shard whose ids are written is finished."""
        sync(self.shard(len(self.finished)))
        sync(self.folder)
        write_atomically(self._beside(len(self.finished)), json.dumps(asdict(record)) + "\n")
        self.finished.append(record)

    def chunks(self, start: int, stop: int) -> Iterator[npt.NDArray[np.integer]]:
        """Tokens `start` to `stop` of all shards taken together."""
        for number, first, last in parts_of([record.tokens for record in self.finished], start, stop):
            yield from read_ids(self.shard(number), self.dtype, first, last)

    def _beside(self, number: int) -> Path:
        return self.shard(number).with_suffix(".json")

    def _record(self, number: int) -> Finished | None:
        record = read_record(self.folder, number)
        try:
            if record is None or sha256_of(self.shard(number)) != record.sha256:
                return None
            return record if self.shard(number).stat().st_size == record.tokens * self.dtype.itemsize else None
        except OSError:
            return None


def work_folder(name: str, data_dir: Path) -> Path:
    """Where the dataset `name` is prepared."""
    return data_dir / f"{name}.tmp-hub"


def shard_path(folder: Path, number: int) -> Path:
    """The ids of a shard."""
    return folder / f"shard-{number:05}.bin"


def read_record(folder: Path, number: int) -> Finished | None:
    """What vouches for a shard, whose ids are not looked at; None if it is not finished."""
    try:
        return Finished(**json.loads(shard_path(folder, number).with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def read_plan(folder: Path) -> dict[str, Any] | None:
    """What is prepared in a folder; None if nothing is."""
    try:
        found = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def is_held(folder: Path) -> bool:
    """Whether a process prepares in a folder at this moment; where a file system has no locks, perhaps."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Held by this process for a moment, in which who wants to prepare tries again.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def working(folder: Path, plan: dict[str, Any], maker: Tokenizer, *, overwrite: bool) -> Iterator[Work]:
    """Work on `plan`, begun or gone on with; the folder stays if shards are finished when the block fails.

    Args:
        maker: of the ids.
        overwrite: work on another plan gives way.

    Raises:
        UserError: another process works there, or work on another plan lies there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise cannot_write(folder, error) from None
    work = Work(folder, dtype_of_ids(maker.vocab_size))
    try:
        _hold(descriptor, folder)
        before = read_plan(folder)
        if before is not None and before != plan and not overwrite:
            raise UserError(_other(folder, before, plan))
        if before != plan:
            for path in folder.iterdir():
                remove(path)
            write_atomically(folder / PLAN, json.dumps(plan) + "\n")
        maker.save(folder / TOKENIZER)
        work.load()
        try:
            yield work
        except UserError as error:
            if not work.finished:
                raise
            raise UserError(f"{error}; what is finished is kept: the same command goes on with it") from None
        finally:
            if not work.finished:
                remove(folder)
    except OSError as error:
        raise cannot_write(folder, error) from None
    finally:
        os.close(descriptor)


def _hold(descriptor: int, folder: Path) -> None:
    for attempt in range(ATTEMPTS):
        if attempt:
            sleep(BETWEEN_ATTEMPTS)  # who only looks whether a preparation runs holds it for a moment
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except OSError:  # not every network file system has locks
            return None
    raise UserError(f"another process prepares {folder.name.partition('.tmp-')[0]}: wait for it")


def _other(folder: Path, before: dict[str, Any], plan: dict[str, Any]) -> str:
    """What to say where the work that lies there is other work."""
    if before.get("repository") == plan["repository"] and before.get("commit") != plan["commit"]:
        return (
            f"{plan['repository']} is at commit {plan['commit'][:12]} now, and {folder} was begun at another: "
            f"--revision {before.get('commit')} goes on with it, --overwrite begins anew"
        )
    key = next(key for key in plan if before.get(key) != plan[key])
    return (
        f"{folder} was begun with {key.replace('_', ' ')} {str(before.get(key))[:80]}, not {str(plan[key])[:80]}: "
        "repeat the command as it was, or begin anew with --overwrite"
    )
