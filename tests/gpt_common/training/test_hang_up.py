"""SIGHUP: the terminal is gone, or the connection from another machine. The run ends as by SIGTERM, saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpt_common.errors import watching_signals
from tests.twins import ROOT, hears_hang_ups, tiny


def begin(out: Path, data: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A run that prints into a pipe, when it has saved; and the pipe's end that is read."""
    read, write = os.pipe()
    argv = [
        *tiny(data),
        "--max-steps",
        "100000",
        "--checkpoint-interval",
        "1",
        "--log-interval",
        "100000",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_gpt.train", *argv],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.DEVNULL,
        preexec_fn=hears_hang_ups,
    )
    os.close(write)
    while process.poll() is None and not (out / "checkpoints" / "latest").exists():
        time.sleep(0.01)
    return process, read


def test_the_run_is_saved_though_nobody_reads_what_it_says(tmp_path: Path, stories_dir: Path) -> None:
    process, read = begin(tmp_path / "run", stories_dir)
    os.close(read)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 128 + signal.SIGHUP


def test_who_was_started_deaf_to_it_stays_so() -> None:
    """nohup: it shall go on when the terminal is gone."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with watching_signals(lambda _: None):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
