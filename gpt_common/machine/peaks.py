"""Published peaks: what a chip could do at best, each with its source. What is not listed is unknown.

Apple publishes no figures. A GPU core has 128 arithmetic units, and each does a fused multiply-add per cycle
(P. Turner, github.com/philipturner/metal-benchmarks: "ALUs per core 128", "F16 is neither faster nor slower than
F32"), so the peak is cores x 128 x 2 x clock, for float32 and float16 alike; bfloat16 cannot be faster. The clock is
the highest state that macOS lists for the GPU in `powermetrics --samplers gpu_power` ("GPU HW active residency"),
for the base M3 and M4 on a MacBook Air. M5 and later have matrix units in each core, whose rate is not published:
only a measured peak says something, and until there is one an estimate that calls itself so.

NVIDIA's figures are dense (without structured sparsity), from the document named; 16-bit with float32 accumulation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

APPLE_ALUS_PER_CORE = 128


@dataclass(frozen=True)
class Peak:
    """The most floating-point operations per second that a document or a derivation allows."""

    tflops: float
    """10^12 operations per second; a multiply-add is two."""
    source: str
    """Where the figure comes from, or how it is derived."""

    @property
    def flops(self) -> float:
        """Operations per second."""
        return self.tflops * 1e12


@dataclass(frozen=True)
class AppleGpu:
    """One Apple chip's GPU."""

    cores: int
    """Cores of the largest configuration sold; a smaller one is scaled by the cores found."""
    mhz: int | None
    """Highest clock that macOS lists; None where that says nothing of the matrix units, from M5 on."""
    gigabytes: int
    """The least memory that a Mac with this chip was sold with."""


APPLE_GPUS = {
    "M1": AppleGpu(8, 1278, 8),
    "M1 Pro": AppleGpu(16, 1296, 16),
    "M1 Max": AppleGpu(32, 1296, 32),
    "M1 Ultra": AppleGpu(64, 1296, 64),
    "M2": AppleGpu(10, 1398, 8),
    "M2 Pro": AppleGpu(19, 1398, 16),
    "M2 Max": AppleGpu(38, 1398, 32),
    "M2 Ultra": AppleGpu(76, 1398, 64),
    "M3": AppleGpu(10, 1338, 8),
    "M3 Pro": AppleGpu(18, 1380, 18),
    "M3 Max": AppleGpu(40, 1380, 36),
    "M3 Ultra": AppleGpu(80, 1380, 96),
    "M4": AppleGpu(10, 1470, 16),
    "M4 Pro": AppleGpu(20, 1578, 24),
    "M4 Max": AppleGpu(40, 1578, 36),
    "M5": AppleGpu(10, None, 16),
    "M5 Pro": AppleGpu(20, None, 24),
    "M5 Max": AppleGpu(40, None, 36),
}

M5_TFLOPS_PER_CORE = {"float32": 18 / 40, "float16": 70 / 40, "bfloat16": 70 / 40}
"""T. Zakharko's estimate for an M5 Max of 40 cores, from products that he measured on the five cores of an A19: 18
TFLOP/s in float32, 70 in float16, which bfloat16 is taken to equal (tzakharko.github.io/
apple-neural-accelerators-benchmark)."""

APPLE_BANDWIDTH: dict[str, tuple[dict[int, float], str]] = {
    "M1": ({0: 68.25}, "derived: 128 bits of LPDDR4X-4266"),
    "M1 Pro": ({0: 200}, "Apple, 2021-10-18"),
    "M1 Max": ({0: 400}, "Apple, 2021-10-18"),
    "M1 Ultra": ({0: 800}, "Apple, 2022-03-08"),
    "M2": ({0: 100}, "Apple, 2022-06-06"),
    "M2 Pro": ({0: 200}, "Apple, 2023-01-17"),
    "M2 Max": ({0: 400}, "Apple, 2023-01-17"),
    "M2 Ultra": ({0: 800}, "Apple, 2023-06-05"),
    "M3": ({0: 100}, "Apple, specifications of the MacBook Pro of November 2023"),
    "M3 Pro": ({0: 150}, "Apple, support.apple.com/117737"),
    "M3 Max": ({30: 300, 40: 400}, "Apple, support.apple.com/117737"),
    "M3 Ultra": ({0: 819}, "Apple, specifications of the Mac Studio of 2025"),
    "M4": ({0: 120}, "Apple, 2024-05-07"),
    "M4 Pro": ({0: 273}, "Apple, 2024-10-30"),
    "M4 Max": ({32: 410, 40: 546}, "Apple, specifications of the MacBook Pro of 2024"),
    "M5": ({0: 153}, "Apple, 2025-10-15"),
    "M5 Pro": ({0: 307}, "Apple, 2026-03-03"),
    "M5 Max": ({32: 460, 40: 614}, "Apple, specifications of the MacBook Pro of March 2026"),
}
"""Memory's bandwidth in 10^9 bytes per second by the number of GPU cores, 0 for any, and who says so: Apple's newsroom
of that day, or a page of specifications."""


@dataclass(frozen=True)
class NvidiaGpu:
    """One NVIDIA GPU."""

    name: str
    """Pattern of what nvidia-smi prints, without "NVIDIA "."""
    float32: float
    """TFLOP/s, as the next two."""
    tfloat32: float
    half: float
    watts: int
    """Largest power of the board."""
    source: str
    bandwidth: float | None = None
    """GB/s between it and its memory, from NVIDIA's datasheet of it; None: not looked up, or not one for all."""


NVIDIA_GPUS = (
    NvidiaGpu(r"A100-SXM4-80GB", 19.5, 156.0, 312.0, 400, "NVIDIA A100 Tensor Core GPU datasheet (2021)", 2039),
    NvidiaGpu(r"A100-SXM4-\d+GB", 19.5, 156.0, 312.0, 400, "NVIDIA A100 Tensor Core GPU datasheet (2021)"),
    NvidiaGpu(r"A100-PCIE-\d+GB", 19.5, 156.0, 312.0, 300, "NVIDIA A100 Tensor Core GPU datasheet (2021)"),
    NvidiaGpu(r"H100 80GB HBM3", 66.9, 494.7, 989.4, 700, "NVIDIA H100 architecture whitepaper v1.04, H100 SXM5", 3350),
    NvidiaGpu(r"H100 PCIe", 51.2, 378.0, 756.0, 350, "NVIDIA H100 architecture whitepaper v1.04, H100 PCIe"),
    NvidiaGpu(
        r"H200", 67.0, 494.5, 989.5, 700, "NVIDIA H200 datasheet (2024), SXM, half of the figure with sparsity", 4800
    ),
    NvidiaGpu(
        r"H200 NVL", 60.0, 417.5, 835.5, 600, "NVIDIA H200 datasheet (2024), H200 NVL, half of the figure with sparsity"
    ),
    NvidiaGpu(r"L4", 30.3, 60.0, 121.0, 72, "NVIDIA L4 datasheet (2023), half of the figure with sparsity", 300),
    NvidiaGpu(
        r"GeForce RTX 4090", 82.6, 82.6, 165.2, 450, "NVIDIA Ada GPU architecture whitepaper v2.02, RTX 4090", 1008
    ),
    NvidiaGpu(r"GeForce RTX 3090", 35.6, 35.6, 71.0, 350, "NVIDIA Ampere GA102 whitepaper v2.1, RTX 3090", 936),
)

MAC_WATTS = {
    "M1 Max": (115, "102027"),
    "M1 Ultra": (215, "102027"),
    "M2 Max": (145, "102027"),
    "M2 Ultra": (295, "102027"),
    "M1": (39, "103253"),
    "M2": (50, "103253"),
    "M2 Pro": (100, "103253"),
    "M4": (65, "103253"),
    "M4 Pro": (140, "103253"),
}
"""Largest power in watts of the desktop with this chip, at the wall, and the page of Apple's support that says so."""


def apple_peak(chip: str, gpu_cores: int | None, dtype: str) -> Peak | None:
    """Peak of an Apple GPU: `chip` as in "Apple M3 Max"; None for an unknown chip, core count or dtype."""
    gpu = APPLE_GPUS.get(chip.removeprefix("Apple "))
    if gpu is None or gpu.mhz is None or gpu_cores is None or dtype not in ("float32", "float16", "bfloat16"):
        return None
    tflops = gpu_cores * APPLE_ALUS_PER_CORE * 2 * gpu.mhz / 1e6
    return Peak(tflops, f"derived: {gpu_cores} cores x {APPLE_ALUS_PER_CORE} ALUs x 2 x {gpu.mhz} MHz")


def estimated_peak(chip: str, gpu_cores: int | None, dtype: str) -> Peak | None:
    """What others estimate for an Apple GPU that nobody has specified; None where there is a peak, or no estimate."""
    gpu = APPLE_GPUS.get(chip.removeprefix("Apple "))
    if gpu is None or gpu.mhz is not None or gpu_cores is None or dtype not in M5_TFLOPS_PER_CORE:
        return None
    each = M5_TFLOPS_PER_CORE[dtype]
    source = f"an estimate, no specification: {gpu_cores} cores x {each:g} TFLOP/s, T. Zakharko from products on an A19"
    return Peak(gpu_cores * each, source)


def apple_bandwidth(chip: str, gpu_cores: int | None) -> tuple[float, str] | None:
    """Bytes per second between an Apple chip and its memory, and the source; None if unknown, or if the chip is sold
    with several and the number of cores does not tell."""
    by_cores, source = APPLE_BANDWIDTH.get(chip.removeprefix("Apple "), ({}, ""))
    found = by_cores.get(0, by_cores.get(gpu_cores or 0))
    return None if found is None else (found * 1e9, source)


def nvidia_gpu(name: str) -> NvidiaGpu | None:
    """An NVIDIA GPU by the name nvidia-smi gives it; None for an unknown one or a slice of one."""
    return next((gpu for gpu in NVIDIA_GPUS if re.fullmatch(gpu.name, name.removeprefix("NVIDIA "))), None)


def nvidia_bandwidth(name: str) -> tuple[float, str] | None:
    """Bytes per second between an NVIDIA GPU and its memory, and the source; None if unknown."""
    gpu = nvidia_gpu(name)
    return None if gpu is None or gpu.bandwidth is None else (gpu.bandwidth * 1e9, "NVIDIA's datasheet")


def nvidia_peak(name: str, dtype: str) -> Peak | None:
    """Peak of an NVIDIA GPU by the name nvidia-smi gives it; None for an unknown GPU, a slice of one, or dtype."""
    if (gpu := nvidia_gpu(name)) is None:
        return None
    rates = {"float32": gpu.float32, "tfloat32": gpu.tfloat32, "float16": gpu.half, "bfloat16": gpu.half}
    return Peak(rates[dtype], gpu.source) if dtype in rates else None


def largest_power(chip: str) -> tuple[float, str] | None:
    """Watts that a desktop Mac with this chip, or an NVIDIA board, draws at most, and the source; None if unknown."""
    if gpu := nvidia_gpu(chip):
        return float(gpu.watts), f"largest power of the board, {gpu.source}"
    watts, page = MAC_WATTS.get(chip.removeprefix("Apple "), (0, ""))
    return (float(watts), f"largest power of the desktop, support.apple.com/{page}") if watts else None
