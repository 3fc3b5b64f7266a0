"""One part in processes of its own: it may fail, hang, crash, lie or be interrupted."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import psutil
import pytest

from benchmarks.macs.running import Ended, Job, run
from gpt_common.errors import WorkFailed
from tests.benchmarks.macs.recipes import JANE, job

HANG = "import time; print('so far', flush=True); time.sleep(600)"


def test_a_part_that_works(tmp_path: Path) -> None:
    part, note = run(job("print('hello')", read=lambda: "all well"), JANE.clean, tmp_path)
    assert (part.status, part.words, note) == ("passed", None, "all well")
    assert part.commands == ["python -c 'print('\"'\"'hello'\"'\"')'"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys; print('noise'); sys.exit('error: parity is broken\\nat L5')", "parity is broken at L5"),
        ("import sys; print('only this'); sys.exit(3)", "only this"),
        ("raise RuntimeError('no compiler\\n\\nSet VERBOSE=1 for more')", "RuntimeError: no compiler"),
        ("import sys; sys.exit(3)", "ended with exit code 3: "),
        ("raise OSError('/Users/jane/secret.txt of jane')", "OSError: <path> of <user>"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", "ended with signal SIGABRT: "),
        ("import os; os.write(2, b'\\xff\\x1b[31mred\\x1b[0m\\n'); os._exit(1)", "\ufffdred"),
        ("import sys; sys.exit('x' * 100_000)", "x" * 500),
    ],
)
def test_a_part_that_fails_says_so_in_its_own_words_without_ours(code: str, words: str, tmp_path: Path) -> None:
    part, _ = run(job(code), JANE.clean, tmp_path)
    assert (part.status, part.words) == ("failed", words)


def test_a_part_that_hangs_is_ended(tmp_path: Path) -> None:
    part, _ = run(job(HANG, limit=2.0), JANE.clean, tmp_path)
    assert part.status == "timed out"
    assert part.words == "ended after 2 s; it had said: so far"


def test_a_part_that_is_ended_may_write_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "kept.txt"
    code = f"""
import signal, time
def keep(*_):
    open({str(path)!r}, "w").write("half")
    raise SystemExit(143)
signal.signal(signal.SIGTERM, keep)
time.sleep(600)
"""
    part, note = run(job(code, limit=2.0, read=path.read_text), JANE.clean, tmp_path)
    assert (part.status, note) == ("timed out", "half")


def test_nothing_that_it_started_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deaf to SIGTERM, with a worker in a session of its own."""
    monkeypatch.setattr("benchmarks.macs.running.PARTING_SECONDS", 0.5)
    path = tmp_path / "pids.txt"
    code = f"""
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open({str(path)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(600)
"""
    part, _ = run(job(code, limit=4.0), JANE.clean, tmp_path)
    assert part.status == "timed out"
    pids = [int(word) for word in path.read_text().split()]
    assert len(pids) == 2
    living = [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    assert not living


def test_the_first_command_that_fails_ends_the_part(tmp_path: Path) -> None:
    path = tmp_path / "ran"
    commands = [("-c", "pass"), ("-c", "import sys; sys.exit('no')"), ("-c", f"open({str(path)!r}, 'w')")]
    part, _ = run(Job("several", commands, 60.0, str), JANE.clean, tmp_path)
    assert (part.status, part.words, len(part.commands)) == ("failed", "no", 3)
    assert not path.exists()


def test_what_was_written_is_judged(tmp_path: Path) -> None:
    def wrong() -> str:
        raise WorkFailed("the losses are 1e-2 apart")

    def unreadable() -> str:
        return str(json.loads("/Users/jane"))

    part, _ = run(job("pass", read=wrong), JANE.clean, tmp_path)
    assert (part.status, part.words) == ("failed", "the losses are 1e-2 apart")
    part, _ = run(job("pass", read=unreadable), JANE.clean, tmp_path)
    assert part.status == "failed"
    assert part.words is not None
    assert part.words.startswith("its result cannot be read: JSONDecodeError")
    part, _ = run(job("import sys; sys.exit('first')", read=unreadable), JANE.clean, tmp_path)
    assert part.words == "first", "a consequence is not the reason"


def test_ctrl_c_ends_the_part_and_keeps_what_it_found(tmp_path: Path) -> None:
    began = threading.Event()

    def tick(spent: float) -> None:
        if spent > 1 and not began.is_set():
            began.set()
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Ended) as ended:
        run(job(HANG), JANE.clean, tmp_path, tick)
    assert (ended.value.part.status, ended.value.part.words) == ("interrupted", "by Ctrl-C")
    assert not psutil.Process().children()
