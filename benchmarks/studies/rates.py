"""`python benchmarks/studies/rates.py`: is the learning rate that a text of one's own gets by the width a good one?

Trains torch models of three widths on a generated text with the rule's rate, a third and three times of it, and prints
the validation loss after so many steps.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from gpt_common.cli import parse
from gpt_common.errors import WorkFailed, run_main
from gpt_common.network.width import rate_for
from gpt_common.training.log.runlog import read_metrics

ROOT = Path(__file__).parents[2]
FACTORS = (1 / 3, 1.0, 3.0)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Compare the learning rate by width with a third and three times of it."""

    widths: tuple[int, ...] = (64, 128, 256)
    """Widths to try, at 2 layers."""
    steps: int = 200
    """Length of each training."""
    seeds: int = 1
    """Trainings for each figure."""


def generated_text(characters: int) -> str:
    """Words of a made-up language: frequent and rare ones (Zipf), each with its own few followers; in sentences."""
    random = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    words = ["".join(random.choice(syllables, random.integers(1, 5))) for _ in range(800)]
    share = 1 / np.arange(1, 801)
    share /= share.sum()
    followers = random.choice(800, (800, 12), p=share)
    word, text, length = 0, [], 0
    while length < characters:
        word = int(followers[word, min(11, random.geometric(0.3) - 1)])
        text.append(words[word] + (".\n" if random.random() < 0.1 else " "))
        length += len(text[-1])
    return "".join(text)


def final_loss(folder: Path, width: int, rate: float, steps: int, seed: int) -> float:
    """Validation loss after a training, nats per character."""
    out = folder / f"{width}-{rate:g}-{seed}"
    command = f"-m torch_gpt.train --preset stories-cpu --dataset own --data-dir {folder} --out {out} --device cpu "
    command += f"--n-embd {width} --block-size 64 --learning-rate {rate} --min-lr {rate / 10} --max-steps {steps} "
    command += f"--warmup-steps {steps // 10} --eval-interval 0 --sample-tokens 1 --seed {seed}"
    threads = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, env={**os.environ, **threads}, capture_output=True, text=True
    )
    if done.returncode:
        raise WorkFailed(f"width {width}, rate {rate:g}: {done.stderr.strip().splitlines()[-1]}")
    return float([row["val_loss"] for row in read_metrics(out) if row.get("val_loss") is not None][-1])


def main(argv: Sequence[str]) -> None:
    """The command."""
    command = parse(Rates, argv, prog="python benchmarks/studies/rates.py")
    from gpt_common.data.prepare import prepare_texts

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "own.txt").write_text(generated_text(400_000), encoding="utf-8")
        prepare_texts([folder / "own.txt"], "own", folder, "char", on_progress=lambda *_: None)
        for width in command.widths:
            rates = [float(f"{factor * rate_for(width):.1e}") for factor in FACTORS]
            losses = [
                np.mean([final_loss(folder, width, rate, command.steps, seed) for seed in range(command.seeds)])
                for rate in rates
            ]
            figures = ", ".join(f"{rate:g}: {loss:.3f}" for rate, loss in zip(rates, losses, strict=True))
            print(f"width {width}, validation loss by learning rate: {figures}", flush=True)


if __name__ == "__main__":
    run_main(main)
