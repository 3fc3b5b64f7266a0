"""A device as what surrounds the step sees it; each twin describes its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpt_common.config import Device, DType


@dataclass(frozen=True)
class ComputeDevice:
    """Where a twin computes, and how to wait for it."""

    name: Device
    """"cpu", "gpu", "mps" or "cuda", for the published peak."""
    description: str
    """Framework and device in a few words."""
    dtype: DType
    """Compute dtype."""
    synchronous: bool
    """Whether a training step that returns has been waited for, so that its time can be taken."""
    synchronise: Callable[[], None]
    """Wait until everything that was queued is done."""
    peak_memory: Callable[[], int]
    """Peak memory so far, in bytes."""
