"""What is decided for a GPU, on a machine without one."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from gpt_common.config import TrainConfig, load_preset
from gpt_common.network.memory import memory_plan
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


def test_the_cache_holds_what_a_step_gives_back_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(mx, "set_cache_limit", limits.append)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    config = load_preset("stories").with_vocabulary(60)
    device.limit_cache(config, GPU)
    larger = replace(config, train=replace(config.train, batch_size=4 * config.train.batch_size))
    device.limit_cache(larger, GPU)
    half = replace(config, train=replace(config.train, dtype="bfloat16"))
    step = memory_plan(half, "mlx", "gpu")
    # All of it can be kept, what stays from step to step beside it, and a step of four times the size gets more.
    assert step.activations + step.logits + step.temporary <= limits[0] < 2 * step.total
    assert 3.5 < limits[1] / limits[0] <= 4
    limits.clear()
    device.limit_cache(config, SimpleNamespace(type=mx.cpu))  # type: ignore[arg-type]
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    device.limit_cache(config, GPU)
    assert limits == []


def test_training_bounds_the_cache_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_gpt import train

    class Reached(Exception):
        pass

    def first(*_: Any) -> None:
        raise Reached

    config = load_preset("stories-cpu").with_vocabulary(60)
    monkeypatch.setattr(train, "limit_cache", first)
    monkeypatch.setattr(train, "GPT", lambda *_: pytest.fail("a model was built before"))
    with pytest.raises(Reached):
        train.train(SimpleNamespace(config=config))  # type: ignore[arg-type]
