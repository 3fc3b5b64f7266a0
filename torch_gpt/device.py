"""Where to compute, in which precision, and how to wait for it."""

from __future__ import annotations

import os
import resource
import sys
from typing import Any

import numpy.typing as npt
import torch

from gpt_common.config import Device, TrainConfig
from gpt_common.data.batches import Batch, NumpyBatch
from gpt_common.errors import UserError
from gpt_common.machine.device import ComputeDevice
from torch_gpt.kernels import ONEDNN


def has_gpu() -> bool:
    """Whether auto would choose a GPU."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def select_device(name: str) -> torch.device:
    """The device that a configuration means: auto takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: the device asked for is not present.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name in ("auto", "gpu"):
        found = next(device for device, there in present.items() if there)
        if name == "gpu" and found == "cpu":
            raise UserError("device gpu: PyTorch finds neither CUDA nor MPS here; use --device cpu")
        return torch.device(found)
    if not present[name]:
        there = ", ".join(device for device, found in present.items() if found)
        raise UserError(f"device {name} is not present here; PyTorch finds: {there}")
    return torch.device(name)


def compute_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Dtype of activations: auto is bfloat16 on CUDA, float32 on MPS and CPU."""
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32


def compiles(config: TrainConfig, device: torch.device) -> bool:  # noqa: ARG001 (its twin asks the device)
    """Whether the step is compiled: only when asked for."""
    return config.compile


def synchronise(device: torch.device) -> None:
    """Wait until everything that was queued is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the allocator on CUDA, held by the driver on MPS, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    # ru_maxrss counts kilobytes on Linux and bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def name_of(device: torch.device) -> Device:
    """The device as the plan and the published peaks call it."""
    return "cpu" if device.type == "cpu" else "mps" if device.type == "mps" else "cuda"


def describe(device: torch.device) -> str:
    """The framework and device in a few words, for the console."""
    passive = "passive " if os.environ.get("OMP_WAIT_POLICY") == "PASSIVE" else ""  # they sleep while they wait
    count = torch.get_num_threads()
    threads = f", {count} {passive}thread{'' if count == 1 else 's'}" if device.type == "cpu" else ""
    products = ", oneDNN" if device.type == "cpu" and ONEDNN else ""
    return f"PyTorch {torch.__version__} on {name_of(device)}{threads}{products}"


def compute_device(device: torch.device, dtype: torch.dtype) -> ComputeDevice:
    """The device as what surrounds the training step sees it."""
    return ComputeDevice(
        name=name_of(device),
        description=describe(device),
        dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
        # A CPU is done when a step returns; a GPU works on a queue.
        synchronous=device.type == "cpu",
        synchronise=lambda: synchronise(device),
        peak_memory=lambda: peak_memory(device),
    )


def tensor(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array of numpy's on the device, ids as int64."""
    return torch.from_numpy(values).to(device, torch.float32 if values.dtype.kind == "f" else torch.long)


def to_device(batch: NumpyBatch, device: torch.device) -> Batch[torch.Tensor]:
    """A batch as the model takes it."""
    weights = None if batch.weights is None else tensor(batch.weights, device)
    starts = None if batch.starts is None else tensor(batch.starts, device)
    return Batch(tensor(batch.tokens, device), tensor(batch.labels, device), weights, starts)
