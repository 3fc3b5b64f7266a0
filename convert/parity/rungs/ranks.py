"""R: the trainer in several processes, as torchrun and mlx.launch start them, beside itself in one.

What is compared is what a run leaves behind: weights and moments, the log, and which checkpoint it calls its best.
Examples of different lengths make the micro-steps of a step count differently, as they do in fine-tuning.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import load_file

from convert.parity import material
from convert.parity.climb import DTYPES, Climb
from convert.parity.compare import Arrays, Measurement, relative
from convert.parity.gates import COARSE_NOISE
from convert.parity.mutants.planted import Edit
from convert.parity.rungs.trajectories import DROPOUT
from convert.parity.rungs.updates import whole_schedule
from convert.parity.twins.ranks import DONE, Job, launch
from gpt_common.config import DataConfig, RunConfig, TrainConfig, to_toml
from gpt_common.data.batches import Examples
from gpt_common.data.tokenizers import CharTokenizer
from gpt_common.data.writer import write_dataset
from gpt_common.keyed import keyed_generator
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.log.runlog import read_metrics
from gpt_common.training.manifest import MODEL_FILE, OPTIMIZER_FILE

TWINS = {"torch": "torch_gpt", "mlx": "mlx_gpt"}
STEPS = 20
"""Of every training: losses of ranks that add up in another order drift apart, and their gate holds for so long."""
FEW, MANY = 2, 4
"""Micro-steps of a step: so many that two ranks have one each, and so many that their order shows."""
EXAMPLES = 300
DATASET = "examples"
FAULTS: tuple[Edit, ...] = ()
"""What stands in the source of every process of more than one rank: mutants plant it here."""
NUDGED = "one unit in the last place off"
"""The run whose first weights are: by as much as it drifts, adding up in another order may make a run drift, too."""
NUDGE = Edit(
    "gpt_common/network/init.py",
    "initial_weights",
    "yield name, keyed_generator(seed, name).standard_normal(shape, np.float32) * np.float32(std)",
    "drawn = keyed_generator(seed, name).standard_normal(shape, np.float32) * np.float32(std)\n"
    "            yield name, np.nextafter(drawn, np.float32(np.inf))",
)
LOGGED = ("loss", "grad_norm", "train_loss", "val_loss")


def rung_ranks(climb: Climb) -> Iterator[Measurement]:
    """Two ranks make the bits of one where they have a micro-step each; with more, the losses; and so across a resume.

    The resumed run changes ranks and framework each time, and is ended by a signal to the last rank.
    """
    twins = [name for name in TWINS if any(backend.framework == name for backend in climb.backends)]
    if lacks := lacking(twins):
        climb.notes["R"] = f"left out: {lacks}"
        return
    config = ranks_config(climb)
    climb.notes["R"] = f"{STEPS} steps by 1, {', '.join(map(str, climb.worlds))} processes"
    with tempfile.TemporaryDirectory(prefix="ranks-") as temporary:
        folder = Path(temporary)
        write_examples(folder / "data", config)
        legs = [(twin, world) for world in (1, *climb.worlds) for twin in twins]
        # The last ends before the schedule does, so that a signal ends it too.
        bounds = [round((STEPS - 1) * number / len(legs)) for number in range(len(legs) + 1)]
        for number, (twin, world) in enumerate(legs):
            climb.progress(f"{world} rank{'s' * (world > 1)}, {twin}", number, len(legs))
            jobs = [
                *trainings(config, folder, twin, world),
                relay(config, folder, twin, world, *bounds[number : number + 2]),
            ]
            if world == 1 and climb.uncalibrated:
                jobs.append(Job(NUDGED, started(config, folder, MANY, nudged(twin)), edits=(NUDGE,)))
            found = launch(TWINS[twin], world, jobs, folder / f"launch {twin} {world}")
            measured = list(outcomes(twin, world, jobs, found))
            if world > 1 and not measured:
                measured += against_one(climb, folder, twin, world)
            yield from measured
            if not all(one.passed for one in measured):
                return
        yield from resumed(climb, folder, twins[0], legs)


def lacking(twins: Sequence[str]) -> str:
    """What the installed frameworks lack to start ranks on a CPU; empty if nothing."""
    if "torch" in twins:
        from torch import distributed

        if not (distributed.is_available() and distributed.is_gloo_available()):
            return "this PyTorch comes without gloo"
    if "mlx" in twins:
        import mlx.core as mx

        if not mx.distributed.is_available("ring"):
            return "this MLX comes without its ring"
    return ""


def ranks_config(climb: Climb) -> RunConfig:
    """The family in its quick size, fresh, with dropout, and the whole schedule within the steps there are."""
    small = material.shrink(climb.config, material.SIZES["quick"])
    small = material.with_dropout(small, small.model.dropout or DROPOUT)
    train = TrainConfig(
        max_steps=STEPS,
        batch_size=small.train.batch_size,
        seed=small.train.seed,
        dtype=DTYPES[climb.precision],  # type: ignore[arg-type]
        device="cpu",
        gradient_checkpointing=small.train.gradient_checkpointing,
        log_interval=1,
        eval_interval=STEPS // 5,
        eval_batches=4,
        checkpoint_interval=STEPS,
        sample_tokens=0,
        report=False,
        health_gates="off",  # they would see faults of a step before any was made; here it is the rung that must
    )
    return dataclasses.replace(small, optim=whole_schedule(small.optim, STEPS), train=train)


def write_examples(data_dir: Path, config: RunConfig) -> None:
    """A dataset of examples of all lengths, of which about half of the tokens count; two in three are short."""
    model, draw = config.model, keyed_generator(config.train.seed, "examples of ranks")
    tokens = material.token_stream(model.vocab_size, config.train.seed)
    longest = model.block_size + 1
    lengths = np.where(
        draw.random(EXAMPLES) < 2 / 3, draw.integers(2, 5, EXAMPLES), draw.integers(2, longest, EXAMPLES)
    )
    parts: dict[Literal["train", "val"], Examples] = {}
    for split, of in (("train", slice(0, EXAMPLES // 2)), ("val", slice(EXAMPLES // 2, None))):
        ends = np.cumsum(lengths[of])
        counted = (draw.random(ends[-1]) < 0.5).astype(np.uint8)
        counted[ends - lengths[of]], counted[ends - 1] = 0, 1
        parts[split] = Examples(tokens[: ends[-1]], counted, ends)  # type: ignore[index]
    write_dataset(
        data_dir / DATASET,
        CharTokenizer("".join(chr(0x4E00 + number) for number in range(model.vocab_size))),
        {split: [np.asarray(part.tokens)] for split, part in parts.items()},
        prompt="",
        recipe={"command": "python -m convert parity"},
        sources=[],
        examples=parts,
        overwrite=False,
    )


def trainings(config: RunConfig, folder: Path, twin: str, world: int) -> list[Job]:
    """The whole runs of so many ranks: with two micro-steps where at most two share them, and with four."""
    return [
        Job(
            f"{steps} micro-steps",
            started(config, folder, steps, name_of(twin, world, steps)),
            edits=planted_in(twin, world),
        )
        for steps in (FEW, MANY)
        if world <= steps
    ]


def started(config: RunConfig, folder: Path, micro_steps: int, name: str) -> tuple[str, ...]:
    """The command line of a run with so many micro-steps."""
    data = DataConfig(dataset=DATASET, data_dir=str(folder / "data"))
    train = dataclasses.replace(config.train, grad_accum_steps=micro_steps)
    (folder / f"{name}.toml").write_text(to_toml(dataclasses.replace(config, data=data, train=train)), encoding="utf-8")
    return ("--config", str(folder / f"{name}.toml"), "--out", str(folder / name))


def name_of(twin: str, world: int, micro_steps: int) -> str:
    """A run's folder."""
    return f"{twin}-{world}-of-{micro_steps}"


def nudged(twin: str) -> str:
    """The folder of the run of one rank from weights that are a little off."""
    return f"{twin}-nudged"


def relay(config: RunConfig, folder: Path, twin: str, world: int, first: int, last: int) -> Job:
    """Steps `first` to `last` of the run that goes from hand to hand; of several ranks, the last gets a signal."""
    run = folder / "relay"
    argv = ("--resume", str(run)) if first else started(config, folder, MANY, "relay")
    if world == 1:
        return Job("relay", (*argv, "--stop-at", str(last)))
    return Job("relay", argv, stopped_before=last - 1, edits=planted_in(twin, world))


def planted_in(twin: str, world: int) -> tuple[Edit, ...]:
    """The faults of so many ranks of a twin: its own, and those in what both share."""
    other = tuple(f"{package}/" for name, package in TWINS.items() if name != twin)
    return tuple(edit for edit in FAULTS if world > 1 and not edit.file.startswith(other))


def outcomes(twin: str, world: int, jobs: Sequence[Job], found: Mapping[str, Sequence[str]]) -> Iterator[Measurement]:
    """A failure for each rank that ended otherwise than it should."""
    for job in jobs:
        for rank, what in enumerate(found[job.name]):
            if what != DONE and not (job.stopped_before is not None and what.startswith("Stopped: ")):
                yield Measurement(
                    tensor=f"{job.name}, rank {rank}: {what}", error=math.inf, gate=0.0, between=between(twin, world)
                )


def between(twin: str, world: int) -> str:
    """The two sides."""
    return f"{twin}, {world} ranks ~ 1 rank"


def against_one(climb: Climb, folder: Path, twin: str, world: int) -> Iterator[Measurement]:
    """What several ranks have left behind, beside what one has."""
    sides = between(twin, world)
    if world == FEW:
        yield from same_bits(folder / name_of(twin, 1, FEW), folder / name_of(twin, world, FEW), sides)
    one, several = (folder / name_of(twin, ranks, MANY) for ranks in (1, world))
    losses = apart(one, several, "loss")
    climb.curves[f"{twin}, {world} ranks"] = losses
    state = f"{MANY} micro-steps"
    yield worst_of(losses, "loss, step", climb.gate("R order"), sides, state).allowing(
        noise(folder, twin, "loss"), COARSE_NOISE
    )
    evaluated = apart(one, several, "val_loss")
    yield worst_of(evaluated, "validation loss, evaluation", climb.gate("R order"), sides, state).allowing(
        noise(folder, twin, "val_loss"), COARSE_NOISE
    )


def same_bits(one: Path, several: Path, sides: str) -> Iterator[Measurement]:
    """Two runs of a micro-step for each rank: halving is exact, and a sum of two has no order. Nothing may differ."""
    state = f"{FEW} micro-steps"
    for name, error in bits_apart(tensors(one), tensors(several)):
        yield Measurement(tensor=name, error=error, gate=0.0, between=sides, state=state)
    for column in (*LOGGED, "expert_load"):
        error = max(apart(one, several, column), default=0.0)
        yield Measurement(tensor=f"{column} in the log", error=error, gate=0.0, between=sides, state=state)
    error = 0.0 if best(one) == best(several) else math.inf
    yield Measurement(tensor="best checkpoint", error=error, gate=0.0, between=sides, state=state)


def resumed(climb: Climb, folder: Path, first: str, legs: Sequence[tuple[str, int]]) -> Iterator[Measurement]:
    """The losses of the run that went from hand to hand, beside those of one that nobody disturbed."""
    whole = folder / name_of(first, 1, MANY)
    losses = apart(folder / "relay", whole, "loss", missing=1)
    climb.curves["from hand to hand between ranks"] = losses
    hands = " > ".join(f"{twin} {world}" for twin, world in legs)
    sides = f"{hands} ~ {first}, 1 rank"
    drifts = [noise(folder, twin, "loss") for twin in dict.fromkeys(twin for twin, _ in legs)]
    yield worst_of(losses, "loss, step", climb.gate("R resume"), sides, f"{MANY} micro-steps").allowing(
        max(drifts), COARSE_NOISE
    )


def noise(folder: Path, twin: str, column: str) -> float:
    """How far the run from weights a little off drifts; 0 where there is none, for gates do not follow it then."""
    if not (folder / nudged(twin)).exists():
        return 0.0
    return max(apart(folder / name_of(twin, 1, MANY), folder / nudged(twin), column))


def worst_of(differences: Sequence[float], what: str, gate: float, sides: str, state: str) -> Measurement:
    """The largest difference, and where it is."""
    worst = int(np.argmax(differences))
    return Measurement(tensor=f"{what} {worst + 1}", error=differences[worst], gate=gate, between=sides, state=state)


def apart(one: Path, other: Path, column: str, missing: int = 0) -> list[float]:
    """How far two logs are apart in a column, row by row: of lists, the largest; infinite where a number is none.

    Args:
        missing: so many rows of the other the first may lack, at its end; otherwise they are infinitely apart.
    """
    mine, theirs = (
        [np.ravel(row[column]) for row in read_metrics(run) if row.get(column) is not None] for run in (one, other)
    )
    if len(mine) != len(theirs) - missing:
        return [math.inf]
    found = [float(np.max(np.abs(a - b))) for a, b in zip(mine, theirs, strict=False)]
    return [math.inf if math.isnan(value) else value for value in found]


def tensors(run: Path) -> Arrays:
    """Weights and moments after the last step."""
    place = find_checkpoint(run, prefer="latest")
    moments = {f"{name} (moments)": value for name, value in load_file(place / OPTIMIZER_FILE).items()}
    return load_file(place / MODEL_FILE) | moments


def bits_apart(one: Arrays, other: Arrays) -> Iterator[tuple[str, float]]:
    """Relative distance by tensor; 0 only where every bit is the same."""
    for name in one.keys() | other.keys():
        if name not in one or name not in other:
            yield f"{name} (missing on one side)", math.inf
        elif one[name].tobytes() == other[name].tobytes():
            yield name, 0.0
        else:
            yield name, max(relative(other[name], one[name]), float(np.finfo(np.float32).tiny))


def best(run: Path) -> tuple[str, int | None, float | None]:
    """Which checkpoint is the best, and what the last one says of it."""
    manifest = read_manifest(find_checkpoint(run, prefer="latest"))
    return (run / "checkpoints" / "best").read_text(encoding="utf-8"), manifest.best_step, manifest.best_val_loss
