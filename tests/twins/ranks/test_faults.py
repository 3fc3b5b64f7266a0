"""A rank that is killed or stopped ends the run soon, is named, and costs nothing that was saved."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.twins import TWINS, tensors, tiny, train
from tests.twins.ranks.launching import ended, start

STEPS, LONG, SILENCE = 60, 1000, 2.0
BOUND = 30.0
"""Seconds in which everything has ended, on a busy machine."""
SAVING = ("--grad-accum-steps", "2", "--checkpoint-interval", "2", "--log-interval", "10", "--max-steps", str(STEPS))


def command(twin: str, *argv: str) -> list[str]:
    return [f"{twin}.train", *argv, "--rank-timeout", str(SILENCE)]


def wait_for(path: Path) -> None:
    """Until it is there."""
    until = time.monotonic() + BOUND
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert path.exists()


@pytest.mark.parametrize(
    ("number", "what"), [(signal.SIGKILL, "has ended"), (signal.SIGSTOP, "has been silent for 2 s")]
)
def test_a_rank_is_lost(number: int, what: str, tmp_path: Path, stories_dir: Path) -> None:
    run, twin = tmp_path / "run", "mlx_gpt"
    endless = ("--max-steps", "1000000", "--out", str(run))
    processes = start(twin, command(twin, *tiny(stories_dir), *SAVING, *endless), tmp_path / "launch")
    wait_for(run / "checkpoints" / "latest")
    os.kill(processes[1].pid, number)
    said = ended(processes, BOUND)
    assert all(words in said[0] for words in ("error: rank 1 (process", what, f"--resume {run}")), said
    assert "Traceback" not in said[0], said
    assert processes[0].returncode == 1
    assert processes[1].returncode == -signal.SIGKILL, "one that is stopped is ended by the first"
    saved = (run / "checkpoints" / "latest").read_text().strip()
    train(twin, "--resume", run, "--stop-at", str(int(saved[-6:]) + 1))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("twin", TWINS)
def test_twenty_kills(twin: str, tmp_path: Path, stories_dir: Path) -> None:
    """At random moments, of either rank, killed or stopped: what is resumed ends with the undisturbed weights."""
    choose = random.Random(3)
    flags = [*tiny(stories_dir), *SAVING, "--max-steps", str(LONG)]
    train(twin, *flags, "--out", tmp_path / "whole")
    run, kills, log = tmp_path / "run", 0, tmp_path / "run" / "metrics.jsonl"
    argv = [*flags, "--out", str(run)]
    while kills < 20:
        written = log.stat().st_size if log.exists() else 0
        processes = start(twin, command(twin, *argv), tmp_path / "launch")
        try:
            wait_for(run / "checkpoints" / "latest")
            while log.stat().st_size == written:  # before that a launcher, which is not here, would end the others
                time.sleep(0.01)
            time.sleep(choose.uniform(0.0, 1.0))
            rank, number = choose.randrange(2), choose.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP])
            os.kill(processes[rank].pid, number)
        finally:
            said = ended(processes, BOUND)
        kills += 1
        if processes[1 - rank].returncode == 0:
            break  # it was done
        assert processes[1 - rank].returncode == 1, said
        saved = (run / "checkpoints" / "latest").read_text().strip()
        print(kills, f"rank {rank}", signal.Signals(number).name, saved)
        argv = ["--resume", str(run)]
    ended(start(twin, command(twin, "--resume", str(run)), tmp_path / "launch"))
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, other = (tensors(folder, LONG, file) for folder in (tmp_path / "whole", run))
        assert all(np.array_equal(one[name], other[name]) for name in one)
