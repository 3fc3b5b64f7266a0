"""Macs that are simulated: what macOS's commands print on each, and a folder of programs that print it.

The recordings were written by us after the commands' documented formats; they hold the lines the parsers read and
some they must not trip over. What is not asked for is not answered, as on a Mac.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpt_common.machine.hardware import Hardware

AC = "Now drawing from 'AC Power'\n -InternalBattery-0 (id=4653155)\t100%; charged; 0:00 remaining present: true\n"
BATTERY = "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t56%; discharging; 4:10 remaining\n"
DESKTOP = "Now drawing from 'AC Power'\n"
SETTINGS = (
    "System-wide power settings:\nCurrently in use:\n standby              1\n lowpowermode         {}\n sleep 1\n"
)


def sysctl(brand: str, memory_gib: int, cores: int, levels: dict[str, int], wired_mb: int | None = None) -> str:
    """What `sysctl -a` says of them, a line each."""
    lines = [f"machdep.cpu.brand_string: {brand}", f"hw.memsize: {memory_gib << 30}", f"hw.physicalcpu: {cores}"]
    for i, (name, count) in enumerate(levels.items()):
        lines += [f"hw.perflevel{i}.name: {name}", f"hw.perflevel{i}.physicalcpu: {count}"]
    if wired_mb is not None:
        lines += ["iogpu.wired_lwm_mb: 0", f"iogpu.wired_limit_mb: {wired_mb}"]
    return "\n".join(lines) + "\n"


def displays(model: str, cores: int | None = None) -> str:
    """What `system_profiler SPDisplaysDataType -json` says of a GPU."""
    card: dict[str, Any] = {"_name": model, "sppci_model": model, "sppci_device_type": "spdisplays_gpu"}
    if cores:
        card |= {"sppci_bus": "spdisplays_builtin", "sppci_cores": str(cores)}
    return json.dumps({"SPDisplaysDataType": [card]})


@dataclass(frozen=True, kw_only=True)
class Mac:
    """One, as its commands and its MLX describe it, and what a person should be told."""

    chip: str
    memory_gib: int
    kinds: dict[str, int]
    gpu_cores: int | None = None
    gpu: str = ""
    """What system_profiler calls it; the chip if nothing is given."""
    wired_mb: int | None = 0
    """iogpu.wired_limit_mb: 0 leaves it to the system; None where there is no such thing."""
    power: str = AC
    settings: str = SETTINGS.format(0)
    system: str = "15.6.1"
    wheel: str = "macosx_15_0_arm64"
    """For which the installed MLX was built."""
    hardware: Hardware = field(default_factory=Hardware)
    """What is to be found out, but for the chip's name."""
    tflops: dict[str, float | None]
    """Peak by dtype that a derivation gives; None where there is none."""
    estimate: float | None = None
    """What others estimate for bfloat16."""
    bandwidth: float | None
    """GB/s."""
    usable_gib: float
    """Most that a plan may fill, where Metal is not asked."""
    warning: str = ""
    """What is said of its MLX."""

    def sysctl(self) -> str:
        """Its values."""
        return sysctl(self.chip, self.memory_gib, sum(self.kinds.values()), self.kinds, self.wired_mb)


def _found(memory_gib: int, kinds: dict[str, int], gpu_cores: int | None, **more: Any) -> Hardware:
    known: dict[str, Any] = {"power_source": "ac", "low_power_mode": False, "os": "macOS 15.6.1", **more}
    return Hardware(
        kind="apple",
        cores=sum(kinds.values()),
        core_kinds=kinds,
        gpu_cores=gpu_cores,
        memory_bytes=memory_gib << 30,
        **known,
    )


_OLD, _NEW = {"Performance": 4, "Efficiency": 4}, {"Super": 6, "Performance": 12}

MACS = {
    "M1": Mac(
        chip="Apple M1",
        memory_gib=16,
        kinds=_OLD,
        gpu_cores=8,
        system="14.7.4",
        wheel="macosx_14_0_arm64",
        hardware=_found(16, _OLD, 8, os="macOS 14.7.4"),
        tflops={"float32": 2.617344, "bfloat16": 2.617344, "float64": None},
        bandwidth=68.25,
        usable_gib=16 * 2 / 3,
    ),
    "M2 Ultra": Mac(
        chip="Apple M2 Ultra",
        memory_gib=192,
        kinds={"Performance": 16, "Efficiency": 8},
        gpu_cores=76,
        wired_mb=180_000,
        power=DESKTOP,
        settings="Currently in use:\n sleep 0\n",
        hardware=_found(192, {"Performance": 16, "Efficiency": 8}, 76, low_power_mode=None),
        tflops={"float32": 27.199488, "bfloat16": 27.199488},
        bandwidth=800,
        usable_gib=180_000 / 1024,
    ),
    "M3 Max": Mac(
        chip="Apple M3 Max",
        memory_gib=64,
        kinds={"Performance": 12, "Efficiency": 4},
        gpu_cores=40,
        hardware=_found(64, {"Performance": 12, "Efficiency": 4}, 40),
        tflops={"float32": 14.1312, "bfloat16": 14.1312},
        bandwidth=400,
        usable_gib=48,
    ),
    "M4 Pro": Mac(
        chip="Apple M4 Pro",
        memory_gib=48,
        kinds={"Performance": 10, "Efficiency": 4},
        gpu_cores=20,
        power=BATTERY,
        settings=SETTINGS.format(1),
        system="26.0",
        wheel="macosx_26_0_arm64",
        hardware=_found(
            48,
            {"Performance": 10, "Efficiency": 4},
            20,
            os="macOS 26.0",
            power_source="battery",
            low_power_mode=True,
        ),
        tflops={"float32": 8.07936, "bfloat16": 8.07936},
        bandwidth=273,
        usable_gib=36,
    ),
    "M5": Mac(
        chip="Apple M5",
        memory_gib=32,
        kinds={"Super": 4, "Efficiency": 6},
        gpu_cores=10,
        system="26.2",
        hardware=_found(32, {"Super": 4, "Efficiency": 6}, 10, os="macOS 26.2"),
        tflops={"float32": None, "bfloat16": None},
        estimate=17.5,
        bandwidth=153,
        usable_gib=32 * 2 / 3,
        warning="built for macOS 15 and leaves the matrix units of an M5 idle",
    ),
    "M5 Max": Mac(
        chip="Apple M5 Max",
        memory_gib=128,
        kinds=_NEW,
        gpu_cores=40,
        settings="Currently in use:\n powermode 2\n",
        system="26.1",
        wheel="macosx_26_2_arm64",
        hardware=_found(128, _NEW, 40, os="macOS 26.1"),
        tflops={"float32": None, "bfloat16": None},
        estimate=70.0,
        bandwidth=614,
        usable_gib=96,
        warning="macOS 26.1 does not offer yet",
    ),
    "virtual": Mac(
        chip="Apple M1 (Virtual)",
        memory_gib=7,
        kinds={"Performance": 3},
        gpu="Apple Paravirtual device",
        wired_mb=None,
        power="",
        settings="",
        system="15.5",
        hardware=_found(7, {"Performance": 3}, None, os="macOS 15.5", power_source="unknown", low_power_mode=None),
        tflops={"float32": None, "bfloat16": None},
        bandwidth=None,
        usable_gib=7 * 2 / 3,
    ),
}

_SYSCTL = """
code=0
for name in "$@"; do
    grep "^$name: " "$(dirname "$0")/sysctl.txt" || {{ echo "sysctl: unknown oid '$name'" >&2; code=1; }}
done
exit $code
"""


def simulate(mac: Mac, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process believe that it runs on that Mac: its programs lie in `folder`, first on the path."""

    def program(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)

    def answers(name: str, by_arguments: dict[str, str]) -> None:
        cases = []
        for i, (arguments, text) in enumerate(by_arguments.items()):
            (folder / f"{name}{i}.txt").write_text(text)
            cases.append(f'"{arguments}") cat "{folder}/{name}{i}.txt" ;;')
        program(name, 'case "$*" in\n' + "\n".join(cases) + f'\n*) echo "{name}: illegal: $*" >&2; exit 64 ;;\nesac')

    (folder / "sysctl.txt").write_text(mac.sysctl())
    program("sysctl", _SYSCTL.format())
    answers("system_profiler", {"SPDisplaysDataType -json": displays(mac.gpu or mac.chip, mac.gpu_cores)})
    answers("pmset", {"-g ps": mac.power, "-g": mac.settings})
    answers("sw_vers", {"-productVersion": f"{mac.system}\n"})
    answers("notifyutil", {"-g com.apple.system.thermalpressurelevel": "com.apple.system.thermalpressurelevel 0\n"})
    program("caffeinate", f'echo "$@" > "{folder}/kept-awake"\nexec sleep 100')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(sys, "platform", "darwin")
