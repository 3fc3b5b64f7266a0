"""A run's folder belongs to one process at a time, and a start that failed leaves none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_common.errors import UserError
from gpt_common.training.folder import claim_new, newest_run, take_up
from tests.twins import ROOT

CLAIM = """
import sys
from pathlib import Path
from gpt_common.training.folder import claim_new
sys.stdin.readline()  # all at one moment
print(claim_new(Path(sys.argv[1]), or_next=True).path, flush=True)
sys.stdin.readline()
"""


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(tmp_path / "runs" / "a")],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(12)
    ]
    for process in processes:
        assert process.stdin
        process.stdin.write("now\n")
        process.stdin.flush()
    folders = {process.communicate("end\n", timeout=60)[0].strip() for process in processes}
    assert folders == {str(tmp_path / "runs" / name) for name in ("a", *(f"a-{number}" for number in range(2, 13)))}


def test_a_named_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    claim_new(tmp_path / "a", or_next=False).release()
    (tmp_path / "a" / ".DS_Store").touch()
    # Empty, and nobody's: a person may make the folder first.
    held = claim_new(tmp_path / "a", or_next=False)
    with pytest.raises(UserError, match="is there already"):
        claim_new(tmp_path / "a", or_next=False)
    held.release()
    (tmp_path / "a" / "run.json").write_text("{}")
    with pytest.raises(UserError, match=f"already holds a run: continue it with --resume {tmp_path}/a"):
        claim_new(tmp_path / "a", or_next=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is no empty folder"):
        claim_new(tmp_path / "file", or_next=False)


def test_a_run_is_continued_by_one_process(tmp_path: Path) -> None:
    first = take_up(tmp_path)
    with pytest.raises(UserError, match="is being trained by another process"):
        take_up(tmp_path)
    first.release()
    take_up(tmp_path).release()


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from gpt_common.training.folder import take_up; "
        "held = take_up(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    take_up(tmp_path).release()


@pytest.mark.parametrize("kept", ["checkpoints/latest", "metrics.jsonl", None])
def test_a_start_that_failed_leaves_nothing(tmp_path: Path, kept: str | None) -> None:
    """But what was logged or saved stays."""
    held = claim_new(tmp_path / "runs" / "a", or_next=True)
    (held.path / "config.toml").write_text("")
    (held.path / "metrics.jsonl").touch()
    if kept:
        (held.path / kept).parent.mkdir(exist_ok=True)
        (held.path / kept).write_text("a row")
    held.discard_unused()
    assert (tmp_path / "runs").exists() == held.path.exists() == bool(kept)


def test_a_resumed_run_is_never_discarded(tmp_path: Path) -> None:
    held = take_up(tmp_path)
    held.discard_unused()
    assert tmp_path.exists()


def test_the_newest_run_is_the_one_saved_last(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in"):
        newest_run(tmp_path)
    for age, name in enumerate(("new", "old")):
        pointer = tmp_path / name / "checkpoints" / "latest"
        pointer.parent.mkdir(parents=True)
        pointer.write_text("step-000001\n")
        os.utime(pointer, (1000 - age, 1000 - age))
    (tmp_path / "unfinished").mkdir()
    assert newest_run(tmp_path) == tmp_path / "new"
