"""What the tools print on each chip, written by us after the formats that they document; and a made-up macmon.

The numbers in one sample agree with each other: energy in millijoules is power in milliwatts times the length of the
sample. Nothing here was recorded on a Mac.
"""

from __future__ import annotations

import datetime
import json
import plistlib
from pathlib import Path
from typing import Any

CLUSTERS = {
    "M1": ["E-Cluster", "P-Cluster"],
    "M1 Ultra": ["E0-Cluster", "E1-Cluster", "P0-Cluster", "P1-Cluster", "P2-Cluster", "P3-Cluster"],
    "M2 Ultra": ["E0-Cluster", "E1-Cluster", "P0-Cluster", "P1-Cluster", "P2-Cluster", "P3-Cluster"],
    "M3 Max": ["E-Cluster", "P0-Cluster", "P1-Cluster"],
    "M4": ["E-Cluster", "P-Cluster"],
    "M4 Pro": ["E-Cluster", "P0-Cluster", "P1-Cluster"],
    "M5": ["E-Cluster", "S-Cluster"],
    "M5 Pro": ["P0-Cluster", "P1-Cluster", "S-Cluster"],
    "M5 Max": ["M0-Cluster"],
}
WATTS = {"cpu": 3.5, "gpu": 31.25, "ane": 0.25}
USAGE = 0.984375
"""Of the GPU; as a share of its highest clock half of that."""


def plist(clusters: list[str], milliseconds: float = 200.0) -> dict[str, Any]:
    """What `powermetrics --samplers cpu_power,gpu_power,thermal` says of one sample."""
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
    return {
        "is_delta": True,
        "elapsed_ns": int(milliseconds * 1e6),
        "hw_model": "Mac15,8",
        "timestamp": datetime.datetime(2026, 1, 31, 12, 0, 0),
        "thermal_pressure": "Nominal",
        "processor": processor,
        "gpu": {"freq_hz": 1380.0, "idle_ratio": 1 - USAGE, "gpu_energy": processor["gpu_energy"]},
    }


def powermetrics(clusters: list[str], milliseconds: float = 200.0, **changes: Any) -> bytes:
    """The same as it is printed, with other values at the top."""
    return printed(plist(clusters, milliseconds) | changes)


def printed(document: dict[str, Any]) -> bytes:
    """One document in powermetrics' output, after the one before."""
    return b"\x00" + plistlib.dumps(document)


def virtual() -> dict[str, Any]:
    """What a virtual Mac may say: a cluster, and neither energies nor a GPU."""
    document = plist(["P-Cluster"])
    document["processor"] = {"clusters": document["processor"]["clusters"]}
    del document["gpu"]
    return document


MACMON: dict[str, dict[str, Any]] = {
    "pairs": {"gpu_usage": [694, USAGE / 2]},
    "ratios": {"gpu_usage": [694, USAGE / 2], "gpu_usage_ratio": USAGE / 2, "gpu_active_ratio": USAGE},
    "named": {"gpu_freq_mhz": 694, "gpu_scaled_ratio": USAGE / 2, "gpu_active_ratio": USAGE},
}
"""What three generations of macmon say of the GPU."""


def macmon(generation: str = "named", **changes: Any) -> dict[str, Any]:
    """What a line of `macmon pipe` says."""
    known = {f"{part}_power": watts for part, watts in WATTS.items()}
    return {
        "timestamp": "2026-02-24T20:38:15.427569+00:00",
        "temp": {"cpu_temp_avg": 43.7, "gpu_temp_avg": 36.9},
        "memory": {"ram_total": 25769803776, "ram_usage": 20985479168},
        **known,
        "all_power": sum(WATTS.values()),
        "sys_power": 48.9,
        "ram_power": 0.1,
        **MACMON[generation],
        **changes,
    }


def put_macmon(folder: Path, *, version: str = "macmon 0.6.1", lines: int = 1_000_000, line: str | None = None) -> Path:
    """A program of that name that prints a line every 20 ms; returns its path.

    After so many lines, or when there is a file `stop` beside it, it fails. It writes its number to `pid`, and how it
    was called to `called`.
    """
    line = line or json.dumps(macmon(timestamp="NUMBER"))
    program = folder / "macmon"
    program.write_text(
        f"""#!/bin/sh
echo "$@" >> {folder}/called
if [ "$1" = --version ]; then echo "{version}"; exit; fi
echo $$ > {folder}/pid
number=0
while [ $number -lt {lines} ] && [ ! -e {folder}/stop ]; do
  number=$((number + 1))
  echo '{line.replace("NUMBER", "'$number'")}'
  sleep 0.02
done
echo "Error: no sensors any more" >&2
exit 3
"""
    )
    program.chmod(0o755)
    return program
