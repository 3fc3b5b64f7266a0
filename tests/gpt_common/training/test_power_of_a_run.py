"""`--power` from end to end, in each twin: a made-up macmon's watts in metrics, console, report and run.json."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from gpt_common.errors import Stopped, UserError
from gpt_common.training.report.curves import Used
from gpt_common.training.report.page import render_report
from gpt_common.training.report.past import read_run
from gpt_common.training.run import Run
from tests.gpt_common.machine.recordings import USAGE, put_macmon
from tests.gpt_common.machine.test_power_meter import alive, bare, folder  # noqa: F401 - fixtures
from tests.gpt_common.training.made_up import SESSION, make_run, step
from tests.twins import TWINS, train

MORE = ["--log-interval", "1", "--max-steps", "40", "--power"]


@pytest.fixture
def macmon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """It is the first source that works; its folder."""
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "powermetrics" else which(name))
    put_macmon(folder)
    return folder


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def steps(run: Path) -> list[dict[str, Any]]:
    return [row for row in rows(run) if "loss" in row]


def session(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))["sessions"][-1]
    return found


@pytest.mark.parametrize("twin", TWINS)
def test_watts_are_everywhere(
    twin: str, tiny_run: list[str], macmon: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(twin, *tiny_run, *MORE, "--report", "--out", run)
    said = capsys.readouterr().out.replace(str(tmp_path), "")
    told = [row for row in steps(run) if row["power_watts"] is not None]
    assert told
    assert all(row["power_watts"] == pytest.approx(35.0) for row in told)
    assert all(row["gpu_usage"] == pytest.approx(USAGE) for row in told)
    scope = "CPU + GPU + ANE, without memory, display and supply"
    assert session(run)["power"] == {"source": "macmon", "counts": scope}
    assert said.count(f"power by macmon, estimated: {scope}\n") == 1
    assert "    step     loss        lr    grad ms/step tokens/s watts  GPU    MFU     left\n" in said
    assert re.search(r"^ +40 .* 35\.0  98% +- +0:00$", said, re.MULTILINE)
    assert max(map(len, said[: said.index("\ndone\n")].splitlines())) <= 80
    assert re.search(r"\n  energy +[\d.]+ J: 35\.0 W on average in 0:\d\d, GPU busy 98\.4%, by macmon\n", said)
    (used,) = [row for row in rows(run) if row.get("event") == "energy"]
    assert used["joules"] == pytest.approx(35.0 * used["seconds"], abs=0.1)
    page = html.unescape((run / "report.html").read_text(encoding="utf-8"))
    for text in (
        ">power, watts</text>",
        ">GPU, share of time busy</text>",
        "<h2>Rate, gradient, speed, memory, power<",
    ):
        assert text in page
    assert "<b>35.0 W</b><span>mean power</span>" in page
    assert "<b>98%</b><span>GPU busy</span>" in page
    assert f"Power is an estimate, by macmon: {scope}. The energy is that of 0:0" in page
    assert not alive(int((macmon / "pid").read_text()))


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("twin", TWINS)
def test_without_a_source_there_is_one_line_and_null(
    twin: str, tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(twin, *tiny_run, "--report", "--max-steps", "3", "--log-interval", "1", "--power", "--out", tmp_path / "run")
    said = capsys.readouterr().out
    assert len(re.findall("power|watts|energy", said)) == 2
    assert len(re.findall("^--power: no source here, so watts stay null; ", said, re.MULTILINE)) == 1
    assert [(row["power_watts"], row["gpu_usage"]) for row in steps(tmp_path / "run")] == [(None, None)] * 3
    assert session(tmp_path / "run")["power"]["source"] is None
    assert not [row for row in rows(tmp_path / "run") if row.get("event") == "energy"]
    assert "watts" not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_without_the_flag_nothing_is_looked_for(tiny_run: list[str], macmon: Path, tmp_path: Path) -> None:
    train("torch_gpt", *tiny_run, "--max-steps", "1", "--log-interval", "1", "--out", tmp_path / "run")
    assert not (macmon / "called").exists()
    assert session(tmp_path / "run")["power"] is None
    assert steps(tmp_path / "run")[0]["power_watts"] is None


def test_a_source_that_dies_is_said_once_and_the_run_goes_on(
    tiny_run: list[str],
    macmon: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    after_step = Run.after_step

    def watched(run: Run, number: int) -> Any:
        if run.power.energy is not None:
            (macmon / "stop").touch()
            run.power._thread.join(timeout=30)
        return after_step(run, number)

    monkeypatch.setattr(Run, "after_step", watched)
    train("torch_gpt", *tiny_run, *MORE, "--out", tmp_path / "run")
    said = capsys.readouterr().out
    assert said.count("power: macmon tells no more (Error: no sensors any more); watts are null from here on\n") == 1
    assert "\ndone\n" in said
    assert len(steps(tmp_path / "run")) == 40
    assert [row["source"] for row in rows(tmp_path / "run") if row.get("event") == "energy"] == ["macmon"]


def test_after_ctrl_c_the_source_ends_and_the_energy_is_written_down(
    tiny_run: list[str], macmon: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_step = Run.after_step

    def interrupted(run: Run, number: int) -> Any:
        if run.power.energy is not None and run.interrupted is None:
            os.kill(os.getpid(), signal.SIGINT)
        return after_step(run, number)

    monkeypatch.setattr(Run, "after_step", interrupted)
    with pytest.raises(Stopped):
        train("torch_gpt", *tiny_run, *MORE, "--max-steps", "100000", "--out", tmp_path / "run")
    last = rows(tmp_path / "run")[-1]
    assert (last["event"], last["source"]) == ("energy", "macmon")
    assert not alive(int((macmon / "pid").read_text()))


@pytest.mark.parametrize("error", [UserError("the disk is full"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["record", "check_start"])
def test_after_an_error_the_source_ends(
    tiny_run: list[str],
    macmon: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    where: str,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(Run, where, fail)
    with pytest.raises(type(error)):
        train("torch_gpt", *tiny_run, *MORE, "--out", tmp_path / "run")
    assert not alive(int((macmon / "pid").read_text()))


def test_the_energy_of_a_run_is_that_of_its_sessions(tmp_path: Path) -> None:
    power = {"source": "macmon", "counts": "CPU + GPU + ANE"}
    told = {"power_watts": 30.0, "gpu_usage": 0.5}
    lines = [
        *(step(number, time=number / 10, **told) for number in range(1, 11)),
        {"event": "energy", "step": 10, "joules": 3.6e6, "seconds": 120_000.0, "gpu_usage": 0.5, "source": "macmon"},
        {"event": "resume", "step": 10, "time": 0.0},
        {"event": "resume", "step": 10, "time": 0.0},
        *(step(number, time=number / 10, power_watts=None, gpu_usage=None) for number in range(11, 21)),
        {"event": "energy", "step": 20, "joules": 3.6e6, "seconds": 60_000.0, "gpu_usage": None, "source": "NVML"},
        {"event": "energy", "step": 20, "joules": None, "seconds": "x", "source": 3},
    ]
    sessions = [{**SESSION, "power": power}, SESSION, {**SESSION, "power": {**power, "source": "NVML"}}]
    run = read_run(make_run(tmp_path / "run", lines, sessions=sessions))
    assert run.course.used == Used(joules=7.2e6, seconds=180_000.0, sessions=2)
    page = html.unescape(render_report(run))
    assert "<b>7.20 MJ (2.00 kWh)</b><span>energy</span>" in page
    assert "<b>40.0 W</b><span>mean power</span>" in page
    assert "by macmon: CPU + GPU + ANE and NVML: CPU + GPU + ANE. The energy is that of 2d 02:00 in 2 of 3" in page
