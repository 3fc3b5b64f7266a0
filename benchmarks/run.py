"""`python benchmarks/run.py --backends mps,mlx,cpu`: how fast does this machine train, with which backend, and how
close is that to what the chip can do?

Knows no framework: every measurement is taken by a worker in a process of its own (worker.py).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gpt_common.cli import parse
from gpt_common.config import RunConfig
from gpt_common.errors import Stopped, UserError, WorkFailed, run_main

PROG = "python benchmarks/run.py"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Measure training on the backends present here, one process each, and compare them.

    Backends: mlx, mlx-cpu, mps, mps-compiled, cpu, cpu-compiled, cuda, cuda-compiled. Every field of a configuration
    is a flag too. The default shape is nanoGPT's for Shakespeare by characters: the large one on a GPU, the small one
    on a CPU; dtype auto means float32, so that all rows compute the same.
    """

    backends: str = "mlx,mps,cpu"
    """What to measure, with commas; what is absent becomes a row that says why."""
    peers: str = ""
    """Other people's implementations with the same work and weights: transformers, mlx-lm."""
    preset: str | None = None
    """Measure the shape of this preset."""
    config: Path | None = None
    """Measure the shape in this TOML file."""
    out: Path = Path("results")
    """Folder of the result: JSON, plots, page."""
    rounds: int = 6
    """Processes per backend. With fewer than 6 nothing is claimed."""
    seconds: float = 1.5
    """Length of each of the two series in a process."""
    cooldown: float = 1.0
    """Seconds of rest before each process; a Mac that is hot rests until it is not."""
    parity: bool = True
    """Time only what passes the parity ladder up to its gradients; without, rows are marked unverified."""
    sweep: str | None = None
    """Measure several values of a field: n_layer=2,4,8 (or n_embd, block_size, batch_size, ...)."""
    sustained: bool = False
    """Also train for minutes without a pause, to see whether the speed holds."""
    sustained_minutes: float = 10.0
    """How long."""
    generation: bool = False
    """Also measure prompt processing and generated tokens per second."""
    overhead: bool = False
    """Also measure what the trainer around the step costs: data, logging, progress."""
    energy: bool = True
    """Measure energy, where a source is found."""
    compare: tuple[Path, Path] | None = None
    """Measure nothing: compare two results of the same work, of two machines or versions."""
    run: RunConfig = field(default_factory=RunConfig)
    """The configuration; every field is a flag."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"rounds is {self.rounds}: it must be at least 1")
        for name in ("seconds", "sustained_minutes"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be above 0")
        if self.cooldown < 0:
            raise UserError(f"cooldown is {self.cooldown}: it must not be negative")


def main(argv: Sequence[str]) -> None:
    """The command."""
    command = parse(Benchmark, argv, prog=PROG)
    _check_packages()
    if command.compare is not None:
        from benchmarks.report.compare import print_comparison

        print_comparison(*command.compare)
        return

    # As Ctrl-C: what was measured is kept, and no worker outlives its parent.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    from benchmarks.benchmark import measure
    from benchmarks.workload import base_config, settle
    from gpt_common.machine.hardware import detect

    hardware = detect()
    has_gpu = hardware.kind == "cuda" or hardware.kind == "apple"
    name, base = base_config(command.preset, command.config, has_gpu=has_gpu)
    command = parse(Benchmark, argv, prog=PROG, default=replace(command, run=base))
    outcome = measure(replace(command, run=settle(command.run)), name, hardware)
    if outcome.interrupted:
        raise Stopped(2)
    if not outcome.measured:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in outcome.reasons.items())
        kind = UserError if outcome.all_absent else WorkFailed
        raise kind(f"nothing could be measured. {reasons}")


def _check_packages() -> None:
    """Before minutes of measuring, whether the result can be written."""
    from importlib.util import find_spec

    missing = [name for name in ("jinja2", "jsonschema", "matplotlib", "psutil") if find_spec(name) is None]
    if missing:
        raise UserError(f"benchmarks need {', '.join(missing)}: pip install 'mlx-torch-gpt[benchmarks]'")


if __name__ == "__main__":
    run_main(main)
