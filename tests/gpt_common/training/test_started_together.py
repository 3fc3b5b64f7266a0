"""Many runs begun at one moment in one folder: each has a folder of its own, and nothing of any is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_common.training.log.runlog import read_metrics
from tests.twins import ROOT, TWINS, tiny

RUNS = 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_runs_begun_at_one_moment_are_twenty_runs(tmp_path: Path, stories_dir: Path) -> None:
    flags = [*tiny(stories_dir), "--report", "--max-steps", "6"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    begun = [
        subprocess.Popen(
            [sys.executable, "-m", f"{TWINS[number % 2]}.train", *flags],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(RUNS)
    ]
    errors = [process.communicate()[1] for process in begun]
    assert [process.returncode for process in begun] == [0] * RUNS, errors
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == RUNS
    for folder in folders:
        # One session's rows each, to its last step, and its checkpoint and report.
        steps = [row["step"] for row in read_metrics(folder) if "loss" in row]
        assert steps == [1, 6]
        assert (folder / "checkpoints" / "latest").read_text().strip() == "step-000006"
        assert (folder / "report.html").exists()
