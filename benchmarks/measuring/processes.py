"""Workers as the parent sees them: start one, follow its events, survive whatever becomes of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
SILENCE_SECONDS = 900.0
"""A worker that says nothing for this long (compilers take minutes) has hung."""
PARTING_SECONDS = 5.0
"""How long an interrupted worker may take to answer."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Variables by which the libraries of both frameworks take their number of threads."""

Event = dict[str, Any]


def run_worker(
    job: Mapping[str, Any],
    on_progress: Callable[[str, float], None],
    *,
    environment: Mapping[str, str] | None = None,
    silence: float = SILENCE_SECONDS,
    command: Sequence[str] = (sys.executable, "-m", "benchmarks.measuring.worker"),
) -> Event:
    """One job from start to end.

    Args:
        on_progress: is told the phase and its share done.
        environment: more variables for the worker.
        silence: seconds without an event after which it counts as hung.

    Returns:
        Its last event: `result`, `absent`, or `failed` with a `reason`.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaint:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaint,
            text=True,
            encoding="utf-8",
            # Ctrl-C is for the parent, which ends the worker and keeps what was measured.
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(job))
                process.stdin.close()
            answers: list[Event] = []
            try:
                with _watchdog(process, silence) as heard:
                    _follow(process.stdout, answers, heard, on_progress)
            except KeyboardInterrupt:
                # It ends its series and answers with what it has; a second Ctrl-C ends it here.
                process.send_signal(signal.SIGINT)
                with _watchdog(process, PARTING_SECONDS):
                    _follow(process.stdout, answers, lambda: None, lambda *_: None)
                if not answers or answers[-1]["event"] != "result":
                    raise
                answers[-1]["interrupted"] = True
            process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if answers:
            return answers[-1]
        complaint.seek(0)
        return {"event": "failed", "reason": _reason(complaint, process.returncode)}


def _follow(
    lines: IO[str], answers: list[Event], heard: Callable[[], None], on_progress: Callable[[str, float], None]
) -> None:
    """Add the events that are no progress to `answers`; whatever is no event is passed over."""
    for line in lines:
        heard()
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "progress":
            on_progress(event["phase"], event["share"])
        elif isinstance(event, dict) and "event" in event:
            answers.append(event)


@contextlib.contextmanager
def _watchdog(process: subprocess.Popen[str], silence: float) -> Iterator[Callable[[], None]]:
    """Ends a process that says nothing for too long; call what it yields at every sign of life."""
    timer: list[threading.Timer] = []

    def heard() -> None:
        if timer:
            timer.pop().cancel()
        timer.append(threading.Timer(silence, process.kill))
        timer[0].daemon = True
        timer[0].start()

    heard()
    try:
        yield heard
    finally:
        timer[0].cancel()


def _reason(complaint: IO[str], code: int | None) -> str:
    """What a worker that ended without a result said last."""
    lines = [line.strip() for line in complaint.read().splitlines() if line.strip()]
    ending = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    if code == -9:
        ending += " (out of memory, or silent for too long)"
    return f"the worker ended with {ending}" + (f": {lines[-1][:300]}" if lines else "")
