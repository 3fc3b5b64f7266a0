"""The backends by name, as `benchmarks/run.py --backends` and `convert parity --backends` take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Backend:
    """A framework on a device, eager or compiled."""

    name: str
    framework: Literal["mlx", "torch"]
    device: Literal["auto", "gpu", "cpu", "mps", "cuda"]
    """auto: MLX's GPU (Metal or CUDA) if there is one, else its CPU; whoever uses it says which."""
    compiled: bool = False


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("mlx", "mlx", "auto"),
        Backend("mlx-cpu", "mlx", "cpu"),
        Backend("mlx-cpu-compiled", "mlx", "cpu", compiled=True),
        Backend("cpu", "torch", "cpu"),
        Backend("cpu-compiled", "torch", "cpu", compiled=True),
        Backend("mps", "torch", "mps"),
        Backend("mps-compiled", "torch", "mps", compiled=True),
        Backend("cuda", "torch", "cuda"),
        Backend("cuda-compiled", "torch", "cuda", compiled=True),
    )
}
