"""`python -m benchmarks.macs.present mlx,mps,cpu FILE`: which backends compute here, each asked in its own process."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.benchmark import find_present
from benchmarks.macs.record import UNCLEANED, Here
from benchmarks.measuring.backends import choose_backends
from benchmarks.workload import smallest
from gpt_common.config import load_preset
from gpt_common.errors import run_main
from gpt_common.files import write_atomically


def present(names: str) -> list[Here]:
    """A row for each."""
    config = smallest([load_preset("stories-cpu").with_vocabulary(54)])
    rows = []
    for backend in choose_backends(names):
        row = find_present([backend], config, {"MLX_ENABLE_TF32": "0"})[backend.name]
        device = row.about.device if row.open and row.about else None
        rows.append(Here(backend=backend.name, device=device, reason=row.reason and row.reason[:UNCLEANED]))
    return rows


def main(argv: Sequence[str]) -> None:
    """Ask, and write."""
    names, path = argv
    # As Ctrl-C: no worker outlives its parent.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rows = [row.model_dump() for row in present(names)]
    for row in rows:
        print(f"{row['backend']}: {row['device'] or row['reason']}")
    write_atomically(Path(path), json.dumps(rows))


if __name__ == "__main__":
    run_main(main, sys.argv[1:])
