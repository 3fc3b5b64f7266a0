"""What a run's log says of its course: made-up logs with known answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_common.errors import UserError
from gpt_common.training.report.curves import Course, course, loss_line, sparkline, thinned
from gpt_common.training.report.past import read_run
from tests.gpt_common.training.made_up import evaluation, make_run, step


def findings(rows: list[dict[str, Any]]) -> Course:
    return course(rows, tokens_per_step=128)


def test_the_course_of_a_run_with_an_evaluation_between_its_steps() -> None:
    found = findings(
        [
            evaluation(0, 4.0, time=2.0),
            {"event": "start", "step": 1, "start_up": 3.0, "first_step_seconds": 0.5, "time": 3.5},
            step(1, dt=None, tps=None, time=3.5),
            step(10, time=4.4),
            evaluation(10, 0.5, time=6.4),
            step(20, memory=2 << 20, time=7.4),
            evaluation(20, 0.7, time=8.4),
            {"step": 20, "alarm": "the loss rises", "time": 8.5},
        ]
    )
    assert found.steps.step.tolist() == [1, 10, 20]
    assert found.steps.seconds.tolist() == pytest.approx([0.5, 1.4, 4.4]), "without start-up, with the evaluation"
    assert found.evaluations.seconds.tolist() == pytest.approx([0.0, 3.4, 5.4])
    assert found.last_step == 20
    assert found.seconds == pytest.approx(5.4)
    assert found.best == (10, 0.5)
    assert found.excess == pytest.approx(0.4)
    assert found.tokens_per_second == pytest.approx(1280.0)
    assert found.untimed == [(0.0, 1.0)]
    assert found.memory == 2 << 20
    assert found.alarms == [(20, "the loss rises")]
    (session,) = found.sessions
    assert (session.start_up, session.first_step_seconds) == (3.0, 0.5)


def test_a_resumed_run_goes_on_where_it_was_without_the_time_between() -> None:
    found = findings(
        [
            {"event": "start", "step": 1, "start_up": 3.0, "first_step_seconds": 1.0, "time": 4.0},
            step(1, dt=None, time=4.0),
            step(20, time=5.9),
            {"event": "resume", "step": 20, "time": 0.0},
            {"event": "start", "step": 21, "start_up": 9.0, "first_step_seconds": 2.0, "time": 11.0},
            step(21, dt=None, time=11.0),
            step(30, time=11.9),
        ]
    )
    assert found.steps.seconds.tolist() == pytest.approx([1.0, 2.9, 4.9, 5.8])
    assert [(s.first_step, s.start_up) for s in found.sessions] == [(0, 3.0), (20, 9.0)]


def test_an_older_run_whose_rows_do_not_say_when() -> None:
    rows = [
        step(1, dt=None),
        step(10),
        evaluation(10, 0.5),
        {"event": "resume", "step": 10},
        step(20),
        step(30, dt=0.2),
    ]
    found = findings(rows)
    assert found.steps.seconds.tolist() == pytest.approx([0.0, 0.9, 1.9, 3.9])
    assert found.tokens_per_second == pytest.approx(128 * 29 / 3.9)


def test_numbers_that_are_missing_or_not_finite_are_gaps() -> None:
    found = findings([step(1), step(2, loss=None, non_finite="loss nan"), step(3, loss="4", memory=True), step(4)])
    assert np.isnan(found.steps.values["loss"]).tolist() == [False, True, True, False]
    assert np.isnan(found.steps.values["memory"]).tolist() == [False, False, True, False]
    assert findings([evaluation(0, None, floor=None)]).best is None


@pytest.mark.parametrize("rows", [[], [step(1)], [evaluation(0, 4.0)], [{"step": 0, "alarm": "odd"}]])
def test_logs_that_have_hardly_begun(rows: list[dict[str, Any]]) -> None:
    found = findings(rows)
    assert found.last_step == len([row for row in rows if "loss" in row])
    assert found.seconds == pytest.approx(0.1 * found.last_step)


@pytest.mark.parametrize("row", [{"loss": 1.0}, {"step": "1", "loss": 1.0}, {"step": -1}, {"event": "resume"}])
def test_a_damaged_log_is_one_line(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged: ") as error:
        read_run(make_run(tmp_path / "run", [step(1), row]))
    assert "\n" not in str(error.value)


def test_loads_of_experts() -> None:
    rows = [step(1, expert_load=[[0.5, 1.5], [1.0, 1.0]]), step(2, expert_load=[]), step(3, expert_load=[["x"]])]
    assert findings(rows).expert_loads == [(1, [[0.5, 1.5], [1.0, 1.0]])]


def test_a_thinned_curve_keeps_its_extremes_and_its_gaps() -> None:
    x = np.arange(10_000.0)
    y = np.sin(x / 500)
    y[1234], y[5678], y[9000] = 50.0, -50.0, math.nan
    thin_x, thin_y = thinned(x, y, buckets=100)
    assert len(thin_x) <= 302
    assert (np.diff(thin_x) > 0).all()
    assert thin_x[[0, -1]].tolist() == [0, 9999]
    assert (thin_y[thin_x == 1234], thin_y[thin_x == 5678]) == (50.0, -50.0)
    assert np.isnan(thin_y[thin_x == 9000]).all()
    for few in (x[:150], x[:0]):
        assert thinned(few, few, buckets=100)[0] is few


def test_a_sparkline_is_as_high_as_its_numbers() -> None:
    assert sparkline(np.array([8.0, 4.0, 2.0, 1.0])) == "█▆▃▁"
    assert sparkline(np.array([8.0, math.nan, 1.0])) == "█ ▁"
    assert sparkline(np.array([1.0, 1.0])) == "▁▁"
    assert sparkline(np.array([-1.0, 1.0])) == "▁█"
    assert sparkline(np.array([])) == sparkline(np.array([math.nan])) == ""
    assert len(sparkline(np.linspace(9, 1, 1000))) == 40


def test_the_line_of_the_summary_fits_its_output() -> None:
    found = findings([step(number) for number in range(1, 100)])
    assert loss_line(found, "utf-8").endswith("▁ 4 to 0.0404")
    for encoding in ("ascii", "latin-1"):
        line = loss_line(found, encoding)
        assert line.isascii()
        assert line.startswith("@")
    assert loss_line(findings([])) == ""
