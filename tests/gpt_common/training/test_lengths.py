"""How long a run is, where it is not a number of steps: until no loss is better, or for so many minutes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt_common.config import TrainConfig
from gpt_common.training.due import gave_up
from gpt_common.training.log.runlog import read_metrics
from gpt_common.training.manifest import Manifest
from gpt_common.training.report.past import read_run
from gpt_common.training.schedule import Pace
from tests.twins import TWINS, fails, tiny, train

both = pytest.mark.parametrize("twin", TWINS)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_steps_fill_the_time_that_is_left() -> None:
    clock = Clock()
    pace = Pace(2, clock)
    pace.begin()
    clock.now += 20
    assert pace.ready(timed_steps=10, timed_seconds=2.0)
    # 100 s are left, at half a second each.
    assert pace.steps(40, 0.5) == 240
    assert not pace.ready(timed_steps=20, timed_seconds=4.0)
    clock.now += 100
    assert not pace.over
    clock.now += 6.5
    assert pace.over  # by more than a twentieth


def test_waiting_for_text_is_no_training() -> None:
    clock = Clock()
    pace = Pace(2, clock)
    pace.begin()
    clock.now += 1000
    pace.leave_out(990)
    assert not pace.over
    assert pace.steps(40, 0.5) == 260


@pytest.mark.parametrize(
    ("steps", "seconds", "ready"), [(0, 0.0, False), (1, 0.1, False), (9, 0.5, False), (10, 0.5, True), (1, 1.3, True)]
)
def test_slow_steps_are_timed_for_a_share_of_the_time(steps: int, seconds: float, ready: bool) -> None:
    pace = Pace(1, Clock())
    pace.begin()
    assert pace.ready(steps, seconds) is ready


def test_a_step_longer_than_the_time_is_one_step() -> None:
    pace = Pace(0.01, Clock())
    pace.begin()
    assert pace.steps(3, 50.0) == 4


def test_patience_counts_evaluations_since_the_best() -> None:
    train_config = TrainConfig(patience=3, eval_interval=50)
    assert [gave_up(train_config, step, 100) for step in (150, 200, 249, 250, 300)] == [False, False, False, True, True]
    assert not gave_up(TrainConfig(patience=0), 10**6, 0)
    assert not gave_up(train_config, 10**6, None)


@both
def test_a_run_without_a_better_loss_ends_and_says_so(
    twin: str, stories_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A rate that throws the model about: nothing is ever better than the start.
    flags = tiny(stories_dir, "--max-steps", "400", "--eval-interval", "4", "--patience", "2", "--learning-rate", "3")
    run = tmp_path / "run"
    train(twin, *flags, "--grad-clip", "0", "--out", run)
    said = capsys.readouterr().out
    end = next(row for row in read_metrics(run) if row.get("event") == "end")
    best = Manifest.read(
        run / "checkpoints" / (run / "checkpoints/latest").read_text().strip() / "state.json"
    ).best_step
    assert best is not None
    assert end["step"] == best + 8
    assert f"step {end['step']}: no better validation loss since step {best}: the run ends here" in said
    assert f"{end['step']} of 400: no better validation loss" in said
    assert (run / "checkpoints" / f"step-{end['step']:06d}").is_dir()
    assert read_run(run).state == "done"
    error = fails(capsys, twin, "--resume", run)
    assert "raise --patience to go on" in error
    train(twin, "--resume", run, "--patience", "0", "--stop-at", str(end["step"] + 1))
    assert read_run(run).state == "stopped"


@both
def test_minutes_make_the_schedule(
    twin: str, stories_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = tiny(stories_dir, "--max-minutes", "0.03", "--log-interval", "1", "--eval-interval", "0")
    run = tmp_path / "run"
    train(twin, *flags, "--min-lr", "1e-5", "--out", run)
    said = capsys.readouterr().out
    rows = read_metrics(run)
    pace = next(row for row in rows if row.get("event") == "pace")
    steps = [row for row in rows if "loss" in row]
    ended = next((row for row in rows if row.get("event") == "end"), None)
    assert f"the schedule has {pace['max_steps']} steps" in said
    # The schedule is the one of a run with so many steps, or the time was over and the run says so.
    if ended is None:
        assert steps[-1]["step"] == pace["max_steps"]
        assert steps[-1]["lr"] == pytest.approx(1e-5, abs=2e-5)
    else:
        assert "minutes are over" in ended["why"]
    assert steps[-1]["step"] > pace["step"]
    assert (read_run(run).max_steps, read_run(run).state) == (pace["max_steps"], "done")
    assert "floor" in said
    error = fails(capsys, twin, "--resume", run, "--max-minutes", "5")
    assert "cannot resume with another train max_minutes" in error


@both
def test_a_resumed_run_keeps_the_steps_of_its_pace(twin: str, stories_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(twin, *tiny(stories_dir, "--max-minutes", "0.2", "--stop-at", "14"), "--out", run)
    pace = [row for row in read_metrics(run) if row.get("event") == "pace"]
    assert len(pace) == 1
    train(twin, "--resume", run, "--stop-at", "16")
    assert [row for row in read_metrics(run) if row.get("event") == "pace"] == pace
    assert read_run(run).max_steps == pace[0]["max_steps"]
    manifest = Manifest.read(run / "checkpoints/step-000016/state.json")
    assert manifest.run_config.train.max_steps == pace[0]["max_steps"]


@both
def test_the_whole_split_is_evaluated_at_the_end(
    twin: str, stories_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(twin, *tiny(stories_dir, "--max-steps", "3"), "--out", run)
    assert "more than was trained on (--eval-full does)" in capsys.readouterr().out
    assert read_run(run).course.whole is None
    # A larger batch, for the split is long for a test.
    train(
        twin, *tiny(stories_dir, "--max-steps", "2", "--eval-full", "--batch-size", "256"), "--out", tmp_path / "full"
    )
    said = capsys.readouterr().out
    course = read_run(tmp_path / "full").course
    assert course.whole is not None
    step, loss, bits = course.whole
    assert step == 2
    assert f"{loss:.4f} nats/token, {bits:.4f} bits/byte (on 400,123 tokens)" in said.replace("\n", "")
    # The estimate is of the same loss: from 512 blocks, within a few hundredths.
    assert loss == pytest.approx(course.evaluations.values["val_loss"][-1], abs=0.05)
