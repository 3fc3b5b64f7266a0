"""Links between devices: what their makers say, what is assumed of them, and who has measured that."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_common.machine.hardware import Hardware
from gpt_common.machine.peaks import apple_bandwidth, nvidia_bandwidth

LOCALHOST = "localhost"
CPU_MEMORY = 10e9
GPU_MEMORY = 300e9


@dataclass(frozen=True)
class Link:
    """A link from a device to the next."""

    nominal: float
    """Bytes per second each way, as its maker says."""
    rate: float
    """What a sum is assumed to get of them."""
    latency: float
    """Seconds that a message takes, however short."""
    source: str
    """Where rate and latency come from."""

    @property
    def basis(self) -> str:
        """The assumption in words."""
        return (
            f"{self.nominal / 1e9:g} GB/s each way nominal, {self.rate / 1e9:g} GB/s and {1e6 * self.latency:g} us a "
            f"message assumed: {self.source}"
        )


LINKS = {
    "TB5": Link(
        10e9,
        3.5e9,
        50e-6,
        "JACCL's RDMA, 3.5 to 3.8 GB/s between two M3 Ultras (mlx#3207), under 50 us (Apple TN3205); the ring goes by "
        "TCP, where a message was seen to take 380 us and more (exo#2295)",
    ),
    "TB4": Link(
        5e9,
        2.0e9,
        400e-6,
        "TCP over a bridge, 16.4 Gbit/s from a MacBook Pro M2 (jiribrejcha.net); the latency is that of TCP over "
        "Thunderbolt 5 (exo#2295)",
    ),
    "10GbE": Link(
        1.25e9, 1.17e9, 100e-6, "1448 bytes of a frame's 1538 on the wire are payload; the latency is a guess"
    ),
    "NVLink": Link(
        450e9,
        370e9,
        10e-6,
        "NVLink 4 of an H100 or H200; NCCL's own figure for what its protocol leaves (nccl-tests#212); the latency "
        "is a guess",
    ),
}
"""None of these was measured here."""


def memory_rate(hardware: Hardware, device: str) -> tuple[float, str]:
    """Bytes per second between a device and its memory, published or assumed, and which."""
    if device == "cpu":
        return CPU_MEMORY, f"{CPU_MEMORY / 1e9:g} GB/s assumed, one thread of a CPU"
    if published := apple_bandwidth(hardware.chip, hardware.gpu_cores):
        return published
    if published := nvidia_bandwidth(hardware.chip):
        return published[0], f"{published[0] / 1e9:g} GB/s, {published[1]}"
    return GPU_MEMORY, f"{GPU_MEMORY / 1e9:g} GB/s assumed, an NVIDIA L4's"
