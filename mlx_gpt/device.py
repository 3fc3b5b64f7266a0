"""Where to compute, in which precision, and how to wait for it."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy.typing as npt

from gpt_common.config import Device, RunConfig, TrainConfig
from gpt_common.data.batches import Batch, NumpyBatch
from gpt_common.errors import UserError
from gpt_common.machine.blas import opened_blas
from gpt_common.machine.device import ComputeDevice
from gpt_common.network.memory import memory_plan, planned_device

TF32 = "MLX_ENABLE_TF32"
"""The variable of MLX's that says whether products of float32 may be rounded to TF32; on, where nobody says."""


def has_gpu() -> bool:
    """Whether auto would choose a GPU."""
    # Every build for macOS says that Metal is available; whether there is a device is another question.
    return mx.device_count(mx.gpu) > 0


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
    if device.type == mx.gpu and mx.metal.is_available():
        # What the step needs stays where the GPU reaches it, up to what Apple recommends, as in mlx-lm.
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
    return device


def limit_cache(config: RunConfig, device: mx.Device) -> None:
    """Bound what MLX's allocator keeps of what is free again, on a Mac; nothing elsewhere.

    Left alone it fills up to 95 % of what Apple recommends for the GPU (mlx/backend/metal/allocator.cpp): samples and
    gates, of other shapes than a step, would keep a small Mac full. mlx-lm's trainer empties the cache after a step
    that left it above a threshold, 0 by default, and the next one asks the system for all of it again. Here it may hold
    twice what a step takes and gives back by the plan: a buffer serves again only what is nearly as large.

    Args:
        config: with the vocabulary settled.
        device: where the step computes.
    """
    if device.type != mx.gpu or not mx.metal.is_available():
        return
    _, dtype = planned_device("mlx", config.train, "apple")
    plan = memory_plan(replace(config, train=replace(config.train, dtype=dtype)), "mlx", "gpu")
    mx.set_cache_limit(2 * (plan.total - plan.weights - plan.moments))


def compute_dtype(config: TrainConfig, device: mx.Device) -> mx.Dtype:
    """Dtype of activations: auto is bfloat16 on a GPU, float32 on a CPU."""
    if config.dtype == "bfloat16" or (config.dtype == "auto" and device.type == mx.gpu):
        return mx.bfloat16
    if device.type == mx.gpu:
        # Before the first product: an M5 or a CUDA GPU would round what goes into products of float32 to TF32.
        os.environ.setdefault(TF32, "0")
    return mx.float32


def compiles(config: TrainConfig, device: mx.Device) -> bool:
    """Whether the step is compiled: always on a GPU; on a CPU it gains little and calls a C++ compiler."""
    return config.compile or device.type == mx.gpu


def synchronise(device: mx.Device) -> None:
    """Wait until everything that was queued is done."""
    mx.synchronize(mx.default_stream(device))


def peak_memory(device: mx.Device) -> int:  # noqa: ARG001 (its twin asks the device)
    """Peak memory in bytes, of the allocator."""
    return mx.get_peak_memory()


def name_of(device: mx.Device) -> Device:
    """The device as the plan and the published peaks call it."""
    return "cpu" if device.type == mx.cpu else "gpu"


def describe(device: mx.Device) -> str:
    """The framework and device in a few words, for the console."""
    fast = opened_blas()
    blas = f", BLAS from {Path(fast).name}" if fast and device.type == mx.cpu else ""
    return f"MLX {version('mlx')} on {name_of(device)}{blas}"


def compute_device(device: mx.Device, dtype: mx.Dtype) -> ComputeDevice:
    """The device as what surrounds the training step sees it."""
    exact = dtype == mx.float32 and device.type == mx.gpu and os.environ.get(TF32) == "0"
    return ComputeDevice(
        name=name_of(device),
        description=describe(device) + (", TF32 off" if exact else ""),
        dtype="bfloat16" if dtype == mx.bfloat16 else "float32",
        # TrainStep queues a step and waits for the one before: what it waits for takes as long.
        synchronous=True,
        synchronise=lambda: synchronise(device),
        peak_memory=lambda: peak_memory(device),
    )


def tensor(values: npt.NDArray[Any], device: mx.Device) -> mx.array:  # noqa: ARG001 (its twin asks the device)
    """An array of numpy's on the device, ids as they are."""
    return mx.array(values)


def to_device(batch: NumpyBatch, device: mx.Device) -> Batch[mx.array]:
    """A batch as the model takes it."""
    weights = None if batch.weights is None else tensor(batch.weights, device)
    starts = None if batch.starts is None else tensor(batch.starts, device)
    return Batch(tensor(batch.tokens, device), tensor(batch.labels, device), weights, starts)
