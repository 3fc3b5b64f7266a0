"""Energy readers: parsers on recorded samples, sums by hand, and readers on stand-in commands and libraries.

The samples were written by us after the format that `powermetrics -f plist` and `macmon pipe` document. The numbers
in one sample agree with each other: energy in millijoules is power in milliwatts times the length of the sample.
"""

from __future__ import annotations

import datetime
import plistlib
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from asitop.parsers import parse_cpu_metrics  # type: ignore[import-untyped]

from gpt_common.machine import power
from gpt_common.machine.power import CounterReader, Reader, SampledReader, find_reader
from gpt_common.machine.power_samples import (
    Energy,
    Sample,
    integrate,
    parse_macmon,
    parse_nvidia_smi,
    parse_powermetrics,
)

CLUSTERS = {
    "M1": ["E-Cluster", "P-Cluster"],
    "M1 Ultra": ["E0-Cluster", "E1-Cluster", "P0-Cluster", "P1-Cluster", "P2-Cluster", "P3-Cluster"],
    "M3 Max": ["E-Cluster", "P0-Cluster", "P1-Cluster"],
    "M4": ["E-Cluster", "P-Cluster"],
    "M5": ["E-Cluster", "S-Cluster"],
    "M5 Pro": ["P0-Cluster", "P1-Cluster", "S-Cluster"],
    "M5 Max": ["M0-Cluster"],
}
WATTS = {"cpu": 3.5, "gpu": 31.25, "ane": 0.25}


def powermetrics(clusters: list[str], milliseconds: float = 200.0, **changes: Any) -> bytes:
    """One document of `powermetrics --samplers cpu_power,gpu_power,thermal -f plist`."""
    cpus = [{"cpu": i, "freq_hz": 1.2e9, "idle_ratio": 0.5, "dvfm_states": []} for i in range(2)]
    processor: dict[str, Any] = {
        "clusters": [
            {"name": name, "hw_resid_counters": True, "freq_hz": 2.4e9, "idle_ratio": 0.25, "cpus": cpus}
            for name in clusters
        ],
        "combined_power": sum(WATTS.values()) * 1000,
    }
    for part, watts in WATTS.items():
        processor[f"{part}_energy"] = round(watts * milliseconds)
        processor[f"{part}_power"] = watts * 1000
    document = {
        "is_delta": True,
        "elapsed_ns": int(milliseconds * 1e6),
        "hw_model": "Mac15,8",
        "timestamp": datetime.datetime(2026, 1, 31, 12, 0, 0),
        "thermal_pressure": "Nominal",
        "processor": processor,
        "gpu": {"freq_hz": 1380.0, "idle_ratio": 0.02, "gpu_energy": processor["gpu_energy"]},
    }
    return b"\x00" + plistlib.dumps(document | changes)


@pytest.mark.parametrize("chip", CLUSTERS)
@pytest.mark.parametrize("milliseconds", [200.0, 1000.0])
def test_every_chip_gives_watts(chip: str, milliseconds: float) -> None:
    sample = parse_powermetrics(powermetrics(CLUSTERS[chip], milliseconds))
    assert sample is not None
    assert sample.seconds == milliseconds / 1000
    assert sample.watts == pytest.approx(35.0, rel=1e-12)
    assert sample.parts == pytest.approx(WATTS, rel=1e-12)
    assert sample.thermal_pressure == "Nominal"


def test_what_asitop_alone_would_say() -> None:
    """The two faults that are corrected are still there; when they are not, the correction must go."""
    processor = plistlib.loads(powermetrics(CLUSTERS["M1"], 200.0)[1:])
    assert parse_cpu_metrics(processor)["gpu_W"] == pytest.approx(WATTS["gpu"] / 5)
    assert parse_cpu_metrics(processor)["package_W"] == pytest.approx(35.0)
    for chip in ("M5", "M5 Pro", "M5 Max"):
        with pytest.raises(KeyError):
            parse_cpu_metrics(plistlib.loads(powermetrics(CLUSTERS[chip])[1:]))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\x00",
        b"powermetrics must be invoked as the superuser\n",
        powermetrics(CLUSTERS["M1"])[:400] + b"</plist>",
        powermetrics(CLUSTERS["M1"], processor={"clusters": []}),
        powermetrics(CLUSTERS["M1"], elapsed_ns=0),
        powermetrics(CLUSTERS["M1"], elapsed_ns="x"),
    ],
)
def test_what_is_no_sample_is_none(document: bytes) -> None:
    assert parse_powermetrics(document) is None


def test_samples_of_one_second_differ_by_their_length() -> None:
    """The date in a sample has whole seconds: five samples of 200 ms share it."""
    keys = {parse_powermetrics(powermetrics(CLUSTERS["M1"], 200.0 + i / 1000)).key for i in range(5)}  # type: ignore[union-attr]
    assert len(keys) == 5
    twice = [parse_powermetrics(powermetrics(CLUSTERS["M1"])).key for _ in range(2)]  # type: ignore[union-attr]
    assert twice[0] == twice[1]


def test_macmon() -> None:
    line = (
        b'{"timestamp":"2026-02-24T20:38:15.427569+00:00","temp":{"cpu_temp_avg":43.7},"cpu_power":0.5,'
        b'"gpu_power":12.25,"ane_power":0.0,"all_power":12.75,"sys_power":20.9,"ram_power":0.1}\n'
    )
    sample = parse_macmon(line)
    assert sample is not None
    assert (sample.watts, sample.seconds) == (12.75, None)
    assert sample.parts == {"cpu": 0.5, "gpu": 12.25, "ane": 0.0}
    assert parse_macmon(b"Error: no such device\n") is None
    assert parse_macmon(b"{}\n") is None


def test_nvidia_smi() -> None:
    sample = parse_nvidia_smi(b"2026/01/31 12:00:00.123, 71.50\n")
    assert sample == Sample(key="2026/01/31 12:00:00.123", seconds=None, watts=71.5)
    assert parse_nvidia_smi(b"2026/01/31 12:00:00.123, [N/A]\n") is None
    assert parse_nvidia_smi(b"No devices were found\n") is None


def total(samples: list[tuple[float, Sample]], start: float, stop: float, idle: float | None = None) -> Energy | None:
    return integrate(samples, start, stop, idle, "source", "scope")


def test_energy_is_power_times_time_inside_the_stretch() -> None:
    samples = [(1.0, Sample(1, 1.0, 10.0, {"gpu": 8.0})), (2.0, Sample(2, 1.0, 20.0, {"gpu": 15.0}))]
    energy = total(samples, 0.5, 2.0, idle=4.0)
    assert energy is not None
    assert energy.joules == pytest.approx(0.5 * 10 + 1.0 * 20)
    assert energy.parts == pytest.approx({"gpu": 0.5 * 8 + 1.0 * 15})
    assert energy.net_joules == pytest.approx(25 - 4 * 1.5)
    assert (energy.seconds, energy.source, energy.scope, energy.estimate) == (1.5, "source", "scope", True)


def test_samples_outside_do_not_count() -> None:
    samples = [(1.0, Sample(1, 1.0, 1e6)), (2.0, Sample(2, 1.0, 20.0)), (4.0, Sample(3, 1.0, 1e6))]
    energy = total(samples, 1.0, 2.0)
    assert energy is not None
    assert (energy.joules, energy.idle_watts, energy.net_joules) == (20.0, None, None)


def test_a_gap_is_filled_with_the_mean_and_a_large_one_refused() -> None:
    samples = [(1.0, Sample(1, 1.0, 30.0))]
    energy = total(samples, 0.0, 1.5)
    assert energy is not None
    assert energy.joules == pytest.approx(45.0)
    assert total(samples, 0.0, 2.1) is None
    assert total([], 0.0, 1.0) is None
    assert total(samples, 1.0, 1.0) is None


def test_samples_without_a_length_reach_back_to_the_one_before() -> None:
    samples = [(1.0, Sample(1, None, 99.0)), (1.25, Sample(2, None, 10.0)), (2.0, Sample(3, None, 20.0))]
    energy = total(samples, 1.0, 2.0)
    assert energy is not None
    assert energy.joules == pytest.approx(0.25 * 10 + 0.75 * 20)


def test_heat_once_seen_is_reported() -> None:
    levels = ["Nominal", "Heavy", "Nominal"]
    samples = [(i + 1.0, Sample(i, 1.0, 1.0, thermal_pressure=level)) for i, level in enumerate(levels)]
    hot, cool, silent = (
        total(samples, 0.0, 3.0),
        total(samples[:1], 0.0, 1.0),
        total([(1.0, Sample(1, 1.0, 1.0))], 0, 1),
    )
    assert hot is not None
    assert cool is not None
    assert silent is not None
    assert (hot.thermal_pressure, cool.thermal_pressure, silent.thermal_pressure) == ("Heavy", "Nominal", None)


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
    opened = power.open_zeus()
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
    opened = power.open_nvml()
    opened.start()
    energy = opened.stop()
    assert energy is not None
    assert energy.joules == pytest.approx(250.5)
    assert set(asked) == {device}


def test_the_first_source_that_works_is_taken() -> None:
    def open_broken() -> Reader:
        raise RuntimeError("needs administrator rights")

    def open_counter() -> Reader:
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
    assert [reason.split(":")[0] for reason in reasons] == ["powermetrics", "zeus", "macmon", "nvml", "nvidia_smi"]
