"""However a queue or a run ends, what was trained is kept, nobody else is ended, and the same command goes on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt_common.sweep.definition import Cell, Sweep, read_sweep
from gpt_common.sweep.processes import LOGS, ask_to_end, is_locked, locked
from gpt_common.sweep.queue import Queue, log_of, state_of
from gpt_common.sweep.table import rows_of
from tests.gpt_common.sweep.test_sweep import FIXED, small, write
from tests.twins import ROOT


def saved(sweep: Sweep, cell: Cell) -> list[str]:
    return sorted(path.name for path in sweep.folder_of(cell).glob("checkpoints/step-*"))


class Begun:
    """A queue of two long runs as a person starts it, both of which have saved something."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder / "runs"
        self.file = write(folder, FIXED.format(steps=400_000, data=data) + "[grid]\nseed = [1, 2]\n")
        self.sweep = read_sweep(self.file, out=self.folder)
        self.begin()

    def begin(self) -> None:
        words = ["run", str(self.file), "--out", str(self.folder), "--jobs", "2", "--threads", "1"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpt_common.sweep", *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.wait_for(lambda: all(saved(self.sweep, cell) for cell in self.sweep.cells))

    def wait_for(self, done: object) -> None:
        end = time.monotonic() + 100
        while not done():  # type: ignore[operator]
            assert time.monotonic() < end
            time.sleep(0.05)

    def runs(self) -> list[int]:
        """Their process numbers."""
        return [int(path.read_text().split()[0]) for path in (self.folder / LOGS).glob("*.process")]

    @property
    def states(self) -> list[str]:
        return [state_of(self.sweep, cell) for cell in self.sweep.cells]


@pytest.fixture
def begun(tmp_path: Path, stories_dir: Path) -> Iterator[Begun]:
    queue = Begun(tmp_path, stories_dir)
    yield queue
    for number in (queue.process.pid, *queue.runs()):
        if queue.process.poll() is None or number != queue.process.pid:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
    queue.process.wait()
    assert queue.process.stdout is not None
    queue.process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: str(number.name))
def test_a_queue_ends_with_all_runs_saved_and_a_second_signal_does_not_hurry_it(
    begun: Begun, number: signal.Signals
) -> None:
    os.kill(begun.process.pid, number)
    os.kill(begun.process.pid, number)
    ask_to_end(begun.folder)
    out, _ = begun.process.communicate(timeout=100)
    assert begun.process.returncode == 128 + number
    assert begun.states == ["stopped", "stopped"]
    for cell in begun.sweep.cells:
        words = log_of(begun.sweep, cell).read_text()
        assert f"--resume {begun.sweep.folder_of(cell)}" in words.splitlines()[-1], "it saved, and said how to go on"
    if number != signal.SIGHUP:  # after which nobody listens
        assert f"{number.name}: each run finishes its step and saves" in out
        assert f"go on with: python -m gpt_common.sweep run {begun.file}" in out
    assert not list(begun.folder.glob("queue-*"))
    assert not list(begun.folder.rglob("*.process"))


def test_ctrl_c_twice_ends_at_once_and_says_so_before(begun: Begun) -> None:
    for number in begun.runs():
        os.kill(number, signal.SIGSTOP)  # they will not finish their step
    os.kill(begun.process.pid, signal.SIGINT)
    assert begun.process.stdout is not None
    line = next(line for line in begun.process.stdout if "SIGINT" in line)
    assert "Ctrl-C again ends them unsaved" in line
    os.kill(begun.process.pid, signal.SIGINT)
    begun.process.communicate(timeout=30)
    assert begun.process.returncode == 130
    assert begun.states == ["stopped", "stopped"]
    assert all(saved(begun.sweep, cell) for cell in begun.sweep.cells), "what was saved before is there"


def test_runs_of_a_killed_queue_are_theirs_and_can_be_stopped(begun: Begun) -> None:
    begun.process.kill()
    begun.process.wait()
    assert begun.states == ["running", "running"]
    heard: list[str] = []
    Queue(begun.sweep, tell=heard.append).work()
    assert not heard, "what another process trains is left alone"
    assert ask_to_end(begun.folder).said(begun.folder) == "2 runs without a queue asked to save and end"
    begun.wait_for(lambda: begun.states == ["stopped", "stopped"])
    begun.wait_for(lambda: not any(is_locked(log_of(begun.sweep, cell)) for cell in begun.sweep.cells))
    assert ask_to_end(begun.folder).said(begun.folder) == f"nothing works at {begun.folder} on this machine"


def test_a_reader_who_goes_does_not_end_the_queue(begun: Begun) -> None:
    assert begun.process.stdout is not None
    begun.process.stdout.close()
    first, second = begun.runs()
    os.kill(first, signal.SIGKILL)  # which the queue wants to tell
    time.sleep(1)
    assert begun.process.poll() is None
    assert sorted(begun.states) == ["running", "stopped"]
    os.kill(begun.process.pid, signal.SIGTERM)
    assert begun.process.wait(timeout=100) == 143
    assert second


def test_a_run_that_was_killed_before_it_saved_begins_again(tmp_path: Path, stories_dir: Path) -> None:
    sweep = small(tmp_path, stories_dir, "[grid]\nseed = [1]\n")
    (cell,) = sweep.cells
    assert Queue(sweep, threads=1, tell=lambda _: None).work()
    folder = sweep.folder_of(cell)
    for path in (folder / "checkpoints").iterdir():
        subprocess.run(["rm", "-r", str(path)], check=True)
    log = folder / "metrics.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    heard: list[str] = []
    assert Queue(sweep, threads=1, tell=heard.append).work()
    assert heard[0] == f"{cell.name} begins again: nothing was saved of it"
    assert saved(sweep, cell)


def test_nobody_else_is_ended(tmp_path: Path, stories_dir: Path) -> None:
    """Files of queues and runs that are gone, with numbers that the system has given to others since."""
    sweep = small(tmp_path, stories_dir, "[grid]\nseed = [1]\n")
    here = socket.gethostname()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (sweep.folder / LOGS).mkdir(parents=True)
        for name in (f"queue-{other.pid}@{here}", f"queue-{other.pid}", f"queue-{other.pid}@elsewhere", "queue-x@y"):
            (sweep.folder / name).touch()
        log = log_of(sweep, sweep.cells[0])
        log.touch()
        log.with_suffix(".process").write_text(f"{other.pid} 1 {here}\n")
        assert ask_to_end(sweep.folder).said(sweep.folder) == f"nothing works at {sweep.folder} on this machine"
        with (sweep.folder / f"queue-{other.pid}@elsewhere").open("rb") as held:
            assert locked(held)
            assert ask_to_end(sweep.folder).said(sweep.folder) == "others work on elsewhere: stop them there"
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_what_another_queue_has_just_begun_is_left_to_it(tmp_path: Path, stories_dir: Path) -> None:
    """Between the start of its process and its folder a run holds its log: it is known before it is there."""
    sweep = small(tmp_path, stories_dir, "[grid]\nseed = [1]\n")
    (sweep.folder / LOGS).mkdir(parents=True)
    heard: list[str] = []
    with log_of(sweep, sweep.cells[0]).open("ab") as held:
        assert locked(held)
        queue = Queue(sweep, threads=1, tell=heard.append)
        assert queue._look(), "it waits to see what comes of it"
        assert not heard
        assert not queue.failed
        assert rows_of(sweep)[0].state == "starting"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, stories_dir: Path) -> None:
    from gpt_common.errors import UserError

    sweep = small(tmp_path, stories_dir, "[grid]\nseed = [1]\n")
    sweep.folder.write_text("a file where the folder would be")
    with pytest.raises(UserError, match=f"cannot write {sweep.folder}"):
        Queue(sweep, tell=lambda _: None).work()
