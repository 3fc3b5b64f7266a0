"""L9, final quality: both twins trained to the end from the same seeds, and a test of equivalence on what they reach.

Each run is the trainer's own command in a process of its own, on one thread. A pair shares seed, initial bytes, batch
order and dropout masks, so that its two runs follow one curve until rounding has grown enough to part them: pairs agree
far better than two seeds do. What is claimed is the equivalence of the end: the mean difference of the validation
losses lies within `MARGIN` nats per token (TOST, two one-sided paired t-tests; Schuirmann 1987), p below `LEVEL`.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt_common.errors import UserError, WorkFailed
from gpt_common.machine.backends import Backend
from gpt_common.training.log.runlog import read_metrics

MARGIN = 0.005
"""Nats per token, from the design; another seed changes 0.0085 (standard deviation, docs/results/parity-l9.json)."""
LEVEL = 0.05
EVALUATION_BATCHES = 100


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """A paired test of equivalence."""

    differences: list[float]
    """Loss of the one minus loss of the other, nats per token, by seed."""
    mean: float
    low: float
    high: float
    """The 90 % confidence interval of the mean: inside the margin exactly if p is below 0.05."""
    p: float
    """Of the less certain of the two one-sided tests."""

    @property
    def passed(self) -> bool:
        """Whether equivalence is shown."""
        return self.p < LEVEL


def equivalence(one: Sequence[float], other: Sequence[float], margin: float = MARGIN) -> Equivalence:
    """Two one-sided paired t-tests: is the mean of `one - other` above -margin, and is it below margin?

    Raises:
        UserError: scipy is not installed.
        ValueError: fewer than two pairs.
    """
    try:
        from scipy.stats import t
    except ImportError:
        raise UserError("L9 needs scipy: pip install '.[benchmarks]'") from None
    differences = np.array(one, np.float64) - np.array(other, np.float64)
    n = len(differences)
    if n < 2:
        raise ValueError("equivalence needs at least two pairs")
    mean, error = float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(n))
    if error == 0:
        p, half = (0.0 if abs(mean) < margin else 1.0), 0.0
    else:
        above = float(t.sf((mean + margin) / error, n - 1))
        below = float(t.cdf((mean - margin) / error, n - 1))
        p, half = max(above, below), float(t.ppf(1 - LEVEL, n - 1)) * error
    return Equivalence(differences=differences.tolist(), mean=mean, low=mean - half, high=mean + half, p=p)


@dataclass(frozen=True, kw_only=True)
class QualityPlan:
    """Which runs to make."""

    preset: str
    backends: Sequence[Backend]
    """The first is the reference."""
    seeds: Sequence[int]
    steps: int
    data_dir: str
    folder: Path
    """Run folders; a finished run found here is not made again."""


def run_all(plan: QualityPlan, say: Callable[[str], None]) -> dict[str, dict[int, float]]:
    """Final validation loss by backend and seed; makes the runs that are missing, pair by pair.

    Raises:
        WorkFailed: a run ended with an error; its log is named.
    """
    losses: dict[str, dict[int, float]] = {backend.name: {} for backend in plan.backends}
    for seed in plan.seeds:
        for backend in plan.backends:
            folder = plan.folder / f"{plan.preset}-{plan.steps}-{backend.name}-seed-{seed}"
            loss = _final_loss(folder, plan.steps)
            if loss is None:
                say(f"training {folder.name} ...")
                loss = _train(plan, backend, seed, folder)
            say(f"{folder.name}: {loss:.6f}")
            losses[backend.name][seed] = loss
    return losses


def training_command(plan: QualityPlan, backend: Backend, seed: int, folder: Path) -> list[str]:
    """The trainer's command line of one run: the preset on a schedule of `steps`, evaluated at its end only."""
    return [
        *(sys.executable, "-m", f"{backend.framework}_gpt.train", "--preset", plan.preset),
        *("--seed", str(seed), "--max-steps", str(plan.steps), "--decay-steps", "0"),
        *("--device", backend.device, "--dtype", "float32", "--dropout-rng", "shared"),
        *("--eval-interval", "0", "--eval-batches", str(EVALUATION_BATCHES)),
        *("--checkpoint-interval", "0", "--sample-tokens", "0", "--log-interval", "100"),
        *("--data-dir", plan.data_dir, "--out", str(folder)),
        *(("--compile",) if backend.compiled else ()),
    ]


def _train(plan: QualityPlan, backend: Backend, seed: int, folder: Path) -> float:
    # What is here is the rest of a run that was broken off.
    shutil.rmtree(folder, ignore_errors=True)
    plan.folder.mkdir(parents=True, exist_ok=True)
    log = folder.with_suffix(".log")
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with log.open("w", encoding="utf-8") as output:
        ended = subprocess.run(
            training_command(plan, backend, seed, folder),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **one_thread, "MLX_ENABLE_TF32": "0"},
            check=False,
        )
    loss = _final_loss(folder, plan.steps)
    if ended.returncode or loss is None:
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise WorkFailed(f"a run of L9 failed: {' '.join(last)} (see {log})")
    return loss


def _final_loss(folder: Path, steps: int) -> float | None:
    """Validation loss after the last step; None if the run is not finished."""
    try:
        last = [row["val_loss"] for row in read_metrics(folder) if row.get("step") == steps and "val_loss" in row]
    except UserError:
        return None
    return last[-1] if last else None


def summary(plan: QualityPlan, losses: dict[str, dict[int, float]]) -> dict[str, Any]:
    """What the result file says: every loss, and the test of every backend against the reference."""
    reference = plan.backends[0].name
    tests = {}
    for backend in plan.backends[1:]:
        test = equivalence([losses[backend.name][s] for s in plan.seeds], [losses[reference][s] for s in plan.seeds])
        tests[f"{backend.name} ~ {reference}"] = {
            "mean_difference": test.mean,
            "confidence_interval_90": [test.low, test.high],
            "p": test.p,
            "equivalent": test.passed,
            "differences": test.differences,
        }
    return {
        "preset": plan.preset,
        "steps": plan.steps,
        "margin_nats": MARGIN,
        "level": LEVEL,
        "seeds": list(plan.seeds),
        "validation_loss": {name: list(by_seed.values()) for name, by_seed in losses.items()},
        "spread_between_seeds": {name: float(np.std(list(v.values()), ddof=1)) for name, v in losses.items()},
        "tests": tests,
    }


def as_lines(found: dict[str, Any]) -> list[str]:
    """The summary for people."""
    lines = [f"L9: {found['preset']}, {found['steps']} steps, {len(found['seeds'])} pairs"]
    for name, spread in found["spread_between_seeds"].items():
        mean = float(np.mean(found["validation_loss"][name]))
        lines.append(f"  {name}: validation loss {mean:.4f} nats/token, {spread:.4f} between seeds")
    for between, test in found["tests"].items():
        low, high = test["confidence_interval_90"]
        verdict = "equivalent" if test["equivalent"] else "NOT shown to be equivalent"
        lines.append(
            f"  {between}: {verdict} within {found['margin_nats']} nats "
            f"(mean difference {test['mean_difference']:+.2e}, 90 % interval {low:+.2e} to {high:+.2e}, "
            f"p {test['p']:.1e})"
        )
    return lines
