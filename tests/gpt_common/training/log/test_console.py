"""How a run looks, in a terminal and out of one: within 80 columns, never flooding, never steering the terminal."""

from __future__ import annotations

import io
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gpt_common.training.log.console import LiveConsole, PlainConsole, Progress, open_console
from gpt_common.training.log.record import StepRecord
from gpt_common.training.log.runlog import RunLog
from gpt_common.words import duration, in_joules, milliseconds, printable, rate, share, usage, watts


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(
    step: int, *, loss: float = 2.5, dt: float = 0.1, mfu: float | None = 0.342, **power: float | None
) -> StepRecord:
    timing: dict[str, float | None] = {"dt": dt, "dt_data": 0.0, "sps": 12 / dt, "tps": 768 / dt, "mfu": mfu}
    known: dict[str, Any] = {"loss": loss, "lr": 1e-3, "grad_norm": 0.52, **timing, **power}
    return StepRecord(step=step, memory=None, **known)


def plain(max_steps: int, clock: Clock) -> tuple[PlainConsole, io.StringIO]:
    output = io.StringIO()
    return PlainConsole(Progress(max_steps, 0, clock), output), output


def live(max_steps: int, clock: Clock, width: int = 80) -> tuple[LiveConsole, io.StringIO]:
    output = io.StringIO()
    return LiveConsole(Progress(max_steps, 0, clock), Console(file=output, force_terminal=True, width=width)), output


# ---- out of a terminal -------------------------------------------------------------------------------------------


def test_plain_output_is_a_table_with_a_row_per_logged_step() -> None:
    clock = Clock()
    console, output = plain(200, clock)
    for step in range(1, 201):
        clock.now += 0.1
        console.tick(step)
        if step % 50 == 0:
            console.step(record(step, mfu=None if step == 50 else 0.342))
    console.evaluation(200, train_loss=None, val_loss=2.4, floor=2.1, best=True)
    assert output.getvalue().splitlines() == [
        "    step     loss        lr    grad   ms/step  tokens/s     MFU      left",
        "      50   2.5000  1.00e-03    0.52     100.0     7.68k       -         -",
        "     100   2.5000  1.00e-03    0.52     100.0     7.68k   34.2%      0:10",
        "     150   2.5000  1.00e-03    0.52     100.0     7.68k   34.2%      0:05",
        "     200   2.5000  1.00e-03    0.52     100.0     7.68k   34.2%      0:00",
        "     200 validation loss 2.4000, 0.3000 above the floor, best",
    ]


def test_plain_output_shows_power_from_the_first_watts_on() -> None:
    clock = Clock()
    console, output = plain(200, clock)
    for step, power in ((50, None), (100, 35.0), (150, None), (200, 1234.5)):
        clock.now += 5
        console.step(record(step, power_watts=power, gpu_usage=None if power is None else 0.984))
    assert output.getvalue().splitlines() == [
        "    step     loss        lr    grad   ms/step  tokens/s     MFU      left",
        "      50   2.5000  1.00e-03    0.52     100.0     7.68k   34.2%         -",
        "    step     loss        lr    grad ms/step tokens/s watts  GPU    MFU     left",
        "     100   2.5000  1.00e-03    0.52   100.0    7.68k  35.0  98%  34.2%     0:10",
        "     150   2.5000  1.00e-03    0.52   100.0    7.68k     -    -  34.2%     0:05",
        "     200   2.5000  1.00e-03    0.52   100.0    7.68k  1234  98%  34.2%     0:00",
    ]


def test_plain_rows_stay_within_80_columns_for_any_plausible_number() -> None:
    clock = Clock()
    console, output = plain(99_999_999, clock)
    for step in (1, 12_345_678, 99_999_998):
        clock.now += 1e6
        console.step(record(step, loss=123.4567, dt=123.4567, mfu=1.0))
    console.step(record(99_999_999, loss=math.nan, dt=math.nan))
    clock.now += 1e6
    console.step(record(99_999_999, loss=123.4567, dt=123.4567, mfu=1.0, power_watts=12345.6, gpu_usage=1.0))
    console.evaluation(99_999_999, train_loss=12.3456, val_loss=12.3456, floor=10.1234, best=True)
    assert max(map(len, output.getvalue().splitlines())) <= 80


def test_log_interval_1_does_not_flood_plain_output_but_metrics_have_every_step(tmp_path: Path) -> None:
    output = io.StringIO()
    steps = 3000
    with RunLog(
        tmp_path,
        max_steps=steps,
        first_step=0,
        trackers=(),
        config={},
        run_name="test",
        console=Console(file=output),
    ) as log:
        for step in range(1, steps + 1):
            log.tick(step)
            log.step(record(step))
    rows = [line for line in output.getvalue().splitlines() if re.match(r" *\d", line)]
    assert 190 <= len(rows) <= 201
    assert rows[0].split()[0] == "1"
    assert rows[-1].split()[0] == "3000"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == steps


def test_plain_output_is_not_silent_for_long() -> None:
    clock = Clock()
    console, output = plain(600_000, clock)
    for step in range(10, 100, 10):
        clock.now += 4.0
        console.step(record(step))
    assert [line.split()[0] for line in output.getvalue().splitlines()[1:]] == ["10", "40", "70"]


def test_a_pipe_gets_no_escape_codes_even_where_colour_is_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with RunLog(tmp_path, max_steps=1, first_step=0, trackers=(), config={}, run_name="test") as log:
        log.note("a note " * 30)
        log.tick(1)
        log.step(record(1))
        log.sample(1, "One", " day\x1b[31m")
        log.warn("an alarm")
        log.summary(title="done", rows=[("steps", "1")], command_hint="python -m mlx_gpt.sample x " + "y" * 80)
    text = output.getvalue()
    assert "\x1b" not in text
    assert "a note " * 29 in text, "a plain line is never wrapped"
    assert "python -m mlx_gpt.sample x " + "y" * 80 in text
    assert text.count("an alarm") == 2, "once when it happens, once in the summary"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(open_console(Progress(1, 0), Console(file=io.StringIO(), force_terminal=True)), PlainConsole)


def test_an_output_that_knows_ascii_only() -> None:
    buffer = io.BytesIO()
    console = PlainConsole(Progress(1, 0), io.TextIOWrapper(buffer, encoding="ascii", write_through=True))
    console.sample(1, "Once", " upon a 🙂")
    assert b"Once upon a ?" in buffer.getvalue()


# ---- in a terminal -----------------------------------------------------------------------------------------------


def visible(output: io.StringIO) -> list[str]:
    """The lines that were drawn, without what moves the cursor or colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue()).replace("\r", "\n").splitlines()


@pytest.mark.parametrize("width", [30, 60, 80, 200])
def test_the_bar_fits_the_terminal(width: int) -> None:
    clock = Clock()
    console, output = live(600_000, clock, width)
    for step in (100_000, 200_000, 300_000):
        clock.now += 86400
        console.step(record(step, loss=10.1234, dt=0.8765))
        console.tick(step)
    console.close()
    lines = visible(output)
    assert max(map(len, lines)) <= min(width, 80)
    assert any(line.startswith("step 300000/600000 ") for line in lines)
    assert any("loss 10.1234" in line for line in lines)
    if width >= 80:
        assert any(line.endswith("MFU 34.2%") and "876.5 ms/step  876 tokens/s" in line for line in lines)
        assert any(line.endswith("━ 3d 00:00 left") for line in lines)


@pytest.mark.parametrize("mfu", [None, 0.342])
def test_the_bar_shows_watts_before_what_it_can_do_without(mfu: float | None) -> None:
    console, output = live(100, Clock())
    console.step(record(10, mfu=mfu, power_watts=35.0, gpu_usage=0.984))
    console.tick(10)
    console.close()
    figures = next(line for line in visible(output) if line.startswith("loss"))
    assert figures.startswith("loss 2.5000  grad 0.52  100.0 ms/step  7.68k tokens/s  35.0 W  GPU 98%")
    assert len(figures) < 80


@pytest.mark.parametrize("width", [30, 80])
def test_what_is_waited_for_stands_in_place_of_the_figures(width: int) -> None:
    console, output = live(100, Clock(), width)
    console.tick(1)
    console.step(record(1))
    console.waiting("waiting 1:02:03  8,388,608,000 of 8,389,656,577 tokens")
    assert "waiting 1:02:03" in visible(output)[-1]
    assert ("8,389,656,577 tokens" in visible(output)[-1]) == (width == 80)
    assert all(len(line) < width for line in visible(output)[-2:])
    console.waiting("")
    assert "loss 2.5000" in visible(output)[-1]
    console.close()


def test_redraws_are_few_however_fast_the_steps_are() -> None:
    clock = Clock()
    console, output = live(10_000, clock)
    for step in range(1, 10_001):
        clock.now += 0.001
        console.tick(step)
    console.close()
    drawn = [line for line in visible(output) if line.startswith("step ")]
    assert 40 <= len(drawn) <= 60, "10 seconds of steps at 5 redraws a second"


def test_a_terminal_shows_evaluations_and_long_alarms_wrapped() -> None:
    console, output = live(100, Clock())
    console.tick(1)
    console.evaluation(50, train_loss=None, val_loss=2.4, floor=2.5, best=False)
    console.warn("word " * 40)
    console.close()
    lines = visible(output)
    assert "step 50 validation loss 2.4000, 0.1000 below the floor" in lines
    assert sum(line.startswith(("warning: word", "  word")) for line in lines) == 3
    assert max(map(len, lines)) <= 80


def test_the_summary_takes_the_bar_away_and_keeps_the_command_whole() -> None:
    console, output = live(100, Clock())
    console.tick(100)
    command = "python -m mlx_gpt.sample " + "runs/" * 20
    console.summary("done", [("steps", "100 of 100")], ["odd"], command)
    text = output.getvalue()
    assert text.rstrip().endswith(command + "\x1b[0m")
    assert "\x1b[?25h" in text, "the cursor is back"


# ---- words and numbers -------------------------------------------------------------------------------------------


def test_time_left_includes_what_happens_between_steps() -> None:
    clock = Clock()
    progress = Progress(1000, 0, clock)
    for step in range(10, 510, 10):
        clock.now += 10 * 0.1 + (10.0 if step % 100 == 0 else 0.0)  # an evaluation of 10 s every 100 steps
        progress.step = step
        progress.mark()
    minutes, seconds = progress.left().split(":")
    # 500 steps of 0.1 s and 5 evaluations: 100 s; the window may hold one evaluation more or less than its share.
    assert 80 <= 60 * int(minutes) + int(seconds) <= 120


def test_time_left_follows_a_machine_that_slows_down() -> None:
    clock = Clock()
    progress = Progress(2000, 0, clock)
    for step in range(10, 1010, 10):
        clock.now += 10 * (0.1 if step <= 500 else 0.2)
        progress.step = step
        progress.mark()
    assert progress.left() == "3:20", "1000 steps at the present 0.2 s"


def test_samples_are_indented_wrapped_and_cannot_steer_the_terminal() -> None:
    console, output = plain(1, Clock())
    console.sample(1, "One day", " Anna found a red ball." * 10 + "\n\x1b[2J\x07\x9b\rThe end\tof it.\n\nreally")
    lines = output.getvalue().splitlines()
    assert lines[:2] == ["", "sample at step 1:"]
    assert max(map(len, lines)) <= 80
    assert all(line.startswith("    ") for line in lines[2:] if line)
    assert "    \\x1b[2J\\x07\\x9b\\rThe end" in output.getvalue()
    assert lines[-3:] == ["", "    really", ""]


def test_printable_keeps_words_of_all_languages() -> None:
    assert printable("中文 🙂\nñ") == "中文 🙂\nñ"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (duration(7.4), "0:07"),
        (duration(753), "12:33"),
        (duration(3753), "1:02:33"),
        (duration(3 * 86400 + 4 * 3600 + 300), "3d 04:05"),
        (rate(950.4), "950"),
        (rate(25_812), "25.8k"),
        (rate(258_123), "258k"),
        (rate(1_213_000), "1.21M"),
        (rate(math.nan), "-"),
        (milliseconds(0.00725), "7.25"),
        (milliseconds(0.1193), "119.3"),
        (milliseconds(12.345), "12345"),
        (milliseconds(math.nan), "-"),
        (in_joules(0.5), "0.5 J"),
        (in_joules(950), "950 J"),
        (in_joules(54_000), "54.00 kJ (15.00 Wh)"),
        (in_joules(1.8e6), "1.80 MJ (500.00 Wh)"),
        (in_joules(7.2e9), "7,200.00 MJ (2,000.00 kWh)"),
        (watts(None), "-"),
        (usage(None), "-"),
        (share(None), "-"),
        (share(math.nan), "-"),
        (share(0.342), "34.2%"),
    ],
)
def test_numbers_are_short(text: str, expected: str) -> None:
    assert text == expected
