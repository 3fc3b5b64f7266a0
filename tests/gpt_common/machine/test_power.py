"""Readers of power on stand-in commands and libraries, and which of them is taken."""

from __future__ import annotations

import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from gpt_common.machine import power
from gpt_common.machine.power import find_reader
from gpt_common.machine.power_readers import CounterReader, Reader, SampledReader
from gpt_common.machine.power_samples import parse_nvidia_smi

STAND_IN = """
import itertools, time
for i in itertools.count():
    print(f"{i}, 50.0", flush=True)
    time.sleep(0.01)
"""


def stand_in(code: str, patience: float = 30.0) -> SampledReader:
    return SampledReader("stand-in", "nothing", [sys.executable, "-c", code], b"\n", parse_nvidia_smi, patience)


@pytest.fixture
def reader() -> Iterator[SampledReader]:
    opened = stand_in(STAND_IN)
    yield opened
    opened.close()


def test_a_sampled_reader_measures_one_stretch_after_another(reader: SampledReader) -> None:
    assert reader.measure_idle(0.1) == pytest.approx(50.0, rel=1e-9)
    for _ in range(2):
        reader.start()
        energy = reader.stop()
        if energy is None:  # the machine was too busy to print a sample in a second
            continue
        assert energy.joules == pytest.approx(50.0 * energy.seconds, rel=1e-9)
        assert energy.net_joules == pytest.approx(0.0, abs=1e-6)


def test_closing_ends_the_process() -> None:
    opened = stand_in(STAND_IN)
    opened.close()
    assert opened._process.poll() is not None
    assert not opened._thread.is_alive()


def test_closing_ends_a_process_that_may_not_be_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> None:
        raise PermissionError

    opened = stand_in(STAND_IN)
    monkeypatch.setattr(subprocess.Popen, "terminate", refuse)
    opened.close()
    assert opened._process.wait(timeout=30) != 0  # it met a closed pipe


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="must be invoked as the superuser"):
        stand_in("import sys; sys.exit('stand-in must be invoked as the superuser')")
    with pytest.raises(RuntimeError, match=r"no sample within 0\.2 s"):
        stand_in("import time; time.sleep(60)", patience=0.2)


def test_a_command_that_dies_in_the_middle_gives_none() -> None:
    opened = stand_in("print('0, 50.0', flush=True)")
    opened.start()
    assert opened.stop() is None
    opened.close()


def test_zeus(monkeypatch: pytest.MonkeyPatch) -> None:
    class AppleEnergyMonitor:
        def begin_window(self, label: str) -> None:
            self.label = label

        def end_window(self, label: str) -> Any:
            assert label == self.label
            return types.SimpleNamespace(cpu_total_mj=1500, gpu_mj=30500, ane_mj=None, dram_mj=700)

    module = types.ModuleType("zeus_apple_silicon")
    module.AppleEnergyMonitor = AppleEnergyMonitor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", module)
    opened = power.open_zeus(200)
    opened.start()
    energy = opened.stop()
    assert energy is not None
    assert (energy.joules, energy.parts) == (32.0, {"cpu": 1.5, "gpu": 30.5})


@pytest.mark.parametrize(("visible", "device"), [(None, 0), ("2,3", 2), ("GPU-8f6d", "GPU-8f6d")])
def test_nvml(monkeypatch: pytest.MonkeyPatch, visible: str | None, device: object) -> None:
    counter = iter([100_000, 100_000, 350_500])
    module = types.ModuleType("pynvml")
    module.nvmlInit = lambda: None  # type: ignore[attr-defined]
    module.nvmlDeviceGetHandleByIndex = lambda index: index  # type: ignore[attr-defined]
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid  # type: ignore[attr-defined]
    asked = []

    def millijoules(handle: object) -> int:
        asked.append(handle)
        return next(counter)

    module.nvmlDeviceGetTotalEnergyConsumption = millijoules  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    opened = power.open_nvml(200)
    opened.start()
    energy = opened.stop()
    assert energy is not None
    assert energy.joules == pytest.approx(250.5)
    assert set(asked) == {device}


def test_the_first_source_that_works_is_taken() -> None:
    def open_broken(_: int) -> Reader:
        raise RuntimeError("needs administrator rights")

    def open_counter(_: int) -> Reader:
        return CounterReader("counter", "nothing", lambda: 1.0, lambda before: (before, {}))

    found, reasons = find_reader([open_broken, open_counter, open_broken])
    assert found is not None
    assert found.source == "counter"
    assert reasons == ["broken: needs administrator rights"]
    assert find_reader([open_broken]) == (None, ["broken: needs administrator rights"])


def test_a_machine_without_any_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    for name in ("zeus_apple_silicon", "pynvml"):
        monkeypatch.setitem(sys.modules, name, None)
    found, reasons = find_reader()
    assert found is None
    assert [reason.split(":")[0] for reason in reasons] == ["powermetrics", "macmon", "zeus", "nvml", "nvidia_smi"]
