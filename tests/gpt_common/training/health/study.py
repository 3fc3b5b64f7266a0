"""`python -m tests.gpt_common.training.health.study`: healthy runs of every kind, in which nothing may ring.

The presets that run on a CPU with many seeds, in both twins, whole and taken up half-way; the same in bfloat16; trained
on in other text; on texts of a few hundred letters; and larger presets for some steps. What rings is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpt_common.data.__main__ import main as data_command
from gpt_common.errors import Stopped, UserError, WorkFailed
from gpt_common.machine.blas import load_fast_blas
from gpt_common.training.log.runlog import read_metrics
from tests.borrowed import provide_gpt2_vocabulary

SMALL = ("stories-cpu", "shakespeare-char-cpu", "llama-tiny", "deepseek-tiny", "custom-llm-tiny")
LARGE = {
    "stories": ("--batch-size", "4"),
    "shakespeare-char": ("--batch-size", "4"),
    "shakespeare-bpe": ("--batch-size", "2"),
    "gpt2": ("--dataset", "stories", "--batch-size", "1", "--grad-accum-steps", "1", "--n-layer", "2"),
}
STEPS = (
    "--max-steps",
    "120",
    "--eval-interval",
    "30",
    "--eval-batches",
    "5",
    "--log-interval",
    "10",
    "--batch-size",
    "4",
)
SMALLER = ("--warmup-steps", "20", "--n-embd", "32", "--block-size", "32", "--eval-batches", "2")
"""Of all seeds but the first."""
OWN = ("--max-steps", "40", "--eval-interval", "20", "--stop-at", "20")
"""Of the first seed: the preset's own size, in fewer steps."""
QUIET = ("--sample-tokens", "0", "--no-report", "--device", "cpu")
TINY_TEXT = "The cat sat on the mat, and the dog sat by the door. It was a warm day, and nothing much went on. "
BUSY = "left out of the averages"
"""What a busy machine makes the trainer say: it is none of its alarms."""


@dataclass
class Kind:
    """What came of runs of one kind."""

    runs: int = 0
    failed: list[str] = field(default_factory=list)
    """Gates that did not hold, and the run."""
    alarms: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns 1 if a gate of a healthy run failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="of the small presets")
    parser.add_argument("--twin", action="append", choices=("mlx_gpt", "torch_gpt"), default=[])
    parser.add_argument("--minutes", type=float, default=600, help="begin no other small preset after so many")
    parser.add_argument("--shakespeare", type=Path, help="input.txt, where it cannot be downloaded")
    command = parser.parse_args(argv)
    load_fast_blas()  # as the trainer does, before MLX is imported
    kinds: dict[str, Kind] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="healthy-") as folder:
        base = Path(folder)
        presets = prepare(base, command.shakespeare)
        twins = command.twin or ("mlx_gpt", "torch_gpt")
        for seed, preset, twin in itertools.product(range(command.seeds), presets, twins):
            if time.monotonic() - began < 60 * command.minutes:
                small(kinds, base, twin, preset, seed)
        for twin in twins:
            for preset, flags in LARGE.items():
                if "shakespeare" not in preset or "shakespeare-char-cpu" in presets:
                    steps = ("--max-steps", "4", "--eval-interval", "2", "--eval-batches", "1", *flags)
                    tried(kinds, f"{twin}, larger presets", twin, base, f"{preset}-{twin}", "--preset", preset, *steps)
    print(table(kinds))
    print(f"{sum(kind.runs for kind in kinds.values())} runs in {(time.monotonic() - began) / 60:.0f} minutes")
    return int(any(kind.failed for kind in kinds.values()))


def prepare(base: Path, shakespeare: Path | None) -> list[str]:
    """Make the corpora; returns the small presets whose corpus is there."""
    where = ["--data-dir", str(base / "data")]
    (base / "tiny.txt").write_text(TINY_TEXT * 4, encoding="utf-8")
    silently(
        data_command, ["prepare", "--text", str(base / "tiny.txt"), "--name", "tiny", "--tokenizer", "char", *where]
    )
    if shakespeare is None:
        return [preset for preset in SMALL if "shakespeare" not in preset]
    provide_gpt2_vocabulary()
    for name in ("shakespeare_char", "shakespeare"):
        silently(data_command, ["prepare", name, "--from-file", str(shakespeare), *where])
    return list(SMALL)


def small(kinds: dict[str, Kind], base: Path, twin: str, preset: str, seed: int) -> None:
    """One seed of a small preset: whole, taken up, in bfloat16, trained on in other text, and on a tiny text."""
    name = f"{preset}-{twin}-{seed}"
    flags: tuple[str, ...] = ("--preset", preset, "--seed", str(seed))
    flags += SMALLER if seed else OWN
    # Half of the seeds with what else a run may have.
    if seed % 2:
        flags += ("--dropout", "0.1", "--grad-accum-steps", "2")
    tried(kinds, f"{twin}, {preset}", twin, base, name, *STEPS, "--stop-at", "60", *flags)
    tried(kinds, f"{twin}, resumed", twin, base, name, "--resume", str(base / name))
    if seed % 10 == 0:
        # Slow on a CPU: one sequence, some steps.
        half = (
            "--dtype",
            "bfloat16",
            "--batch-size",
            "1",
            "--max-steps",
            "8",
            "--eval-interval",
            "4",
            "--stop-at",
            "8",
        )
        tried(kinds, f"{twin}, bfloat16", twin, base, f"{name}-bf16", *flags, *half, "--eval-batches", "2")
        on = ("--init-from", str(base / name), *STEPS, *(() if seed else OWN[:4]))
        tried(kinds, f"{twin}, fine-tuning", twin, base, f"{name}-on", *on)
        tiny = ("--dataset", "tiny", "--block-size", "16")
        tried(kinds, f"{twin}, tiny text", twin, base, f"{name}-tiny", *STEPS, *flags, *tiny)


def tried(kinds: dict[str, Kind], kind: str, twin: str, base: Path, name: str, *flags: str) -> None:
    """Train, and write down what rang."""
    found = kinds.setdefault(kind, Kind())
    found.runs += 1
    where = () if "--resume" in flags else ("--data-dir", str(base / "data"), "--out", str(base / name), *QUIET)
    before = 0
    with contextlib.suppress(UserError):
        before = len(read_metrics(base / name))
    try:
        silently(importlib.import_module(f"{twin}.train").main, [*flags, *where])
    except Stopped as stop:
        raise KeyboardInterrupt from stop
    except (WorkFailed, UserError) as error:  # a gate is one of the first
        found.failed.append(f"{name}: {error}")
        print(f"{kind}: {name}: {error}", flush=True)
        return
    for row in read_metrics(base / name)[before:]:
        if "alarm" in row and BUSY not in row["alarm"]:
            found.alarms += 1
            print(f"{kind}: {name}: step {row['step']}: {row['alarm']}", flush=True)


def silently(call: Callable[[Sequence[str]], object], argv: Sequence[str]) -> None:
    """Run a command without what it prints."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        call(argv)


def table(kinds: dict[str, Kind]) -> str:
    """In Markdown."""
    lines = ["| runs of | number | gates that failed | alarms |", "|---|---|---|---|"]
    lines += [f"| {name} | {it.runs} | {len(it.failed)} | {it.alarms} |" for name, it in kinds.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
