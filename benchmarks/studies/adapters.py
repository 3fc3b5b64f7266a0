"""`python benchmarks/studies/adapters.py`: a training step of LoRA, ours beside peft's and mlx-lm's, block by block.

torch beside peft's layers in transformers' model and a plain loop; MLX beside mlx-lm's own loop, which is handed batch
after batch (`mlx_lm.tuner.trainer`). All have our initial weights and our initial A, as `convert export` writes them (B
is zero), the same padded rows of conversations, of which the last answer counts (mlx-lm knows no other), the same AdamW
at one rate without clipping, and work on this CPU in float32 with the same BLAS. The peers are spared what they need
not do: a mask for padding, and mlx-lm's progress display.

First all do the same 30 steps, and their losses must agree. Then a round starts every side in a process of its own, and
they take turns, A B B A; its ratio is the geometric mean of the turns'. What is printed is the median of the rounds,
their range, and a 95 % interval of their mean (benchmarks/report/pairs.py). Without equal work no figure is given.

With --packed ours is also asked what it does if not told otherwise: as many conversations to a row as fit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import count, cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from benchmarks.report.pairs import MINIMUM_ROUNDS
from benchmarks.studies.adapter_peers import Step, peft, work_as_mlx_lm, write_for_peers
from benchmarks.studies.turns import Proofs, cpu_work, losses_apart, measure, proven, ratios_of, work_on_request
from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.cli import parse
from gpt_common.config import RunConfig, load_preset, load_toml
from gpt_common.data import open_dataset
from gpt_common.data.batches import Examples, NumpyBatch, Rows, training_batch
from gpt_common.errors import UserError, nearest, run_main

PROG = "python benchmarks/studies/adapters.py"
STEPS = 30
"""Steps whose losses must agree."""
RATE = 1e-3
"""Learning rate, without a warm-up: at ten times as much rounding grows a thousandfold in 30 steps."""
LARGEST_DIFFERENCE = 1e-4
"""Nats per token by which a loss may be another than ours: rounding, in 30 steps."""
AIMS = {("torch", "peft"): 1.0, ("mlx", "mlx-lm"): 1.3}
"""Our steps per second over theirs, at least."""
SIDES = {"torch": ("torch",), "peft": ("torch", "transformers", "peft"), "mlx": ("mlx",), "mlx-lm": ("mlx", "mlx_lm")}
"""Who can take part, and the packages that each needs."""
PACKED = "-packed"


@dataclass(frozen=True, kw_only=True)
class AdaptersStudy:
    """Measure our training step of LoRA beside peft's and mlx-lm's, with the same weights, in turns."""

    sides: str = ",".join(SIDES)
    """Who, with commas: torch and peft, mlx and mlx-lm, or all."""
    preset: str = "llama-tiny"
    """The shape, and what AdamW has beside its rate; without dropout, and with a block as long as the longest row."""
    config: Path | None = None
    """The same from this TOML file, and its adapter, if it has one."""
    rank: int = 8
    """Rank of the adapters, on every matrix of the blocks, if --config has none."""
    batch_size: int = 8
    """Rows of a batch."""
    dataset: str = "stories-qa"
    """Conversations, built in or prepared."""
    data_dir: Path = Path("data")
    """Folder of prepared corpora."""
    packed: bool = False
    """Also time ours with packed rows."""
    threads: int = 1
    """Threads of every side."""
    rounds: int = MINIMUM_ROUNDS
    """Rounds; each gives one ratio."""
    seconds: float = 3.0
    """Least time of one side's turn."""
    json: Path | None = None
    """Also write the figures here."""
    side: str | None = None
    """For this program's own use: work as long as the standard input says."""
    folder: Path = Path()
    """For its own use: where base and adapter lie for the peers."""

    def __post_init__(self) -> None:
        for name in ("rounds", "threads", "rank", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name.replace('_', '-')} is {getattr(self, name)}: it must be at least 1")


def chosen_sides(command: AdaptersStudy) -> list[str]:
    """Who takes part; each of ours before its peer.

    Raises:
        UserError: an unknown name, nobody to compare, or a package is missing.
    """
    names = [name.strip() for name in command.sides.split(",") if name.strip()]
    for name in names:
        if name not in SIDES:
            raise UserError(f"no side '{name}': {nearest(name, SIDES)}")
        for package in SIDES[name]:
            if find_spec(package) is None:
                raise UserError(
                    f"{name} needs the package {package}: pip install -e '.[dev]', or leave it out of --sides"
                )
    if not any(set(pair) <= set(names) for pair in AIMS):
        raise UserError(f"--sides {command.sides}: name torch and peft, or mlx and mlx-lm")
    sides = [name for name in SIDES if name in names]
    return sides + [own + PACKED for own, _ in AIMS if own in names and command.packed]


def the_work(command: AdaptersStudy, *, packing: bool = False) -> tuple[RunConfig, list[NumpyBatch]]:
    """The run of every side, and the batches of its first steps.

    Raises:
        UserError: a shape that no peer has, or a dataset without conversations.
    """
    config = load_preset(command.preset) if command.config is None else load_toml(command.config, RunConfig())
    dataset = open_dataset(command.dataset, command.data_dir)
    if dataset.examples is None:
        raise UserError(f"'{command.dataset}' holds no conversations: name another --dataset")
    examples = last_answers(dataset.examples[0])
    model = dataclasses.replace(config.model, dropout=0.0, block_size=int(examples.lengths.max()) - 1)
    if model.feed_forward == "moe":
        raise UserError("experts are adapted in another way by each library: take a shape without")
    own = config.adapter.adapts
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(model, vocab_size=model.vocab_size or dataset.tokenizer.vocab_size),
        optim=dataclasses.replace(config.optim, optimizer="adamw", learning_rate=RATE, grad_clip=0.0, ema_decay=0.0),
        train=dataclasses.replace(
            config.train, batch_size=command.batch_size, grad_accum_steps=1, dtype="float32", short_context=0,
            gradient_checkpointing=False,
        ),
        adapter=config.adapter if own else AdapterConfig(adapter="lora", adapter_rank=command.rank),
    )  # fmt: skip
    rows = Rows(examples, config.model.block_size, packing=packing)
    sizes = {"block_size": config.model.block_size, "batch_size": command.batch_size}
    batches = [training_batch(rows, seed=config.train.seed, step=step, **sizes) for step in range(STEPS)]
    return config, batches


def last_answers(examples: Examples) -> Examples:
    """The same, but of every example only its last answer counts."""
    counted, begin = np.zeros_like(examples.counted), 0
    for end in examples.ends:
        marks = np.flatnonzero(examples.counted[begin:end])
        first = marks[np.flatnonzero(np.diff(marks, prepend=-2) > 1)[-1]]  # behind the last gap
        counted[begin + first : begin + marks[-1] + 1] = 1
        begin = end
    return dataclasses.replace(examples, counted=counted)


def answer_tokens(batches: Sequence[NumpyBatch]) -> float:
    """Tokens that count in a step, on average."""
    return statistics.mean(float(batch.weights.sum()) for batch in batches if batch.weights is not None)


def ours(twin: str, config: RunConfig) -> Step:
    """One of the twins, by its trainer's own step."""
    work, number = cpu_work(twin, config), count()

    def step(batch: NumpyBatch) -> float:
        work.step([batch], next(number), config.optim.learning_rate)
        work.wait()
        return work.loss()

    return step


def work_as(side: str, command: AdaptersStudy) -> None:
    """Show the losses of the first steps, and go on with the same batches as often as asked to."""
    packing = side.endswith(PACKED)
    config, batches = the_work(command, packing=packing)
    if side == "mlx-lm":
        work_as_mlx_lm(command.folder, config, batches)
        return
    with contextlib.redirect_stdout(io.StringIO()):
        step = peft(command.folder, config) if side == "peft" else ours(side.removesuffix(PACKED), config)
        losses = [step(batch) for batch in batches]
    print(json.dumps([] if packing else losses), flush=True)
    again = cycle(batches)
    work_on_request(lambda: step(next(again)))


def start(command: AdaptersStudy, folder: Path, proofs: Proofs, side: str) -> subprocess.Popen[str]:
    """A side that has shown that its work is the same; see `turns.proven`."""
    names = ("preset", "rank", "batch_size", "dataset", "data_dir", "threads")
    flags = [f"--{name.replace('_', '-')}={getattr(command, name)}" for name in names]
    flags += [f"--config={command.config.resolve()}"] if command.config else []
    return proven(__file__, side, [*flags, f"--folder={folder}"], command.threads, proofs, compare)


def compare(proofs: Proofs, side: str) -> float:
    """How far a side's losses are from the first one's; packed rows are other batches, and show nothing.

    Raises:
        WorkFailed: further than rounding goes.
    """
    return losses_apart(proofs, side, LARGEST_DIFFERENCE) if not side.endswith(PACKED) else 0.0


def row(own: str, peer: str, found: Mapping[str, Any]) -> str:
    """A line of the table."""
    spread = f"{min(found['ratios']):.3f} .. {max(found['ratios']):.3f}"
    interval = "{:.3f} .. {:.3f}".format(*found["interval"]) if found["interval"] else "-"
    aim = AIMS[own, peer]
    met = "met" if found["median"] >= aim else "not met"
    return f"{own + ' / ' + peer:24} {found['median']:7.3f} {spread:>16} {interval:>16}   at least {aim:.1f}: {met}"


def main(argv: Sequence[str]) -> None:
    """The command, or one side of it in a child process."""
    command = parse(AdaptersStudy, argv, prog=PROG)
    if command.side is not None:
        work_as(command.side, command)
        return
    sides = chosen_sides(command)
    config, batches = the_work(command)
    counted = {side: answer_tokens(batches) for side in sides}
    if command.packed:
        packed = answer_tokens(the_work(command, packing=True)[1])
        counted |= {side: packed for side in sides if side.endswith(PACKED)}
    with tempfile.TemporaryDirectory() as folder:
        write_for_peers(Path(folder), config, sides)
        began = partial(start, command, Path(folder))
        seconds, apart = measure(sides, began, compare, command.rounds, command.seconds)
    model, adapter = config.model, config.adapter
    print(
        f"{command.config or command.preset}: {model.n_layer} blocks of {model.n_embd}, {adapter.adapter} of rank "
        f"{adapter.adapter_rank}, {command.batch_size} rows of {model.block_size}, threads: {command.threads}, rounds: "
        f"{command.rounds}"
    )
    for side in sides:
        middle = statistics.median(seconds[side])
        proven_by = "its own rows" if side.endswith(PACKED) else f"{STEPS} losses within {apart[side]:.1e}"
        print(f"  {side:13} {1 / middle:8.2f} steps/s {counted[side] / middle:10.1f} answer tokens/s, {proven_by}")
    print(f"{'steps/s of ours / theirs':24} {'median':>7} {'range':>16} {'95 % interval':>16}")
    results: dict[str, Any] = {"seconds": seconds, "apart": apart, "answer_tokens": counted, "ratios": {}}
    for own, peer in (pair for pair in AIMS if set(pair) <= set(sides)):
        found = results["ratios"][f"{own} / {peer}"] = ratios_of(seconds[peer], seconds[own])
        print(row(own, peer, found), flush=True)
    if command.json is not None:
        command.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
