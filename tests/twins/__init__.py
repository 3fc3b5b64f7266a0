"""Both twins under one handle, so that what must hold for both is written once."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TWINS = ("mlx_gpt", "torch_gpt")

# A model that takes milliseconds a step, with everything switched on that a run can have.
TINY = ["--preset", "stories-cpu", "--n-layer", "2", "--n-embd", "32", "--n-head", "2", "--block-size", "32"]
# The preset's own learning rate is for a long run with a long warm-up: rounding would grow tenfold in these few steps.
TINY += [
    "--batch-size",
    "4",
    "--warmup-steps",
    "5",
    "--learning-rate",
    "1e-3",
    "--eval-batches",
    "2",
    "--sample-tokens",
    "0",
    "--no-report",
    "--health-gates",  # seconds, where a run has a tenth of one: who asks about them switches them on
    "off",
    "--device",
    "cpu",
]


def hears_hang_ups() -> None:
    """For a process that is about to begin: it is not deaf to SIGHUP, though who started the tests may be (nohup)."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def tiny(data_dir: Path, *more: str) -> list[str]:
    """Flags of a tiny run on the built-in corpus."""
    return [*TINY, "--data-dir", str(data_dir), *more]


def train(twin: str, *argv: str | Path) -> None:
    """Run `python -m TWIN.train ARGV` in this process."""
    importlib.import_module(f"{twin}.train").main([str(word) for word in argv])


def command(
    twin: str, *argv: str | Path, program: str = "train", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a twin's command in a process of its own and wait for it."""
    return subprocess.run(
        [sys.executable, "-m", f"{twin}.{program}", *map(str, argv)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def fails(
    capsys: pytest.CaptureFixture[str], twin: str, *argv: str | Path, program: str = "train", code: int = 2
) -> str:
    """Run a command that must fail with `code`; returns its error, one or two lines without a traceback."""
    from gpt_common.errors import run_main

    main = importlib.import_module(f"{twin}.{program}").main
    with pytest.raises(SystemExit) as stop:
        run_main(main, [str(word) for word in argv])
    error = capsys.readouterr().err
    assert stop.value.code == code, error
    assert error.startswith("error: ")
    assert len(error.splitlines()) <= 3
    assert "Traceback" not in error
    return error


def tensors(run: Path, step: int, file: str = "model.safetensors") -> dict[str, np.ndarray[Any, Any]]:
    """Tensors of a run's checkpoint."""
    from safetensors.numpy import load_file

    return load_file(run / "checkpoints" / f"step-{step:06d}" / file)


def losses(run: Path) -> dict[int, float]:
    """Logged training losses by step."""
    from gpt_common.training.log.runlog import read_metrics

    return {row["step"]: row["loss"] for row in read_metrics(run) if "loss" in row}
