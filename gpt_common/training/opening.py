"""Opening a run: data, folder, checkpoint and configuration are checked against each other before anything computes."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gpt_common.commands import TrainCommand
from gpt_common.config import RunConfig, differences, to_toml
from gpt_common.data import Dataset, check_block, open_dataset
from gpt_common.errors import UserError
from gpt_common.files import cannot_write, write_atomically
from gpt_common.machine.provenance import git_state, versions
from gpt_common.sampling import encode_prompt
from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.manifest import TOKENIZER_FILE, Manifest

# What a resumed run may change of its model: nothing that changes a shape.
FREE_ON_RESUME = {"model.dropout", "model.dropout_rng"}


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a run starts from. Nothing is on disk yet."""

    config: RunConfig
    """With the vocabulary settled."""
    dataset: Dataset
    prompts: dict[str, list[int]]
    """Token ids by prompt."""
    folder: Path
    resume_from: Path | None
    """Checkpoint to continue."""
    init_from: Path | None
    """Checkpoint whose weights to start with."""
    first_step: int
    """Steps done already."""
    stop_at: int
    """Step after which to save and end."""
    best_step: int | None
    best_val_loss: float | None
    messages: list[str]
    """What the person should know of how the run was taken up."""


def open_run(command: TrainCommand) -> Opening:
    """Check a parsed command line against data and checkpoints.

    Raises:
        UserError: anything about data, folder, checkpoint or configuration that the person must change.
    """
    resume_from = find_checkpoint(command.resume, prefer="latest") if command.resume else None
    init_from = find_checkpoint(command.init_from, prefer="best") if command.init_from else None
    data = command.run.data
    dataset = open_dataset(data.dataset, Path(data.data_dir), on_progress=lambda line: print(line, flush=True))
    config = command.run.with_vocabulary(dataset.tokenizer.vocab_size)
    check_block(dataset, config.model.block_size)
    prompts = _encoded_prompts(config, dataset)

    first_step, best_step, best_val_loss, messages = 0, None, None, []
    if resume_from is not None:
        manifest = read_manifest(resume_from)
        messages = _changes_on_resume(resume_from, manifest, config, dataset)
        first_step, best_step, best_val_loss = manifest.step, manifest.best_step, manifest.best_val_loss
    elif init_from is not None:
        _check_tokenizer(init_from, read_manifest(init_from), dataset)
    stop_at = command.stop_at or config.train.max_steps
    if not first_step < stop_at <= config.train.max_steps:
        raise UserError(_nothing_to_do(first_step, command.stop_at, config.train.max_steps))
    return Opening(
        config=config,
        dataset=dataset,
        prompts=prompts,
        folder=_run_folder(resume_from) if resume_from else _new_folder(command),
        resume_from=resume_from,
        init_from=init_from,
        first_step=first_step,
        stop_at=stop_at,
        best_step=best_step,
        best_val_loss=best_val_loss,
        messages=messages,
    )


def _encoded_prompts(config: RunConfig, dataset: Dataset) -> dict[str, list[int]]:
    """Token ids by prompt. The dataset's own, which nobody asked for, is cut to a block too short for it."""
    tokenizer, block_size = dataset.tokenizer, config.model.block_size
    if not config.train.prompts:
        ids = tokenizer.encode(dataset.prompt)[:block_size]
        return {tokenizer.decode(ids): ids}
    return {prompt: encode_prompt(prompt, tokenizer, block_size) for prompt in config.train.prompts}


def _changes_on_resume(checkpoint: Path, manifest: Manifest, config: RunConfig, dataset: Dataset) -> list[str]:
    """What differs from the checkpoint's configuration; raises UserError for what may not."""
    messages = []
    for name, (old, new) in differences(manifest.run_config, config).items():
        if name == "data.dataset" or (name.startswith("model.") and name not in FREE_ON_RESUME):
            raise UserError(
                f"cannot resume with another {name.replace('.', ' ')}: {old!r} in {checkpoint}, now {new!r}.\n"
                "Leave the flag out, or start a new run (with --init-from to keep the weights)"
            )
        messages.append(f"changed on resume: {name} {old!r} -> {new!r}")
    if manifest.dataset and manifest.dataset["fingerprint"] != dataset.fingerprint:
        raise UserError(
            f"cannot resume: dataset '{dataset.name}' is not the one that {checkpoint} was trained on "
            f"(fingerprint {dataset.fingerprint[:12]}, then {manifest.dataset['fingerprint'][:12]})"
        )
    _check_tokenizer(checkpoint, manifest, dataset)
    return messages


def _check_tokenizer(checkpoint: Path, manifest: Manifest, dataset: Dataset) -> None:
    theirs, ours = manifest.tokenizer, dataset.tokenizer
    if theirs and theirs["fingerprint"] != ours.fingerprint:
        raise UserError(
            f"dataset '{dataset.name}' was made with another tokenizer ({ours.kind}, {ours.vocab_size} entries) than "
            f"{checkpoint} ({theirs['kind']}, {theirs['vocab_size']} entries): prepare it with that one's "
            f"{TOKENIZER_FILE}"
        )


def _nothing_to_do(first_step: int, stop_at: int | None, max_steps: int) -> str:
    if stop_at and stop_at > max_steps:
        return f"--stop-at {stop_at} lies beyond max_steps {max_steps}"
    if first_step >= max_steps:
        return f"the run is finished: step {first_step} of {max_steps}; raise --max-steps to go on"
    return f"the run is at step {first_step} already: --stop-at must be above that"


def _run_folder(checkpoint: Path) -> Path:
    """The run that a checkpoint belongs to."""
    if checkpoint.parent.name != "checkpoints":
        raise UserError(f"{checkpoint} lies outside a run folder: start a new run with --init-from {checkpoint}")
    return checkpoint.parent.parent


def _new_folder(command: TrainCommand) -> Path:
    """The folder of a new run: as asked, or the first free one named after preset or configuration file."""
    if command.out is not None:
        if (command.out / "run.json").exists() or (command.out / "checkpoints").exists():
            raise UserError(
                f"{command.out} already holds a run: continue it with --resume {command.out}, or name another --out"
            )
        return command.out
    name = command.preset or (command.config.stem if command.config else "run")
    folder = Path("runs") / name
    number = 2
    while os.path.lexists(folder):
        folder = Path("runs") / f"{name}-{number}"
        number += 1
    return folder


def write_run_files(opening: Opening, *, twin: str, device: str, chip: str) -> None:
    """config.toml and run.json in the run's folder; the latter gains an entry every time that the run is taken up.

    Raises:
        UserError: the folder cannot be written.
    """
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([f"python -m {twin}.train", *sys.argv[1:]]),
        "first_step": opening.first_step,
        "device": device,
        "chip": chip,
        "os": platform.platform(),
        "versions": versions(),
        "git": git_state(),
    }
    path = opening.folder / "run.json"
    try:
        opening.folder.mkdir(parents=True, exist_ok=True)
        sessions = json.loads(path.read_text(encoding="utf-8"))["sessions"] if path.exists() else []
        about = {"dataset": {"name": opening.dataset.name, "fingerprint": opening.dataset.fingerprint}}
        write_atomically(path, json.dumps({**about, "sessions": [*sessions, session]}, indent=1) + "\n")
        write_atomically(opening.folder / "config.toml", to_toml(opening.config))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and repeat") from None
    except OSError as error:
        raise cannot_write(opening.folder, error) from None
