"""Text files to token ids, in pieces: memory does not grow with the files, and several processes share the work.

A piece ends where a tokenizer says that cutting changes nothing (`Tokenizer.last_cut`), so the ids are the same for
every size of piece and every number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt_common.data.tokenizers import Tokenizer, cut_pieces, load_tokenizer
from gpt_common.errors import UserError

PIECE_CHARACTERS = 1 << 20

Ids = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Span:
    """Characters `start` to `stop` of a UTF-8 file."""

    path: Path
    start: int
    stop: int

    def blocks(self, characters: int) -> Iterator[str]:
        """The text, `characters` at a time.

        Raises:
            UserError: unreadable, or not the text whose characters were counted.
        """
        position = 0
        try:
            # newline="": line ends stay as they are in the file.
            with self.path.open(encoding="utf-8", newline="") as file:
                while position < self.stop:
                    limit = self.start if position < self.start else self.stop
                    block = file.read(min(characters, limit - position))
                    if not block:
                        raise UserError(self.changed())
                    position += len(block)
                    if position > self.start:
                        yield block
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UserError(self.changed()) from None

    def changed(self) -> str:
        """What to say when the file is not what it was when its characters were counted."""
        return f"{self.path} changed while it was read: repeat when nothing writes it"


def jobs(spans: Iterable[Span], tokenizer: Tokenizer, piece_characters: int = PIECE_CHARACTERS) -> Iterator[str | int]:
    """Pieces of text to encode, and between two spans the id of <|endoftext|> where the tokenizer has one."""
    for number, span in enumerate(spans):
        if number and tokenizer.end_of_text is not None:
            yield tokenizer.end_of_text
        yield from cut_pieces(span.blocks(piece_characters), tokenizer.last_cut)


Encoded = tuple[int, Ids]
"""How many characters these are, and their ids."""


@contextmanager
def encoder(tokenizer: Tokenizer, workers: int) -> Iterator[Callable[[Iterable[str | int]], Iterator[Encoded]]]:
    """A function from `jobs` to their ids, in order, computed by `workers` processes (1: in this one).

    It is never more than 2 * workers pieces ahead of who takes its results.
    """
    if workers <= 1:
        yield lambda work: (_encode(tokenizer, job) for job in work)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        # spawn on every system: fork copies the threads' locks but not the threads.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(path,))
        try:
            yield lambda work: _in_order(pool, tokenizer, work, ahead=2 * workers)
        except BrokenProcessPool:
            raise UserError(
                "a process that encodes text died, perhaps for lack of memory: try fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, tokenizer: Tokenizer, work: Iterable[str | int], ahead: int
) -> Iterator[Encoded]:
    waiting: deque[Future[Encoded] | Encoded] = deque()
    for job in work:
        waiting.append(pool.submit(_encode_here, job) if isinstance(job, str) else _encode(tokenizer, job))
        if len(waiting) >= ahead:
            yield _result(waiting.popleft())
    while waiting:
        yield _result(waiting.popleft())


def _result(entry: Future[Encoded] | Encoded) -> Encoded:
    return entry.result() if isinstance(entry, Future) else entry


def _encode(tokenizer: Tokenizer, job: str | int) -> Encoded:
    if isinstance(job, int):
        return 0, np.array([job], np.uint32)
    return len(job), np.array(tokenizer.encode(job), np.uint32)


_worker_tokenizer: Tokenizer


def _start_worker(path: Path) -> None:
    """Runs once in each process of the pool."""
    global _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes: the first one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_tokenizer = load_tokenizer(path)


def _end_with_parent() -> None:
    """A pool's process does not notice by itself that the first one was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_here(text: str) -> Encoded:
    return _encode(_worker_tokenizer, text)
