"""`python benchmarks/run.py --backends mps,mlx,cpu`: how fast does this machine train, with which backend, and how
close is that to what the chip can do?

Knows no framework: every measurement is taken by a worker in a process of its own (worker.py).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.command import Benchmark
from gpt_common.cli import in_our_words, parse
from gpt_common.errors import UserError, run_main

PROG = "python benchmarks/run.py"


def main(argv: Sequence[str]) -> None:
    """The command."""
    from benchmarks.workload import answer_help, base_config, resolve

    answer_help(Benchmark, argv, PROG)
    argv = in_our_words(Benchmark, argv)
    command = parse(Benchmark, argv, prog=PROG)
    _check_packages()
    if command.compare is not None:
        from benchmarks.report.compare import print_comparison

        print_comparison(*command.compare)
        return

    # As Ctrl-C: what was measured is kept, and no worker outlives its parent.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    from benchmarks.benchmark import measure
    from benchmarks.grids import beside_grids
    from gpt_common.machine.hardware import detect

    hardware = detect()
    name, base = base_config(argv, has_gpu=hardware.kind != "cpu")
    command = parse(Benchmark, argv, prog=PROG, default=replace(command, run=base))
    if command.run.adapter.adapts and command.grid is None:
        raise UserError(
            "--adapter: here whole models are trained, and with --bits adapters beside quantised matrices; "
            "benchmarks/studies/adapters.py times LoRA"
        )
    measure(replace(command, run=beside_grids(resolve(command.run), command.grid)), name, hardware)


def _check_packages() -> None:
    """Before minutes of measuring, whether the result can be written."""
    from importlib.util import find_spec

    missing = [name for name in ("jinja2", "matplotlib", "psutil", "pydantic") if find_spec(name) is None]
    if missing:
        raise UserError(f"benchmarks need {', '.join(missing)}: pip install '.[benchmarks]'")


if __name__ == "__main__":
    run_main(main)
