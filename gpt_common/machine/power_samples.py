"""Samples of power: parsed from what the tools print, and added up to energy. Pure functions, no processes."""

from __future__ import annotations

import json
import math
import plistlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from xml.parsers.expat import ExpatError


@dataclass(frozen=True)
class Energy:
    """What one stretch of work cost."""

    joules: float
    """Gross: all that the source counts."""
    seconds: float
    """Length of the stretch."""
    idle_watts: float | None
    """Power of the idle machine, measured before; None if it was not."""
    source: str
    """Which reader."""
    scope: str
    """What is counted."""
    parts: dict[str, float] = field(default_factory=dict)
    """Joules of cpu, gpu and ane, where the source tells them apart."""
    thermal_pressure: str | None = None
    """A level above nominal that was seen, or "Nominal"; None if the source does not say."""
    gpu_usage: float | None = None
    """Share of the time in which the GPU was busy, 0 to 1; None if the source does not say."""
    estimate: bool = True
    """Every source there is estimates."""
    net_joules: float | None = None
    """Gross less what the idle machine would have used; None if idle power is unknown."""

    def __post_init__(self) -> None:
        if self.idle_watts is not None:
            object.__setattr__(self, "net_joules", self.joules - self.idle_watts * self.seconds)


@dataclass(frozen=True)
class Sample:
    """Mean power over a short time."""

    key: object
    """What tells a new sample from the last one read again."""
    seconds: float | None
    """How long it lasted; None: since the sample before."""
    watts: float
    """Total."""
    parts: dict[str, float] = field(default_factory=dict)
    """Watts of cpu, gpu and ane."""
    thermal_pressure: str | None = None
    """As the source words it."""
    gpu_usage: float | None = None
    """Share of the time in which the GPU was busy, 0 to 1; None if the source does not say."""


def integrate(
    samples: Sequence[tuple[float, Sample]],
    start: float,
    stop: float,
    idle_watts: float | None,
    source: str,
    scope: str,
) -> Energy | None:
    """Energy between two times from samples and the times they ended; None if they cover less than half of it.

    A sample counts with the share of it that lies inside; what no sample covers is taken at the mean power.
    """
    joules, covered, before = 0.0, 0.0, None
    busy, told = 0.0, 0.0
    parts: dict[str, float] = {}
    pressures: list[str | None] = []
    for ended, sample in samples:
        seconds = sample.seconds if sample.seconds is not None else ended - before if before is not None else 0.0
        before = ended
        inside = min(ended, stop) - max(ended - seconds, start)
        if inside <= 0:
            continue
        covered += inside
        joules += sample.watts * inside
        for name, watts in sample.parts.items():
            parts[name] = parts.get(name, 0.0) + watts * inside
        if sample.gpu_usage is not None:
            busy, told = busy + sample.gpu_usage * inside, told + inside
        if sample.thermal_pressure:
            pressures.append(sample.thermal_pressure)
    if stop <= start or covered < (stop - start) / 2:
        return None
    scale = (stop - start) / covered
    hot = [pressure for pressure in pressures if pressure and pressure.lower() != "nominal"]
    return Energy(
        joules * scale,
        stop - start,
        idle_watts,
        source,
        scope,
        {name: value * scale for name, value in parts.items()},
        (hot or pressures or [None])[-1],
        busy / told if told else None,
    )


PARTS = ("cpu", "gpu", "ane")


def parse_powermetrics(document: bytes) -> Sample | None:
    """A sample of `powermetrics --samplers cpu_power,gpu_power,thermal -f plist`, read by asitop's parsers.

    asitop 0.0.24 needs help in five places. Its cpu, gpu and ane "watts" are the joules of the sample (millijoules
    over 1000), five times too low at 200 ms: they are divided by the sample's length here. It looks for clusters
    by the names of M1 to M4 and raises KeyError on M5's ("M0-Cluster", "S-Cluster"): it is given clusters it knows, as
    only energies are wanted. It raises KeyError for an energy that a system leaves out: it is given 0, and the part is
    left out here; a missing total is the sum of the parts, if CPU and GPU are among them. It cuts the usage of the GPU
    down to whole percents: that is read here. And it tells new samples by a date in whole seconds; the length in
    nanoseconds is added.

    None if the document is damaged, or says neither the total nor the power of CPU and GPU, as in a virtual machine.
    """
    from asitop.parsers import parse_cpu_metrics, parse_thermal_pressure  # type: ignore[import-untyped]

    try:
        plist = plistlib.loads(document.strip(b"\x00\r\n "))
    except (ValueError, ExpatError, plistlib.InvalidFileException):
        return None
    processor, gpu = _table(plist, "processor"), _table(plist, "gpu")
    seconds = (_quantity(_table(plist), "elapsed_ns") or 0.0) / 1e9
    if not seconds:
        return None
    millijoules = {}
    for part in PARTS:
        energy, power = _quantity(processor, f"{part}_energy"), _quantity(processor, f"{part}_power")
        if energy is None:
            energy = _quantity(gpu, "gpu_energy") if part == "gpu" and power is None else power and power * seconds
        if energy is not None:
            millijoules[f"{part}_energy"] = energy
    combined = _quantity(processor, "combined_power")
    idle = {"freq_hz": 0, "idle_ratio": 1.0, "cpus": []}
    known = {
        "clusters": [{"name": "E-Cluster", **idle}, {"name": "P-Cluster", **idle}],
        "combined_power": combined or 0,
    }
    found = parse_cpu_metrics({"processor": {**{f"{part}_energy": 0 for part in PARTS}, **known, **millijoules}})
    parts = {part: found[f"{part}_W"] / seconds for part in PARTS if f"{part}_energy" in millijoules}
    watts = _total(None if combined is None else found["package_W"], parts)
    if watts is None:
        return None
    idle_ratio = _share(gpu.get("idle_ratio"))
    return Sample(
        key=(plist.get("timestamp"), seconds),
        seconds=seconds,
        watts=watts,
        parts=parts,
        thermal_pressure=parse_thermal_pressure(plist) if isinstance(plist.get("thermal_pressure"), str) else None,
        gpu_usage=None if idle_ratio is None else 1 - idle_ratio,
    )


def parse_macmon(line: bytes) -> Sample | None:
    """A line of `macmon pipe`: JSON with watts. None if it has neither their total nor those of CPU and GPU.

    The GPU's usage has had three names; the oldest, `gpu_usage: [MHz, share]`, is a share of what it could do at its
    highest clock, and lower than the share of time that `gpu_active_ratio` and powermetrics give.
    """
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    table = _table(found)
    parts = {part: watts for part in PARTS if (watts := _quantity(table, f"{part}_power")) is not None}
    watts = _total(_quantity(table, "all_power"), parts)
    if watts is None:
        return None
    oldest = table.get("gpu_usage")
    usages = [table.get("gpu_active_ratio"), table.get("gpu_usage_ratio")]
    usages += oldest[1:2] if isinstance(oldest, list) else []
    usage = next((share for usage in usages if (share := _share(usage)) is not None), None)
    return Sample(key=str(table.get("timestamp", line)), seconds=None, watts=watts, parts=parts, gpu_usage=usage)


def parse_nvidia_smi(line: bytes) -> Sample | None:
    """A line `2026/01/31 12:00:00.123, 71.50, 98` of nvidia-smi: watts, and percent of the time of a busy GPU."""
    try:
        timestamp, watts, *percent = line.decode().split(",")
        sample = Sample(key=timestamp, seconds=None, watts=float(watts))
    except ValueError:
        return None
    try:
        return replace(sample, gpu_usage=_share(float(percent[0]) / 100))
    except (ValueError, IndexError):
        return sample


def _table(value: Any, name: str | None = None) -> dict[str, Any]:
    """A dictionary, or the one that it has under a name; an empty one where there is none."""
    found = _table(value).get(name) if name is not None else value
    return found if isinstance(found, dict) else {}


def _quantity(table: dict[str, Any], name: str) -> float | None:
    """A number that is finite and not negative; None for anything else."""
    value = table.get(name)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    return None


def _share(value: Any) -> float | None:
    """A number from 0 to 1; rounding may have taken it a little beyond."""
    found = _quantity({"share": value}, "share")
    return min(found, 1.0) if found is not None and found < 1.01 else None


def _total(told: float | None, parts: dict[str, float]) -> float | None:
    """Watts as the source adds them up, else of the parts if the two that matter are there."""
    return told if told is not None else sum(parts.values()) if {"cpu", "gpu"} <= parts.keys() else None
