"""Where a command writes what it makes: a name beside the source, and nothing in its place that would be missed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from gpt_common.errors import UserError
from gpt_common.training.manifest import kept_for_adapters

TRAINED = ("metrics.jsonl", "run.json")
"""What training leaves in a run's folder, and no conversion."""


def beside(source: Path, ending: str) -> Path:
    """The source's name with an ending, in the folder where it lies; of a checkpoint the run's.

    What lies in the `checkpoints` of a run is taken for one of its checkpoints, so nothing else may lie there.
    """
    named = source if source.name and ".." not in source.parts else Path(os.path.abspath(source))
    if named.parent.name == "checkpoints" or (named == Path(named.name) and Path.cwd().name == "checkpoints"):
        step, run = named.name, Path(os.path.abspath(named)).parent.parent
        short = named.parent.parent
        named = short if short.name else run
        return named.with_name(f"{named.name}-{step}{ending}")
    return named.with_name(f"{named.stem if named.is_file() else named.name}{ending}")


def check_apart(destination: Path, sources: Iterable[Path]) -> None:
    """Refuse a destination that is, or holds, what is read.

    Raises:
        UserError: names the destination.
    """
    place = Path(os.path.realpath(destination))
    for source in sources:
        found = Path(os.path.realpath(source))
        if found.parent.name == "checkpoints":  # a checkpoint is a part of its run, which would go with it
            found = found.parent.parent
        if place == found or place in found.parents or found / "checkpoints" in (place, *place.parents):
            raise UserError(f"{destination} is where the source is: choose another -o")


def check_run_free(destination: Path, overwrite: bool, sources: Iterable[Path], also: str = "") -> None:
    """Refuse a destination before anything is computed for it: only a run is replaced, and only where that was asked.

    Args:
        sources: what is read, which stays.
        also: a file by which a folder is known that may be replaced as well.

    Raises:
        UserError: says which of these it is.
    """
    check_apart(destination, sources)
    if not os.path.lexists(destination):
        return
    if not overwrite:
        raise UserError(f"{destination} exists: choose another -o, or add --overwrite to replace it")
    if not ((destination / "checkpoints").is_dir() or (also and (destination / also).is_file())):
        what = "run or adapter" if also else "run"
        raise UserError(f"{destination} is no {what}, so it is not replaced: choose another -o")
    check_not_missed(destination)


def check_not_missed(destination: Path) -> None:
    """Refuse to replace a run that somebody has trained, or beside which an adapter was.

    Raises:
        UserError: names the destination.
    """
    if any((destination / name).exists() for name in TRAINED):
        raise UserError(f"{destination} was trained, so it is not replaced: choose another -o, or delete it first")
    if kept_for_adapters(destination / "checkpoints"):
        raise UserError(f"{destination} is the base of an adapter, which is nothing without it: choose another -o")
