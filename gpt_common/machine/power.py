"""Energy: what a stretch of work cost in joules, from the first source that works on this machine.

| source                 | machine       | rights | what is counted                        | GPU usage |
|------------------------|---------------|--------|----------------------------------------|-----------|
| powermetrics by asitop | Apple silicon | sudo   | CPU + GPU + ANE, the chip's estimate   | yes       |
| macmon                 | Apple silicon | -      | the same counters                      | yes       |
| zeus-apple-silicon     | Apple silicon | -      | the same counters                      | no        |
| NVML                   | NVIDIA        | -      | the whole board, its energy counter    | yes       |
| nvidia-smi             | NVIDIA        | -      | the whole board, sampled power         | yes       |

Every figure is an estimate: Apple's counters are modelled, not measured, and leave out memory, display and the losses
of the power supply; a board's sensor has an error of some percent. Compare runs on one machine, not machines.

    reader, reasons = find_reader()
    if reader:
        reader.measure_idle(5.0)
        reader.start(); work(); energy = reader.stop()
        reader.close()

A benchmark measures stretches so; a training run follows the samples (power_meter.py).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from gpt_common.machine.power_readers import INTERVAL_MS, CounterReader, Reader, SampledReader
from gpt_common.machine.power_samples import parse_macmon, parse_nvidia_smi, parse_powermetrics

NOT_INSTALLED = "not installed"
"""Why a source does not work here: the rest of its reason, and of no other."""

# --- opening; each raises if it cannot work here


APPLE_SCOPE = "CPU + GPU + ANE, without memory, display and supply"
NVIDIA_SCOPE = "whole GPU board"


def open_powermetrics(interval_ms: int) -> Reader:
    """asitop's route. Only where sudo asks for no password: a benchmark must not stop at a prompt."""
    import asitop.parsers  # type: ignore[import-untyped]  # noqa: F401 - asked for here, where its want is a reason

    if not shutil.which("powermetrics"):
        raise RuntimeError(NOT_INSTALLED)
    rights = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if rights and subprocess.run([*rights, "true"], capture_output=True).returncode:
        raise RuntimeError("needs administrator rights: run `sudo -v` first")
    command = [*rights, "powermetrics", "--samplers", "cpu_power,gpu_power,thermal", "-f", "plist", "-b", "1"]
    command += ["-i", str(interval_ms)]
    name = "powermetrics (asitop)"
    return SampledReader(name, APPLE_SCOPE, command, b"</plist>", parse_powermetrics, interval_ms=interval_ms)


def open_macmon(interval_ms: int) -> Reader:
    """vladkens' macmon, which Homebrew has; the package of that name on PyPI is another program."""
    program = shutil.which("macmon")
    if program is None:
        raise RuntimeError(NOT_INSTALLED)
    if not _is_macmon(program):
        raise RuntimeError(f"{program} is another program of that name: brew install macmon")
    command = [program, "pipe", "-i", str(interval_ms)]
    return SampledReader("macmon", APPLE_SCOPE, command, b"\n", parse_macmon, interval_ms=interval_ms)


def _is_macmon(program: str) -> bool:
    """Whether it says so: `macmon 0.6.1`."""
    try:
        asked = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=5)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0 and re.fullmatch(rb"macmon v?\d+\.\d+\S*", asked.stdout.strip()) is not None


def open_zeus(interval_ms: int) -> Reader:
    """The zeus-apple-silicon library."""
    from zeus_apple_silicon import AppleEnergyMonitor

    monitor = AppleEnergyMonitor()

    def end(_: Any) -> tuple[float, dict[str, float]]:
        found = monitor.end_window("work")
        millijoules = {"cpu": found.cpu_total_mj, "gpu": found.gpu_mj, "ane": found.ane_mj}
        parts = {name: value / 1000 for name, value in millijoules.items() if value is not None}
        return sum(parts.values()), parts

    begin = lambda: monitor.begin_window("work")  # noqa: E731
    return CounterReader("zeus-apple-silicon", APPLE_SCOPE, begin, end, interval_ms=interval_ms)


def open_nvml(interval_ms: int) -> Reader:
    """NVML by the pynvml module (package nvidia-ml-py): the board's energy counter, Volta and later."""
    import pynvml

    pynvml.nvmlInit()
    device = _cuda_device()
    by_index = device.isdigit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(int(device)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(device)

    def read() -> float:
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000

    def usage() -> float | None:
        try:
            return float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
        except pynvml.NVMLError:  # a slice of a board does not tell
            return None

    def spent(before: float) -> tuple[float, dict[str, float]]:
        return read() - before, {}

    read()
    return CounterReader("NVML", NVIDIA_SCOPE, read, spent, usage, interval_ms)


def open_nvidia_smi(interval_ms: int) -> Reader:
    """The nvidia-smi command."""
    if not shutil.which("nvidia-smi"):
        raise RuntimeError(NOT_INSTALLED)
    command = ["nvidia-smi", "-i", _cuda_device(), "--query-gpu=timestamp,power.draw,utilization.gpu"]
    command += ["--format=csv,noheader,nounits", "-lms", str(interval_ms)]
    return SampledReader("nvidia-smi", NVIDIA_SCOPE, command, b"\n", parse_nvidia_smi, interval_ms=interval_ms)


def _cuda_device() -> str:
    """Index or UUID of the first GPU that CUDA may use."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"


Opener = Callable[[int], Reader]
"""Opens a source for samples that are so many milliseconds apart; raises if it cannot work here."""
APPLE: tuple[Opener, ...] = (open_powermetrics, open_macmon, open_zeus)
NVIDIA: tuple[Opener, ...] = (open_nvml, open_nvidia_smi)


def find_reader(
    sources: Sequence[Opener] = APPLE + NVIDIA, interval_ms: int = INTERVAL_MS
) -> tuple[Reader | None, list[str]]:
    """The first source that works here, and why those before it do not."""
    reasons: list[str] = []
    for opener in sources:
        name = opener.__name__.removeprefix("open_")
        try:
            return opener(interval_ms), reasons
        except ImportError:
            reasons.append(f"{name}: {NOT_INSTALLED}")
        except Exception as error:  # a source may fail in its own ways, and none of them may stop the work
            reasons.append(f"{name}: {error or type(error).__name__}")
    return None, reasons
