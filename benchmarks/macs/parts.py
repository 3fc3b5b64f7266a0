"""The parts of the self-test: what each runs, and what is read from what it wrote."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.macs.record import (
    UNCLEANED,
    Benchmark,
    Canary,
    Change,
    Checkout,
    Climb,
    Here,
    Machine,
    Ratio,
    Row,
    Rung,
    Training,
)
from benchmarks.macs.running import Job
from benchmarks.measuring.backends import BACKENDS
from benchmarks.report.findings import machine_doubts
from benchmarks.results import BackendRow, Result, read_result
from gpt_common.errors import WorkFailed
from gpt_common.words import rate

STEPS, CHANGE_AFTER = 40, 20
"""Of the short trainings. Both lie within the preset's warm-up, whose rates do not depend on a run's length."""
LOSS_GATE = 1e-4
"""Nats. docs/results.md has 2.1e-5 between the twins over 200 steps; without AdamW's state the first steps after a
change are off by more than a hundred times the gate."""
SECONDS_PER_PROCESS = 12.0
"""Of the benchmark: start, warm-up and two series."""
CLIMB_SECONDS = 40.0
"""Of the benchmark's own ladder, for each class of arithmetic."""
TRAIN = (
    *("--preset", "stories-cpu", "--dtype", "float32", "--log-interval", "1", "--eval-batches", "5"),
    *("--warmup-steps", "100", "--sample-tokens", "0", "--no-report"),
)


@dataclass
class Findings:
    """What the parts have found so far."""

    checkout: Checkout | None = None
    machine: Machine | None = None
    backends: list[Here] = field(default_factory=list)
    climbs: list[Climb] = field(default_factory=list)
    canaries: list[Canary] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    change: Change | None = None
    benchmark: Benchmark | None = None


def first_jobs(found: Findings, scratch: Path, names: Sequence[str], named: bool, limit: float) -> list[Job]:
    """The machine and which backends are here.

    Args:
        names: the backends to be tested.
        named: whether the person has named them: then one that is missing is a failure.
    """
    machine, here = scratch / "machine.json", scratch / "present.json"

    def read_machine() -> str:
        text = json.loads(machine.read_text(encoding="utf-8"))
        found.machine = Machine.model_validate_json(json.dumps(text["machine"]))
        found.checkout = Checkout.model_validate_json(json.dumps(text["checkout"]))
        return found.machine.hardware.chip

    def read_present() -> str:
        found.backends = [Here(**row) for row in json.loads(here.read_text(encoding="utf-8"))]
        missing = [row for row in found.backends if row.device is None]
        if missing and (named or len(missing) == len(found.backends)):
            raise WorkFailed("; ".join(f"{row.backend}: {row.reason}" for row in missing))
        rows = found.backends
        return ", ".join(_where(row) for row in rows)

    return [
        Job("machine", [("-m", "benchmarks.macs.machine", str(machine))], limit, read_machine),
        Job("backends", [("-m", "benchmarks.macs.present", ",".join(names), str(here))], limit, read_present),
    ]


def _where(row: Here) -> str:
    if row.device is None:
        return f"no {row.backend}"
    return row.backend if row.backend == row.device else f"{row.backend} ({row.device})"


def jobs(found: Findings, scratch: Path, names: Sequence[str], limit: float) -> Iterator[Job]:
    """The parts after that; asked for one after the other, as the benchmark is not part of them."""
    devices = {row.backend: row.device for row in found.backends}
    # If nobody could say who is here, each part says it for itself.
    here = [name for name in names if devices.get(name)] if devices else list(names)
    for name in here:
        if name != "cpu" or len(here) == 1:
            yield _climb(found, scratch, name, limit)
    for name in here:
        yield _canaries(found, scratch, name, limit)
    yield from _trainings(found, scratch, here, devices, limit)


def _climb(found: Findings, scratch: Path, name: str, limit: float) -> Job:
    path = scratch / f"parity-{name}.json"
    # PyTorch on the CPU is in every climb, and beside it alone stands the other twin on the CPU.
    pair = f"cpu,{'mlx-cpu' if name == 'cpu' else name}"
    command = ("-m", "convert", "parity", "--backends", pair, "--mode", "quick", "--json", str(path))

    def read() -> str:
        report = json.loads(path.read_text(encoding="utf-8"))
        rungs = [_rung(rung) for rung in report["rungs"]]
        found.climbs.append(Climb(backend=name, passed=report["passed"], rungs=rungs))
        return nearest(rungs)

    return Job(f"parity {name}", [command], limit, read)


def _rung(rung: dict[str, Any]) -> Rung:
    worst = rung["worst"] or {}
    tensor = worst.get("tensor")
    return Rung(
        name=rung["name"],
        passed=rung["passed"],
        error=worst.get("error"),
        gate=worst.get("gate"),
        tensor=tensor and tensor[:120],
    )


def nearest(rungs: Sequence[Rung]) -> str:
    """The rung that failed first, or the one that came nearest to its gate, in words."""
    if failed := [rung for rung in rungs if not rung.passed]:
        return f"{failed[0].name} fails at {failed[0].tensor or 'its gate'}"
    shares = [(rung.error / rung.gate, rung) for rung in rungs if rung.error is not None and rung.gate]
    if not shares:
        return "nothing compared"
    share, rung = max(shares, key=lambda pair: pair[0])
    return f"{rung.name} at {share:.0%} of its gate"


def _canaries(found: Findings, scratch: Path, name: str, limit: float) -> Job:
    path = scratch / f"canaries-{name}.json"
    command = ("-m", "convert", "parity", "--canaries", "--backends", name, "--json", str(path))

    def read() -> str:
        tried = [Canary(**each) for each in json.loads(path.read_text(encoding="utf-8"))["canaries"]]
        found.canaries += tried
        counts = Counter(each.verdict for each in tried)
        return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))

    return Job(f"canaries {name}", [command], limit, read)


def _trainings(
    found: Findings, scratch: Path, here: Sequence[str], devices: dict[str, str | None], limit: float
) -> Iterator[Job]:
    """PyTorch's first steps, MLX's whole run, and a run that changes from the one to the other."""
    chosen = {}
    for twin, framework in (("torch_gpt", "torch"), ("mlx_gpt", "mlx")):
        name = next((name for name in here if BACKENDS[name].framework == framework), None)
        if name is not None:
            chosen[twin] = devices.get(name) or BACKENDS[name].device
    data = ("--dataset", "stories", "--data-dir", str(scratch / "data"))

    def on(twin: str, steps: int) -> tuple[str, ...]:
        return ("--device", chosen[twin], "--max-steps", str(steps))

    for twin, device in chosen.items():
        steps = CHANGE_AFTER if twin == "torch_gpt" else STEPS
        run = scratch / twin
        command = ("-m", f"{twin}.train", *TRAIN, *data, *on(twin, steps), "--out", str(run))
        yield Job(f"train {twin}", [command], limit, _training(found, twin, device, run, steps))
    if len(chosen) < 2:
        return
    moved, exported = scratch / "moved", scratch / "ckpt.pt"
    commands = [
        ("-m", "convert", "export", str(scratch / "torch_gpt"), "--to", "nanogpt", "-o", str(exported)),
        ("-m", "convert", "torch2mlx", str(exported), "-o", str(moved)),
        ("-m", "mlx_gpt.train", "--resume", str(moved), *TRAIN[2:], *data, *on("mlx_gpt", STEPS)),
    ]
    yield Job("change framework", commands, limit, _change(found, moved), ("train torch_gpt", "train mlx_gpt"))


def _training(found: Findings, twin: Any, device: str, run: Path, steps: int) -> Callable[[], str]:
    def read() -> str:
        losses = losses_of(run / "metrics.jsonl")
        found.trainings.append(Training(twin=twin, device=device, losses=losses))
        if len(losses) != steps or losses[0] is None or losses[-1] is None:
            raise WorkFailed(f"{steps} losses were to be logged, {len(losses)} are there, or some are not finite")
        if losses[-1] >= losses[0]:
            raise WorkFailed(f"nothing was learnt: the loss went from {losses[0]:.3f} to {losses[-1]:.3f}")
        return f"loss {losses[0]:.2f} to {losses[-1]:.2f} on {device}"

    return read


def _change(found: Findings, moved: Path) -> Callable[[], str]:
    def read() -> str:
        curves = {training.twin: training.losses for training in found.trainings}
        resumed, whole = losses_of(moved / "metrics.jsonl"), curves["mlx_gpt"]
        before = difference(curves["torch_gpt"], whole[:CHANGE_AFTER])
        after = difference(resumed, whole[CHANGE_AFTER:])
        found.change = Change(after=CHANGE_AFTER, before_difference=before, after_difference=after, gate=LOSS_GATE)
        for when, value in (("before", before), ("after", after)):
            if value is None or value > LOSS_GATE:
                size = "not comparable" if value is None else f"{value:.1e} apart, and may be {LOSS_GATE:.0e}"
                raise WorkFailed(f"the losses of the twins {when} the change of framework are {size}")
        return f"losses at most {max(before or 0.0, after or 0.0):.1e} apart"

    return read


def losses_of(metrics: Path) -> list[float | None]:
    """The training losses of a run, step by step; None where one is not finite."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row and "step" in row]
    return [loss if isinstance(loss, float) and math.isfinite(loss) else None for loss in losses]


def difference(one: Sequence[float | None], other: Sequence[float | None]) -> float | None:
    """The largest; None if they are not equally long, empty or not finite."""
    if len(one) != len(other) or not one or None in one or None in other:
        return None
    return max(abs(a - b) for a, b in zip(one, other, strict=True) if a is not None and b is not None)


# --- speed


def benchmark_job(found: Findings, scratch: Path, names: Sequence[str], seconds: float) -> Job:
    """The benchmark in as many rounds as fit into `seconds`, from 2 to 6; with them nothing is claimed below 6."""
    devices = {row.backend: row.device for row in found.backends}
    here = [name for name in names if devices.get(name)] if devices else list(names)
    rows = [*here, *halves(here, devices)]
    rounds = int((seconds - 2 * CLIMB_SECONDS) / ((len(rows) + 1) * SECONDS_PER_PROCESS))
    rounds = max(2, min(6, rounds))
    out = scratch / "benchmark"
    command = ("benchmarks/run.py", "--backends", ",".join(rows), "--rounds", str(rounds), "--seconds", "1")

    def read() -> str:
        path = next(path for path in sorted(out.glob("*.json")) if "-parity-" not in path.name)
        result = read_result(path)
        found.benchmark = shortened(result)
        rows = [row for row in found.benchmark.rows if row.seconds_per_step is not None]
        if broken := [row for row in found.benchmark.rows if row.status in ("failed", "rejected", "unproven")]:
            raise WorkFailed("; ".join(f"{row.backend} {row.status}: {row.reason}" for row in broken))
        fastest = min(rows, key=lambda row: row.seconds_per_step or math.inf)
        return f"{fastest.backend}: {rate(fastest.tokens_per_second or math.nan)} tokens/s"

    # A slow machine takes longer than was reckoned.
    limit = 2 * (2 * CLIMB_SECONDS + rounds * (len(rows) + 1) * SECONDS_PER_PROCESS) + 240
    return Job("benchmark", [(*command, "--out", str(out))], limit, read)


def halves(here: Sequence[str], devices: dict[str, str | None]) -> list[str]:
    """The bfloat16 rows: of the GPUs, or of all where there is none; the compiled ones have none."""
    eager = [name for name in here if f"{name}-bf16" in BACKENDS]
    on_gpu = [name for name in eager if devices.get(name) not in (None, "cpu")]
    return [f"{name}-bf16" for name in on_gpu or eager]


def shortened(result: Result) -> Benchmark:
    """A benchmark's result without its samples and without the machine's name."""
    case, energy = result.cases[0], result.environment.energy
    return Benchmark(
        name=result.name[:120],
        parameters=case.work.parameters,
        tokens_per_step=case.work.tokens_per_step,
        rounds=result.settings.rounds,
        interrupted=result.interrupted,
        rows=[_row(row) for row in case.rows if not row.control],
        ratios=[
            Ratio(slower=c.slower, faster=c.faster, ratio=c.ratio, low=c.low, high=c.high, claimed=c.claimed)
            for c in case.comparisons
        ],
        energy_source=energy.source,
        no_energy=[reason[:UNCLEANED] for reason in energy.without],
        doubts=[line[:UNCLEANED] for line in machine_doubts(result.environment)],
    )


def _row(row: BackendRow) -> Row:
    figures = row.summary
    energy = figures.energy if figures else None
    return Row(
        backend=row.backend,
        device=row.device,
        dtype=row.dtype,
        status=row.status,
        reason=row.reason and row.reason[:UNCLEANED],
        verified=row.verified,
        seconds_per_step=figures.seconds_per_step if figures else None,
        tokens_per_second=figures.tokens_per_second if figures else None,
        mfu=figures.mfu.measured if figures else None,
        mfu_published=figures.mfu.published if figures else None,
        memory=figures.memory.peak if figures else None,
        joules_per_token=energy.joules_per_token if energy else None,
    )
