"""What a climb shows on the console and writes down."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from convert.parity.climb import Climb
from convert.parity.compare import Measurement
from convert.parity.gates import MEASURED
from convert.parity.ladder import Report, Result
from gpt_common.config import to_dict
from gpt_common.files import write_atomically
from gpt_common.machine.backends import Backend
from gpt_common.machine.hardware import detect
from gpt_common.machine.provenance import versions
from gpt_common.progress import Progress

HEADER = f"{'rung':<25}{'error':>9}{'gate':>9}{'margin':>8}{'time':>8}  worst tensor"


class Display:
    """One line per rung as it ends; within `progress`, on a terminal also what is under way."""

    def __init__(self, climb: Climb, missing: dict[str, str]) -> None:
        self.climb = climb
        self.console = Console(highlight=False, soft_wrap=True)
        self.progress = Progress(plain_lines=False)
        model = climb.config.model
        # `mlx` is the best device that MLX has, which must be said where it is no GPU.
        backends = [
            f"{backend.name} (its CPU: MLX finds neither Metal nor CUDA)"
            if (backend.name, backend.device) == ("mlx", "cpu")
            else backend.name
            for backend in climb.backends
            if backend.name != climb.reference
        ]
        self.console.print(f"{', '.join(backends)} against {climb.reference} and float64, class {climb.precision}")
        self.console.print(
            f"model: {model.n_layer} layers x {model.n_embd}, {model.n_head} heads, block {model.block_size}, "
            f"vocabulary {model.vocab_size}"
        )
        for name, reason in missing.items():
            self.console.print(f"not here: {name} ({reason})")
        for line in unmeasured(climb):
            self.console.print(f"note: {line}")
        self.console.print(HEADER)

    def result(self, result: Result) -> None:
        """A rung has ended."""
        self.console.print(line(result), style=None if result.passed else "bold red", markup=False)

    def mutants(self, rejections: dict[str, tuple[str, str | None]]) -> None:
        """Which rung rejects which wrong twin."""
        for name, (wanted, found) in rejections.items():
            self.console.print(f"mutant {found or 'PASSES':<4} (by {wanted} at the latest)  {name}", markup=False)

    def verdict(self, report: Report) -> None:
        """The last line of a climb that reached the top."""
        times = [r.times.error for r in report.results if r.times and r.rung.name != "L7"]
        ratio = f"; MLX is never further from float64 than {max(times):.1f} times PyTorch" if times else ""
        seconds = sum(result.seconds for result in report.results)
        climbed = sum(bool(result.measurements) for result in report.results)
        self.console.print(f"parity holds on {climbed} rungs in {seconds:.0f} s{ratio}")


def line(result: Result) -> str:
    """One rung in a line."""
    name = f"{result.rung.name:<4} {result.rung.title}"
    worst = result.worst
    if worst is None:
        return f"{name:<25}{'-':>9}{'-':>9}{'-':>8}{result.seconds:>7.1f}s  {result.note or 'no gate in this class'}"
    margin = f"{worst.gate / worst.error:.1f}x" if worst.error and worst.gate else "-"
    figures = f"{worst.error:>9.1e}{worst.gate:>9.0e}{margin:>8}{result.seconds:>7.1f}s"
    state = f", {worst.state}" if worst.state else ""
    state += f", {worst.noise:.1e} from one unit in the last place" if worst.noise else ""
    failed = "" if result.passed else "FAILS: "
    note = f"; {result.note}" if result.note else ""
    return f"{name:<25}{figures}  {failed}{worst.tensor} ({worst.between}{state}){note}"


def unmeasured(climb: Climb) -> list[str]:
    """Backends on which the gates of this class have never been tried."""
    return [
        f"the gates of class {climb.precision} were never measured on {backend.name}: they come from a Linux CPU"
        for backend in climb.backends
        if (climb.precision, _measured_as(backend)) not in MEASURED
    ]


def _measured_as(backend: Backend) -> str:
    return (
        "mlx-cpu" if (backend.framework, backend.device) == ("mlx", "cpu") else backend.name.removesuffix("-compiled")
    )


def heading(command: str) -> dict[str, Any]:
    """What every report begins with."""
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "os": platform.platform(),
        "chip": detect().chip,
    }


def as_dict(
    report: Report,
    *,
    command: str,
    missing: dict[str, str],
    failure: str | None,
    mutants: dict[str, tuple[str, str | None]],
) -> dict[str, Any]:
    """Everything that was measured, for JSON."""
    climb = report.climb
    return {
        **heading(command),
        "class": climb.precision,
        "backends": [
            dataclasses.asdict(backend) for backend in sorted(climb.backends, key=lambda b: b.name != climb.reference)
        ],
        "absent": missing,
        "notes": unmeasured(climb),
        "configuration": to_dict(climb.config),
        "passed": report.failed is None,
        "failure": failure,
        "rungs": [
            {
                "name": result.rung.name,
                "title": result.rung.title,
                "passed": result.passed,
                "seconds": round(result.seconds, 2),
                "note": result.note,
                "worst": result.worst and _plain(result.worst),
                "measurements": [_plain(m) for m in result.measurements],
            }
            for result in report.results
        ],
        "curves": climb.curves,
        "mutants": [
            {"name": name, "expected": wanted, "rejected_by": found} for name, (wanted, found) in mutants.items()
        ],
    }


def _plain(m: Measurement) -> dict[str, Any]:
    # JSON knows neither infinity nor NaN.
    return {**dataclasses.asdict(m), "error": m.error if math.isfinite(m.error) else None, "passed": m.passed}


def write(report: dict[str, Any], json_path: Path | None, html_path: Path | None) -> None:
    """The report as JSON and as a page, where asked for."""
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(json_path, json.dumps(report, indent=1) + "\n")
    if html_path is not None:
        from convert.parity.report.page import render

        html_path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(html_path, render(report))
