"""`python -m convert parity`: climb the ladder for a preset or a checkpoint on the backends that are present."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt_common.cli import parse
from gpt_common.errors import UserError, WorkFailed
from gpt_common.machine.blas import load_fast_blas

if TYPE_CHECKING:
    from convert.parity.climb import Climb
    from convert.parity.compare import Arrays
    from convert.parity.gates import Precision
    from gpt_common.config import RunConfig
    from gpt_common.machine.backends import Backend

PROGRAM = "python -m convert parity"
MOST_FLOPS = {"quick": 1e10, "standard": 1e11}
"""What a pass of rung S may take by mode: about a second, or ten, in float64 on one core; it takes a dozen passes."""
TRAJECTORY_STEPS = {"strict": 300, "tf32": 100, "bf16": 100}


@dataclass(frozen=True, kw_only=True)
class ParityCommand:
    """Show on this machine that both twins are one model: from bytes over gradients to whole training runs.

    Every rung compares all backends with PyTorch on the CPU and with PyTorch in float64. Exit code 1 if one fails.
    """

    preset: str | None = None
    """Climb with this preset's family; stories-cpu if neither this nor --checkpoint is given."""
    checkpoint: Path | None = None
    """Climb with the weights and the shape of this run or checkpoint."""
    backends: str = ""
    """Which to compare, separated by commas: mlx (its GPU, or its CPU where there is none), mlx-cpu, cpu, mps, cuda,
    or with -compiled; none: all present."""
    mode: Literal["quick", "standard", "full"] = "standard"
    """quick: a tiny model, a minute; standard: a small one; full: the preset's own shape, and L9. S has the preset's
    own block, vocabulary and micro-steps in each; quick and standard leave it out where it is long."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype, which decides the gates."""
    tf32: bool = False
    """Leave TF32 on where the hardware has it, as in training; its gates are coarser."""
    optimizer: Literal["", "adamw", "muon"] = ""
    """Climb with this optimiser instead of the preset's or the checkpoint's."""
    rung: str = ""
    """Only these rungs, separated by commas: L0 to L6a, L6b, L7, L8, G, A, Q, S, R; or L9
    alone."""
    seed: int = 1337
    """Key of weights, tokens and dropout."""
    mutants: bool = False
    """Also show that the gates bite: climb with every known wrong twin."""
    canaries: bool = False
    """Only try the shapes and operations on which backends are known to compute wrongly."""
    random: int | None = None
    """Climb with the random configuration of this number, as the tests do."""
    json: Path | None = None
    """Write every measurement here."""
    html: Path | None = None
    """Write a page with plots here; it needs no network."""
    seeds: int = 10
    """L9: runs per backend, with seeds 1, 2, ..."""
    steps: int = 1000
    """L9: length of each run and of its schedule."""
    runs: Path = Path("runs/parity-l9")
    """L9: folder of the runs; finished ones are not repeated."""
    data_dir: str = "data"
    """L9: folder of prepared corpora."""

    def __post_init__(self) -> None:
        if self.preset and self.checkpoint:
            raise UserError("--preset and --checkpoint both say what to climb with: leave one out")
        if self.tf32 and self.dtype == "bfloat16":
            raise UserError("--tf32 is a way of computing float32: leave it out with --dtype bfloat16")
        if self.seeds < 2:
            raise UserError(f"seeds is {self.seeds}: a test needs at least 2, and a claim at least 10")
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}: it must be at least 1")

    @property
    def precision(self) -> Precision:
        """The class of arithmetic."""
        return "bf16" if self.dtype == "bfloat16" else "tf32" if self.tf32 else "strict"

    @property
    def rungs(self) -> list[str]:
        """The rungs asked for; empty means all."""
        return [name.strip() for name in self.rung.split(",") if name.strip()]


def main(argv: Sequence[str]) -> None:
    """The command.

    Raises:
        UserError: flags that do not go together, unknown names, nothing to compare.
        WorkFailed: parity is broken; the message says where.
    """
    command = parse(ParityCommand, argv, prog=PROGRAM)
    # Before a framework is loaded: more threads were seen to change results from run to run.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ["MLX_ENABLE_TF32"] = "1" if command.tf32 else "0"
    load_fast_blas()

    from convert.parity.report.console import heading
    from convert.parity.twins.backends import choose

    repeat = f"{PROGRAM} {shlex.join(argv)}".strip()
    named = [name.strip() for name in command.backends.split(",") if name.strip()]
    backends, missing = choose(named, least=1 if command.canaries else 2)
    if command.canaries:
        from convert.parity.canaries import run_canaries

        run_canaries(backends, json_path=command.json)
    elif command.rungs == ["L9"]:
        _quality(command, backends, heading(repeat))
    else:
        _climb(command, backends, missing, repeat)


def _climb(command: ParityCommand, backends: Sequence[Backend], missing: dict[str, str], repeat: str) -> None:
    from convert.parity.blame import paragraph
    from convert.parity.ladder import NAMES, climb_ladder
    from convert.parity.report.console import Display, as_dict, write

    _check_rungs(command, NAMES)
    climb, rungs = _prepare(command, backends, NAMES)
    display = Display(climb, missing)
    climb.progress = display.progress
    with display.progress:
        report = climb_ladder(climb, rungs, display.result)
        failure = paragraph(report, repeat) if report.failed else None
        rejections = _mutants(display.progress) if command.mutants or command.mode == "full" else {}
        display.mutants(rejections)
    result = as_dict(report, command=repeat, missing=missing, failure=failure, mutants=rejections)
    write(result, command.json, command.html)
    if failure:
        raise WorkFailed(failure)
    if wrong := [name for name, (wanted, found) in rejections.items() if found not in NAMES[: NAMES.index(wanted) + 1]]:
        raise WorkFailed(f"the gates let wrong twins pass: {', '.join(wrong)}")
    display.verdict(report)
    if command.mode == "full" and not command.rungs and not command.checkpoint:
        _quality(command, backends, result)


def _check_rungs(command: ParityCommand, names: Sequence[str]) -> None:
    from gpt_common.errors import nearest

    for rung in command.rungs:
        if rung == "L9":
            raise UserError("L9 is hours of training: ask for --rung L9 alone, or --mode full")
        if rung not in names:
            raise UserError(f"no rung '{rung}': {nearest(rung, [*names, 'L9'])}")


def _prepare(command: ParityCommand, backends: Sequence[Backend], names: Sequence[str]) -> tuple[Climb, list[str]]:
    """The climb that the command line means, and its rungs."""
    from convert.parity.climb import Climb
    from convert.parity.random_configs import RUNGS, random_config

    precision = command.precision
    if command.random is not None:
        config, precision = random_config(command.random)
        climb = Climb(config, backends, precision, optimizer_steps=60)
        return climb, command.rungs or list(RUNGS)
    config, real, weights = _material(command)
    climb = Climb(config, backends, precision, weights, real, trajectory_steps=TRAJECTORY_STEPS[precision])
    if command.mode == "quick":
        climb.worlds = (2,)
    climb.most_flops = MOST_FLOPS.get(command.mode, math.inf)
    # With a model of any size, hundreds of steps are nothing for a quick look.
    short = weights is not None and command.mode == "quick"
    return climb, command.rungs or [name for name in names if not (short and name in ("L7", "L8", "A"))]


def _material(command: ParityCommand) -> tuple[RunConfig, RunConfig, Arrays | None]:
    """Configuration, the same at its own size and, of a checkpoint, its weights."""
    from convert.parity.material import SIZES, shrink, with_dropout
    from gpt_common.config import load_preset

    weights = None
    if command.checkpoint is not None:
        from safetensors.numpy import load_file

        from gpt_common.training.checkpoint import find_checkpoint, validate
        from gpt_common.training.manifest import MODEL_FILE

        folder = find_checkpoint(command.checkpoint, prefer="best")
        config = validate(folder).run_config
        weights = load_file(folder / MODEL_FILE)
    else:
        config = load_preset(command.preset or "stories-cpu")
    # The shape belongs to the weights, and to the full mode; batches need never be as large as in training.
    small = shrink(config, SIZES["quick" if command.mode == "quick" else "standard"])
    keeps_shape = weights is not None or command.mode == "full"

    def settled(config: RunConfig) -> RunConfig:
        # A preset that leaves its vocabulary to the tokenizer gets one of bytes.
        config = config if config.model.vocab_size else config.with_vocabulary(256)
        config = with_dropout(config, config.model.dropout)
        if command.optimizer:
            config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, optimizer=command.optimizer))
        return dataclasses.replace(config, train=dataclasses.replace(config.train, seed=command.seed))

    climbed = dataclasses.replace(config, train=small.train) if keeps_shape else small
    return settled(climbed), settled(config), weights


def _mutants(progress: Callable[[str, int, int], None]) -> dict[str, tuple[str, str | None]]:
    """By mutant: the rung that should reject it, and the one that did."""
    from convert.parity.mutants.climb import first_rejection
    from convert.parity.mutants.every import MUTANTS

    found = {}
    for done, mutant in enumerate(MUTANTS):
        progress(f"mutant: {mutant.name}", done, len(MUTANTS))
        found[mutant.name] = (mutant.rung, first_rejection(mutant))
    return found


def _quality(command: ParityCommand, backends: Sequence[Backend], report: dict[str, Any]) -> None:
    """L9, added to the report."""
    from convert.parity.quality import QualityPlan, as_lines, run_all, summary
    from convert.parity.report.console import write

    torch_first = sorted(backends, key=lambda backend: backend.framework != "torch")
    plan = QualityPlan(
        preset=command.preset or "shakespeare-char-cpu",
        backends=torch_first,
        seeds=range(1, command.seeds + 1),
        steps=command.steps,
        data_dir=command.data_dir,
        folder=command.runs,
    )
    losses = run_all(plan, lambda line: print(line, flush=True))
    report["L9"] = summary(plan, losses)
    write(report, command.json, command.html)
    print("\n".join(as_lines(report["L9"])))
    if not all(test["equivalent"] for test in report["L9"]["tests"].values()):
        raise WorkFailed("L9 does not show equivalence: see the figures above")
