"""The result of a benchmark: its types, its file, its reader. docs/benchmark-results.md explains it to people.

Times are in seconds, memory in bytes, shares between 0 and 1. `Result.model_json_schema()` is the file's schema.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, ValidationError

from benchmarks.readings import (
    About,
    Above0,
    Before,
    Compilation,
    Generation,
    Overhead,
    Plan,
    Process,
    Record,
    Sha256,
    absent_if_none,
    damaged,
)
from gpt_common.config import RunConfig, from_dict
from gpt_common.errors import UserError
from gpt_common.files import cannot_write, write_atomically
from gpt_common.machine.hardware import Hardware
from gpt_common.machine.peaks import Peak

VERSION: Final = 1
"""Raised when a reader of the old version would misunderstand a file."""
Status = Literal["measured", "absent", "unproven", "failed", "rejected", "stopped"]
Verified = Literal["parity", "losses", "unverified"]


class Sustained(Record):
    """A long run without a pause."""

    process: Process = Field(description="Its samples, in the throughput series.")
    first_tenth: float | None = Field(description="Median seconds per step in the first tenth of the samples.")
    last_tenth: float | None = Field(description="The same in the last tenth.")
    kept: float | None = Field(description="Share of the first speed that is left at the end: 1 is all of it.")


class Quantiles(Record):
    """Figures of pooled valid samples, seconds per step."""

    n: int = Field(description="How many.")
    min: float = Field(description="Least.")
    p25: float = Field(description="Lower quartile.")
    median: float = Field(description="Median.")
    p75: float = Field(description="Upper quartile.")
    p95: float = Field(description="95th percentile.")


class Mfu(Record):
    """Model FLOPs utilisation, 1 is all of the peak; PaLM's count of operations unless said otherwise."""

    published: float | None
    """Against the chip's published peak; null where none is known: there is no default."""
    published_peak: Peak | None = Field(description="That peak and its source.")
    measured: float | None
    """Against the fastest matrix product of this session, on the same framework, device and dtype."""
    measured_exact: float | None = Field(description="The same with the exact causal count.")
    measured_peak_tflops: float | None = Field(description="That product's rate.")
    a100: float | None = Field(description="Against 312 TFLOP/s, to lay logs beside nanoGPT's, and for nothing else.")


class RowMemory(Record):
    """Largest over the processes."""

    peak: int | None = Field(description="Framework's allocator.")
    cache: int | None = Field(description="Kept for reuse.")
    resident_peak: int | None = Field(description="Process.")
    swapped: int | None = Field(description="Machine.")


class RowEnergy(Record):
    """Estimate from the mean power of the throughput series."""

    watts: float = Field(description="Mean power.")
    joules_per_token: float = Field(description="Gross.")
    net_joules_per_token: float | None = Field(description="Less the idle machine.")
    source: str = Field(description="Reader.")
    scope: str = Field(description="What it counts.")
    estimate: bool = Field(default=True, description="Always true.")


class Summary(Record):
    """The figures of a measured row."""

    seconds_per_step: Above0
    """Median over the rounds of each round's median throughput sample: the figure that rows are ranked by."""
    tokens_per_second: float = Field(description="From it.")
    rounds: list[float | None] = Field(description="That median in each round; null where a round has no valid sample.")
    latency: Quantiles | None = Field(description="Series waited for after every step.")
    throughput: Quantiles | None = Field(description="Series waited for after every tenth.")
    data_seconds: float | None = Field(description="Time to make one step's batches: not in any other figure.")
    samples: int = Field(description="Samples taken, both series.")
    marked: dict[str, int] = Field(description="How many bear each mark.")
    settled: bool = Field(description="Whether every process was warm when its series began.")
    first_step_seconds: list[float]
    """Of each process: the first compiles, later ones find kernels on disk."""
    compilation: Compilation | None = Field(description="Of the first process.")
    mfu: Mfu = Field(description="Model FLOPs utilisation.")
    memory: RowMemory = Field(description="Largest over the processes.")
    energy: RowEnergy | None = Field(description="Null without a source.")


class BackendRow(About):
    """One backend in one case."""

    backend: str = Field(description="Its name on the command line; a peer's with its device.")
    label: str = Field(description="The same, with `again` for the control.")
    framework: Literal["mlx", "torch"] = Field(description="What computes.")
    compiled: bool = Field(description="Asked for compiled.")
    peer: str | None = Field(description="Whose model, if not ours.")
    control: bool = Field(description="A second measurement of the same backend.")
    bits: int | None = absent_if_none()
    """Of each weight of the matrices that are quantised. Absent where none is."""
    group_size: int | None = absent_if_none()
    """Weights that share a scale and a bias. Absent where no matrix is quantised."""
    status: Status
    """absent: cannot run here. unproven: did not pass the parity ladder, not timed. failed: its process ended.
    rejected: its figures are impossible, or a peer does other work. stopped: interrupted before."""
    reason: str | None = Field(description="Why it has no figures.")
    verified: Verified
    """parity: passed the ladder in this session. losses: a peer whose first losses equal ours. unverified: not
    checked."""
    processes: list[Process] = Field(description="Raw samples of every process.")
    sustained: Sustained | None = Field(description="A long run.")
    generation: Generation | None = Field(description="Generation.")
    overhead: Overhead | None = Field(description="Cost of the trainer around the step.")
    summary: Summary | None = Field(description="Null without figures.")


class Work(Record):
    """One step: forward, backward, clip, AdamW, zero; of the adapters where there are any."""

    parameters: int = Field(description="Numbers of the model, trained if nothing else is said.")
    active_parameters: int | None = None
    """Those that one token meets, which FLOPs and MFU count: fewer with experts. Absent in older files."""
    tokens_per_step: int = Field(description="Tokens.")
    flops_per_step: float = Field(description="PaLM's 6N + 12LHQT, times tokens.")
    flops_per_step_exact: float = Field(description="Every matrix product, causal attention.")
    dtype: str = Field(description="Compute dtype.")
    adapter: str | None = absent_if_none()
    """What is trained in place of the parameters, which are frozen: lora or dora, and its rank. Absent where they are
    trained."""
    trained_parameters: int | None = absent_if_none()
    """Numbers that are trained. Absent where all parameters are."""

    @property
    def active(self) -> int:
        """Parameters that one token meets."""
        return self.active_parameters or self.parameters


class TimeRatio(Record):
    """How many times as long one takes as the other."""

    ratio: Above0 = Field(description="Geometric mean of the rounds' ratios of times.")
    low: float | None = Field(description="Lower bound of the 95 % interval; null with fewer than 6 rounds.")
    high: float | None = Field(description="Upper bound.")
    rounds: Annotated[int, Field(ge=1)] = Field(description="Rounds in which both were measured.")


class Control(TimeRatio):
    """The first backend against itself (A/A)."""

    backend: str = Field(description="Which.")


class Comparison(TimeRatio):
    """Times of `slower` over times of `faster`, paired within rounds."""

    slower: str = Field(description="Backend.")
    faster: str = Field(description="Backend.")
    claimed: bool
    """Whether the difference is claimed: the interval excludes 1, and it is larger than what the control shows."""


class CaseResult(Record):
    """One configuration."""

    name: str = Field(description="`base`, or the changes of a sweep.")
    changes: dict[str, int] = Field(description="What a sweep changed.")
    config: dict[str, Any] = Field(description="The whole configuration, as gpt_common.config.to_dict gives it.")
    work: Work = Field(description="One step.")
    rows: list[BackendRow] = Field(description="All that was asked for, absent ones too.")
    control: Control | None = Field(description="The first backend against itself; null if it was not measured twice.")
    comparisons: list[Comparison] = Field(description="Every pair of measured rows.")

    @property
    def run_config(self) -> RunConfig:
        """The configuration."""
        return from_dict(self.config)


# --- the file


def _known_fields(hardware: Any) -> Any:
    """Later versions may describe a machine more closely: that is no reason to refuse a file."""
    known = Hardware.__dataclass_fields__
    return {key: value for key, value in hardware.items() if key in known} if isinstance(hardware, dict) else hardware


class EnergySource(Record):
    """Reader of energy."""

    source: str | None = Field(description="Which.")
    without: list[str] = Field(description="Why others were not used.")


class Environment(Record):
    """Where a result was measured, and with what."""

    hardware: Annotated[Hardware, BeforeValidator(_known_fields)]
    """gpt_common.machine.hardware.Hardware."""
    host: str = Field(description="Name of the machine.")
    versions: dict[str, str] = Field(description="Versions.")
    git: str | None = Field(description="Commit, and whether files were changed.")
    variables: dict[str, str] = Field(description="Environment variables that decide about speed.")
    before: Before = Field(description="The machine before the first process.")
    energy: EnergySource = Field(description="Reader of energy.")


class Climb(Record):
    """A climb of the parity ladder."""

    # The key of the file is no name in Python.
    precision: str = Field(alias="class")
    """Class of arithmetic: strict, tf32 or bf16."""
    rungs: list[dict[str, Any]] = Field(description="Rungs with the measurement nearest to its gate.")


class ParityCheck(Record):
    """The ladder, climbed before anything was timed."""

    checked: bool = Field(description="False with --no-parity.")
    passed: dict[str, Sha256] = Field(description="Backend to the SHA-256 of the report in which it passed.")
    reports: dict[str, Climb] = Field(description="By SHA-256 of the report, which lies beside this file.")


class Settings(Record):
    """How much is measured."""

    rounds: int = Field(default=6, description="Processes per backend.")
    seconds: float = Field(default=1.5, description="Length of each of the two series in a process.")
    cooldown: float = Field(
        default=1.0, description="Seconds of rest before each process; a Mac that is hot rests longer."
    )
    sustained: float = Field(default=0.0, description="Seconds of an uninterrupted run of each backend.")
    generation: bool = Field(default=False, description="Whether generation is measured.")
    overhead: bool = Field(default=False, description="Whether the trainer's overhead is measured.")

    @property
    def plan(self) -> Plan:
        """The plan of one process."""
        return Plan(latency_seconds=self.seconds, throughput_seconds=self.seconds, warm_seconds=3 * self.seconds)


class Result(Record):
    """One benchmark run."""

    kind: Literal["mlx-torch-gpt/benchmark"] = Field(alias="schema")
    """What this file is."""
    version: Literal[1] = Field(description="Version of this schema.")
    name: str = Field(description="Preset or configuration file.")
    created: str = Field(description="Start, UTC.")
    finished: str = Field(description="End, UTC.")
    interrupted: bool = Field(description="Whether Ctrl-C ended it.")
    command: str = Field(description="What was typed.")
    environment: Environment = Field(description="Where and with what.")
    parity: ParityCheck = Field(description="The ladder, climbed before anything was timed.")
    settings: Settings = Field(description="How much was measured.")
    cases: list[CaseResult] = Field(description="One, or several in a sweep.")


def to_json(result: Result) -> str:
    """The text of the file; NaN and infinity, which JSON does not know, are null."""
    return result.model_dump_json(by_alias=True, indent=1) + "\n"


def write_result(path: Path, result: Result) -> Result:
    """Write, and check what was written as a reader would; returns that.

    Raises:
        UserError: the folder cannot be written to.
        pydantic.ValidationError: the result is not as its types say; nothing is written.
    """
    text = to_json(result)
    found = Result.model_validate_json(text, strict=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    return found


def read_result(path: Path) -> Result:
    """A result that this or an earlier version of the project wrote.

    Raises:
        UserError: not readable, not a result, or of a newer version.
    """
    try:
        text = path.read_text(encoding="utf-8")
        version = json.loads(text)["version"]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a benchmark result: {error}") from None
    if version != VERSION:
        raise UserError(f"{path} has result version {version}, this is for version {VERSION}: update, or measure again")
    try:
        return Result.model_validate_json(text, strict=True)
    except ValidationError as damage:
        raise damaged(path, damage) from None
