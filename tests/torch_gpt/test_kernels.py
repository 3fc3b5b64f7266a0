"""Products by oneDNN: chosen by the processor, equal to MKL's within rounding, and the same run after run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpt_common.machine.blas import mkl_holds_back
from gpt_common.training.log.runlog import read_metrics
from tests.twins import tensors, tiny, train
from torch_gpt import kernels

MILAN = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 avx avx2 fma\n"
GENOA = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 avx avx2 fma avx512f avx512bw\n"
XEON = GENOA.replace("AuthenticAMD", "GenuineIntel")


@pytest.mark.parametrize(
    ("cpuinfo", "chosen"), [(MILAN, False), (GENOA, True), (XEON, False), ("", False), ("Features : asimd", False)]
)
def test_the_processor_decides(cpuinfo: str, chosen: bool) -> None:
    assert mkl_holds_back(cpuinfo) is chosen


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 64), (7, 64), (64,), (0, 64), (1, 1, 64)], ids=str)
def test_values_and_gradients_are_mkl_s(
    shape: tuple[int, ...], with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(size, generator=draw, requires_grad=True) for size in (shape, (33, 64), (33,)))
    inputs = [x, weight, bias] if with_bias else [x, weight]
    cotangent = torch.randn((*shape[:-1], 33), generator=draw)
    found = []
    for onednn in (True, False):
        monkeypatch.setattr(kernels, "ONEDNN", onednn)
        y = kernels.linear(*inputs)
        found.append([y.detach(), *torch.autograd.grad(y, inputs, cotangent)])
    for ours, mkl in zip(*found, strict=True):
        assert ours.shape == mkl.shape
        # 64 products of numbers about 1, added up in another order.
        torch.testing.assert_close(ours, mkl, rtol=1e-6, atol=64 * 2.0**-24 * 8)


def test_only_products_of_float32_on_a_cpu_are_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ONEDNN", True)
    monkeypatch.setattr(kernels, "product", lambda *_: pytest.fail("not oneDNN's"))
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.ones(2, 4, dtype=dtype)
        assert kernels.linear(x, x).dtype == dtype


def test_a_run_by_onednn_has_the_losses_of_one_by_mkl_and_is_taken_up_to_the_bit(
    stories_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = tiny(stories_dir, "--max-steps", "60", "--checkpoint-interval", "30", "--log-interval", "1")
    for name, onednn in (("onednn", True), ("halted", True), ("mkl", False)):
        monkeypatch.setattr(kernels, "ONEDNN", onednn)
        train("torch_gpt", *flags, *(("--stop-at", "30") if name == "halted" else ()), "--out", tmp_path / name)
        if name == "halted":
            train("torch_gpt", "--resume", tmp_path / name)
    ours, mkl = ([row["loss"] for row in read_metrics(tmp_path / name) if "loss" in row] for name in ("onednn", "mkl"))
    assert len(ours) == len(mkl) == 60
    assert max(abs(a - b) for a, b in zip(ours, mkl, strict=True)) <= 1e-5
    whole, halted = (tensors(tmp_path / name, 60, "model.safetensors") for name in ("onednn", "halted"))
    assert all((whole[name] == halted[name]).all() for name in whole)
