"""One part of the self-test: its commands, each in a process of its own, whatever becomes of them."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.macs.record import Part, Status
from gpt_common.errors import WorkFailed

ROOT = Path(__file__).parents[2]
PARTING_SECONDS = 10.0
"""What a process may take to write down what it has, when it is told to end."""
LONGEST = 500
"""Characters of a process's last words that are kept."""
ENVIRONMENT = {
    "COLUMNS": "80",
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
    "PYTHONIOENCODING": "utf-8",
    "PYTHONUNBUFFERED": "1",  # otherwise the error would stand before what was printed first
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Job:
    """What is to be done."""

    name: str
    """Of the part."""
    commands: Sequence[Sequence[str]]
    """Arguments of Python, one command after the other; the first that fails ends the part."""
    limit: float
    """Seconds for all of them."""
    read: Callable[[], str]
    """Takes in what they wrote and says it in some words; WorkFailed if it is not as it must be."""
    after: tuple[str, ...] = ()
    """Parts without which this one cannot be done."""


class Ended(Exception):
    """Ctrl-C ended a part; what it had found until then is taken in."""

    def __init__(self, part: Part) -> None:
        super().__init__(part.name)
        self.part = part


def run(
    job: Job,
    clean: Callable[[str], str],
    scratch: Path,
    tick: Callable[[float], None] = lambda _: None,
    environment: Mapping[str, str] = ENVIRONMENT,
) -> tuple[Part, str]:
    """Do it; returns its record and some words on what was found.

    Args:
        clean: takes out of texts what is personal.
        scratch: folder for what the processes print.
        tick: is told the seconds since the part began, some times a second.

    Raises:
        Ended: by Ctrl-C; holds the record.
    """
    began = time.monotonic()
    status: Status = "passed"
    words = ""
    try:
        for command in job.commands:
            code, said = _process(command, began, job.limit, scratch / "said.txt", tick, environment)
            if code is None:
                status, words = "timed out", f"ended after {job.limit:.0f} s; it had said: {said}"
            elif code:
                status, words = "failed", said if said and code > 0 else f"ended with {_ending(code)}: {said}"
            if status != "passed":
                break
    except KeyboardInterrupt:
        status, words = "interrupted", "by Ctrl-C"
    note = ""
    try:
        note = job.read()
    except WorkFailed as error:
        if status == "passed":
            status, words = "failed", str(error)
    except Exception as error:  # whatever a broken process may have written
        if status == "passed":
            status, words = "failed", f"its result cannot be read: {type(error).__name__}: {error}"
    part = Part(
        name=job.name,
        status=status,
        seconds=round(time.monotonic() - began, 1),
        commands=[clean(shlex.join(["python", *command]))[:LONGEST] for command in job.commands],
        words=clean(words)[:LONGEST] if status != "passed" else None,
    )
    if status == "interrupted":
        raise Ended(part)
    return part, note


def _process(
    words: Sequence[str],
    began: float,
    limit: float,
    said: Path,
    tick: Callable[[float], None],
    environment: Mapping[str, str],
) -> tuple[int | None, str]:
    """One command; its exit code, None if it took too long, and its last words."""
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the parent, which ends the process and goes on to write what was measured.
            start_new_session=True,
        )
        with _none_left(process):
            while process.poll() is None:
                spent = time.monotonic() - began
                tick(spent)
                if spent > limit:
                    _end(process)
                    return None, last_words(said)
                try:
                    process.wait(0.2)
                except subprocess.TimeoutExpired:
                    continue
                except KeyboardInterrupt:
                    _end(process)
                    raise
    return process.returncode, last_words(said)


@contextlib.contextmanager
def _none_left(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """However the block ends, the process and what it started end with it."""
    try:
        yield
    finally:
        for each in _descendants(process):
            with contextlib.suppress(psutil.Error):
                each.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Workers have sessions of their own, so that no signal to a group reaches them."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return []


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end and write down what it has; what it started is ended with it, if it does not itself."""
    started = _descendants(process)
    # Not SIGINT, to which what a shell has started in the background is deaf.
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PARTING_SECONDS)
    for each in started:
        with contextlib.suppress(psutil.Error):
            each.kill()


def last_words(path: Path) -> str:
    """The error that a process printed, the exception that ended it, or its last line."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        text = file.read().decode("utf-8", errors="replace")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    error = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("error: ")), None)
    if error is not None:
        return " ".join(line.strip() for line in lines[error:])[len("error: ") :][:LONGEST]
    # An exception may go on for lines, and PyTorch's end with advice on its own variables.
    exceptions = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception)\b", line)]
    return (exceptions or [line.strip() for line in lines] or [""])[-1][:LONGEST]


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
