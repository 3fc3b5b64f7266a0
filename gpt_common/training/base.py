"""The base of an adapter: the checkpoint that it was trained beside, which must be there, and unchanged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gpt_common.errors import UserError
from gpt_common.training.manifest import MODEL_FILE, STATE_FILE, Manifest
from gpt_common.words import one_line


def base_entry(base: Path, checkpoint: Path) -> dict[str, Any]:
    """What the manifest of an adapter says of its base.

    Args:
        base: the checkpoint.
        checkpoint: where the adapter will lie: a pair of runs that are moved together still find each other.
    """
    path = os.path.relpath(base.resolve(), checkpoint.resolve())
    return {"path": Path(path).as_posix(), "tensors": dict(Manifest.read(base / STATE_FILE).tensors[MODEL_FILE])}


def base_of(checkpoint: Path, manifest: Manifest) -> Path | None:
    """The checkpoint that an adapter stands beside; None of one that is a whole model.

    Its bytes are not read here: what is compared is what its own manifest says of them.

    Raises:
        UserError: it is not where it was, it is another now, or there should be one and is none.
    """
    if manifest.base is None:
        if manifest.run_config.adapter.adapts:
            raise UserError(f"{checkpoint} is an adapter, and its {STATE_FILE} names no base: copy it here again")
        return None
    # Not resolved: the way from a link is that from the folder that it stands for.
    base = Path(os.path.normpath(checkpoint.resolve() / manifest.base["path"]))
    shown = one_line(str(base))
    if not (base / STATE_FILE).is_file():
        raise UserError(f"{checkpoint} is an adapter, and its base is not here: put the checkpoint back at {shown}")
    try:
        found = Manifest.read(base / STATE_FILE)
    except (OSError, ValueError) as error:
        raise UserError(f"{shown}, the base of the adapter {checkpoint}, cannot be read ({error})") from None
    theirs, ours = found.tensors[MODEL_FILE], manifest.base["tensors"]
    if found.base is not None or theirs != ours:
        names = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
        raise UserError(
            f"{shown} is not the base that the adapter {checkpoint} was trained beside any more: "
            f"{one_line(', '.join(names[:2]))} and {max(0, len(names) - 2)} more tensors are others; put that one back"
        )
    return base
