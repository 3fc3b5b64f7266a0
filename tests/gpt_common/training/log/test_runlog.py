"""What a run writes survives a crash at any byte, is always JSON, and never costs the run."""

from __future__ import annotations

import io
import itertools
import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt_common.errors import UserError
from gpt_common.training.log.record import StepRecord
from gpt_common.training.log.runlog import RunLog, read_metrics


def record(step: int, **values: Any) -> StepRecord:
    known = {"loss": 2.5, "lr": 1e-3, "grad_norm": 0.5, "dt": 0.1, "dt_data": 0.001, "sps": 120.0, "tps": 7680.0}
    return StepRecord(step=step, **{**known, "mfu": None, "memory": 1 << 20, **values})


def open_log(folder: Path, *, first_step: int = 0, trackers: tuple[str, ...] = (), max_steps: int = 100) -> RunLog:
    return RunLog(
        folder,
        max_steps=max_steps,
        first_step=first_step,
        trackers=trackers,
        config={"model": {"n_layer": 2}},
        run_name="test",
        console=Console(file=io.StringIO(), width=80),
        clock=itertools.count(100.0).__next__,
    )


def strict_rows(path: Path) -> list[dict[str, Any]]:
    """Rows as a reader sees them who accepts JSON and nothing else."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_is_on_disk_when_the_call_returns(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.step(record(10))
        log.evaluation(10, train_loss=None, val_loss=2.4, floor=2.0, best=True)
        log.warn("something is odd")
        log.sample(10, "Once", ' upon a "time"\n🙂')
        assert strict_rows(tmp_path / "metrics.jsonl") == [
            {
                "step": 10,
                "loss": 2.5,
                "lr": 1e-3,
                "grad_norm": 0.5,
                "dt": 0.1,
                "dt_data": 0.001,
                "sps": 120.0,
                "tps": 7680.0,
                "mfu": None,
                "memory": 1 << 20,
                "power_watts": None,
                "gpu_usage": None,
                "time": 1.0,
            },
            {"step": 10, "train_loss": None, "val_loss": 2.4, "floor": 2.0, "best": True, "time": 2.0},
            {"step": 10, "alarm": "something is odd", "time": 3.0},
        ]
        samples = strict_rows(tmp_path / "samples.jsonl")
    assert samples == [{"step": 10, "prompt": "Once", "text": ' upon a "time"\n🙂'}]


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.step(record(1, dt=math.nan, sps=math.nan, tps=math.nan, mfu=math.nan))
        log.step(record(2, loss=math.nan, grad_norm=math.inf))
        log.evaluation(2, train_loss=None, val_loss=-math.inf, floor=None, best=False)
    untimed, diverged, evaluation = strict_rows(tmp_path / "metrics.jsonl")
    assert [untimed[key] for key in ("dt", "sps", "tps", "mfu")] == [None] * 4
    assert "non_finite" not in untimed
    assert diverged["loss"] is None
    assert diverged["non_finite"] == "loss nan, grad_norm inf"
    assert evaluation["val_loss"] is None
    assert evaluation["non_finite"] == "val_loss -inf"


def test_a_crash_at_any_byte_costs_at_most_the_torn_line(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in (1, 2, 3):
            log.step(record(step))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    ends = [0, *(position + 1 for position, byte in enumerate(whole) if byte == ord("\n"))]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        # A line that lacks only its line break is not torn.
        complete = sum(end <= cut + 1 for end in ends[1:])
        assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3][:complete]
        with open_log(tmp_path) as log:
            log.step(record(9))
        steps = [row["step"] for row in strict_rows(path) if "loss" in row]
        assert steps == [*[1, 2, 3][:complete], 9]


def test_a_damaged_line_in_the_middle_is_reported(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="line 1"):
        read_metrics(tmp_path)


def test_no_metrics_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder of a run"):
        read_metrics(tmp_path / "nothing")


def test_a_resumed_run_reads_like_one_that_was_never_interrupted(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for step in (10, 20, 30):
            log.step(record(step, loss=step / 10))
        log.warn("after step 30")
    with open_log(tmp_path, first_step=20) as log:
        for step in (30, 40):
            log.step(record(step, loss=step / 10))
    assert {"event": "resume", "step": 20, "time": 1.0} in strict_rows(tmp_path / "metrics.jsonl")
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0)]
    assert not any("alarm" in row for row in rows)


def test_a_fresh_run_has_no_resume_event(tmp_path: Path) -> None:
    open_log(tmp_path).close()
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_file_that_cannot_be_opened_is_a_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"cannot write .*{name}"):
        open_log(tmp_path)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """A disk on which no file grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with open_log(tmp_path) as log:
        log.step(record(1))
        with room_for(path.stat().st_size + 10), pytest.raises(UserError, match="cannot write"):
            log.step(record(2))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    with open_log(tmp_path, first_step=1) as log:
        log.step(record(2))
    assert [row["step"] for row in strict_rows(path) if "loss" in row] == [1, 2]


def test_how_long_it_took_to_begin(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.started(1, start_up=2.34567, first_step_seconds=0.5)
    assert strict_rows(tmp_path / "metrics.jsonl") == [
        {"event": "start", "step": 1, "start_up": 2.346, "first_step_seconds": 0.5, "time": 1.0}
    ]


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.close()
    log.close()
