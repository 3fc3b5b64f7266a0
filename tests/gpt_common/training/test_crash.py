"""`kill -9` at random moments, mostly while a checkpoint is being written: nothing that was good is ever lost.

The victim kills itself at a chosen one of the moments at which a crash could tear something: before and after every
sync, rename, replacement, folder and deletion of the checkpoint writer, in the middle of a tensor file, and
between steps. A resumed run must end in the bytes of an undisturbed one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpt_common.errors import UserError
from gpt_common.training.checkpoint import find_checkpoint, validate
from tests.twins import ROOT, TWINS, losses, tensors, tiny, train

VICTIM = """
import os, shutil, signal, sys
from pathlib import Path
import gpt_common.files as files
import gpt_common.training.checkpoint as checkpoint
from gpt_common.machine.blas import load_fast_blas
load_fast_blas()  # as the command does, and as the process that resumes
import {twin}.train as program

moments = 0

def moment():
    # Only once a first checkpoint is committed: before, there is nothing to lose.
    global moments
    if list(Path({run!r}).glob("checkpoints/latest")):
        moments += 1
        if moments == {kill_at}:
            os.kill(os.getpid(), signal.SIGKILL)

def around(owner, name):
    function = getattr(owner, name)
    def wrapped(*args, **kwargs):
        moment()
        result = function(*args, **kwargs)
        moment()
        return result
    setattr(owner, name, wrapped)

def torn(folder, *args):
    save(folder, *args)
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    moment()
    path.write_bytes(whole)

save, program.save_tensors = program.save_tensors, torn
around(files, "sync")
for name in ("rename", "replace", "mkdir", "write_text", "unlink"):
    around(Path, name)
around(shutil, "rmtree")
around(program.TrainStep, "__call__")
program.main({argv!r})
print("moments", moments)
"""
STEPS = ["--max-steps", "12", "--checkpoint-interval", "3", "--eval-interval", "4", "--log-interval", "1"]


def victim(twin: str, run: Path, data_dir: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    """A run that kills itself at its `kill_at`-th moment."""
    argv = tiny(data_dir, *STEPS, "--out", str(run))
    code = VICTIM.format(twin=twin, run=str(run), argv=argv, kill_at=kill_at)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, stories_dir: Path) -> dict[str, tuple[Path, int]]:
    """Each twin's run in one go, and how many moments it has."""
    runs = {}
    for twin in TWINS:
        run = tmp_path_factory.mktemp("undisturbed") / twin
        done = victim(twin, run, stories_dir, kill_at=-1)
        assert done.returncode == 0, done.stderr
        runs[twin] = (run, int(done.stdout.rpartition("moments ")[2]))
    return runs


def crash_and_resume(
    twin: str, number: int, undisturbed: dict[str, tuple[Path, int]], stories_dir: Path, tmp_path: Path
) -> None:
    whole, moments = undisturbed[twin]
    run = tmp_path / "run"
    kill_at = int(np.random.default_rng([number, TWINS.index(twin)]).integers(1, moments + 1))
    done = victim(twin, run, stories_dir, kill_at)
    assert done.returncode == -signal.SIGKILL, done.stderr
    validate(find_checkpoint(run, prefer="latest"))
    if find_checkpoint(run, prefer="latest").name != "step-000012":
        train(twin, "--resume", run)
    for file in ("model.safetensors", "optimizer.safetensors"):
        expected, found = tensors(whole, 12, file), tensors(run, 12, file)
        assert all(expected[name].tobytes() == found[name].tobytes() for name in expected)
    assert losses(run).items() <= losses(whole).items()
    assert len(losses(run)) >= 12 - 3
    leftovers = [path for path in run.rglob("*.tmp-*") if "checkpoints" not in path.parts]
    assert not leftovers


@pytest.mark.parametrize("number", range(10))
@pytest.mark.parametrize("twin", TWINS)
def test_a_killed_run_resumes_to_the_same_bytes(
    twin: str, number: int, undisturbed: dict[str, tuple[Path, int]], stories_dir: Path, tmp_path: Path
) -> None:
    crash_and_resume(twin, number, undisturbed, stories_dir, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10, 30))
@pytest.mark.parametrize("twin", TWINS)
def test_a_killed_run_resumes_to_the_same_bytes_20_more_times(
    twin: str, number: int, undisturbed: dict[str, tuple[Path, int]], stories_dir: Path, tmp_path: Path
) -> None:
    crash_and_resume(twin, number, undisturbed, stories_dir, tmp_path)


@pytest.mark.parametrize("twin", TWINS)
def test_a_full_disk_loses_nothing(twin: str, stories_dir: Path, tmp_path: Path) -> None:
    """A file system too small for a second checkpoint: the first one stays valid, and the error is one line."""
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        flags = tiny(stories_dir, "--max-steps", "40", "--checkpoint-interval", "5", "--eval-interval", "0")
        code = f"from gpt_common.errors import run_main; from {twin}.train import main; run_main(main)"
        done = subprocess.run(
            [sys.executable, "-c", code, *flags, "--keep-checkpoints", "9", "--out", str(mount / "run")],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert "no space left" in done.stderr
        assert "everything saved before is intact" in done.stderr
        validate(find_checkpoint(mount / "run", prefer="latest"))
        assert not list((mount / "run/checkpoints").glob("*.tmp-*"))
    finally:
        subprocess.run(["umount", str(mount)], check=False)


@pytest.mark.parametrize("twin", TWINS)
def test_a_read_only_folder_is_one_line(
    twin: str, tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    # Permissions do not bind root, so the system's refusal is played.
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match="the folder is read-only; everything saved before is intact"):
        train(twin, *tiny_run, "--max-steps", "2", "--out", tmp_path / "run")
