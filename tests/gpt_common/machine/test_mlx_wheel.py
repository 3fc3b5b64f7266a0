"""Which MLX a Mac has, and what its owner is told of it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from gpt_common.machine import hardware, mlx_wheel, provenance
from gpt_common.machine.mlx_wheel import advice, built_for
from mlx_gpt import device

GPU: Any = SimpleNamespace(type=mx.gpu)


def wheel(tag: str) -> Any:
    return lambda _: SimpleNamespace(read_text=lambda _: f"Wheel-Version: 1.0\nGenerator: x\nTag: {tag}\n")


@pytest.mark.parametrize(
    ("tag", "found"),
    [
        ("py3-none-macosx_14_0_arm64", (14, 0)),
        ("py3-none-macosx_26_2_arm64", (26, 2)),
        ("py3-none-manylinux_2_35_x86_64", None),
        ("", None),
    ],
)
def test_the_system_that_a_wheel_was_built_for(
    tag: str, found: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx_wheel, "distribution", wheel(tag))
    assert built_for() == found
    assert provenance.versions().get("mlx built for") == (found and "macOS {}.{}".format(*found))


def test_where_there_is_no_such_wheel_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> None:
        raise PackageNotFoundError

    monkeypatch.setattr(mlx_wheel, "distribution", absent)
    assert built_for() is None
    assert "mlx built for" not in provenance.versions()


@pytest.mark.parametrize(
    ("chip", "built", "macos", "words"),
    [
        ("Apple M1", (15, 0), "15.3", ""),
        ("Apple M2 Ultra", (14, 0), "26.2", ""),
        ("Apple M4 Pro", (26, 2), "26.0", ""),
        ("Apple M5", (15, 0), "26.2", "built for macOS 15 and leaves the matrix units of an M5 idle"),
        ("Apple M5 Max", (14, 0), "15.5", "pip install --force-reinstall mlx mlx-metal"),
        ("Apple M5 Max", (26, 2), "26.1", "macOS 26.1 does not offer yet"),
        ("Apple M5 Max", (26, 2), "26.2", ""),
        ("Apple M5 Max", (26, 2), "27.0", ""),
        ("Apple M10", (15, 0), "30.0", "an M10 idle"),
        ("Apple M5", None, "26.2", ""),
        ("Apple M5", (26, 2), "", ""),
        ("Apple M1 (Virtual)", (15, 0), "15.3", ""),
    ],
)
def test_what_the_owner_of_a_mac_is_told(chip: str, built: Any, macos: str, words: str) -> None:
    said = advice(chip, built, macos)
    assert (said is None) == (not words)
    assert words in (said or "")


def test_the_console_says_it_and_a_cpu_is_not_concerned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "Apple M5"})
    monkeypatch.setattr(device, "built_for", lambda: (15, 0))
    monkeypatch.setattr(device, "macos_version", lambda: "26.2")
    assert "matrix units of an M5" in str(device.compute_device(GPU, mx.bfloat16).advice)
    assert device.compute_device(mx.Device(mx.cpu), mx.float32).advice is None


def test_the_system_s_own_word_on_its_version_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def said(*command: str) -> str:
        asked.append(command)
        return "26.2\n"

    monkeypatch.setattr(hardware, "_output", said)
    assert hardware.macos_version() == "26.2"
    assert asked == [("sw_vers", "-productVersion")]
    monkeypatch.setattr(hardware, "_output", lambda *_: "")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.3", ("", "", ""), "arm64"))
    assert hardware.macos_version() == "15.3"
