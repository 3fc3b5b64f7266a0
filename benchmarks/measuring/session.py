"""A session: which process runs when, and what became of it. Knows no framework.

Every backend runs once per round, in a fresh process. Rounds alternate in direction, A B C then C B A, so that a
machine that grows warmer, or busier, does so to all of them alike. The first backend runs twice in every round: what
that shows is what this machine calls a difference where there is none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.grids import expected_weight_bytes
from benchmarks.measuring.backends import Backend
from benchmarks.measuring.checks import other_weights, other_work, rejection
from benchmarks.measuring.processes import Event, run_worker
from benchmarks.measuring.progress import Display, Task
from benchmarks.measuring.resources import load
from benchmarks.measuring.samples import median_of, valid
from benchmarks.readings import About, Before, Generation, Overhead, Process, PromptLength
from benchmarks.results import Settings, Status, Verified
from gpt_common.adapting.configuration import AdapterConfig
from gpt_common.config import RunConfig, to_dict
from gpt_common.machine.hardware import Hardware, published_peak, thermal_pressure
from gpt_common.machine.power_readers import Reader
from gpt_common.machine.power_samples import Energy
from gpt_common.words import milliseconds

START_SECONDS = 8.0
"""About how long a worker takes to import its framework and build a model."""
COOL_SECONDS = 120.0
"""Longest wait for a hot machine before each process."""


@dataclass
class Row:
    """One backend in one case."""

    backend: Backend
    status: Status | Literal["waiting"] = "waiting"
    reason: str | None = None
    verified: Verified = "unverified"
    about: About = field(default_factory=About)
    processes: list[Process] = field(default_factory=list)
    sustained: Process | None = None
    generation: Generation | None = None
    overhead: Overhead | None = None

    @property
    def open(self) -> bool:
        """Whether it is still to be measured."""
        return self.status in ("waiting", "measured")

    def end(self, status: Status, reason: str) -> None:
        """No more of it."""
        self.status, self.reason = status, reason


@dataclass
class Case:
    """One configuration; a sweep has several."""

    name: str
    changes: dict[str, int]
    config: RunConfig
    rows: list[Row]


@dataclass(frozen=True)
class Job:
    """One process."""

    case: Case
    row: Row
    task: str
    """steps, sustained, generation or overhead."""
    round: int = 0

    @property
    def name(self) -> str:
        """For the display."""
        case = f"{self.case.name} " if self.case.changes else ""
        return f"{case}{self.row.backend.label} {self.task}"


def jobs(cases: Sequence[Case], settings: Settings) -> Iterator[Job]:
    """All processes in their order."""
    for case in cases:
        yield from _rounds(case, "steps", settings.rounds)
        if settings.generation:
            yield from _rounds(case, "generation", settings.rounds)
        wanted = {"sustained": settings.sustained > 0, "overhead": settings.overhead}
        for task in (task for task, asked in wanted.items() if asked):
            for row in case.rows:
                if row.open and not row.backend.control and not (task == "overhead" and row.backend.peer):
                    yield Job(case, row, task)


def _rounds(case: Case, task: str, rounds: int) -> Iterator[Job]:
    """Every row once in each, from the first to the last and back; the control only where steps are measured."""
    for number in range(rounds):
        for row in case.rows if number % 2 == 0 else reversed(case.rows):
            if row.open and (task == "steps" or not row.backend.control):
                yield Job(case, row, task, number)


def estimate(job: Job, settings: Settings) -> float:
    """Seconds that a job takes, roughly."""
    if job.task == "sustained":
        return START_SECONDS + settings.sustained
    if job.task == "steps":
        return START_SECONDS + settings.cooldown + 4 * settings.seconds
    return START_SECONDS + (10 if job.task == "generation" else 30)


@dataclass
class Session:
    """What runs the jobs, and keeps what they gave.

    Args:
        worker: runs one job; `processes.run_worker`.
    """

    cases: list[Case]
    settings: Settings
    hardware: Hardware
    display: Display
    environment: Mapping[str, str]
    reader: Reader | None = None
    worker: Callable[..., Event] = run_worker
    sleep: Callable[[float], None] = time.sleep
    interrupted: bool = False

    def run(self) -> None:
        """Every job, until the end or Ctrl-C; what is done by then stays."""
        try:
            for job in list(jobs(self.cases, self.settings)):
                if not job.row.open:
                    continue
                self._rest()
                self.display.begin()
                self.display.end(f"{job.name}: {self._run(job)}")
                if not job.row.open:
                    self.display.skip(job.name)
                if self.interrupted:
                    break
        except KeyboardInterrupt:
            self.interrupted = True
        finally:
            self.display.close()

    def _rest(self) -> None:
        self.sleep(self.settings.cooldown)
        waited = 0.0
        while waited < COOL_SECONDS and thermal_pressure() not in (None, "nominal"):
            self.sleep(5.0)
            waited += 5.0

    def _run(self, job: Job) -> str:
        """One job; returns what to say about it."""
        energy = _EnergyMeter(self.reader, self.display.progress)
        before, row = state_of_machine(), job.row
        event = self.worker(describe_job(job, self.settings), energy.progress, environment=self.environment)
        interrupted = bool(event.pop("interrupted", False))
        self.interrupted |= interrupted
        if (kind := event.pop("event")) != "result":
            ends: dict[str, Status] = {"absent": "absent", "refused": "rejected"}
            row.end(ends.get(kind, "failed"), event["reason"])
            return str(event["reason"])
        about = event.pop("about")
        if job.task == "generation":
            found = Generation(**{**event, "rounds": [job.round]})
            row.generation = found if row.generation is None else together(row.generation, found)
            return "done"
        if job.task == "overhead":
            row.overhead = Overhead(**event)
            return "done"
        process = Process(round=job.round, complete=not interrupted, energy=energy.result(), **vars(before), **event)
        if job.task == "sustained":
            row.sustained = process
            return "interrupted" if interrupted else "done"
        row.about = About(**about)
        return self._judge(job, process)

    def _judge(self, job: Job, process: Process) -> str:
        """Whether a process counts; returns its speed, or why not."""
        row, case = job.row, job.case
        row.processes.append(process)
        if not process.complete:
            return "interrupted"
        device, dtype = row.about.device or "", row.about.dtype or ""
        peak = published_peak(self.hardware, device, dtype)
        expected, theirs = expected_losses(case, dtype, row.backend.bits)
        coarser = "bfloat16" if "bfloat16" in (dtype, theirs) else dtype
        weights = None if row.backend.peer else expected_weight_bytes(case.config, row.backend.grid)
        reason = (
            rejection(process, peak.flops if peak else None)
            or other_work(process.losses, expected, coarser, drops(case.config))
            or other_weights(row.about.weight_bytes, weights)
        )
        if reason:
            row.end("rejected", reason)
            return f"rejected: {reason}"
        row.status = "measured"
        if row.backend.peer and expected:
            row.verified = "losses"
        seconds = median_of(valid(process.throughput))
        return "no valid sample" if seconds is None else f"{milliseconds(seconds)} ms/step"


def state_of_machine() -> Before:
    """Load and heat, before something is measured."""
    return Before(load=load(), thermal_pressure=thermal_pressure())


def together(before: Generation, found: Generation) -> Generation:
    """Generation of some rounds with that of one more; where that wrote another text, nobody's is the same."""
    lengths = [
        PromptLength(
            prompt=old.prompt,
            prompt_seconds=old.prompt_seconds + new.prompt_seconds,
            token_seconds=old.token_seconds + new.token_seconds,
        )
        for old, new in zip(before.lengths, found.lengths, strict=True)
    ]
    digest = before.greedy_sha256
    if found.greedy_sha256 != digest:
        digest = hashlib.sha256((digest + found.greedy_sha256).encode()).hexdigest()
    return Generation(
        new_tokens=before.new_tokens, lengths=lengths, greedy_sha256=digest, rounds=before.rounds + found.rounds
    )


def drops(config: RunConfig) -> bool:
    """Whether anything is dropped in a step."""
    return config.model.dropout > 0 or config.adapter.adapter_dropout > 0


def expected_losses(case: Case, dtype: str, bits: int = 0) -> tuple[list[float | None], str]:
    """Losses of the first steps by the first of our own backends that gave any, and their dtype; of `dtype` if any.

    Args:
        bits: rounded weights have other losses, and the same ones in both twins.
    """
    ours = [
        row
        for row in case.rows
        if not row.backend.peer and row.status != "rejected" and row.processes and row.backend.bits == bits
    ]
    first = next((row for row in ours if row.about.dtype == dtype), ours[0] if ours else None)
    return (first.processes[0].losses, first.about.dtype or dtype) if first else ([], dtype)


def describe_job(job: Job, settings: Settings) -> dict[str, Any]:
    """A job as the worker reads it."""
    plan = settings.plan
    if job.task == "sustained":
        plan = plan.model_copy(update={"latency_seconds": 0.0, "throughput_seconds": settings.sustained})
    backend, config = job.row.backend, job.case.config
    if job.task == "generation":
        # What is deployed: an adapter is merged before.
        config = dataclasses.replace(config, adapter=AdapterConfig())
    train = dataclasses.replace(config.train, compile=backend.compiled)
    return {
        "task": "steps" if job.task == "sustained" else job.task,
        "backend": dataclasses.asdict(backend),
        "config": to_dict(dataclasses.replace(config, train=train)),
        "plan": plan.model_dump(),
    }


def tasks(cases: Sequence[Case], settings: Settings) -> list[Task]:
    """Every job, for the display."""
    return [Task(job.name, estimate(job, settings)) for job in jobs(cases, settings)]


class _EnergyMeter:
    """Reads energy while a worker is in its throughput series; passes progress on."""

    def __init__(self, reader: Reader | None, progress: Callable[[str, float], None]) -> None:
        self._reader, self._progress = reader, progress
        self._running = False
        self._energy: Energy | None = None

    def progress(self, phase: str, share: float) -> None:
        """See run_worker."""
        if self._reader is not None and self._running != (phase == "throughput"):
            self._running = not self._running
            if self._running:
                self._reader.start()
            else:
                self._energy = self._reader.stop()
        self._progress(phase, share)

    def result(self) -> Energy | None:
        """Joules and seconds of the throughput series, None without a source."""
        if self._running and self._reader is not None:
            self._running, self._energy = False, self._reader.stop()
        return self._energy
