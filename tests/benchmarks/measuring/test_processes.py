"""The parent's side of a worker: it gets an answer whatever becomes of the process."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import pytest

from benchmarks.measuring.processes import run_worker

ANSWER = "print(json.dumps({'event': 'result', 'got': job}), flush=True)"
START = "import json, sys, os, signal, time\njob = json.load(sys.stdin)\n"


def run(script: str, **more: Any) -> tuple[dict[str, Any], list[tuple[str, float]]]:
    heard: list[tuple[str, float]] = []
    event = run_worker(
        {"n": 1}, lambda *progress: heard.append(progress), command=[sys.executable, "-c", START + script], **more
    )
    return event, heard


def test_the_job_goes_in_and_events_come_out() -> None:
    progress = "print(json.dumps({'event': 'progress', 'phase': 'warm-up', 'share': 0.5}), flush=True)\n"
    event, heard = run(progress + ANSWER)
    assert event == {"event": "result", "got": {"n": 1}}
    assert heard == [("warm-up", 0.5)]


def test_what_libraries_print_is_no_event() -> None:
    event, _ = run("print('Welcome to MKL')\nprint('{broken')\nprint('[1, 2]')\n" + ANSWER)
    assert event["event"] == "result"


def test_variables_reach_the_worker() -> None:
    script = "print(json.dumps({'event': 'result', 'x': os.environ['BENCHMARK_TEST']}))"
    assert run(script, environment={"BENCHMARK_TEST": "7"})[0]["x"] == "7"


def test_an_error_is_the_reason() -> None:
    event, _ = run("raise RuntimeError('no kernel for this')")
    assert event["event"] == "failed"
    assert event["reason"] == "the worker ended with exit code 1: RuntimeError: no kernel for this"


def test_a_crash_is_the_reason() -> None:
    event, _ = run("os.kill(os.getpid(), signal.SIGSEGV)")
    assert event["reason"] == "the worker ended with signal 11"


def test_a_silent_worker_is_ended() -> None:
    event, _ = run("time.sleep(600)", silence=0.2)
    assert event["event"] == "failed"
    assert "silent for too long" in event["reason"]


def interrupt_at_first_progress(phase: str, share: float) -> None:
    del phase, share
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()


PROGRESS = "print(json.dumps({'event': 'progress', 'phase': 'a', 'share': 0}), flush=True)\n"


def test_ctrl_c_lets_the_worker_answer_with_what_it_has() -> None:
    script = "signal.signal(signal.SIGINT, lambda *_: (" + ANSWER + ", os._exit(0)))\n" + PROGRESS + "time.sleep(600)"
    command = [sys.executable, "-c", START + script]
    event = run_worker({"n": 1}, interrupt_at_first_progress, command=command)
    assert event == {"event": "result", "got": {"n": 1}, "interrupted": True}


def test_ctrl_c_ends_a_worker_that_has_nothing() -> None:
    script = "signal.signal(signal.SIGINT, lambda *_: os._exit(0))\n" + PROGRESS + "time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        run_worker({"n": 1}, interrupt_at_first_progress, command=[sys.executable, "-c", START + script])
