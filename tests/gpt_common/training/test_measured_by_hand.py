"""Every figure of a run against what can be worked out by hand: a device whose steps take a known time.

Clocks stand still but for what is planted: a step 50 ms, a micro-batch 10 ms, an evaluation 5 s, a checkpoint 3 s,
a sample 7 s. So a step of two micro-batches is 70 ms, and nothing else may be in it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gpt_common.training.opening
from gpt_common.config import DType
from gpt_common.machine.device import ComputeDevice
from gpt_common.machine.hardware import Hardware
from gpt_common.training.health.watch import Health
from gpt_common.training.log.runlog import read_metrics
from gpt_common.training.log.timing import StepTimer
from gpt_common.training.report.past import read_run
from tests.twins import TWINS, tiny, train

STEP, BATCH, EVALUATION, SAVING, SAMPLE = 0.05, 0.01, 5.0, 3.0, 7.0
DT = STEP + 2 * BATCH
TOKENS = 4 * 2 * 32
"""Sequences, micro-steps, block."""
PARAMETERS = 54 * 32 + 2 * (2 * 32 + 3 * 32 * 32 + 32 * 32 + 2 * 4 * 32 * 32) + 32
"""Embedding of tokens, two blocks of norms, attention and feed-forward, the last norm; positions take no product."""
FLOPS_PER_TOKEN = 6 * PARAMETERS + 12 * 2 * 2 * 16 * 32
"""PaLM's 6 N + 12 L H Q T (Chowdhery et al. 2022, appendix B)."""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float, work: Any) -> Any:
        """The same work, which takes so long."""

        def timed(*what: Any, **how: Any) -> Any:
            self.now += seconds
            return work(*what, **how)

        return timed


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(("dtype", "peak"), [("float32", 66.9e12), ("bfloat16", 989.4e12)])
@pytest.mark.parametrize("interval", [1, 5])
def test_the_figures_of_a_run(
    twin: str,
    dtype: DType,
    peak: float,
    interval: int,
    stories_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock, loop, run = Clock(), import_module(f"{twin}.train"), import_module("gpt_common.training.run")
    hardware = Hardware(chip="NVIDIA H100 80GB HBM3", kind="cuda", memory_bytes=80 * 2**30)
    device = ComputeDevice("cuda", "a made-up device", dtype, True, lambda: None, lambda: 123_000_000)
    monkeypatch.setattr(gpt_common.training.opening, "detect", lambda: hardware)
    monkeypatch.setattr(loop, "compute_device", lambda *_: device)
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=clock, perf_counter=clock))
    monkeypatch.setattr(run, "StepTimer", lambda: StepTimer(clock=clock, wall=clock))
    monkeypatch.setattr(run, "training_batch", clock.takes(BATCH, run.training_batch))
    monkeypatch.setattr(run, "write_checkpoint", clock.takes(SAVING, run.write_checkpoint))
    monkeypatch.setattr(loop, "generate", clock.takes(SAMPLE, loop.generate))
    monkeypatch.setattr(Health, "loss_on", clock.takes(EVALUATION, Health.loss_on))
    monkeypatch.setattr(loop.TrainStep, "__call__", clock.takes(STEP, loop.TrainStep.__call__))
    flags = ["--max-steps", "20", "--log-interval", str(interval), "--eval-interval", "4", "--checkpoint-interval", "3"]
    flags += ["--grad-accum-steps", "2", "--sample-interval", "6", "--sample-tokens", "2"]
    train(twin, *tiny(stories_dir, *flags), "--out", tmp_path / "run")

    rows = [row for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert [row["step"] for row in rows] == sorted({1, *range(interval, 21, interval)})
    assert rows[0]["dt"] is None
    for row in rows[1:]:
        assert row["dt"] == pytest.approx(DT, rel=1e-9)
        assert row["dt_data"] == pytest.approx(2 * BATCH, rel=1e-9)
        assert row["sps"] == pytest.approx(8 / DT, rel=1e-9)
        assert row["tps"] == pytest.approx(TOKENS / DT, rel=1e-9)
        assert row["mfu"] == pytest.approx(TOKENS / DT * FLOPS_PER_TOKEN / peak, rel=1e-9)
        assert row["memory"] == 123_000_000
    (start,) = [row for row in read_metrics(tmp_path / "run") if row.get("event") == "start"]
    assert start["first_step_seconds"] == pytest.approx(DT, abs=1e-6)
    said = capsys.readouterr().out
    assert f"{TOKENS / DT:,.0f} tokens/s, {1000 * DT:.1f} ms/step" in said
    course = read_run(tmp_path / "run").course
    assert course.tokens_per_second == pytest.approx(TOKENS / DT, rel=1e-9)
    assert course.stepping[1] == pytest.approx((20 - 1) * DT, rel=1e-9)
