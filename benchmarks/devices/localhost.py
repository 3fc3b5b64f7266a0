"""What ranks on this machine lose: in sums, side by side, and waiting for the slower; started as a launcher does it.

The sum is the twin's own reduction. Beside it stands work that is to a training what a scale model is: products and
passes over memory, as many as take one rank, while the others sleep, the time from a sum of a step to the next. What a
round of work and sum takes longer than both alone is lost: to the others, which want the same memory, to whatever else
wants a core, and in each sum to the rank that was slower just then.

As a program, `python -m benchmarks.devices.localhost TWIN NUMBERS SECONDS ROWS WIDTH FILE`, this file is one of the
ranks.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from gpt_common.errors import WorkFailed
from gpt_common.training.ranks.launchers import launch

BLOCKS, FIRST = 9, 1
"""How often all of it is done in turn, and how many of the first are left out."""
BLOCK_SECONDS, MOST = 0.25, 10
"""Of the work in a block, which has one round at least, and so many at most."""
LONGEST = 1.0
"""Seconds of a round's work: a longer step is taken to lose in proportion, which is rather too much."""
NUMBERS = 1 << 22
"""That a product leaves at most: beyond every cache, and soon done."""
SECONDS = 300.0
ENGINES = {"torch": "gloo", "mlx": "ring"}


@dataclass(frozen=True)
class Load:
    """What a rank does between two sums."""

    seconds: float
    """That it takes one rank."""
    rows: int
    """Tokens of a micro-step."""
    width: int
    """Of the model."""


@dataclass(frozen=True)
class Losses:
    """What ranks on this machine lose in a step, in seconds, and in words."""

    sum: float
    """That a sum takes when all come at once."""
    waits: float
    """That a step takes longer than one rank's work and that sum."""
    sum_basis: str
    waits_basis: str


def measured(twin: str, ranks: int, numbers: int, load: Load) -> Losses:
    """What ranks of one thread each lose between two sums of so many float32 numbers, and in them.

    Args:
        twin: `torch` or `mlx`.

    Raises:
        WorkFailed: nothing was measured.
    """
    package = f"{twin}_gpt"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "seconds.json"
        what = (numbers, min(load.seconds, LONGEST), load.rows, load.width)
        argv = ["benchmarks.devices.localhost", package, *map(str, what), str(file)]
        said = launch(package, ranks, argv, Path(folder) / "printed", SECONDS, quiet=True)
        if not file.exists():
            raise WorkFailed(f"{ranks} ranks of {package} have added up nothing: {said}")
        found = json.loads(file.read_text(encoding="utf-8"))
    return losses(ENGINES[twin], found["alone"], found["together"], found["sums"], load.seconds)


def losses(
    engine: str,
    alone: Sequence[Sequence[float]],
    together: Sequence[Sequence[float]],
    sums: Sequence[Sequence[float]],
    seconds: float,
) -> Losses:
    """What the rounds of each block say.

    Each block's own means are compared: what else runs on the machine comes and goes.

    Args:
        alone: (blocks, rounds) seconds of one rank's work while the others sleep.
        together: (blocks, rounds) of all ranks' work and the sum.
        sums: (blocks, rounds) of the sum, which all begin at once.
        seconds: of the work in a step.
    """
    total = statistics.median(each for block in sums[FIRST:] for each in block)
    ones = [statistics.mean(block) for block in alone[FIRST:]]
    alls = [statistics.mean(block) for block in together[FIRST:]]
    longer = statistics.median(both - one for both, one in zip(alls, ones, strict=True)) - total
    worked = statistics.median(ones)
    return Losses(
        total,
        max(0.0, longer) * seconds / worked,
        f"measured here, {1000 * total:.3g} ms by {engine}, median of {sum(map(len, sums[FIRST:]))}",
        f"measured here, {1000 * max(0.0, longer):.3g} ms in rounds of a sum and of work that takes one rank "
        f"{1000 * worked:.3g} ms, beyond both alone, median of {len(ones)} blocks; a step loses in proportion",
    )


def main(package: str, numbers: int, load: Load, file: Path) -> None:
    """One rank."""
    from gpt_common.machine.blas import load_fast_blas, wait_passively

    load_fast_blas() if package == "mlx_gpt" else wait_passively()
    framework: Any = import_module("mlx.core" if package == "mlx_gpt" else "torch")
    if package == "mlx_gpt":
        framework.set_default_device(framework.cpu)
    with import_module(f"{package}.distributed").open_ranks(0.0) as ranks:
        flat, work = framework.ones(numbers), Work(framework, load)
        if not ranks.first:
            sleep(BLOCK_SECONDS)  # and does not wait: in a ring, that takes a core
        turns = int(ranks.of_first(str(work.turns() if ranks.first else 0)))
        rounds = min(max(1, round(BLOCK_SECONDS / load.seconds)), MOST)
        alone: list[list[float]] = []
        together: list[list[float]] = []
        sums: list[list[float]] = []

        def summed() -> float:
            ranks.seconds = 0.0
            ranks.summed(flat)
            return float(ranks.seconds)

        def round_of_all() -> float:
            began = perf_counter()
            work.do(turns)
            ranks.summed(flat)
            return perf_counter() - began

        def sum_of_all() -> float:
            ranks.meet()  # what is timed is the sum, not who comes late
            return summed()

        for _ in range(BLOCKS):
            ranks.meet()
            if ranks.first:
                alone.append([work.do(turns) for _ in range(rounds)])
            else:
                sleep(rounds * load.seconds)
            sums.append([sum_of_all() for _ in range(rounds)])
            together.append([round_of_all() for _ in range(rounds)])
        if ranks.first:
            file.write_text(json.dumps({"alone": alone, "together": together, "sums": sums}), encoding="utf-8")
        ranks.meet()


class Work:
    """Products and passes over memory, in either framework: a feed-forward layer of ones, which leaves ones.

    However often: its activation, x sigmoid(-x), makes what is a little off less so.
    """

    def __init__(self, framework: Any, load: Load) -> None:
        rows, inner = max(1, min(load.rows, NUMBERS // (4 * load.width))), 4 * load.width
        self.framework, self.seconds = framework, load.seconds
        self.x_ND = framework.ones((rows, load.width))
        self.up_DF = framework.ones((load.width, inner)) / load.width
        self.down_FD = framework.ones((inner, load.width)) / (inner * float(framework.sigmoid(-framework.ones(1))))

    def layer(self, x_ND: Any) -> Any:
        """(N, D) -> (N, D)."""
        h_NF = x_ND @ self.up_DF
        return (h_NF * self.framework.sigmoid(-h_NF)) @ self.down_FD

    def do(self, turns: int) -> float:
        """Do it so often; returns the seconds."""
        began = perf_counter()
        x_ND = self.x_ND
        for _ in range(turns):
            x_ND = self.layer(x_ND)
        float(x_ND[0, 0])  # MLX computes what is asked for
        return perf_counter() - began

    def turns(self) -> int:
        """How often it is to be done to take the seconds, on the machine as it is."""
        self.do(1)
        done, taken = 0, 0.0
        while taken < BLOCK_SECONDS:
            done, taken = done + 1, taken + self.do(1)
        return max(1, round(self.seconds * done / taken))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Load(float(sys.argv[3]), *map(int, sys.argv[4:6])), Path(sys.argv[6]))
