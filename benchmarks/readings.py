"""What one process of a benchmark measures, as types: a worker answers with them, and the result keeps them.

Times are in seconds, memory in bytes, shares between 0 and 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpt_common.errors import UserError
from gpt_common.machine.power_samples import Energy

Above0 = Annotated[float, Field(gt=0)]
AtLeast0 = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Mark = Literal["asleep", "throttled", "outlier"]
Device = Literal["cpu", "gpu", "mps", "cuda"]


def absent_if_none() -> Any:
    """A later property: where it says nothing the file does not have it, so that an older one stays as it is."""
    return Field(default=None, exclude_if=lambda value: value is None)


class Record(BaseModel):
    """A part of the result."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def damaged(path: Path, damage: ValidationError) -> UserError:
    """The error for a file whose record is not as its types say: where first, and how."""
    first = damage.errors()[0]
    return UserError(f"{path} is damaged at {'.'.join(map(str, first['loc']))}: {first['msg'][:120]}")


class Plan(Record):
    """How long one process measures."""

    latency_seconds: float = Field(default=3.0, description="Length of the latency series.")
    throughput_seconds: float = Field(default=3.0, description="Length of the throughput series.")
    warm_seconds: float = Field(
        default=15.0, description="Warm-up ends after this, warm or not; the result says which."
    )
    minimum_steps: int = Field(
        default=3, description="Steps per series, however long they take; a block is never broken."
    )
    largest_product: int = Field(default=8192, description="Width of the largest matrices multiplied to find the peak.")


class Samples(Record):
    """Timed samples in columns; index i of every column is sample i."""

    steps_per_sample: Annotated[int, Field(ge=1)]
    """1: the device was waited for after every step (latency). 10: after every tenth (throughput)."""
    began: float
    """When the first sample began, by a clock that goes on while the machine sleeps; its zero is arbitrary."""
    start: list[float] = Field(description="When each sample began, seconds after `began`.")
    seconds: list[AtLeast0] = Field(description="Time of each sample, data left out; for all its steps together.")
    data_seconds: list[AtLeast0] = Field(description="Time to make each sample's batches, measured apart.")
    marks: dict[str, list[Mark]]
    """By index of the sample: asleep (the machine was suspended) and throttled (slowed because it was hot) do not
    count; outlier (far outside the middle half) does."""


class WarmUp(Record):
    """Steps until the times stood still."""

    steps: int = Field(description="How many, the first ones included.")
    seconds: float = Field(description="How long.")
    settled: bool = Field(description="Whether the medians of the last two times ten steps differed by less than 2 %.")
    drift: float | None = Field(description="By how much they differed.")
    step_seconds: float = Field(description="Median of the last twenty.")


class SelfTest(Record):
    """Proof that the timer waits for the device."""

    step_seconds: float = Field(description="A step.")
    left_seconds: float = Field(description="Work that was left after waiting.")


class Compilation(Record):
    """What compilation did; null where the framework does not say."""

    seconds: float | None = Field(description="Time that it took.")
    graphs: int | None = Field(description="Graphs compiled.")
    graph_breaks: int | None = Field(description="Places where a graph had to be broken.")
    recompiles: int | None = Field(description="Graphs compiled again.")


class Memory(Record):
    """Memory of one process."""

    peak: int | None = Field(description="Most that the framework's allocator held; null where it does not count.")
    cache: int | None = Field(description="What it keeps for reuse at the end.")
    resident_before: int = Field(description="Main memory of the process with the model, before the first step.")
    resident_peak: int = Field(description="Most main memory of the process.")
    swapped: int = Field(description="Growth of the machine's swap during the series.")


class Throttling(Record):
    """Evidence of throttling."""

    known: bool = Field(description="Whether this system says at all; if not, no mark means nothing.")
    evidence: list[str] = Field(description="Every kind that was seen.")


class Readings(Record):
    """Everything that one process reads off."""

    plan: Plan = Field(description="How long it was to measure.")
    first_step_seconds: float = Field(description="The first step, which compiles what is compiled.")
    losses: list[float | None]
    """Losses of the first steps, nats per token: equal work gives equal losses."""
    warm_up: WarmUp = Field(description="Steps until the times stood still.")
    self_test: SelfTest = Field(description="Proof that the timer waits for the device.")
    products: dict[str, Above0]
    """Time of one product of two square matrices by their width: the peak measured here."""
    latency: Samples = Field(description="The device was waited for after every step.")
    throughput: Samples = Field(description="The device was waited for after every tenth step.")
    compilation: Compilation | None = Field(description="Null where nothing is compiled.")
    memory: Memory = Field(description="Memory of the process.")
    throttling: Throttling = Field(description="Evidence of throttling.")


class Measured(Readings):
    """What a worker answers."""

    interrupted: bool = Field(description="Whether a series was ended early.")


class Before(Record):
    """The machine before something is measured."""

    load: float | None
    """Processes that ran or waited for a processor in the minute before, on average."""
    thermal_pressure: str | None = Field(description="macOS's level of thermal pressure; null elsewhere.")


class Process(Readings, Before):
    """One process of a row."""

    round: Annotated[int, Field(ge=0)]
    """Round in which it ran, from 0."""
    complete: bool = Field(description="False if it was interrupted; it does not count then.")
    energy: Energy | None = Field(description="Energy of the throughput series; null without a source.")


class PromptLength(Record):
    """Generation from prompts of one length."""

    prompt: int = Field(description="Tokens.")
    prompt_seconds: list[float] = Field(description="Prompt and first new token, each repetition.")
    token_seconds: list[float | None] = Field(description="Each later token: the median of each repetition.")


class Generation(Record):
    """Greedy generation with a key-value cache, without adapters."""

    new_tokens: int = Field(description="Tokens generated after each prompt.")
    lengths: list[PromptLength] = Field(description="By length of the prompt.")
    greedy_sha256: str = Field(description="Of all new tokens: equal logits give equal text.")
    rounds: list[int] = Field(default=[], exclude_if=lambda rounds: not rounds)
    """Which rounds measured it, each in a process of its own and with equally many repetitions, in this order. Empty in
    older files, of one process."""


class Overhead(Record):
    """The real training loop against bare steps, alternating blocks in one process."""

    parts_seconds: dict[str, float | None]
    """Median per call of what the loop does besides the step: batches and stepped once per step, record per block."""
    steps_per_block: int = Field(description="Steps per block.")
    loop_seconds: list[float] = Field(description="Each block of the loop.")
    bare_seconds: list[float] = Field(description="The bare block beside it.")
    ratio: float = Field(description="Loop over bare.")
    low: float | None = Field(description="Lower bound of the 95 % interval.")
    high: float | None = Field(description="Upper bound.")


class About(Record):
    """What computed, as a worker says."""

    description: str | None = Field(default=None, description="Framework, version, device.")
    device: Device | None = Field(default=None, description="Where it computed.")
    dtype: str | None = Field(default=None, description="Compute dtype.")
    notes: list[str] = Field(default=[], description="In what its work differs.")
    versions: dict[str, str] = Field(default={}, description="Of what computed.")
    weight_bytes: int | None = absent_if_none()
    """Bytes of all tensors of the model, without adapters. Absent in older files."""
