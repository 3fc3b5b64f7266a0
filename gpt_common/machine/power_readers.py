"""Readers of power: of a command that prints samples, or of a counter; for one stretch of work, or followed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from gpt_common.machine.power_samples import Energy, Sample, integrate

INTERVAL_MS = 200
"""Between two samples of a source that samples, for a benchmark."""


class Reader:
    """A source of energy figures; one stretch of work at a time."""

    source: str
    """Its name."""
    scope: str
    """What it counts."""
    idle_watts: float | None = None
    """Power of the idle machine, once `measure_idle` has run."""

    def start(self) -> None:
        """Begin a stretch."""
        raise NotImplementedError

    def stop(self) -> Energy | None:
        """End it; None if the source said nothing for too much of it."""
        raise NotImplementedError

    def follow(self) -> Iterator[Sample]:
        """What is read from now on, each with its length, until `close`; waits for each.

        Raises:
            RuntimeError: the source has ended by itself; says why, if it told.
        """
        raise NotImplementedError

    def measure_idle(self, seconds: float) -> float | None:
        """Watts of the machine as it is now, kept for `Energy.net_joules`; call it on a quiet machine."""
        self.start()
        time.sleep(seconds)
        energy = self.stop()
        self.idle_watts = energy.joules / energy.seconds if energy else None
        return self.idle_watts

    def close(self) -> None:
        """End the processes behind it."""


class SampledReader(Reader):
    """Runs a command that prints samples, for as long as the reader lives.

    Args:
        command: prints sample after sample to its standard output.
        end: the bytes that end a sample.
        parse: one sample from its bytes, `end` included; None if they hold none.
        interval_ms: between two samples.

    Raises:
        RuntimeError: no sample came within `patience` seconds; says what the command printed on standard error.
    """

    def __init__(
        self,
        source: str,
        scope: str,
        command: Sequence[str],
        end: bytes,
        parse: Callable[[bytes], Sample | None],
        patience: float = 5.0,
        interval_ms: int = INTERVAL_MS,
    ) -> None:
        self.source, self.scope = source, scope
        self._interval = interval_ms / 1000
        self._end, self._parse = end, parse
        self._samples: list[tuple[float, Sample]] = []
        self._news = threading.Condition()
        self._closing = self._ended = False
        self._started = 0.0
        # A file, not a pipe: reading the complaint of a process that would not end must not block.
        self._complaint = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._complaint,
            bufsize=0,
            process_group=0,  # not with the first Ctrl-C; but in this session, to which sudo ties its rights
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        if not self._wait(lambda: bool(self._samples), patience):
            complaint = self._complained()
            self.close()
            raise RuntimeError(complaint or f"no sample within {patience:g} s")

    def start(self) -> None:
        self._started = time.perf_counter()
        with self._news:
            del self._samples[:-1]  # the last one may be the predecessor from which the next one counts

    def stop(self) -> Energy | None:
        stopped = time.perf_counter()
        # The sample that covers the end has not been printed yet.
        self._wait(lambda: self._samples[-1][0] >= stopped, 5 * self._interval)
        with self._news:
            samples = list(self._samples)
        return integrate(samples, self._started, stopped, self.idle_watts, self.source, self.scope)

    def follow(self) -> Iterator[Sample]:
        self.start()
        ended = False
        while not ended:
            with self._news:
                self._news.wait_for(lambda: len(self._samples) > 1 or self._ended or self._closing)
                samples, ended = list(self._samples), self._ended or self._closing
                del self._samples[:-1]
            for (before, _), (until, sample) in pairwise(samples):
                yield sample if sample.seconds is not None else replace(sample, seconds=until - before)
        if not self._closing:
            raise RuntimeError(self._complained() or "it ended")

    def close(self) -> None:
        # A process that sudo started may not be ours to signal; without a reader it ends at its next line.
        with self._news:
            self._closing = True
            self._news.notify_all()
        with contextlib.suppress(PermissionError):
            self._process.terminate()
        self._thread.join(timeout=2)
        if self._process.stdout and not self._thread.is_alive():
            self._process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._complaint.close()

    def _complained(self) -> str:
        """What the command printed on standard error, in short."""
        self._complaint.seek(0)
        return " ".join(self._complaint.read(4096).decode(errors="replace").split())[:120]

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Until the condition holds, `seconds` are over, or the command has ended."""
        with self._news:
            self._news.wait_for(lambda: condition() or self._ended, seconds)
            return condition()

    def _read(self) -> None:
        buffer = b""
        pipe = self._process.stdout
        assert pipe is not None
        try:
            while not self._closing and (chunk := os.read(pipe.fileno(), 1 << 16)):
                *documents, buffer = (buffer + chunk).split(self._end)
                for document in documents:
                    sample = self._parse(document + self._end)
                    with self._news:
                        if sample and not (self._samples and self._samples[-1][1].key == sample.key):
                            self._samples.append((time.perf_counter(), sample))
                        self._news.notify_all()
        finally:
            with self._news:
                self._ended = True
                self._news.notify_all()


class CounterReader(Reader):
    """Reads an energy counter at both ends of a stretch.

    Args:
        begin: called at the start; its result goes to `end`.
        end: joules of the stretch and of its parts.
        usage: share of the time in which the GPU is busy now, 0 to 1, if that is known.
        interval_ms: between two readings that are followed.
    """

    def __init__(
        self,
        source: str,
        scope: str,
        begin: Callable[[], Any],
        end: Callable[[Any], tuple[float, dict[str, float]]],
        usage: Callable[[], float | None] = lambda: None,
        interval_ms: int = INTERVAL_MS,
    ) -> None:
        self.source, self.scope = source, scope
        self._begin, self._end, self._usage = begin, end, usage
        self._interval = interval_ms / 1000
        self._closed = threading.Event()
        self._started = 0.0
        self._token: Any = None

    def start(self) -> None:
        self._token = self._begin()
        self._started = time.perf_counter()

    def stop(self) -> Energy | None:
        joules, parts = self._end(self._token)
        return Energy(joules, time.perf_counter() - self._started, self.idle_watts, self.source, self.scope, parts)

    def follow(self) -> Iterator[Sample]:
        self.start()
        while not self._closed.wait(self._interval):
            joules, parts = self._end(self._token)
            seconds = time.perf_counter() - self._started
            self.start()
            watts = {name: part / seconds for name, part in parts.items()}
            yield Sample(self._started, seconds, joules / seconds, watts, gpu_usage=self._usage())

    def close(self) -> None:
        self._closed.set()
