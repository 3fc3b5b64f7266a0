"""Power and GPU usage beside a run: a thread follows a source, and the run asks it when it writes something down.

The run never waits for a source, and no failure of one reaches it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from gpt_common.machine.power import APPLE, NOT_INSTALLED, NVIDIA, find_reader
from gpt_common.machine.power_readers import Reader
from gpt_common.machine.power_samples import Energy, Sample

INTERVAL_MS = 1000
"""Between two samples, as asitop has it: reading them takes time from the process that trains."""
FRESH_SECONDS = 2.5 * INTERVAL_MS / 1000
"""So long the newest sample speaks for rows that are written more often than samples come."""


class Reading(NamedTuple):
    """What a row says; None where nothing is known."""

    power_watts: float | None
    """Mean power."""
    gpu_usage: float | None
    """Share of the time in which the GPU was busy, 0 to 1."""


class PowerMeter:
    """Follows a source from `start` to `close`, in a thread of its own.

    Args:
        reader: the source; None for a meter that knows nothing.
        reasons: why the sources before it, or all, do not work here.
        advice: what to do to have a source.
    """

    def __init__(self, reader: Reader | None = None, reasons: list[str] | None = None, advice: str = "") -> None:
        self._reader, self._reasons, self._advice = reader, reasons, advice
        self._lock = threading.Lock()
        self._row, self._all = _Sums(), _Sums()
        self._newest: tuple[float, Sample] | None = None
        self._broken: str | None = None
        self._note: Callable[[str], None] = lambda _: None
        self._thread = threading.Thread(target=self._follow, daemon=True)

    @property
    def about(self) -> dict[str, Any] | None:
        """For run.json: the source and what it counts, or why there is none; None if nobody asked for one."""
        if self._reader is not None:
            return {"source": self._reader.source, "counts": self._reader.scope}
        return None if self._reasons is None else {"source": None, "without": self._reasons}

    def start(self, note: Callable[[str], None]) -> None:
        """Begin to follow; `note` is told what is counted, what to do if there is no source, and if it ends."""
        self._note = note
        if self._reader is not None:
            note(f"power by {self._reader.source}, estimated: {self._reader.scope}")
            self._thread.start()
        elif self._reasons is not None:
            wrong = "; ".join(reason for reason in self._reasons if not reason.endswith(NOT_INSTALLED))
            note(f"--power: no source here{f' ({wrong})' * bool(wrong)}, so watts stay null; {self._advice}")

    def reading(self) -> Reading:
        """Mean over the samples since this was asked last; without one, the newest while it is fresh. Never waits."""
        with self._lock:
            row, self._row = self._row, _Sums()
            newest, broken = self._newest, self._broken
            self._broken = None
        if broken:
            self._note(broken)
        if row.seconds:
            return Reading(row.joules / row.seconds, row.usage)
        if newest is not None and time.perf_counter() - newest[0] <= FRESH_SECONDS:
            return Reading(newest[1].watts, newest[1].gpu_usage)
        return Reading(None, None)

    @property
    def energy(self) -> Energy | None:
        """All since `start`, for as long as the source told; None if it did not."""
        with self._lock:
            found = self._all
            if self._reader is None or not found.seconds:
                return None
            return Energy(
                found.joules,
                found.seconds,
                idle_watts=None,
                source=self._reader.source,
                scope=self._reader.scope,
                gpu_usage=found.usage,
            )

    def close(self) -> None:
        """End the source. Harmless a second time, and before `start`."""
        if self._reader is not None:
            with contextlib.suppress(Exception):
                self._reader.close()
        if self._thread.ident is not None:
            self._thread.join(timeout=2)

    def _follow(self) -> None:
        assert self._reader is not None
        try:
            for sample in self._reader.follow():
                with self._lock:
                    self._newest = (time.perf_counter(), sample)
                    self._row.add(sample)
                    self._all.add(sample)
        except Exception as error:  # whatever a source may come up with
            why = " ".join(str(error).split())[:200] or type(error).__name__
            with self._lock:
                self._broken = f"power: {self._reader.source} tells no more ({why}); watts are null from here on"


class _Sums:
    """Joules, and seconds of GPU."""

    def __init__(self) -> None:
        self.joules = self.seconds = 0.0
        self._busy = self._told = 0.0

    def add(self, sample: Sample) -> None:
        """Count a sample, which says how long it is."""
        seconds = sample.seconds or 0.0
        self.joules += sample.watts * seconds
        self.seconds += seconds
        if sample.gpu_usage is not None:
            self._busy += sample.gpu_usage * seconds
            self._told += seconds

    @property
    def usage(self) -> float | None:
        """Mean usage of the GPU, over the samples that tell."""
        return self._busy / self._told if self._told else None


def open_meter(device: str) -> PowerMeter:
    """A meter for a run on this device: of the whole chip on a Mac, of the board that CUDA may use elsewhere.

    Args:
        device: "cpu", "gpu", "mps" or "cuda". A run on the CPU is not told what an idle NVIDIA board takes.
    """
    nvidia = sys.platform != "darwin" and device != "cpu"
    reader, reasons = find_reader(APPLE + NVIDIA * nvidia, INTERVAL_MS)
    return PowerMeter(reader, reasons, _advice(nvidia))


def _advice(nvidia: bool) -> str:
    """What makes a source work."""
    if sys.platform == "darwin":
        return "brew install macmon, or run `sudo -v` before the run"
    if nvidia:
        return "pip install -e '.[power]' (nvidia-ml-py)"
    return "sources are for Macs and for runs on NVIDIA GPUs"
