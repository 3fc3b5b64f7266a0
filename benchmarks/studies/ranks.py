"""`python benchmarks/studies/ranks.py`: what several ranks gain on this machine, and that they change nothing.

The same training by one rank and by several, in turn: torchrun, or a ring as mlx.launch makes it. Each rank has one
thread, so that two ranks on two cores stand against one rank on one. What is compared is the mean time of a step as
the run itself logs it, its first records left out; and the weights at the end, by SHA-256. Beside it stands what
`plan.py --link localhost` expects: from the step of one rank, and what it measures itself, in the same round.
"""

from __future__ import annotations

import hashlib
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.devices.expectation import Expected, expected_here
from benchmarks.devices.links import CPU_MEMORY
from gpt_common.cli import parse
from gpt_common.config import RunConfig
from gpt_common.errors import UserError, WorkFailed, run_main
from gpt_common.training.checkpoint import read_manifest
from gpt_common.training.log.runlog import read_metrics
from gpt_common.training.manifest import MODEL_FILE
from gpt_common.training.ranks.launchers import launch
from gpt_common.words import share

PROG = "python benchmarks/studies/ranks.py"
HOURS = 3.0
"""Of a training, at most."""


@dataclass(frozen=True, kw_only=True)
class RankStudy:
    """Train the same by one rank and by several, in turn; compare the time of a step, and the weights at the end."""

    twin: Literal["torch", "mlx"] = "torch"
    """Which twin trains."""
    ranks: int = 2
    """How many stand against one."""
    rounds: int = 3
    """How often each trains; in turn."""
    mlx_launch: bool = False
    """Start a ring by mlx.launch, whose own threads take a core, and not by one that sleeps meanwhile."""
    flags: str = "--preset stories-cpu --max-steps 200 --grad-accum-steps 2"
    """Of the training, in one word of the shell."""

    def __post_init__(self) -> None:
        if self.ranks < 2 or self.rounds < 1:
            raise UserError("2 ranks at least stand against one, once at least")


@dataclass(frozen=True)
class Trained:
    """What came of one training."""

    seconds: float
    """Of a step."""
    waited: float
    """Of it, in the sum over ranks."""
    losses: tuple[float, ...]
    weights: str
    """SHA-256 of model.safetensors."""
    config: RunConfig
    """As the checkpoint has it: with the vocabulary of the data."""


def train(command: RankStudy, ranks: int, folder: Path) -> Trained:
    """Train once; raises WorkFailed if nothing came of it."""
    argv = [f"{command.twin}_gpt.train", *shlex.split(command.flags), "--out", str(folder), "--no-report"]
    argv += ["--device", "cpu", "--sample-tokens", "0", "--health-gates", "off", "--max-minutes", "0"]
    printed = folder.with_name(f"{folder.name}.txt")
    said = launch(f"{command.twin}_gpt", ranks, argv, printed, HOURS * 3600, quiet=not command.mlx_launch)
    try:
        latest = (folder / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
    except OSError:
        raise WorkFailed(f"{shlex.join(argv)} has left no checkpoint: {said}") from None
    return figures(read_metrics(folder), folder / "checkpoints" / latest)


def figures(rows: Sequence[dict[str, object]], checkpoint: Path) -> Trained:
    """What the log and the last checkpoint of a training say."""
    steps = [row for row in rows if "loss" in row]
    timed = [row for row in steps if isinstance(row["dt"], float)][1:] or steps[-1:]
    return Trained(
        statistics.median(float(str(row["dt"])) for row in timed),
        statistics.median(float(str(row.get("dt_ranks") or 0.0)) for row in timed),
        tuple(float(str(row["loss"])) for row in steps),
        hashlib.sha256((checkpoint / MODEL_FILE).read_bytes()).hexdigest(),
        read_manifest(checkpoint).run_config,
    )


def expectations(many: Sequence[Trained], found: Sequence[Expected]) -> list[str]:
    """What plan.py expects of a step, and how far that is from what was measured, round by round."""
    off = [each.step / several.seconds - 1 for each, several in zip(found, many, strict=True)]
    middle = {
        part: 1000 * statistics.median(getattr(each, part) for each in found)
        for part in ("step", "compute", "update", "copies", "sum", "waits")
    }
    return [
        "plan.py expects {step:.1f} ms: {compute:.1f} of micro-steps, {update:.1f} of the update, {copies:.1f} of "
        "copies, {sum:.1f} of the sum alone, {waits:.1f} slowed and waiting".format(**middle),
        f"that is {100 * statistics.median(off):+.1f} % from the measured step (median of {len(off)}, "
        f"{100 * min(off):+.1f} to {100 * max(off):+.1f} %)",
    ]


def summary(command: RankStudy, one: Sequence[Trained], many: Sequence[Trained]) -> list[str]:
    """The lines that are printed at the end."""
    pairs = [a.seconds / (b.seconds * command.ranks) for a, b in zip(one, many, strict=True)]
    losses = [pair for a, b in zip(one, many, strict=True) for pair in zip(a.losses, b.losses, strict=True)]
    apart = max(abs(mine - theirs) for mine, theirs in losses)
    alike = "the same bytes" if {each.weights for each in one} == {each.weights for each in many} else "other bytes"
    alone, together = (statistics.median(each.seconds for each in side) for side in (one, many))
    waited = statistics.median(each.waited / each.seconds for each in many)
    return [
        f"one rank {1000 * alone:.1f} ms a step, {command.ranks} ranks {1000 * together:.1f} ms, {share(waited)} of it "
        "in sums",
        f"efficiency {statistics.median(pairs):.3f} (median of {len(pairs)}, {min(pairs):.3f} to {max(pairs):.3f})",
        f"losses at most {apart:.1e} apart; weights at the end: {alike}",
    ]


def main(argv: Sequence[str]) -> None:
    """The command."""
    command = parse(RankStudy, argv, prog=PROG)
    one: list[Trained] = []
    many: list[Trained] = []
    found: list[Expected] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(command.rounds):
            turns = [(one, 1), (many, command.ranks)]
            for side, ranks in turns if number % 2 == 0 else turns[::-1]:
                side.append(train(command, ranks, Path(folder) / f"{number}-{ranks}"))
                print(f"{ranks} rank{'s' * (ranks > 1)}: {1000 * side[-1].seconds:.1f} ms a step", flush=True)
            alone = one[-1]
            found.append(expected_here(command.twin, alone.seconds, alone.config, command.ranks, CPU_MEMORY)[0])
            print(f"expected: {1000 * found[-1].step:.1f} ms a step", flush=True)
    print("\n".join([*summary(command, one, many), *expectations(many, found)]))


if __name__ == "__main__":
    run_main(main)
