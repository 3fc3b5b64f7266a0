"""Memory of this process and load of this machine, as the system counts them."""

from __future__ import annotations

import os
import resource
import sys

import psutil


def resident() -> dict[str, int]:
    """Bytes of main memory that this process has now and had at most."""
    # Of a process started by another, Linux's ru_maxrss also covers its parent before exec; VmHWM does not.
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"now": psutil.Process().memory_info().rss, "peak": peak}


def swapped() -> int:
    """Bytes of swap that the machine uses."""
    return int(psutil.swap_memory().used)


def load() -> float | None:
    """Processes that ran or waited for a processor in the last minute, on average; None where nobody counts."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
