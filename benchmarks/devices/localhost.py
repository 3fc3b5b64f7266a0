"""What ranks on this machine lose: in sums, side by side, and waiting for the slower; started as a launcher does it.

Each rank does the step that it would do in the training, its share of the micro-steps on tokens of no meaning, and then
the twin's own reduction. What a round of both takes longer than both alone is lost: to the others, which want the same
memory and maybe the same core, to whatever else runs, and in each sum to the rank that was slower just then. Work of
another kind would not do: two hardware threads of one core slow down products more than what stands between them.

As a program, `python -m benchmarks.devices.localhost TWIN NUMBERS CONFIG FILE`, this file is one of the ranks.
"""

from __future__ import annotations

import dataclasses
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

from gpt_common.config import RunConfig, load_toml, to_toml
from gpt_common.errors import WorkFailed
from gpt_common.files import write_atomically
from gpt_common.training.ranks.launchers import launch

BLOCKS, FIRST = 9, 1
"""How often all of it is done in turn, and how many of the first are left out."""
BLOCK_SECONDS, MOST = 0.25, 10
"""Of the work in a block, which has one round at least, and so many at most."""
LONGEST = 1.0
"""Seconds of a round's work: of a longer step a part is done, and the whole is taken to lose in proportion."""
SECONDS = 300.0
ENGINES = {"torch": "gloo", "mlx": "ring"}


@dataclass(frozen=True)
class Load:
    """What a rank does between two sums."""

    seconds: float
    """That it takes one rank."""
    config: RunConfig
    """Of the training; its vocabulary is settled."""

    def share(self, ranks: int) -> RunConfig:
        """What one of so many ranks does of a step, or the part of it that takes no longer than a round is to."""
        train = self.config.train
        micro_steps, batch = train.grad_accum_steps // ranks, train.batch_size
        if self.seconds > LONGEST:
            batch = max(1, round(batch * micro_steps * LONGEST / self.seconds))
            micro_steps, batch = max(1, batch // train.batch_size), min(batch, train.batch_size)
        return dataclasses.replace(
            self.config, train=dataclasses.replace(train, grad_accum_steps=micro_steps, batch_size=batch)
        )


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
        config = Path(folder) / "share.toml"
        write_atomically(config, to_toml(load.share(ranks)))
        argv = ["benchmarks.devices.localhost", twin, str(numbers), str(config), str(file)]
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


def main(twin: str, numbers: int, config: RunConfig, file: Path) -> None:
    """One rank."""
    from benchmarks.measuring.backends import BACKENDS
    from benchmarks.measuring.work import Batcher, run_steps
    from benchmarks.measuring.worker import open_work

    work, batcher = open_work(BACKENDS["mlx-cpu" if twin == "mlx" else "cpu"], config), Batcher(config)
    framework: Any = import_module("mlx.core" if twin == "mlx" else "torch")
    with import_module(f"{twin}_gpt.distributed").open_ranks(0.0) as ranks:
        flat = framework.ones(numbers)

        def step() -> float:
            taken = batcher.take(1)
            began = perf_counter()
            run_steps(work, config, taken)
            return perf_counter() - began

        def round_of_all() -> float:
            seconds, began = step(), perf_counter()
            ranks.summed(flat)
            return seconds + perf_counter() - began

        def sum_of_all() -> float:
            ranks.meet()  # what is timed is the sum, not who comes late
            ranks.seconds = 0.0
            ranks.summed(flat)
            return float(ranks.seconds)

        step()  # the first compiles, and fills caches
        worked = float(ranks.of_first(repr(step())))
        rounds = min(max(1, round(BLOCK_SECONDS / worked)), MOST)
        alone: list[list[float]] = []
        together: list[list[float]] = []
        sums: list[list[float]] = []
        for _ in range(BLOCKS):
            ranks.meet()
            if ranks.first:
                alone.append([step() for _ in range(rounds)])
            else:
                sleep(rounds * worked)  # and does not wait: in a ring, that takes a core
            sums.append([sum_of_all() for _ in range(rounds)])
            together.append([round_of_all() for _ in range(rounds)])
        if ranks.first:
            file.write_text(json.dumps({"alone": alone, "together": together, "sums": sums}), encoding="utf-8")
        ranks.meet()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), load_toml(Path(sys.argv[3])), Path(sys.argv[4]))
