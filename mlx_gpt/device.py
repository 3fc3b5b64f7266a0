"""Where to compute, in which precision, and how to wait for it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

import mlx_gpt
from gpt_common.config import TrainConfig
from gpt_common.errors import UserError


def has_gpu() -> bool:
    """Whether auto would choose a GPU."""
    return mx.metal.is_available() or mx.cuda.is_available()


def select_device(name: str) -> mx.Device:
    """The device that a configuration means, made MLX's default: auto takes the GPU, then the CPU.

    Raises:
        UserError: the device asked for is not present.
    """
    present = {
        "cuda": mx.cuda.is_available(),
        "gpu": has_gpu(),
        "cpu": True,
    }
    if name in ("auto", "gpu"):
        found = next(device for device, there in present.items() if there)
        if name == "gpu" and found == "cpu":
            raise UserError("device gpu: MLX finds neither Metal nor CUDA here; use --device cpu")
    elif not present.get(name, False):
        there = ", ".join(device for device, found in present.items() if found)
        raise UserError(f"device {name} is not present here; MLX finds: {there}")
    else:
        found = name
    device = mx.Device(mx.cpu if found == "cpu" else mx.gpu)
    mx.set_default_device(device)
    return device


def compute_dtype(config: TrainConfig, device: mx.Device) -> mx.Dtype:
    """Dtype of activations: auto is bfloat16 on a GPU, float32 on a CPU."""
    if config.dtype == "auto":
        return mx.bfloat16 if device.type == mx.gpu else mx.float32
    return mx.bfloat16 if config.dtype == "bfloat16" else mx.float32


def compiles(config: TrainConfig, device: mx.Device) -> bool:
    """Whether the step is compiled: always on a GPU; on a CPU it gains little and calls a C++ compiler."""
    return config.compile or device.type == mx.gpu


def synchronise(device: mx.Device) -> None:
    """Wait until everything that was queued is done."""
    mx.synchronize(mx.default_stream(device))


def peak_memory(device: mx.Device) -> int:  # noqa: ARG001 (its twin asks the device)
    """Peak memory in bytes, of the allocator."""
    return mx.get_peak_memory()


def waits(device: mx.Device) -> bool:  # noqa: ARG001 (its twin asks the device)
    """Whether a step that returns has been waited for, so that its time can be taken."""
    # TrainStep queues a step and waits for the one before.
    return True


def name_of(device: mx.Device) -> str:
    """One of "cpu", "gpu", "mps", "cuda"."""
    return "cpu" if device.type == mx.cpu else "gpu"


def describe(device: mx.Device) -> str:
    """The framework and device in a few words, for the console."""
    blas = f", BLAS from {Path(mlx_gpt.FAST_BLAS).name}" if mlx_gpt.FAST_BLAS and device.type == mx.cpu else ""
    return f"MLX {version('mlx')} on {name_of(device)}{blas}"
