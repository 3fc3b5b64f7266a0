"""How long a sum over ranks on this machine takes: by the twins' own reduction, as a launcher starts them.

As a program, `python -m benchmarks.devices.localhost TWIN NUMBERS FILE`, this file is one of the ranks.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from gpt_common.errors import WorkFailed
from gpt_common.training.ranks.launchers import launch

SUMS, FIRST = 12, 2
"""How often, and how many of the first are left out."""
SECONDS = 300.0
ENGINES = {"torch": "gloo", "mlx": "ring"}


def measured_sum(twin: str, ranks: int, numbers: int) -> tuple[float, str]:
    """Seconds of a sum of so many float32 numbers over ranks of one thread each, and that in words.

    Args:
        twin: `torch` or `mlx`.

    Raises:
        WorkFailed: nothing was measured.
    """
    package = f"{twin}_gpt"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seconds.json"
        argv = ["benchmarks.devices.localhost", package, str(numbers), str(file)]
        said = launch(package, ranks, argv, Path(folder) / "printed", SECONDS, quiet=True)
        if not file.exists():
            raise WorkFailed(f"{ranks} ranks of {package} have added up nothing: {said}")
        seconds = statistics.median(json.loads(file.read_text(encoding="utf-8"))[FIRST:])
    return seconds, f"measured here, {1000 * seconds:.3g} ms by {ENGINES[twin]}, median of {SUMS - FIRST}"


def main(package: str, numbers: int, file: Path) -> None:
    """One rank."""
    from gpt_common.machine.blas import load_fast_blas, wait_passively

    load_fast_blas() if package == "mlx_gpt" else wait_passively()
    framework: Any = import_module("mlx.core" if package == "mlx_gpt" else "torch")
    if package == "mlx_gpt":
        framework.set_default_device(framework.cpu)
    with import_module(f"{package}.distributed").open_ranks(0.0) as ranks:
        flat, taken = framework.ones(numbers), []
        for _ in range(SUMS):
            ranks.meet()  # what is timed is the sum, not who comes late
            ranks.seconds = 0.0
            ranks.summed(flat)
            taken.append(ranks.seconds)
        if ranks.first:
            file.write_text(json.dumps(taken), encoding="utf-8")
        ranks.meet()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
