"""Where a twin would compute on a machine that may not be this one, and in which dtype: what a plan is made for."""

from __future__ import annotations

from typing import Literal

Device = Literal["cpu", "gpu", "mps", "cuda"]
"""Where a twin computes: MLX calls its GPU so, whoever made it."""
DType = Literal["float32", "bfloat16"]


def planned_device(
    framework: Literal["mlx", "torch"], device: str, dtype: Literal["auto", "float32", "bfloat16"], kind: str
) -> tuple[Device, DType]:
    """Where a twin would compute on some machine and in which dtype, by the rules of its trainer.

    Args:
        framework: the twin's.
        device: that the configuration names; auto takes a GPU where there is one.
        dtype: that the configuration names; auto is bfloat16 where a GPU has it from the start.
        kind: of the machine, "apple", "cuda" or "cpu".
    """
    found: Device = "gpu" if framework == "mlx" else "mps" if kind == "apple" else "cuda"
    if device == "cpu" or kind == "cpu":
        found = "cpu"
    if dtype == "auto":
        return found, "bfloat16" if found in ("gpu", "cuda") else "float32"
    return found, dtype
