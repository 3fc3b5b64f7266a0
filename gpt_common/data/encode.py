"""Text files to token ids, in pieces: memory does not grow with the files, and several processes share the work.

A piece ends with a document, or where a tokenizer says that cutting changes nothing (`Tokenizer.last_cut`), so the ids
are the same for every size of piece and every number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gpt_common.data.documents import split_documents
from gpt_common.data.tokenizers import Tokenizer, cut_pieces, load_tokenizer
from gpt_common.errors import UserError

PIECE_CHARACTERS = 1 << 18

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
            # newline="": line ends stay as they are in the file; -sig: a byte-order mark is no part of the text.
            with self.path.open(encoding="utf-8-sig", newline="") as file:
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


Job = list[str | int]
"""Texts that are encoded one by one, and ids between them."""


def jobs(
    spans: Iterable[Span],
    tokenizer: Tokenizer,
    piece_characters: int = PIECE_CHARACTERS,
    separator: str | None = None,
    replacements: Mapping[int, str | None] | None = None,
) -> Iterator[Job]:
    """What to encode, about `piece_characters` at a time.

    The tokenizer's end of text stands in place of every separator, and between two spans unless one stands there.

    Args:
        separator: what stands between two documents, if anything; only for a tokenizer with an end of text.
        replacements: what to write for a character (`str.translate`); None leaves it out.
    """
    job: Job = []
    size = 0
    for part in _parts(spans, tokenizer, piece_characters, separator):
        job.append(part.translate(replacements) if replacements and isinstance(part, str) else part)
        size += len(part) if isinstance(part, str) else 1
        if size >= piece_characters:
            yield job
            job, size = [], 0
    if job:
        yield job


def _parts(
    spans: Iterable[Span], tokenizer: Tokenizer, piece_characters: int, separator: str | None
) -> Iterator[str | int]:
    end, ended = tokenizer.end_of_text, True
    for span in spans:
        if not ended and end is not None:
            yield end
        documents = split_documents(span.blocks(piece_characters), separator)
        for is_separator, texts in groupby(documents, key=lambda part: part[0]):
            if is_separator and end is not None:
                yield from (end for _ in texts)
            else:
                yield from cut_pieces((text for _, text in texts), tokenizer.last_cut, at_least=piece_characters)
            ended = is_separator


Encoded = tuple[int, Ids]
"""How many characters these are, and their ids."""


@contextmanager
def encoder(tokenizer: Tokenizer, workers: int) -> Iterator[Callable[[Iterable[Job]], Iterator[Encoded]]]:
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
            yield lambda work: _in_order(pool, work, ahead=2 * workers)
        except BrokenProcessPool:
            raise UserError(
                "a process that encodes text died, perhaps for lack of memory: try fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, work: Iterable[Job], ahead: int) -> Iterator[Encoded]:
    waiting: deque[Future[Encoded]] = deque()
    for job in work:
        with _signals_held():
            waiting.append(pool.submit(_encode_here, job))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Ctrl-C waits: a process that is begun in the meantime inherits that, and is not interrupted in its imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _encode(tokenizer: Tokenizer, job: Job) -> Encoded:
    ids = [tokenizer.encode(part) if isinstance(part, str) else [part] for part in job]
    return sum(len(part) for part in job if isinstance(part, str)), np.fromiter(chain.from_iterable(ids), np.uint32)


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


def _encode_here(job: Job) -> Encoded:
    return _encode(_worker_tokenizer, job)
