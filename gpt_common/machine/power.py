"""Energy: what a stretch of work cost in joules, from the first source that works on this machine.

| source                 | machine       | rights | what is counted                        |
|------------------------|---------------|--------|----------------------------------------|
| powermetrics by asitop | Apple silicon | sudo   | CPU + GPU + ANE, the chip's estimate   |
| zeus-apple-silicon     | Apple silicon | -      | the same counters                      |
| macmon                 | Apple silicon | -      | the same counters                      |
| NVML                   | NVIDIA        | -      | the whole board, its energy counter    |
| nvidia-smi             | NVIDIA        | -      | the whole board, sampled power         |

Every figure is an estimate: Apple's counters are modelled, not measured, and leave out memory, display and the losses
of the power supply; a board's sensor has an error of some percent. Compare runs on one machine, not machines.

    reader, reasons = find_reader()
    if reader:
        reader.measure_idle(5.0)
        reader.start(); work(); energy = reader.stop()
        reader.close()
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from gpt_common.machine.power_samples import (
    Energy,
    Sample,
    integrate,
    parse_macmon,
    parse_nvidia_smi,
    parse_powermetrics,
)

INTERVAL_MS = 200
"""Between two samples of a source that samples."""


class Reader:
    """A source of energy figures; one stretch of work at a time."""

    source: str
    """Its name."""
    scope: str
    """What it counts."""
    idle_watts: float | None = None
    """Power of the idle machine, once `measure_idle` has run."""

    def start(self) -> None:
        """Begin a stretch."""
        raise NotImplementedError

    def stop(self) -> Energy | None:
        """End it; None if the source said nothing for too much of it."""
        raise NotImplementedError

    def measure_idle(self, seconds: float) -> float | None:
        """Watts of the machine as it is now, kept for `Energy.net_joules`; call it on a quiet machine."""
        self.start()
        time.sleep(seconds)
        energy = self.stop()
        self.idle_watts = energy.joules / energy.seconds if energy else None
        return self.idle_watts

    def close(self) -> None:
        """End the processes behind it."""


class SampledReader(Reader):
    """Runs a command that prints samples, for as long as the reader lives.

    Args:
        command: prints sample after sample to its standard output.
        end: the bytes that end a sample.
        parse: one sample from its bytes, `end` included; None if they hold none.

    Raises:
        RuntimeError: no sample came within `patience` seconds; says what the command printed on standard error.
    """

    def __init__(
        self,
        source: str,
        scope: str,
        command: Sequence[str],
        end: bytes,
        parse: Callable[[bytes], Sample | None],
        patience: float = 5.0,
    ) -> None:
        self.source, self.scope = source, scope
        self._end, self._parse = end, parse
        self._samples: list[tuple[float, Sample]] = []
        self._news = threading.Condition()
        self._closing = self._ended = False
        self._started = 0.0
        # A file, not a pipe: reading the complaint of a process that would not end must not block.
        self._complaint = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._complaint, bufsize=0
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        if not self._wait(lambda: bool(self._samples), patience):
            self._complaint.seek(0)
            complaint = " ".join(self._complaint.read().decode(errors="replace").split())[:120]
            self.close()
            raise RuntimeError(complaint or f"no sample within {patience:g} s")

    def start(self) -> None:
        self._started = time.perf_counter()
        with self._news:
            del self._samples[:-1]  # the last one may be the predecessor from which the next one counts

    def stop(self) -> Energy | None:
        stopped = time.perf_counter()
        # The sample that covers the end has not been printed yet.
        self._wait(lambda: self._samples[-1][0] >= stopped, 5 * INTERVAL_MS / 1000)
        with self._news:
            samples = list(self._samples)
        return integrate(samples, self._started, stopped, self.idle_watts, self.source, self.scope)

    def close(self) -> None:
        # A process that sudo started may not be ours to signal; without a reader it ends at its next line.
        self._closing = True
        with contextlib.suppress(PermissionError):
            self._process.terminate()
        self._thread.join(timeout=2)
        if self._process.stdout and not self._thread.is_alive():
            self._process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        self._complaint.close()

    def _wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Until the condition holds, `seconds` are over, or the command has ended."""
        with self._news:
            self._news.wait_for(lambda: condition() or self._ended, seconds)
            return condition()

    def _read(self) -> None:
        buffer = b""
        pipe = self._process.stdout
        assert pipe is not None
        while not self._closing and (chunk := os.read(pipe.fileno(), 1 << 16)):
            *documents, buffer = (buffer + chunk).split(self._end)
            for document in documents:
                sample = self._parse(document + self._end)
                with self._news:
                    if sample and not (self._samples and self._samples[-1][1].key == sample.key):
                        self._samples.append((time.perf_counter(), sample))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


class CounterReader(Reader):
    """Reads an energy counter at both ends of a stretch.

    Args:
        begin: called at the start; its result goes to `end`.
        end: joules of the stretch and of its parts.
    """

    def __init__(
        self,
        source: str,
        scope: str,
        begin: Callable[[], Any],
        end: Callable[[Any], tuple[float, dict[str, float]]],
    ) -> None:
        self.source, self.scope = source, scope
        self._begin, self._end = begin, end
        self._started = 0.0
        self._token: Any = None

    def start(self) -> None:
        self._token = self._begin()
        self._started = time.perf_counter()

    def stop(self) -> Energy | None:
        joules, parts = self._end(self._token)
        return Energy(joules, time.perf_counter() - self._started, self.idle_watts, self.source, self.scope, parts)


# --- opening; each raises if it cannot work here


APPLE_SCOPE = "CPU + GPU + ANE, without memory, display and supply"
NVIDIA_SCOPE = "whole GPU board"


def open_powermetrics() -> Reader:
    """asitop's route. Only where sudo asks for no password: a benchmark must not stop at a prompt."""
    if not shutil.which("powermetrics"):
        raise RuntimeError("no powermetrics command")
    rights = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if rights and subprocess.run([*rights, "true"], capture_output=True).returncode:
        raise RuntimeError("needs administrator rights: run `sudo -v` first")
    command = [*rights, "powermetrics", "--samplers", "cpu_power,gpu_power,thermal", "-f", "plist", "-b", "1"]
    command += ["-i", str(INTERVAL_MS)]
    return SampledReader("powermetrics (asitop)", APPLE_SCOPE, command, b"</plist>", parse_powermetrics)


def open_zeus() -> Reader:
    """The zeus-apple-silicon library."""
    from zeus_apple_silicon import AppleEnergyMonitor  # type: ignore[import-not-found]

    monitor = AppleEnergyMonitor()

    def end(_: Any) -> tuple[float, dict[str, float]]:
        found = monitor.end_window("work")
        millijoules = {"cpu": found.cpu_total_mj, "gpu": found.gpu_mj, "ane": found.ane_mj}
        parts = {name: value / 1000 for name, value in millijoules.items() if value is not None}
        return sum(parts.values()), parts

    return CounterReader("zeus-apple-silicon", APPLE_SCOPE, lambda: monitor.begin_window("work"), end)


def open_macmon() -> Reader:
    """The macmon command."""
    if not shutil.which("macmon"):
        raise RuntimeError("no macmon command")
    return SampledReader("macmon", APPLE_SCOPE, ["macmon", "pipe", "-i", str(INTERVAL_MS)], b"\n", parse_macmon)


def open_nvml() -> Reader:
    """NVML by the pynvml module (package nvidia-ml-py): the board's energy counter, Volta and later."""
    import pynvml  # type: ignore[import-not-found]

    pynvml.nvmlInit()
    device = _cuda_device()
    by_index = device.isdigit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(int(device)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(device)

    def read() -> float:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000

    read()
    return CounterReader("NVML", NVIDIA_SCOPE, read, lambda before: (read() - before, {}))


def open_nvidia_smi() -> Reader:
    """The nvidia-smi command."""
    if not shutil.which("nvidia-smi"):
        raise RuntimeError("no nvidia-smi command")
    command = ["nvidia-smi", "-i", _cuda_device(), "--query-gpu=timestamp,power.draw"]
    command += ["--format=csv,noheader,nounits", "-lms", str(INTERVAL_MS)]
    return SampledReader("nvidia-smi", NVIDIA_SCOPE, command, b"\n", parse_nvidia_smi)


def _cuda_device() -> str:
    """Index or UUID of the first GPU that CUDA may use."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"


SOURCES: tuple[Callable[[], Reader], ...] = (open_powermetrics, open_zeus, open_macmon, open_nvml, open_nvidia_smi)


def find_reader(sources: Sequence[Callable[[], Reader]] = SOURCES) -> tuple[Reader | None, list[str]]:
    """The first source that works here, and why those before it do not."""
    reasons: list[str] = []
    for opener in sources:
        name = opener.__name__.removeprefix("open_")
        try:
            return opener(), reasons
        except Exception as error:  # a source may fail in its own ways, and none of them may stop a benchmark
            reasons.append(f"{name}: {error or type(error).__name__}")
    return None, reasons
