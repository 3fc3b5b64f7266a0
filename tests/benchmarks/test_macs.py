"""Seven simulated Macs, from what their commands print to what a plan says of them."""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import gpu_memory
from benchmarks.gpu_memory import limit_here, usable_memory
from benchmarks.plan import main
from gpt_common.machine import mlx_wheel
from gpt_common.machine.awake import awake
from gpt_common.machine.hardware import detect, probably_has_gpu, published_peak, thermal_pressure
from gpt_common.machine.mlx_wheel import advice, built_for
from gpt_common.machine.peaks import apple_bandwidth, estimated_peak
from tests.macs import MACS, Mac, simulate

NO_METAL = {"MLX's device_info": "raise SystemExit(1)", "torch.mps.recommended_max_memory": "print('none')"}


@pytest.fixture(params=MACS)
def mac(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mac:
    """Each of them, with its MLX; Metal answers nobody until a test lets it."""
    found = MACS[request.param]
    simulate(found, tmp_path, monkeypatch)
    wheel = SimpleNamespace(read_text=lambda _: f"Wheel-Version: 1.0\nTag: py3-none-{found.wheel}\n")
    monkeypatch.setattr(mlx_wheel, "distribution", lambda _: wheel)
    monkeypatch.setattr(gpu_memory, "QUESTIONS", NO_METAL)
    return found


def test_what_it_is(mac: Mac) -> None:
    assert detect() == replace(mac.hardware, chip=mac.chip, cpu=mac.chip)
    assert probably_has_gpu()
    assert thermal_pressure() == "nominal"


def test_peaks_are_derived_or_unknown_and_an_estimate_is_no_peak(mac: Mac) -> None:
    found = detect()
    for dtype, tflops in mac.tflops.items():
        peak = published_peak(found, "gpu", dtype)
        assert (peak and peak.tflops) == pytest.approx(tflops)
        assert published_peak(found, "cpu", dtype) is None
    estimate = estimated_peak(found.chip, found.gpu_cores, "bfloat16")
    assert (estimate and estimate.tflops) == mac.estimate
    assert estimate is None or "an estimate, no specification" in estimate.source


def test_bandwidth(mac: Mac) -> None:
    found = apple_bandwidth(mac.chip, detect().gpu_cores)
    assert (found and found[0]) == (mac.bandwidth and mac.bandwidth * 1e9)


def test_the_limit_is_the_owner_s_then_metal_s_then_the_rule(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    found = detect()
    owners = (180_000 << 20, "the limit that is set on this Mac, sysctl iogpu.wired_limit_mb") if mac.wired_mb else None
    assert limit_here() == owners
    usable, why = usable_memory(found, limit=limit_here())
    assert usable == pytest.approx(mac.usable_gib * 2**30, abs=1)
    assert owners or "github.com/ggml-org/llama.cpp/discussions/2182" in why
    monkeypatch.setattr(gpu_memory, "QUESTIONS", {**NO_METAL, "somebody": "print(5 << 30)"})
    metals = (5 << 30, "what Metal recommends on this Mac, as somebody says")
    assert usable_memory(found, limit=limit_here()) == (owners or metals)
    assert usable_memory(found, "cpu", limit_here())[0] == int(0.9 * (mac.memory_gib << 30))


def test_what_is_said_of_its_mlx(mac: Mac) -> None:
    said = advice(detect().chip, built_for(), detect().os) or ""
    assert bool(said) == bool(mac.warning)
    assert mac.warning in said


def test_it_is_kept_awake(mac: Mac, tmp_path: Path) -> None:
    assert mac
    said: list[str] = []
    kept = tmp_path / "kept-awake"
    with awake(said.append):
        for _ in range(500):
            if kept.exists() and kept.read_text():
                break
            time.sleep(0.01)
    assert kept.read_text() == f"-i -w {os.getpid()}\n"
    assert len(said) == 1


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_plan_of_this_very_mac_names_the_source_of_every_figure(
    mac: Mac, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_memory, "QUESTIONS", {"MLX's device_info": "print(6 << 30)"})
    main(["--preset", "gpt2"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    said = words(text)
    assert mac.chip in said
    owner = "fits: the limit that is set on this Mac, sysctl iogpu.wired_limit_mb"
    metal = "fits: what Metal recommends on this Mac, as MLX's device_info says"
    assert (owner if mac.wired_mb else metal) in said
    assert f"fits in {mac.usable_gib if mac.wired_mb else 6:.2f} GiB" in said
    assert "MFU: assumed, 34.3% as published for mlx-examples' transformer on an M2 Max, there float32" in said
    assert "MFU: assumed, 37.2% as published for nanoGPT on MPS on an M3 Max: blog post" in said
    assert ("peak: derived" in said) == (mac.tflops["float32"] is not None)
    assert ("peak: an estimate, no specification" in said) == (mac.estimate is not None)
    assert ("measure it: python benchmarks/run.py" in said) == (mac.estimate is not None)
    assert ("decode: an upper bound" in said) == (mac.bandwidth is not None)
    assert mac.bandwidth is None or f"{mac.bandwidth:g} GB/s (" in said
    assert not re.search(r"\s-\s", text)


@pytest.mark.parametrize(
    "argv",
    [["--memory", "24GB"], ["--chip", "M4"], ["--device", "cpu"]],
)
def test_this_mac_is_not_asked_of_another_machine(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    simulate(MACS["M2 Ultra"] if argv[0] == "--memory" else MACS["M3 Max"], tmp_path, monkeypatch)
    monkeypatch.setattr(gpu_memory, "limit_here", lambda: pytest.fail("asked"))
    main(["--preset", "gpt2", *argv])
    said = words(capsys.readouterr().out)
    assert "on this Mac" not in said
    assert ("two thirds of memory" in said) == (argv[0] != "--device")
