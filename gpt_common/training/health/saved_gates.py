"""Gates on what was saved: the pointers after every save, tensors bit by bit when a run is taken up and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from gpt_common.training.checkpoint import find_checkpoint, read_manifest
from gpt_common.training.health.asked import StepProbe
from gpt_common.training.health.gates import GateFailed
from gpt_common.training.manifest import OPTIMIZER_FILE


def check_pointer(run_folder: Path, name: Literal["best", "latest"], step: int) -> None:
    """A pointer names the checkpoint of a step, and that is there.

    Raises:
        GateFailed: it names another.
    """
    found, wanted = find_checkpoint(run_folder, prefer=name).name, f"step-{step:06d}"
    if found != wanted:
        raise GateFailed(
            "pointers",
            f"{name} is {found} and should be {wanted}",
            "The pointer moved when it should not have, or did not when it should, or its checkpoint was removed",
        )


def check_moments(checkpoint: Path, probe: StepProbe, when: str) -> None:
    """The optimiser's state in a checkpoint is the one at work, bit by bit.

    Args:
        when: "saved" or "taken up".

    Raises:
        GateFailed: names a tensor that differs.
    """
    from safetensors.numpy import load_file

    path = checkpoint / OPTIMIZER_FILE
    if not path.exists():
        return
    stored, at_work = load_file(path), probe.moments()
    for name, value in at_work.items():
        if name not in stored or not np.array_equal(stored[name], value):
            raise GateFailed(
                "read back" if when == "saved" else "resume",
                f"the optimiser's {name} is not what {path} holds",
                f"The moments were not {when} as they are",
            )


def check_taken_up(checkpoint: Path, probe: StepProbe, step: int) -> str:
    """A run goes on at the step, and with the moments, at which its checkpoint stood.

    Raises:
        GateFailed: it does not.
    """
    there = read_manifest(checkpoint).step
    if there != step:
        raise GateFailed(
            "resume",
            f"the checkpoint is of step {there} and the run goes on at step {step}",
            "A step is done twice or left out",
        )
    check_moments(checkpoint, probe, "taken up")
    return f"step {step} goes on with the checkpoint's moments"


def check_same_weights(checkpoint: Path, loaded: Mapping[str, int], evaluated: Mapping[str, int]) -> None:
    """What a checkpoint gives when it is loaded is what was evaluated, by a checksum of every parameter.

    Raises:
        GateFailed: names a parameter that differs.
    """
    for name, checksum in evaluated.items():
        if loaded.get(name) != checksum:
            raise GateFailed(
                "read back",
                f"{checkpoint} loaded again has another {name} than the model that was saved",
                "Not the weights that were evaluated were saved, or they are not loaded as they were saved",
            )
