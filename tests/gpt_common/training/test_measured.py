"""Figures from end to end: a device whose work takes known times, and every number worked out by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gpt_common.training.opening
import gpt_common.training.run
from gpt_common.data.batches import NumpyBatch, training_batch
from gpt_common.machine.device import ComputeDevice
from gpt_common.machine.hardware import Hardware
from gpt_common.network.flops import parameter_count
from gpt_common.training.command_line import parse_training
from gpt_common.training.run import Run
from gpt_common.training.runlog import read_metrics
from gpt_common.training.timing import StepTimer
from tests.twins import tiny

STEP, DATA, EVALUATION, SAVE, SAMPLE = 0.25, 0.0625, 3.0, 50.0, 700.0
"""Seconds; exact in binary, so that sums are. A step's data are part of the step."""
PEAKS = {"float32": 66.9e12, "bfloat16": 989.4e12}
"""Of an H100 SXM5, in dense FLOP/s, by NVIDIA's white paper."""
ACCUMULATED, BATCH, BLOCK = 3, 4, 32


class Clock:
    """Time passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


class Device:
    """A model and a step that compute nothing and take their time."""

    vocab_size = 54
    compiled = False

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def loss(self, _: NumpyBatch) -> float:
        self.clock.work(EVALUATION)
        return 3.0

    def find_non_finite(self) -> None:
        return None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    run = gpt_common.training.run
    monkeypatch.setattr(run, "StepTimer", lambda: StepTimer(clock, clock))
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=clock, monotonic=clock))

    def batch(*data: Any, **which: Any) -> NumpyBatch:
        clock.work(DATA)
        return training_batch(*data, **which)

    monkeypatch.setattr(run, "training_batch", batch)
    machine = Hardware(chip="NVIDIA H100 80GB HBM3", kind="cuda", memory_bytes=1 << 37)
    monkeypatch.setattr(gpt_common.training.opening, "detect", lambda: machine)
    return clock


def measured(clock: Clock, stories_dir: Path, out: Path, dtype: str) -> list[dict[str, Any]]:
    """12 steps, evaluated at 0, 4, 8, 12, saved and sampled each time; returns the logged rows."""
    flags = tiny(
        stories_dir, "--max-steps", "12", "--eval-interval", "4", "--checkpoint-interval", "4", "--out", str(out)
    )
    flags += ["--log-interval", "2", "--grad-accum-steps", str(ACCUMULATED), "--health-gates", "off"]
    flags += ["--sample-tokens", "1", "--sample-interval", "4"]
    command, _ = parse_training(flags, prog="train", has_gpu=True)
    device = Device(clock)
    compute = ComputeDevice(
        "cuda", "a device", dtype, synchronous=True, synchronise=lambda: None, peak_memory=lambda: 7
    )

    def save(folder: Path) -> None:
        clock.work(SAVE)
        (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")

    def sample(*_: Any) -> Iterator[int]:
        clock.work(SAMPLE)
        yield 1

    with Run(command, twin="torch_gpt") as run, run.start(compute, device, device, lambda _: device):  # type: ignore[arg-type, return-value]
        run.evaluate(0)
        for step in run.steps():
            run.batches(step)
            clock.work(STEP - ACCUMULATED * DATA + (8.0 if step == 0 else 0.0))  # the first step compiles
            due = run.after_step(step + 1)
            if due.log:
                run.record(due.step, losses=[3.0], lr=1e-3, grad_norm=1.0)
            if due.evaluation:
                run.evaluate(due.step)
            if due.save:
                run.save(due.step, save)
            if due.sample:
                run.sample(due.step, sample)
    return [row for row in read_metrics(out) if "loss" in row]


@pytest.mark.parametrize("dtype", PEAKS)
def test_every_figure_is_what_the_device_took(
    dtype: str, clock: Clock, stories_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = measured(clock, stories_dir, tmp_path / "run", dtype)
    config = (
        parse_training(tiny(stories_dir), prog="train", has_gpu=True)[0].run.with_vocabulary(Device.vocab_size).model
    )
    # PaLM, appendix B: 6 N + 12 L H Q T, and N leaves the position embedding out.
    N = parameter_count(config) - BLOCK * config.n_embd
    per_token = 6 * N + 12 * config.n_layer * config.n_embd * BLOCK
    sequences = ACCUMULATED * BATCH / STEP
    assert [row["step"] for row in rows] == [1, 2, 4, 6, 8, 10, 12]
    assert rows[0]["dt"] is None  # it compiles
    for row in rows[1:]:
        assert row["dt"] == STEP
        assert row["dt_data"] == ACCUMULATED * DATA
        assert row["sps"] == pytest.approx(sequences)
        assert row["tps"] == pytest.approx(sequences * BLOCK)
        assert row["mfu"] == pytest.approx(sequences * BLOCK * per_token / PEAKS[dtype])
    said = capsys.readouterr().out
    assert re.search(rf"speed +{sequences * BLOCK:,.0f} tokens/s, {1000 * STEP:.1f} ms/step", said), said
