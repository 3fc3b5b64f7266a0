"""A run as its folder tells of it: configuration, course, samples, environment. Reads only; it may still be going."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpt_common.config import RunConfig, differences, load_toml
from gpt_common.errors import UserError
from gpt_common.files import read_json
from gpt_common.network.flops import active_parameter_count, parameter_count
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.folder import LARGEST_ABOUT, RUNS, is_held, newest_run
from gpt_common.training.log.runlog import LARGEST_STEP, read_lines, read_metrics
from gpt_common.training.manifest import Manifest
from gpt_common.training.report.curves import Course, course

LONGEST_COMMAND = 10_000
"""Characters of a command line in it."""


@dataclass(frozen=True)
class Sample:
    """A continuation that was drawn in training."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True, kw_only=True, eq=False)
class PastRun:
    """What is known of a run."""

    folder: Path
    name: str
    config: RunConfig
    course: Course
    samples: Sequence[Sample]
    """In the order of steps."""
    dataset: str
    sessions: Sequence[Mapping[str, Any]]
    """Of run.json: when, with which command, where; may be empty."""
    going: bool
    """Whether a process trains it at this moment."""
    made: Manifest | None = None
    """Of a model that `convert` made, and that no session has trained: what it says of itself."""

    @property
    def max_steps(self) -> int:
        """Of its schedule."""
        return self.course.paced or self.config.train.max_steps

    @property
    def finished(self) -> bool:
        """Whether the schedule is done, or the run ended by itself."""
        return self.course.ended is not None or self.course.last_step >= self.max_steps

    @property
    def state(self) -> str:
        """`running`, `done` or `stopped`."""
        return "running" if self.going else "done" if self.finished else "stopped"

    @property
    def origin(self) -> str:
        """What it began from: the run or file whose weights it has, else its preset or configuration file; else
        nothing."""
        if self.made is not None:
            return _short_name(str(_source(self.made).get("path") or _source(self.made).get("repository", "")))
        first = self.sessions[0] if self.sessions else {}
        flags = _flags(str(first.get("command", "")))
        for name in ("init_from", "config"):
            if name in flags:
                return _short_name(flags[name])
        return str(first.get("preset") or flags.get("preset", ""))

    @property
    def twin(self) -> str:
        """`mlx_gpt` or `torch_gpt`, or both, of all its sessions."""
        words = [str(session.get("command", ""))[:LONGEST_COMMAND].split() for session in self.sessions]
        names = [name for command in words for name in ("mlx_gpt", "torch_gpt") if f"{name}.train" in command]
        return ", ".join(dict.fromkeys(names))

    @property
    def started(self) -> datetime | None:
        """When its last session began, local time."""
        for session in reversed(self.sessions):
            try:
                return datetime.fromisoformat(str(session.get("started"))).astimezone()
            except (ValueError, OverflowError, OSError):
                continue
        return None

    @property
    def parameters(self) -> tuple[int, int]:
        """Of the model: (all, those that a token meets)."""
        return parameter_count(self.config.model), active_parameter_count(self.config.model)

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """Fields of the configuration that are not at their defaults: `{"model.n_layer": (default, here)}`."""
        return differences(RunConfig(), self.config)


def find_run(run: Path, runs_dir: Path = RUNS) -> Path:
    """The folder that a person means: a run, one of its checkpoints, or the name of one in `runs_dir`.

    Raises:
        UserError: there is none.
    """
    folder = run if run.exists() or run.is_absolute() or len(run.parts) != 1 else runs_dir / run
    if folder.parent.name == "checkpoints":
        folder = folder.parent.parent
    if not folder.is_dir():
        raise UserError(f"no run {run}: python -m gpt_common.runs list shows those that there are")
    return folder


def chosen_run(run: Path | None, runs_dir: Path = RUNS) -> Path:
    """`find_run`, or the newest run if none was named."""
    return newest_run(runs_dir) if run is None else find_run(run, runs_dir)


def read_run(folder: Path, *, going: bool | None = None) -> PastRun:
    """What is known of the run in a folder.

    Args:
        going: whether a process trains it at this moment; None finds out.

    Raises:
        UserError: no run is there, or one of its files is damaged; one line.
    """
    if not any((folder / name).exists() for name in ("metrics.jsonl", "run.json", "config.toml")):
        what = "holds checkpoints and no log" if (folder / "checkpoints").is_dir() else "is not the folder of a run"
        raise UserError(f"{folder} {what}")
    config = load_toml(folder / "config.toml")
    about = _about(folder / "run.json")
    tokens = config.train.batch_size * config.train.grad_accum_steps * config.model.block_size
    try:
        # A model that was brought in was never trained here: it has checkpoints, and neither sessions nor a course.
        imported = (folder / "checkpoints").is_dir() and not {"run.json", "metrics.jsonl"} & {*os.listdir(folder)}
        made = read_manifest(find_checkpoint(folder, prefer="latest")) if imported else None
        found = course([] if imported else read_metrics(folder), tokens)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / 'metrics.jsonl'} is damaged: {error}") from None
    # What the configuration of a model that was brought in names is a default, or its base's.
    dataset = about.get("dataset") if made is None else made.dataset
    name = dataset.get("name") if isinstance(dataset, dict) else None
    sessions = about.get("sessions")
    return PastRun(
        folder=folder,
        name=folder.resolve().name,
        config=config,
        course=found,
        samples=_samples(folder / "samples.jsonl"),
        dataset=name if isinstance(name, str) else config.data.dataset if made is None else "",
        sessions=[s for s in sessions if isinstance(s, dict)] if isinstance(sessions, list) else [],
        going=is_held(folder) if going is None else going,
        made=made,
    )


def _source(made: Manifest) -> Mapping[str, Any]:
    """What `convert` says of a model that it made: a format, and the path or repository that it came from."""
    found = (made.written_by or {}).get("source")
    return found if isinstance(found, dict) else {}


def made_as(made: Manifest) -> str:
    """What `convert` took a model for, as it says it."""
    return str(_source(made).get("format") or "another model")


def _about(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path, LARGEST_ABOUT)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object")
    return found


def _samples(path: Path) -> list[Sample]:
    """Those that are whole; of two at one step, a resumed run's."""
    found: dict[tuple[str, int], Sample] = {}
    with suppress(OSError, ValueError):  # none, or no log from here on
        for line in read_lines(path):
            try:
                row = json.loads(line.decode("utf-8", "replace"))
                step, prompt, text = row["step"], row["prompt"], row["text"]
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if type(step) is int and 0 <= step < LARGEST_STEP and isinstance(prompt, str) and isinstance(text, str):
                found[prompt, step] = Sample(step, prompt, text)
    return sorted(found.values(), key=lambda sample: sample.step)


def _flags(command: str) -> dict[str, str]:
    """What `--preset`, `--config` and `--init-from` say in a command line that was written down."""
    command = command[:LONGEST_COMMAND]
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    found = {}
    for word, after in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        key = name.removeprefix("--").replace("-", "_")
        if name.startswith("--") and key in ("preset", "config", "init_from"):
            found[key] = value if equals else after
    return found


def _short_name(path: str) -> str:
    """The name of a run or configuration file that a path means."""
    parts = [part for part in Path(path).parts if part != "checkpoints"]
    if len(parts) > 1 and parts[-1].startswith("step-"):
        return parts[-2]
    return Path(parts[-1]).stem if parts and parts[-1].endswith(".toml") else parts[-1] if parts else path
