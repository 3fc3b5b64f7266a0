"""Who is asked about a fault: the trainer or `convert` as a user runs them, the parity ladder, quick tests.

A checkout is asked from outside, by commands in processes of their own; nothing of it is imported here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.plants.plant import Plant
from tests.plants.warm import run_module

LEFT_OUT, TRIES = "left out to begin soon", 3
"""What quick gates say when a busy machine leaves them no time, and how often it is tried again."""
SECONDS = 300
"""After which a command that hangs is ended."""
SMALL = shlex.split(
    "--preset stories-cpu --n-layer 2 --n-embd 64 --n-head 4 --block-size 64 --batch-size 2 --grad-accum-steps 3 "
    "--dropout 0.2 --learning-rate 3e-3 --warmup-steps 5 --log-interval 1 --eval-interval 8 --eval-batches 2 "
    "--checkpoint-interval 9 --keep-checkpoints 1 --sample-tokens 0 --no-report --device cpu --dtype float32"
)
"""A run with dropout, accumulation, evaluation and checkpoints in two or three seconds."""
SHORT = [*SMALL, "--max-steps", "40", "--stop-at", "27"]
"""The last checkpoint is not the best one: step 24 was evaluated, step 27 is saved."""
RECIPES: dict[str, tuple[list[str], ...]] = {
    "run": (SHORT,),
    "shared dropout": ([*SHORT, "--dropout-rng", "shared"],),
    "gradient checkpointing": ([*SHORT, "--gradient-checkpointing"],),
    "large vocabulary": (
        [
            *SMALL,
            *shlex.split(
                "--max-steps 4 --vocab-size 70000 --n-embd 16 --n-layer 1 --block-size 16 --batch-size 1 --dropout 0 "
                "--eval-batches 1"
            ),
        ],
    ),
    "mean of weights": ([*SHORT, "--ema-decay", "0.9"],),
    "experts": ([*SHORT, *shlex.split("--preset deepseek-tiny --n-dense-layer 1 --block-size 32")],),
    "resume": ([*SMALL, "--max-steps", "40", "--stop-at", "18"], ["--resume", "--stop-at", "27"]),
    "five micro-steps": ([*SMALL, "--max-steps", "10", "--grad-accum-steps", "5"],),
    "rotary": ([*SHORT, *shlex.split("--positions rope --attention grouped_query --n-kv-head 2")],),
    "odd block": ([*SHORT, "--block-size", "50"],),
}
"""What a user does, as flags of one training command after the other in one folder."""
SOURCES = {
    "gpt2": [*SMALL, "--bias", "--feed-forward", "gelu_tanh", "--max-steps", "2"],
    "nanogpt": [*SMALL, "--bias", "--max-steps", "2"],
    "llama": [*SMALL, "--preset", "llama-tiny", "--norm-eps", "3e-5", "--max-steps", "2", "--dropout", "0"],
    "deepseek": [*SMALL, "--preset", "deepseek-tiny", "--max-steps", "2", "--dropout", "0"],
}
"""Runs that are converted; each was trained without a fault."""

By = Literal["gate", "alarm", "error", "crash", "difference", "rung", "test"]


@dataclass(frozen=True)
class Seen:
    """What saw a fault."""

    by: By
    what: str
    """The gate, rung or test, where it has a name."""
    text: str
    """All that was said."""

    def names_cause(self, plant: Plant) -> bool:
        """Whether the words say what is wrong."""
        return re.search(plant.says, self.text, re.IGNORECASE | re.DOTALL) is not None


@dataclass
class Checkout:
    """A copy of the project in which commands are run."""

    root: Path
    work: Path
    """For what the commands write; the corpus in it is made once."""

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in the copy."""
        environment = {**os.environ, "PYTHONPATH": str(self.root)}
        try:
            return subprocess.run(
                [sys.executable, *arguments], cwd=self.root, env=environment, text=True, capture_output=True,
                timeout=SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            return subprocess.CompletedProcess(error.cmd, 124, "", f"ended after {SECONDS} s")

    def train(self, twin: str, flags: Sequence[str], out: Path) -> subprocess.CompletedProcess[str]:
        """A training command; `--resume` without a folder takes up the run in `out`."""
        where = ["--resume", str(out)] if flags[0] == "--resume" else ["--out", str(out)]
        flags = flags[1:] if flags[0] == "--resume" else flags
        arguments = [*where, *flags, "--data-dir", str(self.work / "data")]
        if twin == "torch_gpt":
            return run_module(self.root, "torch_gpt.train", arguments, SECONDS)
        return self.python("-m", f"{twin}.train", *arguments)


def ask_user(checkout: Checkout, plant: Plant, twin: str) -> Seen | None:
    """What a user of a twin sees without running a test."""
    if not plant.asks:
        return None
    if plant.asks.split()[0] in SOURCES:
        return ask_conversion(checkout, *plant.asks.split())
    return ask_training(checkout, plant.asks, twin)


def ask_training(checkout: Checkout, recipe: str, twin: str) -> Seen | None:
    """What the trainer says: a gate that failed, an error, an alarm."""
    out = checkout.work / "run"
    shutil.rmtree(out, ignore_errors=True)
    for flags in RECIPES[recipe]:
        for _ in range(TRIES):
            done = checkout.train(twin, flags, out)
            if LEFT_OUT not in done.stdout or done.returncode:
                break
            if flags[0] != "--resume":
                shutil.rmtree(out, ignore_errors=True)
        if done.returncode:
            return failed(done)
        if LEFT_OUT in done.stdout:
            raise RuntimeError(f"gates were left out {TRIES} times: this machine is too busy to ask\n{done.stdout}")
    alarms = [row["alarm"] for row in rows(out) if "alarm" in row and "throttled or busy" not in row["alarm"]]
    return Seen("alarm", "", "\n".join(alarms)) if alarms else None


def ask_conversion(checkout: Checkout, source: str, target: str) -> Seen | None:
    """What `convert` says: an export that is refused, an import that is, or a difference between run and import."""
    run, there, back = (checkout.work / name for name in (f"source-{source}", "there", "back"))
    for folder in (there, back):
        shutil.rmtree(folder, ignore_errors=True)
    commands = (
        ("export", str(run), "--to", target, "-o", str(there)),
        ("import", str(there), "-o", str(back)),
        ("diff", str(run), str(back)),
    )
    for command in commands:
        done = checkout.python("-m", "convert", *command)
        if done.returncode:
            seen = failed(done)
            return Seen("difference", "convert diff", seen.text) if command[0] == "diff" else seen
    return None


def ask_ladder(checkout: Checkout, rungs: str) -> Seen | None:
    """Single rungs of the parity ladder, on both twins."""
    if not rungs:
        return None
    done = checkout.python("-m", "convert", "parity", "--mode", "quick", "--rung", rungs, "--backends", "mlx-cpu,cpu")
    return Seen("rung", rungs, done.stdout + done.stderr) if done.returncode else None


def ask_tests(checkout: Checkout, tests: Sequence[str]) -> Seen | None:
    """Quick tests, up to the first that fails."""
    if not tests:
        return None
    done = checkout.python("-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", *tests)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode != 1 or found is None:  # no test was collected, or a flag is wrong
        raise RuntimeError(f"pytest {' '.join(tests)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return Seen("test", found[1].split("[")[0], done.stdout)


def failed(done: subprocess.CompletedProcess[str]) -> Seen:
    """What a command said that did not end well."""
    said = done.stderr.strip()
    if "Traceback" in said or done.returncode not in (1, 2):
        return Seen("crash", said.splitlines()[-1][:200] if said else f"exit code {done.returncode}", said)
    gate = re.search(r"health: ([\w -]+): ", said)
    return Seen("gate", gate[1], said) if gate else Seen("error", "", said)


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
