"""Which published share a plan assumes, and what it says of that."""

from __future__ import annotations

import pytest

from benchmarks.shares import nearest_share, rows
from gpt_common.config import Device, DType
from gpt_common.network.memory import Twin


@pytest.mark.parametrize(
    ("twin", "device", "dtype", "compiled", "mfu", "aside"),
    [
        ("torch", "mps", "float32", False, 0.372, "nanoGPT on MPS on an M3 Max: blog"),
        ("torch", "mps", "float32", True, 0.269, "nanoGPT on MPS, compiled on an M3 Max: blog"),
        ("torch", "mps", "bfloat16", False, 0.372, "nanoGPT on MPS on an M3 Max, there float32: blog"),
        ("mlx", "gpu", "bfloat16", False, 0.343, "an M2 Max, there float32: github.com/ml-explore/mlx-examples"),
        ("mlx", "gpu", "float32", False, 0.343, "an M2 Max: github.com/ml-explore/mlx-examples/issues/127"),
        ("torch", "cuda", "bfloat16", False, 0.292, "nanoGPT on 8 A100, compiled: README"),
        ("mlx", "cuda", "bfloat16", False, 0.292, "nanoGPT on 8 A100, compiled, there PyTorch: README"),
        ("torch", "cpu", "float32", False, 0.381, "nanoGPT on the CPU of an M3 Max, of a peak so assumed: blog"),
        ("mlx", "cpu", "float32", False, 0.381, "of a peak so assumed, there PyTorch: blog"),
    ],
)
def test_the_nearest_row_by_device_then_framework_dtype_and_compilation(
    twin: Twin, device: Device, dtype: DType, compiled: bool, mfu: float, aside: str
) -> None:
    """Shares by hand: PaLM's operations of the published steps over their time, over the chip's derived peak."""
    found = nearest_share(twin, device, dtype, compiled=compiled)
    assert found.mfu == pytest.approx(mfu, abs=1e-3)
    assert aside in found.basis(twin, device, dtype)
    assert found.basis(twin, device, dtype).startswith("assumed, ")


def test_every_row_says_where_it_is_published() -> None:
    assert all(0.1 < row.mfu < 0.6 and (row.source.startswith(("blog post", "github.com", "README"))) for row in rows())
