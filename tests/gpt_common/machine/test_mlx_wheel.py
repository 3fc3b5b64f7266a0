"""Which MLX a Mac has, and what its owner is told of it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpt_common.config import Device, DType
from gpt_common.machine import hardware, mlx_wheel, provenance
from gpt_common.machine.device import ComputeDevice
from gpt_common.machine.hardware import Hardware
from gpt_common.machine.mlx_wheel import advice, built_for, matrix_units
from gpt_common.training import opening
from gpt_common.training.command_line import parse_training
from gpt_common.training.report import beginning


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
        ("Apple M5 Max", (26, 2), "26.1.1", "macOS 26.1.1 does not offer yet"),
        ("Apple M5 Max", (26, 2), "27.0", ""),
        ("Apple M10", (15, 0), "30.0", "an M10 idle"),
        ("Apple M5", None, "26.2", ""),
        ("Apple M5", (26, 2), "", ""),
        ("Apple M1 (Virtual)", (15, 0), "15.3", ""),
    ],
)
def test_what_the_owner_of_a_mac_is_told(chip: str, built: Any, macos: str, words: str) -> None:
    said = advice(chip, built, f"macOS {macos}".strip())
    assert (said is None) == (not words)
    assert words in (said or "")


@pytest.mark.parametrize(
    ("device", "dtype", "told"), [("gpu", "bfloat16", True), ("cpu", "float32", False), ("mps", "float32", False)]
)
def test_the_console_says_it_and_a_cpu_and_pytorch_are_not_concerned(
    device: Device, dtype: DType, told: bool, stories_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mac = Hardware(chip="Apple M5", kind="apple", os="macOS 26.2", memory_bytes=32 << 30)
    monkeypatch.setattr(opening, "detect", lambda: mac)
    monkeypatch.setattr(beginning, "built_for", lambda: (15, 0))
    argv = ["--preset", "stories-cpu", "--data-dir", str(stories_dir), "--out", str(tmp_path / "run")]
    opened = opening.open_run(parse_training(argv, prog="x", has_gpu=True)[0])
    found = ComputeDevice(device, "made up", dtype, True, lambda: None, lambda: 0)
    said = "\n".join(beginning.opening_lines(opened, found, timed=False))
    opened.hold.discard_unused()
    opened.hold.release()
    assert ("matrix units of an M5" in said) is told


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


@pytest.mark.parametrize(
    ("chip", "system", "built", "used"),
    [
        ("Apple M4 Max", "macOS 26.2", (26, 2), False),
        ("Apple M5", "macOS 26.2", (26, 2), True),
        ("Apple M5", "macOS 26.1", (26, 2), False),
        ("Apple M5", "macOS 26.3", (15, 0), False),
        ("Apple M5", "macOS 26.3", None, None),
        ("AMD EPYC", "Debian", None, None),
    ],
)
def test_matrix_units(chip: str, system: str, built: tuple[int, int] | None, used: bool | None) -> None:
    assert matrix_units(chip, built, system) is used
