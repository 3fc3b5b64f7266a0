"""What is decided for a GPU, on a machine without one."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from gpt_common.config import TrainConfig
from mlx_gpt import device

GPU: Any = SimpleNamespace(type=mx.gpu)


@pytest.mark.parametrize(
    ("asked", "given", "dtype", "found"),
    [
        ("float32", None, mx.float32, "0"),
        ("float32", "1", mx.float32, "1"),
        ("auto", None, mx.bfloat16, None),
        ("bfloat16", None, mx.bfloat16, None),
    ],
)
def test_float32_means_float32_unless_somebody_said_otherwise(
    asked: Any, given: str | None, dtype: mx.Dtype, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(device.TF32)
    if given is not None:
        monkeypatch.setenv(device.TF32, given)
    assert device.compute_dtype(TrainConfig(dtype=asked), GPU) == dtype
    assert os.environ.get(device.TF32) == found
    described = device.compute_device(GPU, dtype).description
    assert described.endswith(", TF32 off") is (found == "0")


def test_a_gpu_is_there_if_mlx_counts_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a virtual Mac without Metal: the build says that it is available.
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    assert not device.has_gpu()
    assert device.select_device("auto").type == mx.cpu
    monkeypatch.setattr(mx, "device_count", lambda _: 1)
    assert device.has_gpu()
