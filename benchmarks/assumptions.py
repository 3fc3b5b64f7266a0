"""What a plan takes for granted where nothing is known of a machine: each figure with the words that say why."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpt_common.machine.hardware import Hardware
from gpt_common.machine.peaks import (
    APPLE_GPUS,
    MAC_WATTS,
    Peak,
    apple_peak,
    estimated_peak,
    largest_power,
    nvidia_peak,
)

LEAST_GIGABYTES = 8
CORES, WATTS_PER_CORE = 8, 10
CORE_TFLOPS = 0.096
"""32 operations in a cycle (AVX2: two multiply-adds of 8 numbers), 3 GHz."""


def assumed_memory(hardware: Hardware) -> tuple[int, str]:
    """Bytes, as little as this machine can have."""
    if hardware.kind != "apple":
        return LEAST_GIGABYTES * 2**30, "as small as machines come"
    name = _alike(hardware.chip, APPLE_GPUS)
    return APPLE_GPUS[name].gigabytes * 2**30, f"the least that the {name} was sold with"


def assumed_peak(hardware: Hardware, device: str, dtype: str) -> Peak:
    """That of a chip that is known, or of so many usual cores."""
    if device == "cpu" or hardware.kind == "cpu":
        cores = hardware.cores or CORES
        return Peak(cores * CORE_TFLOPS, f"assumed, {cores} cores x 32 operations x 3 GHz")
    name = "L4"
    found = nvidia_peak(name, dtype)
    if hardware.kind == "apple":
        name = _alike(hardware.chip, APPLE_GPUS)
        cores = hardware.gpu_cores or APPLE_GPUS[name].cores
        found = apple_peak(name, cores, dtype) or estimated_peak(name, cores, dtype)
    assert found is not None
    return Peak(found.tflops, f"assumed, that of the {name}, {found.source}")


def assumed_power(hardware: Hardware) -> tuple[float, str]:
    """Watts: those of a chip that is known, or of so many cores."""
    if hardware.kind == "cpu":
        cores = hardware.cores or CORES
        return cores * WATTS_PER_CORE, f"assumed, {cores} cores of {WATTS_PER_CORE} W"
    name = "L4" if hardware.kind == "cuda" else _alike(hardware.chip, MAC_WATTS)
    found = largest_power(name)
    assert found is not None
    return found[0], f"assumed, that of the {name}: {found[1]}"


def _alike(chip: str, known: Iterable[str]) -> str:
    """Of Apple's chips in `known` the one of the same size (Pro, Max, Ultra) and the nearest generation."""
    match = re.match(r"Apple M(\d+)( Pro| Max| Ultra)?", chip)
    generation, size = (int(match[1]), match[2] or "") if match else (1, "")
    same = [name for name in known if name.lstrip("M0123456789") == size]
    return min(same, key=lambda name: abs(int(name.removesuffix(size)[1:]) - generation))
