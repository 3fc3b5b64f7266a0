"""Power beside a run: what rows are told, and that neither a source that fails nor one that hangs reaches the run."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpt_common.machine import power_meter
from gpt_common.machine.power import NOT_INSTALLED, find_reader, open_macmon, open_nvml
from gpt_common.machine.power_meter import PowerMeter, Reading, open_meter
from gpt_common.machine.power_readers import Reader
from gpt_common.machine.power_samples import Sample
from tests.gpt_common.machine.recordings import USAGE, put_macmon

NOTHING = Reading(None, None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first folder of PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


def eventually(true: Callable[[], bool], what: str) -> None:
    """Wait until it is so; a busy machine has 30 s."""
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    pytest.fail(what)


def alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


class Told(Reader):
    """A source that says what it is told to; then it fails, ends, or says nothing any more."""

    source, scope = "told", "nothing"

    def __init__(self, *samples: Sample, then: Exception | None = None, hangs: bool = False) -> None:
        self.samples, self.then, self.hangs = samples, then, hangs
        self.closed = threading.Event()

    def follow(self) -> Iterator[Sample]:
        yield from self.samples
        if self.hangs:
            self.closed.wait()
        if self.then:
            raise self.then

    def close(self) -> None:
        self.closed.set()


def started(reader: Reader) -> tuple[PowerMeter, list[str]]:
    meter = PowerMeter(reader)
    said: list[str] = []
    meter.start(said.append)
    return meter, said


# --- what rows are told


def test_a_row_is_told_the_mean_since_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_meter, "FRESH_SECONDS", 0.0)
    reader = Told(Sample(1, 1.0, 10.0, gpu_usage=0.5), Sample(2, 3.0, 30.0, gpu_usage=1.0), Sample(3, 1.0, 50.0))
    meter, _ = started(reader)
    meter._thread.join()
    watts, usage = meter.reading()
    assert watts == pytest.approx((10 + 3 * 30 + 50) / 5, rel=1e-12)
    assert usage == pytest.approx((0.5 + 3 * 1.0) / 4, rel=1e-12)
    assert meter.reading() == NOTHING, "each sample counts for one row"
    energy = meter.energy
    assert energy is not None
    assert (energy.joules, energy.seconds, energy.source) == (150.0, 5.0, "told")
    assert energy.gpu_usage == pytest.approx(0.875)


def test_rows_between_two_samples_are_told_the_newest_while_it_is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_meter, "FRESH_SECONDS", 1e9)
    meter, _ = started(Told(Sample(1, 1.0, 10.0), Sample(2, 1.0, 30.0, gpu_usage=0.25)))
    meter._thread.join()
    assert meter.reading() == Reading(20.0, 0.25)
    assert [meter.reading(), meter.reading()] == [Reading(30.0, 0.25)] * 2
    assert meter.energy is not None
    assert meter.energy.joules == 40.0, "and counts once"


@pytest.mark.parametrize("reader", [None, Told()])
def test_without_samples_there_is_no_power_and_no_energy(reader: Reader | None) -> None:
    meter, _ = started(reader) if reader else (PowerMeter(), None)
    assert meter.reading() == NOTHING
    assert meter.energy is None
    meter.close()


# --- what goes wrong


def test_a_source_that_fails_is_said_once_and_keeps_what_it_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_meter, "FRESH_SECONDS", 0.0)
    meter, said = started(Told(Sample(1, 2.0, 10.0), then=OSError("no sensors\nany more")))
    meter._thread.join()
    assert meter.reading() == Reading(10.0, None)
    assert [meter.reading(), meter.reading()] == [NOTHING] * 2
    assert said[1:] == ["power: told tells no more (no sensors any more); watts are null from here on"]
    assert meter.energy is not None
    assert meter.energy.joules == 20.0
    meter.close()
    assert len(said) == 2


def test_a_source_that_hangs_keeps_nobody_waiting() -> None:
    reader = Told(hangs=True)
    meter, said = started(reader)
    assert meter.reading() == NOTHING
    meter.close()
    meter.close()
    assert reader.closed.is_set()
    assert not meter._thread.is_alive()
    assert len(said) == 1


def test_a_source_that_cannot_be_closed_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Told()
    monkeypatch.setattr(reader, "close", lambda: 1 / 0)
    meter, _ = started(reader)
    meter.close()


# --- macmon


def test_macmon_is_followed_and_ends_with_the_meter(folder: Path) -> None:
    put_macmon(folder)
    reader, _ = find_reader([open_macmon], 100)
    assert reader is not None
    meter, said = started(reader)
    eventually(lambda: meter.energy is not None, "no sample came")
    assert meter.reading() == pytest.approx((35.0, USAGE))
    assert said == ["power by macmon, estimated: CPU + GPU + ANE, without memory, display and supply"]
    assert (folder / "called").read_text() == "--version\npipe -i 100\n"
    number = int((folder / "pid").read_text())
    assert os.getpgid(number) != os.getpgrp(), "Ctrl-C in the terminal goes to the run alone"
    meter.close()
    assert not alive(number)


def test_a_macmon_that_dies_in_the_middle(folder: Path) -> None:
    put_macmon(folder, lines=5)
    meter, said = started(open_macmon(100))
    meter._thread.join(timeout=60)
    meter.reading(), meter.reading()
    why = "Error: no sensors any more"
    assert said[1:] == [f"power: macmon tells no more ({why}); watts are null from here on"]
    assert meter.energy is not None
    assert meter.energy.joules == pytest.approx(35.0 * meter.energy.seconds, rel=1e-9)
    meter.close()


@pytest.mark.parametrize("version", ["macmon, a dashboard", "1.1.4", "macmonitor 1.1.4", "macmon 0.6.1\nand more", ""])
def test_another_program_of_the_name_is_not_asked_for_power(folder: Path, version: str) -> None:
    program = put_macmon(folder, version=version)
    reader, reasons = find_reader([open_macmon])
    assert (reader, reasons) == (None, [f"macmon: {program} is another program of that name: brew install macmon"])
    assert (folder / "called").read_text() == "--version\n"


def test_the_macmon_of_pypi_is_another_program(folder: Path) -> None:
    """It knows no --version: its parser ends with 2."""
    program = folder / "macmon"
    program.write_text("#!/bin/sh\necho 'macmon 1.1.4'\necho 'usage: macmon [-h] {start,stop} ...' >&2\nexit 2\n")
    program.chmod(0o755)
    assert find_reader([open_macmon])[1] == [f"macmon: {program} is another program of that name: brew install macmon"]


def test_the_right_name_and_the_wrong_lines(folder: Path) -> None:
    put_macmon(folder, line='{"cpu": 12, "url": "http://localhost:9999"}', lines=3)
    assert find_reader([open_macmon]) == (None, ["macmon: Error: no sensors any more"])


# --- NVML


@pytest.mark.parametrize("tells_usage", [True, False])
def test_nvml(monkeypatch: pytest.MonkeyPatch, tells_usage: bool) -> None:
    began = time.perf_counter()

    class NVMLError(Exception):
        pass

    def usage(_: object) -> types.SimpleNamespace:
        if not tells_usage:
            raise NVMLError("Not Supported")
        return types.SimpleNamespace(gpu=97, memory=40)

    module = types.ModuleType("pynvml")
    module.NVMLError = NVMLError  # type: ignore[attr-defined]
    module.nvmlInit = lambda: None  # type: ignore[attr-defined]
    module.nvmlDeviceGetHandleByIndex = lambda index: index  # type: ignore[attr-defined]
    joules = lambda _: 300_000 * (time.perf_counter() - began)  # noqa: E731 - 300 W, in millijoules
    module.nvmlDeviceGetTotalEnergyConsumption = joules  # type: ignore[attr-defined]
    module.nvmlDeviceGetUtilizationRates = usage  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    meter, _ = started(open_nvml(20))
    eventually(lambda: meter.energy is not None and meter.energy.seconds > 0.2, "no sample came")
    meter.close()
    energy = meter.energy
    assert energy is not None
    # The counter and the clock are not read at one moment: a thread that has to wait in between makes the difference.
    assert energy.joules / energy.seconds == pytest.approx(300, rel=0.2)
    assert energy.gpu_usage == (pytest.approx(0.97) if tells_usage else None)


# --- which source, and what is said without one


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any source."""
    which = shutil.which
    tools = ("powermetrics", "macmon", "nvidia-smi")
    monkeypatch.setattr(shutil, "which", lambda name: None if name in tools else which(name))
    for name in ("zeus_apple_silicon", "pynvml"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("platform", "device", "advice"),
    [
        ("darwin", "mps", "brew install macmon, or run `sudo -v` before the run"),
        ("darwin", "cpu", "brew install macmon, or run `sudo -v` before the run"),
        ("linux", "cuda", "pip install -e '.[power]' (nvidia-ml-py)"),
        ("linux", "gpu", "pip install -e '.[power]' (nvidia-ml-py)"),
        ("linux", "cpu", "sources are for Macs and for runs on NVIDIA GPUs"),
    ],
)
def test_without_a_source_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, platform: str, device: str, advice: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    meter = open_meter(device)
    said: list[str] = []
    meter.start(said.append)
    assert said == [f"--power: no source here, so watts stay null; {advice}"]
    assert meter.reading() == NOTHING
    without = ["powermetrics", "macmon", "zeus"] + ["nvml", "nvidia_smi"] * (platform == "linux" and device != "cpu")
    assert meter.about == {"source": None, "without": [f"{name}: {NOT_INSTALLED}" for name in without]}
    meter.close()


def test_a_source_that_is_there_and_does_not_work_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_broken(_: int) -> Reader:
        raise RuntimeError("needs administrator rights")

    monkeypatch.setattr(power_meter, "APPLE", (open_broken,))
    said: list[str] = []
    open_meter("cpu").start(said.append)
    assert len(said) == 1
    assert said[0].startswith("--power: no source here (broken: needs administrator rights), so watts stay null; ")


def test_a_meter_that_nobody_asked_for_says_nothing() -> None:
    meter = PowerMeter()
    meter.start(pytest.fail)
    assert (meter.about, meter.reading()) == (None, NOTHING)
    meter.close()
