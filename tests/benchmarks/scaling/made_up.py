"""Runs of a grid as a queue leaves them, their losses made from a law: nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.scaling.grid import Grid, flops_of, read_grid, sizes_of, tokens_of
from benchmarks.scaling.laws import Law
from gpt_common.config import RunConfig
from tests.gpt_common.training.made_up import SESSION, evaluation, make_run, step

FLOOR = 0.0769
TRUTH = Law(*map(np.array, (FLOOR, 48.0, 0.34, 160.0, 0.42)))
SPEED = 2e9
"""FLOPs per second."""
WATTS = 12.0
TEXT = """preset = "stories-cpu"
widths = [32, 64, 128]
depths = [1, 2]
tokens = [1e6, 2e6, 4e6]
again = [7]
"""


def small_grid(folder: Path, text: str = TEXT) -> Grid:
    """The grid in a file that is written into `folder`."""
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return read_grid(path)


def make_trained(folder: Path, config: RunConfig, loss: float, *, metered: bool = False) -> Path:
    """A run that came to its end with this loss on the whole split."""
    steps = config.train.max_steps
    seconds = flops_of(config) / SPEED
    rows = [
        {**step(steps, dt=seconds / steps, tps=tokens_of(config) / seconds), "loss": loss},
        evaluation(steps, loss + 0.01, floor=FLOOR),
        {"step": steps, "whole_val_loss": loss, "bits_per_byte": loss / 0.69},
    ]
    if metered:
        rows.append({"step": steps, "event": "energy", "joules": WATTS * (seconds + 3), "seconds": seconds + 3})
    power = {"power": {"source": "a meter", "counts": "all of it"}} if metered else {}
    return make_run(folder, rows, config=config, sessions=[{**SESSION, **power}])


def make_grid(
    grid: Grid, folder: Path, *, noise: float = 0.003, metered: bool = False, missing: Sequence[str] = ()
) -> Path:
    """All runs of a grid but those that are missing, by name; returns their folder."""
    rng = np.random.default_rng(5)
    for cell in grid.sweep().cells:
        config = cell.config.with_vocabulary(54)
        loss = float(TRUTH.loss(sizes_of(config.model)[0], tokens_of(config))) * (1 + noise * rng.normal())
        if cell.name not in missing:
            make_trained(folder / cell.name, config, loss, metered=metered)
    return folder
