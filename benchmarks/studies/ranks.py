"""`python benchmarks/studies/ranks.py`: what several ranks gain on this machine, and that they change nothing.

The same training by one rank and by several, in turn, as anyone would start it: torchrun, mlx.launch. Each rank has one
thread, so that two ranks on two cores stand against one rank on one. What is compared is the mean time of a step as
the run itself logs it, its first records left out; and the weights at the end, by SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parents[2]))

from gpt_common.cli import parse
from gpt_common.errors import UserError, WorkFailed, run_main
from gpt_common.training.log.runlog import read_metrics
from gpt_common.words import share

PROG = "python benchmarks/studies/ranks.py"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class RankStudy:
    """Train the same by one rank and by several, in turn; compare the time of a step, and the weights at the end."""

    twin: Literal["torch", "mlx"] = "torch"
    """Which twin trains."""
    ranks: int = 2
    """How many stand against one."""
    rounds: int = 3
    """How often each trains; in turn."""
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


def launcher(twin: str, ranks: int) -> list[str]:
    """What starts so many ranks of a twin."""
    module = ["-m", f"{twin}_gpt.train"]
    if ranks == 1:
        return [sys.executable, *module]
    if twin == "torch":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *module]
    launch = "from mlx._distributed_utils.launch import main; main()"
    return [sys.executable, "-c", launch, "-n", str(ranks), "--", sys.executable, *module]


def train(command: RankStudy, ranks: int, folder: Path) -> Trained:
    """Train once; raises WorkFailed if nothing came of it."""
    argv = [*launcher(command.twin, ranks), *shlex.split(command.flags), "--out", str(folder), "--no-report"]
    argv += ["--device", "cpu", "--sample-tokens", "0", "--health-gates", "off", "--max-minutes", "0"]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **threads, "PYTHONPATH": path}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    try:
        latest = (folder / "checkpoints" / "latest").read_text(encoding="utf-8").strip()
    except OSError:
        raise WorkFailed(f"{shlex.join(argv)} has left no checkpoint: {done.stderr.strip()[-300:]}") from None
    return figures(read_metrics(folder), folder / "checkpoints" / latest / "model.safetensors")


def figures(rows: Sequence[dict[str, object]], weights: Path) -> Trained:
    """What the log and the last checkpoint of a training say."""
    steps = [row for row in rows if "loss" in row]
    timed = [row for row in steps if isinstance(row["dt"], float)][1:] or steps[-1:]
    return Trained(
        statistics.median(float(str(row["dt"])) for row in timed),
        statistics.median(float(str(row.get("dt_ranks") or 0.0)) for row in timed),
        tuple(float(str(row["loss"])) for row in steps),
        hashlib.sha256(weights.read_bytes()).hexdigest(),
    )


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
    with tempfile.TemporaryDirectory() as folder:
        for number in range(command.rounds):
            turns = [(one, 1), (many, command.ranks)]
            for side, ranks in turns if number % 2 == 0 else turns[::-1]:
                side.append(train(command, ranks, Path(folder) / f"{number}-{ranks}"))
                print(f"{ranks} rank{'s' * (ranks > 1)}: {1000 * side[-1].seconds:.1f} ms a step", flush=True)
    print("\n".join(summary(command, one, many)))


if __name__ == "__main__":
    run_main(main)
