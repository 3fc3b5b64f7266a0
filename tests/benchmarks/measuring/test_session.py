"""A session: the order of its processes, what it does with those that fail, and what it keeps after Ctrl-C."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.measuring import session as session_module
from benchmarks.measuring.progress import Display, Task
from benchmarks.measuring.session import estimate, jobs
from benchmarks.report.summarise import by_round
from benchmarks.results import BackendRow, Result, Settings
from gpt_common.machine.power_readers import Reader
from gpt_common.machine.power_samples import Energy
from tests.benchmarks.recipes import SPEEDS, figures, make_result, make_session, worker

Event = dict[str, Any]


def rows_by_label(result: Result) -> dict[str, BackendRow]:
    return {row.label: row for row in result.cases[0].rows}


def test_rounds_alternate_in_direction() -> None:
    session = make_session(backends="mlx,mps,cpu", peers="", settings=Settings(rounds=4))
    order = [job.row.backend.label for job in jobs(session.cases, session.settings)]
    forward = ["mlx", "mps", "cpu", "mlx again"]
    assert order == forward + forward[::-1] + forward + forward[::-1]


def test_every_backend_has_a_process_in_every_round() -> None:
    session = make_session()
    session.run()
    for row in session.cases[0].rows:
        if row.open:
            assert [process.round for process in row.processes] == list(range(6))


def test_extra_tasks_come_after_the_rounds_and_leave_out_what_they_cannot_do() -> None:
    settings = Settings(rounds=1, sustained=5.0, generation=True, overhead=True)
    session = make_session(backends="mps,cpu", settings=settings)
    found = [(job.task, job.row.backend.label) for job in jobs(session.cases, settings)]
    assert found[4:] == [
        ("generation", "mps"),
        ("generation", "cpu"),
        ("generation", "transformers-mps"),
        ("sustained", "mps"),
        ("sustained", "cpu"),
        ("sustained", "transformers-mps"),
        ("overhead", "mps"),
        ("overhead", "cpu"),
    ]
    result = make_result(session)
    sustained = rows_by_label(result)["mps"].sustained
    assert sustained is not None
    assert sustained.kept == pytest.approx(1, abs=0.1)


def test_the_result_ranks_and_claims() -> None:
    result = make_result()
    rows = rows_by_label(result)
    for name, seconds in SPEEDS.items():
        assert figures(rows[name]).seconds_per_step == pytest.approx(seconds, rel=0.05)
    pairs = {(c.faster, c.slower): c for c in result.cases[0].comparisons}
    assert set(pairs) == {
        ("mlx", "mps"), ("mlx", "cpu"), ("mlx", "transformers-mps"),
        ("mps", "cpu"), ("mps", "transformers-mps"), ("transformers-mps", "cpu"),
    }  # fmt: skip
    assert all(c.claimed for c in pairs.values())
    interval = pairs["mlx", "cpu"]
    assert interval.low is not None
    assert interval.high is not None
    assert interval.low < 5 < interval.high
    assert result.cases[0].control is not None
    assert result.cases[0].control.backend == "mps"
    assert rows["transformers-cpu"].status == "absent"


def test_what_a_made_up_process_measures_depends_on_no_other() -> None:
    """Otherwise a step more or less in one of them would change every interval, and the tests of them with it."""
    settings = Settings(rounds=2, seconds=0.3, cooldown=0.0)
    alone = rows_by_label(make_result(backends="mlx", peers="", settings=settings))["mlx"]
    among = rows_by_label(make_result(backends="mps,mlx,cpu", settings=settings))["mlx"]
    for one, other in zip(alone.processes, among.processes, strict=True):
        assert one.latency.seconds == pytest.approx(other.latency.seconds, rel=1e-6)
        assert one.throughput.seconds == pytest.approx(other.throughput.seconds, rel=1e-6)
    assert alone.processes[0].latency.seconds != alone.processes[1].latency.seconds


def test_mfu_equals_the_hand_calculation() -> None:
    """6N + 12LHQT without the position embedding, on an M3 Max of 40 cores; the made-up products reach 5 TFLOP/s."""
    result = make_result(run=worker(dict.fromkeys(SPEEDS, 0.01)), backends="mps", peers="")
    summary = figures(rows_by_label(result)["mps"])
    per_token = 6 * (65 * 128 + 4 * 12 * 128 * 128 + 9 * 128) + 12 * 4 * 128 * 64
    rate = 768 * per_token / summary.seconds_per_step
    assert summary.mfu.published == pytest.approx(rate / (40 * 128 * 2 * 1380e6))
    assert summary.mfu.a100 == pytest.approx(rate / 312e12)
    assert summary.mfu.measured == pytest.approx(rate / 5e12, rel=0.06)
    assert summary.tokens_per_second == pytest.approx(768 / summary.seconds_per_step)


def changing(change: Callable[[dict[str, Any], Event], Event], speeds: dict[str, float] | None = None) -> Any:
    """A worker whose answers are changed."""
    honest = worker(speeds or SPEEDS)
    return lambda job, progress, **more: change(job, honest(job, progress, **more))


def test_a_worker_that_dies_is_a_row_with_a_reason_and_is_not_started_again() -> None:
    started = []

    def change(job: dict[str, Any], event: Event) -> Event:
        started.append(job["backend"]["name"])
        return {"event": "failed", "reason": "out of memory"} if job["backend"]["name"] == "cpu" else event

    result = make_result(run=changing(change))
    row = rows_by_label(result)["cpu"]
    assert (row.status, row.reason, row.summary) == ("failed", "out of memory", None)
    assert started.count("cpu") == 1
    assert started.count("mps") == 12  # itself and its control


def test_other_work_is_rejected() -> None:
    def change(job: dict[str, Any], event: Event) -> Event:
        if job["backend"]["name"] == "mlx":
            event["losses"] = [loss + 0.01 * i for i, loss in enumerate(event["losses"])]
        return event

    row = rows_by_label(make_result(run=changing(change)))["mlx"]
    assert row.status == "rejected"
    assert "other work" in str(row.reason)


def test_a_timer_that_does_not_wait_is_rejected() -> None:
    def change(job: dict[str, Any], event: Event) -> Event:
        if job["backend"]["name"] == "mlx":
            event["self_test"]["left_seconds"] = 0.02
        return event

    result = make_result(run=changing(change))
    row = rows_by_label(result)["mlx"]
    assert row.status == "rejected"
    assert "does not wait" in str(row.reason)
    assert not any("mlx" in (c.faster, c.slower) for c in result.cases[0].comparisons)


def test_steps_faster_than_the_products_of_the_same_session_are_rejected() -> None:
    """4.7 GFLOP in 0.1 ms would be 47 TFLOP/s, on a machine whose products reach 5."""
    result = make_result(run=worker({**SPEEDS, "mlx": 1e-4}), settings=Settings(rounds=1, seconds=0.3, cooldown=0.0))
    row = rows_by_label(result)["mlx"]
    assert row.status == "rejected"
    assert "impossible" in str(row.reason)


def test_throttled_processes_do_not_move_the_result() -> None:
    def change(job: dict[str, Any], event: Event) -> Event:
        if job["backend"]["name"] == "mlx":
            series = event["throughput"]
            series["seconds"] = [3 * s for s in series["seconds"]]
            series["marks"] = {str(i): ["throttled"] for i in range(len(series["seconds"]))}
        return event

    first = True

    def only_once(job: dict[str, Any], event: Event) -> Event:
        nonlocal first
        if job["backend"]["name"] == "mlx" and first:
            first = False
            return change(job, event)
        return event

    session = make_session(run=changing(only_once))
    result = make_result(session)
    row = rows_by_label(result)["mlx"]
    assert by_round(session.cases[0].rows[1])[0] is None
    assert figures(row).seconds_per_step == pytest.approx(SPEEDS["mlx"], rel=0.05)
    assert figures(row).marked["throttled"] == len(row.processes[0].throughput.seconds)


def test_ctrl_c_keeps_what_was_measured() -> None:
    honest, calls = worker(), 0

    def run(*arguments: Any, **more: Any) -> Event:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return honest(*arguments, **more)

    session = make_session(run=run)
    result = make_result(session)
    assert result.interrupted
    assert calls == 8
    rows = rows_by_label(result)
    assert rows["mps"].status == "measured"
    assert figures(rows["mps"]).seconds_per_step == pytest.approx(SPEEDS["mps"], rel=0.05)
    assert not any(c.claimed for c in result.cases[0].comparisons)  # too few rounds


def test_a_process_that_was_interrupted_is_kept_and_does_not_count() -> None:
    calls = 0

    def change(_: dict[str, Any], event: Event) -> Event:
        nonlocal calls
        calls += 1
        return {**event, "interrupted": calls == 2}

    session = make_session(run=changing(change))
    result = make_result(session)
    row = rows_by_label(result)["mlx"]
    assert result.interrupted
    assert calls == 2
    assert [process.complete for process in row.processes] == [False]
    assert row.status == "stopped"
    assert row.summary is None


class Meter(Reader):
    """Ten watts."""

    source, scope = "made-up", "everything"
    idle_watts = 4.0

    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> Energy | None:
        self.calls.append("stop")
        return Energy(20.0, 2.0, self.idle_watts, self.source, self.scope)


def test_energy_is_read_during_the_throughput_series_alone() -> None:
    session = make_session(backends="mps", peers="", settings=Settings(rounds=2, seconds=0.3, cooldown=0.0))
    meter = Meter()
    session.reader = meter
    result = make_result(session)
    assert meter.calls == ["start", "stop"] * 4
    summary = figures(rows_by_label(result)["mps"])
    per_token = summary.seconds_per_step / 768
    assert summary.energy is not None
    assert summary.energy.joules_per_token == pytest.approx(10 * per_token)
    assert summary.energy.net_joules_per_token == pytest.approx(6 * per_token)
    assert summary.energy.estimate is True


def test_a_hot_machine_rests_before_the_next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = iter(["heavy", "moderate", *["nominal"] * 100])
    monkeypatch.setattr(session_module, "thermal_pressure", lambda: next(levels))
    rests: list[float] = []
    session = make_session(backends="mps", peers="", settings=Settings(rounds=1, cooldown=0.5))
    session.sleep = rests.append
    session.run()
    assert rests == [0.5, 5.0, 5.0, 0.5]


def test_a_sweep_measures_every_value() -> None:
    result = make_result(sweep="n_layer=1,2", settings=Settings(rounds=1, seconds=0.3, cooldown=0.0))
    assert [case.changes for case in result.cases] == [{"n_layer": 1}, {"n_layer": 2}]
    one, two = (case.work.parameters for case in result.cases)
    assert two - one == 12 * 128 * 128 + 2 * 128


# --- the display


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_time_left_follows_what_tasks_took() -> None:
    now = [0.0]
    display = Display([Task("a", 10), Task("b", 20), Task("a", 10), Task("b", 20)], lambda: now[0])
    display.begin()
    assert display.left() == 60
    now[0] = 4.0
    assert display.left() == 56
    display.end("done")  # a took 4 seconds
    display.begin()
    assert display.left() == 20 + 4 + 20
    display.end("gone")
    display.skip("b")
    display.begin()
    assert display.left() == 4


def test_the_bar_fits_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Terminal()
    monkeypatch.setattr("sys.stderr", file)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    display = Display([Task("x" * 100, 10)], lambda: 0.0)
    display.begin()
    display.progress("warm-up", 0.5)
    display.close()
    drawn = file.getvalue()
    lines = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", drawn).replace("\r", "\n").splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert any("xxx: 0:10 left" in line and "50%" in line for line in lines)
    # The last thing that is drawn clears the line, and the cursor is back.
    assert drawn.rindex("\x1b[2K") > drawn.rindex("left")
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l")


def test_pipes_get_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display([Task("a", 10), Task("b", 10)])
    display.begin()
    display.progress("warm-up", 0.5)
    display.end("a: 5 ms")
    assert capsys.readouterr() == ("[1/2] a: 5 ms\n", "")


def test_estimates() -> None:
    settings = Settings(seconds=2.0, sustained=600.0, generation=True)
    by_task = {job.task: estimate(job, settings) for job in jobs(make_session(settings=settings).cases, settings)}
    assert by_task["sustained"] > 600
    assert by_task["steps"] < 30
