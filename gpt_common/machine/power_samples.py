"""Samples of power: parsed from what the tools print, and added up to energy. Pure functions, no processes."""

from __future__ import annotations

import json
import plistlib
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    )


def parse_powermetrics(document: bytes) -> Sample | None:
    """A sample of `powermetrics --samplers cpu_power,gpu_power,thermal -f plist`, read by asitop's parsers.

    asitop 0.0.24 needs help in three places. Its cpu, gpu and ane "watts" are the joules of the sample (millijoules
    over 1000), five times too low at 200 ms: they are divided by the sample's length here. It looks for clusters
    by the names of M1 to M4 and raises KeyError on M5's ("M0-Cluster", "S-Cluster"): it is given clusters it knows, as
    only energies are wanted. And it tells new samples by a date in whole seconds; the length in nanoseconds is added.
    """
    from asitop.parsers import parse_cpu_metrics, parse_thermal_pressure  # type: ignore[import-untyped]

    idle = {"freq_hz": 0, "idle_ratio": 1.0, "cpus": []}
    try:
        plist = plistlib.loads(document.strip(b"\x00\r\n "))
        seconds = plist["elapsed_ns"] / 1e9
        clusters = [{"name": "E-Cluster", **idle}, {"name": "P-Cluster", **idle}]
        found = parse_cpu_metrics({"processor": {**plist["processor"], "clusters": clusters}})
        return Sample(
            key=(plist["timestamp"], plist["elapsed_ns"]),
            seconds=seconds,
            watts=found["package_W"],
            parts={part: found[f"{part}_W"] / seconds for part in ("cpu", "gpu", "ane")},
            thermal_pressure=parse_thermal_pressure(plist) if "thermal_pressure" in plist else None,
        )
    except (ValueError, KeyError, TypeError, ZeroDivisionError, ExpatError, plistlib.InvalidFileException):
        return None


def parse_macmon(line: bytes) -> Sample | None:
    """A line of `macmon pipe`: JSON with watts."""
    try:
        found = json.loads(line)
        parts = {part: float(found[f"{part}_power"]) for part in ("cpu", "gpu", "ane")}
        return Sample(key=found["timestamp"], seconds=None, watts=float(found["all_power"]), parts=parts)
    except (ValueError, KeyError, TypeError):
        return None


def parse_nvidia_smi(line: bytes) -> Sample | None:
    """A line `2026/01/31 12:00:00.123, 71.50` of nvidia-smi, in watts."""
    try:
        timestamp, watts = line.decode().split(",")
        return Sample(key=timestamp, seconds=None, watts=float(watts))
    except ValueError:
        return None
