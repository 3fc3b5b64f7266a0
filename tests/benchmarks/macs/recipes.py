"""Self-tests without testing: made-up persons, jobs and records."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.macs.parts import shortened
from benchmarks.macs.personal import Personal
from benchmarks.macs.record import (
    Benchmark,
    Canary,
    Change,
    Checkout,
    Climb,
    Here,
    Machine,
    Part,
    Rung,
    SelfTest,
    Training,
    write_record,
)
from benchmarks.macs.running import Job
from tests.benchmarks.recipes import HARDWARE, make_result

JANE = Personal(
    users=frozenset({"jane", "Jane Doe"}),
    hosts=frozenset({"Janes-MacBook-Pro.local", "Janes-MacBook-Pro"}),
    homes=frozenset({"/Users/jane"}),
    folders={"/Users/jane/our gpt": ".", "/private/var/folders/xy/T/selftest-1": "SCRATCH"},
)


def job(code: str, name: str = "made up", *, limit: float = 60.0, read: Callable[[], str] = str, **more: Any) -> Job:
    """A part that is a line of Python."""
    return Job(name, [("-c", code)], limit, read, **more)


@functools.cache
def benchmark() -> Benchmark:
    """A made-up session takes a second."""
    return shortened(make_result())


def record(**changed: Any) -> SelfTest:
    """What an M3 Max might have sent."""
    sha = "0123456789abcdef" * 4
    rungs = [
        Rung(name="L0", passed=True, error=None, gate=None, tensor=None),
        Rung(name="L5", passed=True, error=5e-6, gate=1e-5, tensor="h.0.attn.c_attn.weight"),
    ]
    backends = (("mlx", "gpu"), ("mps", "mps"), ("cpu", "cpu"))
    fields: dict[str, Any] = {
        "created": "2026-11-26T12:00:00+00:00",
        "seconds": 521.0,
        "passed": True,
        "interrupted": False,
        "checkout": Checkout(
            commit="0123456789abcdef" * 2 + "01234567",
            changed=False,
            source_sha256=sha,
            packages=57,
            packages_sha256=sha,
            wheels={"mlx-metal": "py3-none-macosx_15_0_arm64"},
        ),
        "machine": Machine(
            hardware=HARDWARE,
            versions={"python": "3.12.8", "mlx": "0.32.4", "torch": "2.14.1", "mlx built for": "macOS 15.0"},
            python_platform="macosx-11.0-arm64",
            matrix_units=False,
            advice=None,
        ),
        "backends": [Here(backend=name, device=device, reason=None) for name, device in backends],
        "climbs": [Climb(backend=name, passed=True, rungs=rungs) for name in ("mlx", "mps")],
        "canaries": [Canary(backend="mlx", name="long sums", verdict="right", error=1e-7, gate=1e-5)],
        "trainings": [Training(twin="mlx_gpt", device="gpu", losses=[4.0, 3.5])],
        "change": Change(after=20, before_difference=1e-6, after_difference=2e-6, gate=1e-4),
        "benchmark": benchmark(),
        "parts": [Part(name="machine", status="passed", seconds=1.0, commands=["python -m x"], words=None)],
    }
    return SelfTest(**{**fields, **changed})


def failed(name: str, words: str) -> Part:
    """A part that went wrong."""
    return Part(name=name, status="failed", seconds=1.0, commands=[], words=words)


def write(folder: Path, name: str, found: SelfTest) -> Path:
    """As an owner of a Mac would."""
    write_record(folder / name, found, JANE)
    return folder / name
