"""Hardware detection from recorded command output, and published peaks; whole Macs: tests/benchmarks/test_macs.py.

The recordings were written by us after the commands' documented formats; they hold the lines the parsers read and
some they must not trip over.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Any

import pytest

from gpt_common.machine import hardware
from gpt_common.machine.hardware import (
    Hardware,
    memory_for,
    parse_linux,
    parse_macos,
    parse_nvidia_files,
    parse_nvidia_smi,
    published_peak,
)
from gpt_common.machine.peaks import (
    APPLE_BANDWIDTH,
    APPLE_GPUS,
    apple_bandwidth,
    apple_peak,
    estimated_peak,
    nvidia_peak,
)
from tests.macs import AC, displays, sysctl


def test_intel_mac() -> None:
    text = sysctl("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", 16, 6, {})
    found = parse_macos(text, displays("AMD Radeon Pro 5300M"), AC, "", "15.6")
    assert (found.kind, found.chip) == ("cpu", "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz")
    assert (found.cores, found.core_kinds, found.gpu_cores, found.low_power_mode) == (6, {}, None, None)
    assert published_peak(found, "mps", "float32") is None


def test_rosetta_does_not_hide_the_chip() -> None:
    found = parse_macos(sysctl("VirtualApple @ 2.50GHz processor", 16, 8, {}), displays("Apple M2", 10), AC, "", "14")
    assert (found.chip, found.kind, found.gpu_cores) == ("Apple M2", "apple", 10)


@pytest.mark.parametrize(("line", "low"), [("powermode 0", False), ("powermode 1", True), ("powermode 2", False)])
def test_macs_with_a_high_power_mode(line: str, low: bool) -> None:
    assert parse_macos("", "", "", f"Currently in use:\n {line}\n", "26").low_power_mode is low


def test_thermal_pressure() -> None:
    level = "com.apple.system.thermalpressurelevel {}\n"
    assert hardware.parse_thermal_pressure(level.format(0)) == "nominal"
    assert hardware.parse_thermal_pressure(level.format(2)) == "heavy"
    assert hardware.parse_thermal_pressure(level.format(9)) is None
    assert hardware.parse_thermal_pressure("") is None


AMD = "".join(
    f"processor\t: {i}\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 9654 96-Core Processor\n"
    f"physical id\t: {i // 4}\nsiblings\t: 4\ncore id\t\t: {i % 2}\ncpu cores\t: 2\n\n"
    for i in range(8)
)  # two packages of two cores with two threads each
ARM = "".join(
    f"processor\t: {i}\nBogoMIPS\t: 2000.00\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n\n" for i in range(72)
)
ARM_LSCPU = (
    "Architecture: aarch64\nVendor ID: ARM\n  Model name: Neoverse-V2\n  Core(s) per socket: 72\n  Socket(s): 1\n"
)


def test_linux_amd() -> None:
    mains = {"AC": "POWER_SUPPLY_NAME=AC\nPOWER_SUPPLY_TYPE=Mains\nPOWER_SUPPLY_ONLINE=1\n"}
    found = parse_linux(
        cpuinfo=AMD, meminfo="MemTotal:   24684084 kB\nMemFree: 1 kB\n", supplies=mains, profile="balanced"
    )
    assert (found.chip, found.kind, found.cores) == ("AMD EPYC 9654 96-Core Processor", "cpu", 4)
    assert (found.memory_bytes, found.power_source, found.low_power_mode) == (24684084 * 1024, "ac", False)
    assert published_peak(found, "cpu", "float32") is None


def test_linux_intel_laptop_on_battery() -> None:
    cpuinfo = "processor\t: 0\nmodel name\t: 13th Gen Intel(R) Core(TM)  i7-1365U\n\nprocessor\t: 1\nmodel name\t: x\n"
    supplies = {
        "AC": "POWER_SUPPLY_TYPE=Mains\nPOWER_SUPPLY_ONLINE=0\n",
        "BAT0": "POWER_SUPPLY_TYPE=Battery\nPOWER_SUPPLY_STATUS=Discharging\n",
    }
    found = parse_linux(cpuinfo=cpuinfo, supplies=supplies, profile="low-power\n")
    assert (found.chip, found.cores) == ("13th Gen Intel(R) Core(TM) i7-1365U", 2)
    assert (found.power_source, found.low_power_mode) == ("battery", True)


def test_linux_arm_is_named_by_lscpu() -> None:
    found = parse_linux(cpuinfo=ARM, lscpu=ARM_LSCPU)
    assert (found.chip, found.cores) == ("Neoverse-V2", 72)


def test_a_container_has_what_its_group_may_use() -> None:
    meminfo = "MemTotal: 131072 kB\n"
    assert parse_linux(cpuinfo="", meminfo=meminfo, memory_limit="1048576\n").memory_bytes == 1 << 20
    assert parse_linux(cpuinfo="", meminfo=meminfo, memory_limit="max\n").memory_bytes == 128 << 20
    assert parse_linux(cpuinfo="", meminfo=meminfo, memory_limit="9223372036854771712\n").memory_bytes == 128 << 20


def test_nvidia() -> None:
    found = parse_linux(cpuinfo=AMD, gpus=["NVIDIA H200", "NVIDIA H200"])
    assert (found.chip, found.kind, found.cpu) == ("NVIDIA H200", "cuda", "AMD EPYC 9654 96-Core Processor")
    peak = published_peak(found, "cuda", "bfloat16")
    assert peak is not None
    assert peak.tflops == 989.5
    mixed = parse_linux(cpuinfo=AMD, gpus=["NVIDIA H200", "NVIDIA L4"])
    assert published_peak(mixed, "cuda", "bfloat16") is None
    smi = "NVIDIA H200, 143771\nNVIDIA A100-SXM4-80GB, 81920\n"
    assert parse_nvidia_smi(smi) == [("NVIDIA H200", 143771 << 20), ("NVIDIA A100-SXM4-80GB", 81920 << 20)]
    assert parse_nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n") == []


def test_the_driver_s_files_have_tabs_before_a_name() -> None:
    """As driver 580 writes them: with its blanks the name was in no table, and MFU was missing from every run."""
    file = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 57\nGPU UUID: \t GPU-8c6a501e\n"
    assert parse_nvidia_files([file, "Model: \t\t NVIDIA L4 \n", "", "Model: \t\t \nIRQ: 1"]) == [
        "NVIDIA H100 80GB HBM3",
        "NVIDIA L4",
    ]


def test_a_gpu_with_memory_of_its_own_has_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "nvidia_smi", lambda: [("NVIDIA H100 80GB HBM3", 81559 << 20)])
    cuda = Hardware(kind="cuda", memory_bytes=128 << 30)
    assert (memory_for(cuda, "cuda"), memory_for(cuda, "gpu"), memory_for(cuda, "cpu")) == (
        81559 << 20,
        81559 << 20,
        128 << 30,
    )
    assert memory_for(Hardware(kind="apple", memory_bytes=16 << 30), "mps") == 16 << 30
    monkeypatch.setattr(hardware, "nvidia_smi", list)
    assert memory_for(cuda, "cuda") is None, "not known is not refused"


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "garbage: x\n", '{"SPDisplaysDataType": [{}]}', "hw.memsize: x"]
)
def test_nothing_understood_is_nothing_claimed(text: str) -> None:
    mac = parse_macos(text, text, text, text, "")
    assert mac == Hardware(os="macOS")
    linux = parse_linux(cpuinfo=text, lscpu=text, meminfo=text, memory_limit=text, supplies={"x": text})
    assert (linux.cores, linux.memory_bytes, linux.power_source, linux.kind) == (None, None, "unknown", "cpu")


def test_detection_survives_a_machine_without_any_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_command(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", no_command)
    monkeypatch.setattr(hardware, "_text", lambda _: "")
    for system in ("Darwin", "Linux", "Windows"):
        monkeypatch.setattr(platform, "system", lambda system=system: system)
        assert hardware.detect().memory_bytes is None
        assert hardware.thermal_pressure() is None


def test_this_machine() -> None:
    found = hardware.detect()
    assert found.chip != "unknown"
    assert found.cores is not None
    assert 1 <= found.cores <= 1024
    assert found.memory_bytes is not None
    assert found.memory_bytes > 1 << 28


def test_detection_loads_no_framework() -> None:
    code = (
        "import sys, gpt_common.machine.hardware as h; h.detect(); "
        "print(sorted({'torch', 'mlx', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.parametrize(
    ("chip", "tflops"),
    [
        *{"M1": 2.6, "M1 Pro": 5.3, "M1 Max": 10.6, "M1 Ultra": 21.2}.items(),
        *{"M2": 3.6, "M2 Pro": 6.8, "M2 Max": 13.6, "M2 Ultra": 27.2}.items(),
    ],
)
def test_apple_peaks_agree_with_the_figures_in_circulation(chip: str, tflops: float) -> None:
    peak = apple_peak(f"Apple {chip}", APPLE_GPUS[chip].cores, "float32")
    assert peak is not None
    assert round(peak.tflops, 1) == tflops


def test_apple_peaks_by_hand() -> None:
    peak = apple_peak("Apple M3 Max", 30, "bfloat16")
    assert peak is not None
    assert peak.tflops == pytest.approx(30 * 128 * 2 * 1.38e9 / 1e12, rel=1e-12)
    assert peak.source == "derived: 30 cores x 128 ALUs x 2 x 1380 MHz"
    assert peak.flops == peak.tflops * 1e12


def test_an_unknown_chip_has_no_peak() -> None:
    assert apple_peak("Apple M5 Max", 40, "float32") is None
    assert apple_peak("Apple M3 Max", None, "float32") is None
    assert apple_peak("Apple M3 Max", 40, "float64") is None
    assert nvidia_peak("NVIDIA H200", "float64") is None
    assert published_peak(Hardware(chip="Apple M3 Max", kind="apple", gpu_cores=40), "cpu", "float32") is None
    assert published_peak(Hardware(chip="Apple M3 Max", kind="cpu", gpu_cores=40), "gpu", "float32") is None


def test_an_estimate_is_only_for_what_has_no_peak() -> None:
    for name, gpu in APPLE_GPUS.items():
        for dtype in ("float32", "bfloat16"):
            assert (apple_peak(f"Apple {name}", gpu.cores, dtype) is None) != (
                estimated_peak(f"Apple {name}", gpu.cores, dtype) is None
            )
    fewer = estimated_peak("Apple M5 Max", 32, "bfloat16")
    assert fewer is not None
    assert fewer.tflops == pytest.approx(56)
    assert estimated_peak("Apple M5 Max", None, "bfloat16") is estimated_peak("Apple M7", 10, "bfloat16") is None


def test_bandwidth_of_every_chip_and_of_the_smaller_one_of_a_name() -> None:
    assert APPLE_BANDWIDTH.keys() == APPLE_GPUS.keys()
    assert all(apple_bandwidth(f"Apple {name}", gpu.cores) for name, gpu in APPLE_GPUS.items())
    assert apple_bandwidth("Apple M3 Max", 30) == (300e9, "Apple, support.apple.com/117737")
    assert apple_bandwidth("Apple M3 Max", None) is apple_bandwidth("Apple M9", 10) is None


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A100-PCIE-40GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71.0),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100X", None),
        ("NVIDIA GH200 480GB", None),
    ],
)
def test_nvidia_names_match_exactly_or_not_at_all(name: str, bf16: float | None) -> None:
    peak = nvidia_peak(name, "bfloat16")
    assert (peak and peak.tflops) == bf16
    assert nvidia_peak(name, "float16") == peak
