"""Was the machine slowed down because it was hot? Asked between samples, of whatever keeps count on this system.

| system         | evidence                                                                        |
|----------------|---------------------------------------------------------------------------------|
| macOS          | thermal pressure above "nominal" (`notifyutil`)                                 |
| Linux on Intel | the kernel's count of throttling events of each core has risen                  |
| NVIDIA         | `nvidia-smi` names a thermal slowdown as the reason for the clock               |
| anything else  | none: the result says `null`, which does not mean that it was cool              |
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from gpt_common.machine.hardware import query_nvidia_smi, thermal_pressure

SECONDS_BETWEEN = 1.0
"""Asking costs some milliseconds; it is done between samples."""
NVIDIA_REASONS = "clocks_throttle_reasons.hw_thermal_slowdown,clocks_throttle_reasons.sw_thermal_slowdown"


class ThrottleWatch:
    """Evidence of throttling since the last look.

    Args:
        read: the present evidence: a text that names it, "" for none, None if this system does not say.
        clock: seconds.
    """

    def __init__(self, read: Callable[[], str | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._clock = read, clock
        self._last = clock()
        self.known = read() is not None
        """Whether this system says at all."""
        self.seen: list[str] = []
        """Every kind of evidence that was found."""

    def due(self) -> bool:
        """Whether it is time to look again."""
        return self.known and self._clock() - self._last >= SECONDS_BETWEEN

    def look(self) -> str | None:
        """Evidence since the last look, None without."""
        self._last = self._clock()
        evidence = self._read() if self.known else None
        if evidence and evidence not in self.seen:
            self.seen.append(evidence)
        return evidence or None


def open_watch(device: str) -> ThrottleWatch:
    """The watch for what computes: "cpu", "gpu", "mps" or "cuda"."""
    if sys.platform == "darwin":
        return ThrottleWatch(_macos)
    if device in ("cuda", "gpu"):
        return ThrottleWatch(_nvidia)
    return ThrottleWatch(CoreCounters(Path("/sys/devices/system/cpu")).read)


def _macos() -> str | None:
    level = thermal_pressure()
    if level is None:
        return None
    return "" if level == "nominal" else f"thermal pressure {level}"


def _nvidia() -> str | None:
    text = query_nvidia_smi(NVIDIA_REASONS)
    if "Active" not in text:  # no nvidia-smi, or one that does not know the question
        return None
    return "thermal slowdown of the GPU" if "Active" in text.replace("Not Active", "") else ""


class CoreCounters:
    """Linux on Intel: throttling events of each core since the machine started.

    Args:
        folder: /sys/devices/system/cpu.
    """

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"))
        self._before = self._total()

    def _total(self) -> int | None:
        try:
            return sum(int(file.read_text()) for file in self._files) if self._files else None
        except (OSError, ValueError):
            return None

    def read(self) -> str | None:
        """Evidence since the last reading."""
        before, self._before = self._before, self._total()
        if before is None or self._before is None:
            return None
        events = self._before - before
        return f"{events} throttling events of the processor's cores" if events > 0 else ""
