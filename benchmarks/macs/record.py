"""What a self-test found, as one file: its types, its writer, its reader.

Nothing in it is a text of unlimited length, for it is read by strangers and comes from strangers.
Times are in seconds, memory in bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from benchmarks.macs.personal import Personal, holds_path, texts
from benchmarks.readings import AtLeast0, Record, Sha256, damaged
from gpt_common.errors import UserError, WorkFailed
from gpt_common.files import cannot_write, read_json, write_atomically
from gpt_common.machine.hardware import Hardware

VERSION: Final = 1
LARGEST = 1_000_000
"""Bytes of a file that is read."""
UNCLEANED = 200
"""Characters of a text that is yet to be cleaned: a name of two letters becomes three times as long."""
Status = Literal["passed", "failed", "timed out", "interrupted", "not run"]
Short = Annotated[str, Field(max_length=120)]
Words = Annotated[str, Field(max_length=600)]


class Checkout(Record):
    """With what was measured: a reader compares it with a checkout of the same commit of his own.

    It shows what was changed by mistake. Whoever wants to deceive can write any file.
    """

    commit: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None
    """Of this program; null outside a git checkout."""
    changed: bool | None = Field(description="Whether tracked files differ from it; null if git cannot be asked.")
    source_sha256: Sha256
    """Of names and contents of all Python, TOML and template files of the five packages."""
    packages: int = Field(description="Installed packages.")
    packages_sha256: Sha256 = Field(description="Of the sorted lines `name==version` of them all.")
    wheels: dict[Short, Short] = Field(description="Package to the tags of its wheel.")


class Machine(Record):
    """Where."""

    hardware: Hardware
    """gpt_common.machine.hardware.Hardware."""
    versions: dict[Short, Short] = Field(description="Versions of what computes.")
    python_platform: Short = Field(description="What this Python was built for: it decides which wheels pip takes.")
    matrix_units: bool | None
    """Whether MLX uses the matrix units of an M5: false before it, null where that is not known."""
    advice: Words | None = Field(description="What the owner should know of the installed MLX.")


class Here(Record):
    """One backend."""

    backend: Short = Field(description="Its name.")
    device: Short | None = Field(description="On what it computes; null if it is not here.")
    reason: Words | None = Field(description="Why it is not here.")


class Rung(Record):
    """What came nearest to its gate on one rung of the parity ladder."""

    name: Short = Field(description="L0 to L8, G, S.")
    passed: bool = Field(description="Whether all of it is within its gate.")
    error: AtLeast0 | None = Field(description="The error; null where nothing was compared or it is not finite.")
    gate: AtLeast0 | None = Field(description="What it may be.")
    tensor: Short | None = Field(description="Of what.")


class Climb(Record):
    """The ladder with one backend, beside PyTorch on the CPU and float64."""

    backend: Short = Field(description="Which.")
    passed: bool = Field(description="Whether every rung holds.")
    rungs: list[Rung] = Field(description="In their order.")


class Canary(Record):
    """A known fault of a framework, tried."""

    backend: Short = Field(description="Where.")
    name: Short = Field(description="Which.")
    verdict: Literal["right", "wrong", "not tried"] = Field(description="What came of it.")
    error: AtLeast0 | None = Field(description="Relative; null if not tried or not finite.")
    gate: AtLeast0 = Field(description="What it may be.")


class Training(Record):
    """A short training by one twin in float32."""

    twin: Literal["mlx_gpt", "torch_gpt"] = Field(description="Which.")
    device: Short = Field(description="On what.")
    losses: list[float | None] = Field(description="Of each step, from step 1.")


class Change(Record):
    """A training that PyTorch began, `convert torch2mlx` moved and MLX ended, beside one by MLX alone."""

    after: int = Field(description="Steps before the change.")
    before_difference: float | None = Field(description="Largest difference of losses before it.")
    after_difference: float | None = Field(description="The same after it.")
    gate: float = Field(description="What either may be.")


class Row(Record):
    """One backend of the benchmark."""

    backend: Short = Field(description="Its name.")
    device: Short | None = Field(description="On what.")
    dtype: Short | None = Field(description="In what it computed.")
    status: Short = Field(description="`measured`, or why not.")
    reason: Words | None = Field(description="The same in words.")
    verified: Short = Field(description="Whether it passed parity in this session.")
    seconds_per_step: AtLeast0 | None = Field(description="Median over the rounds.")
    tokens_per_second: AtLeast0 | None = Field(description="From it.")
    mfu: AtLeast0 | None = Field(description="Share of the fastest matrix product measured.")
    mfu_published: AtLeast0 | None = Field(description="Share of the chip's published peak.")
    memory: AtLeast0 | None = Field(description="Peak of the framework's allocator.")
    joules_per_token: AtLeast0 | None = Field(description="An estimate; null without a source.")


class Ratio(Record):
    """How many times as long one row takes as another."""

    slower: Short = Field(description="Backend.")
    faster: Short = Field(description="Backend.")
    ratio: AtLeast0 = Field(description="Of times.")
    low: AtLeast0 | None = Field(description="Lower bound of the 95 % interval; null with fewer than 6 rounds.")
    high: AtLeast0 | None = Field(description="Upper bound.")
    claimed: bool = Field(description="Whether it is more than what the control shows.")


class Benchmark(Record):
    """benchmarks/run.py, shortened."""

    name: Short = Field(description="Preset.")
    parameters: int = Field(description="Trained numbers.")
    tokens_per_step: int = Field(description="Tokens.")
    rounds: int = Field(description="Processes per backend.")
    interrupted: bool = Field(description="Whether it was ended early.")
    rows: list[Row] = Field(description="All that were asked for.")
    ratios: list[Ratio] = Field(description="Every pair of measured rows.")
    energy_source: Short | None = Field(description="Who read energy.")
    no_energy: list[Words] = Field(description="Why others were not used.")
    doubts: list[Words] = Field(description="Why the machine may not have been at its best.")


class Part(Record):
    """One part of the test, in processes of its own."""

    name: Short = Field(description="Which.")
    status: Status = Field(description="What became of it.")
    seconds: AtLeast0 = Field(description="How long it took.")
    commands: list[Words] = Field(description="What was run.")
    words: Words | None = Field(description="If it did not pass: what was said last.")


class SelfTest(Record):
    """One run of benchmarks/selftest.py."""

    kind: Literal["mlx-torch-gpt/selftest"] = Field(default="mlx-torch-gpt/selftest", alias="schema")
    """What this file is."""
    version: Literal[1] = Field(default=VERSION, description="Version of this schema.")
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")] = Field(description="Start.")
    seconds: AtLeast0 = Field(description="From start to end.")
    passed: bool = Field(description="Whether every part passed.")
    interrupted: bool = Field(description="Whether Ctrl-C ended it.")
    checkout: Checkout | None = Field(description="With what; null if that part failed.")
    machine: Machine | None = Field(description="Where; null if that part failed.")
    backends: list[Here] = Field(description="Which are here.")
    climbs: list[Climb] = Field(description="The parity ladder, by backend.")
    canaries: list[Canary] = Field(description="Known faults.")
    trainings: list[Training] = Field(description="Short trainings.")
    change: Change | None = Field(description="A change of framework in mid-run.")
    benchmark: Benchmark | None = Field(description="Speed and energy.")
    parts: list[Part] = Field(description="In their order.")


def to_json(record: SelfTest, person: Personal) -> str:
    """The text of the file, cleaned, checked against the schema and looked through.

    Raises:
        WorkFailed: something personal is in it all the same.
        pydantic.ValidationError: it is not as its types say.
    """
    document = person.clean_all(json.loads(record.model_dump_json(by_alias=True)))
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    SelfTest.model_validate_json(text, strict=True)
    look_through(texts(document), person)
    return text


def look_through(found: Any, person: Personal) -> None:
    """Refuse to hand out what holds something personal.

    Args:
        found: the texts.

    Raises:
        WorkFailed: says what kind of thing it is, and not the thing.
    """
    for text in found:
        if what := person.found_in(text):
            raise WorkFailed(
                f"nothing was written: {what} is in what would be shared, which is a fault of this program"
            )


def check_share(path: Path) -> None:
    """Whether the file can be written, before minutes of measuring.

    Raises:
        UserError: it cannot.
    """
    if path.is_dir():
        raise UserError(f"--share {path} is a folder: name a file, as in --share {path / 'my-mac.json'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path.parent, error) from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: the folder is read-only")


def write_record(path: Path, record: SelfTest, person: Personal) -> str:
    """Write the file whole or not at all; returns its SHA-256.

    Raises:
        UserError: it cannot be written.
        WorkFailed: as `to_json`.
    """
    text = to_json(record, person)
    write_text(path, text)
    return sha256(text)


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_atomically(path, text)
    except OSError as error:
        raise cannot_write(path, error) from None


def sha256(text: str) -> str:
    """Of a file with this text."""
    return hashlib.sha256(text.encode()).hexdigest()


def read_record(path: Path) -> SelfTest:
    """A file that somebody sent.

    Raises:
        UserError: not readable, not a self-test, of another version, damaged, or with somebody's paths in it.
    """
    try:
        document = read_json(path, LARGEST)
        version = document["version"]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a self-test: {error}") from None
    if version != VERSION:
        raise UserError(f"{path} has self-test version {version}, this is for version {VERSION}")
    try:
        record = SelfTest.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as damage:
        raise damaged(path, damage) from None
    if any(holds_path(text) for text in texts(document)):
        raise UserError(f"{path} holds an absolute path, which may name its sender: take it out")
    return record
