"""Files that are no files: pipes, devices, folders, links in a circle; and pointers that name something else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gpt_common.training.manifest import MODEL_FILE, OPTIMIZER_FILE, STATE_FILE, TOKENIZER_FILE
from tests.gpt_common.training.hostile.case import CHECKPOINT, LOG, READING, Case
from tests.gpt_common.training.hostile.sound import Damage, checkpoint_of, place


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _sparse(path: Path) -> None:
    """A terabyte of zeros that takes no room on the disk."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


IN_PLACE: dict[str, Callable[[Path], None]] = {
    "a pipe": _pipe,
    "a device": _device,
    "a folder": _folder,
    "a link to itself": _loop,
    "a terabyte of nothing": _sparse,
}


def _in_place_of(file: str, what: str) -> Damage:
    def damage(run: Path) -> None:
        path = place(run, file)
        path.unlink()
        IN_PLACE[what](path)

    return damage


def _missing(file: str) -> Damage:
    return lambda run: place(run, file).unlink()


def _cases(file: str, says: str, refused_by: frozenset[str], missing: frozenset[str]) -> list[Case]:
    found = [Case(f"{file}: {what}", _in_place_of(file, what), says, refused_by) for what in IN_PLACE]
    return [*found, Case(f"{file}: missing", _missing(file), says, missing)]


def _pointers(content: str) -> Damage:
    """Both pointers say something else, and nothing lies where they used to point."""

    def damage(run: Path) -> None:
        checkpoint_of(run).rename(run.parent / "step-000009")
        for name in ("latest", "best"):
            (run / "checkpoints" / name).write_text(content)

    return damage


def _both_pointers(what: str) -> Damage:
    def damage(run: Path) -> None:
        for name in ("latest", "best"):
            _in_place_of(f"checkpoints/{name}", what)(run)

    return damage


def _steps_folder(change: Callable[[Path], None]) -> Damage:
    def damage(run: Path) -> None:
        checkpoint = checkpoint_of(run)
        checkpoint.rename(run.parent / "elsewhere")
        change(checkpoint)

    return damage


def _checkpoints_folder(change: Callable[[Path], None]) -> Damage:
    def damage(run: Path) -> None:
        (run / "checkpoints").rename(run.parent / "elsewhere")
        change(run / "checkpoints")

    return damage


NO_CHECKPOINT = "(holds no|without a) checkpoint|cannot be read|no such run|no known|holds neither|is no run"
SAMPLE = frozenset({"sample"})
NONE: frozenset[str] = frozenset()
CASES = [
    *_cases(STATE_FILE, "state.json|holds no checkpoint", CHECKPOINT, CHECKPOINT),
    *_cases(MODEL_FILE, "model.safetensors", CHECKPOINT, CHECKPOINT),
    *_cases(OPTIMIZER_FILE, "optimizer.safetensors", READING, READING),
    *_cases(TOKENIZER_FILE, "tokenizer", SAMPLE, SAMPLE),
    *_cases("config.toml", "config.toml|configuration", LOG, LOG),
    *_cases("run.json", "run.json", LOG | {"resume"}, NONE),
    *_cases("metrics.jsonl", "metrics.jsonl", LOG, LOG),
    *_cases("samples.jsonl", "samples.jsonl", NONE, NONE),
    # What points nowhere is passed over: the newest checkpoint stands in for it.
    *(Case(f"pointers: {what}", _both_pointers(what), "", NONE) for what in IN_PLACE),
    *(
        Case(f"pointers say {content!r}", _pointers(content), NO_CHECKPOINT)
        for content in (
            "../../step-000009",
            "step-000009/../../../step-000009",
            "/etc",
            "",
            "step-",
            "step-\x1b[2J",
            "step-²",
            "step-000003\nstep-000009",
            "step-" + "9" * 300,
            "." * 5000,
        )
    ),
    *(Case(f"a step's folder: {what}", _steps_folder(change), NO_CHECKPOINT) for what, change in IN_PLACE.items()),
    *(Case(f"checkpoints: {what}", _checkpoints_folder(change), NO_CHECKPOINT) for what, change in IN_PLACE.items()),
]
