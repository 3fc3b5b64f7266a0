"""Optional trackers behind one small interface; each package is imported only when its tracker is asked for."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gpt_common.errors import UserError, nearest

PROJECT = "mlx-torch-gpt"


class Tracker(Protocol):
    """Where numbers go besides metrics.jsonl."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record named numbers at a step."""

    def close(self) -> None:
        """Write out what is pending."""


class TensorBoard:
    """Event files in `<run>/tensorboard`, written by tensorboardX so that no twin imports the other's framework."""

    def __init__(self, package: Any, folder: Path, run_name: str, config: dict[str, Any], first_step: int) -> None:
        # Points beyond the step that a run resumes from are drawn again: TensorBoard hides the old ones.
        purge = first_step + 1 if first_step else None
        self._writer = package.SummaryWriter(
            str(folder / "tensorboard"), purge_step=purge, filename_suffix=f".{first_step}"
        )
        if not first_step:
            lines = [f"{table}.{key} = {value!r}" for table, keys in config.items() for key, value in keys.items()]
            self._writer.add_text(run_name, "\n".join(f"    {line}" for line in lines), 0)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run on Weights & Biases where an account is set up, else an offline one that `wandb sync` can send later."""

    def __init__(self, package: Any, folder: Path, run_name: str, config: dict[str, Any], first_step: int) -> None:
        # Without an account `init` would stop and ask for one. `login` says without asking whether there is one.
        known = "WANDB_MODE" in os.environ or package.login(prompt=False, verify=False)
        # A resumed run goes on in the same chart.
        self._id_file = folder / "wandb" / "id"
        identity = self._id_file.read_text() if first_step and self._id_file.exists() else None
        self._run = package.init(
            project=PROJECT,
            name=run_name,
            id=identity,
            resume="allow" if identity else None,
            dir=str(folder),
            config=config,
            mode=None if known else "offline",
            # It would capture the live progress bar, redraw by redraw.
            settings=package.Settings(console="off"),
        )
        self._id_file.parent.mkdir(exist_ok=True)
        self._id_file.write_text(self._run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A local trackio project; look at it with `trackio show`."""

    def __init__(self, package: Any, _folder: Path, run_name: str, config: dict[str, Any], first_step: int) -> None:
        self._package = package
        with contextlib.redirect_stdout(sys.stderr):  # what it says is not the run's output
            package.init(project=PROJECT, name=run_name, config=config, resume="allow" if first_step else "never")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._package.log(dict(values), step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._package.finish()


TRACKERS: dict[str, tuple[str, Callable[[Any, Path, str, dict[str, Any], int], Tracker]]] = {
    "tensorboard": ("tensorboardX", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
    "trackio": ("trackio", Trackio),
}


def open_trackers(
    names: Sequence[str], *, folder: Path, run_name: str, config: dict[str, Any], first_step: int
) -> dict[str, Tracker]:
    """Start the trackers called `names`.

    Raises:
        UserError: unknown name, package not installed, or the tracker does not start.
    """
    opened: dict[str, Tracker] = {}
    for name in dict.fromkeys(names):
        if name not in TRACKERS:
            raise UserError(f"no tracker '{name}': {nearest(name, TRACKERS)}")
        package, tracker = TRACKERS[name]
        try:
            module = importlib.import_module(package)
        except ImportError:
            raise UserError(f"tracker '{name}' needs a package: pip install {package}") from None
        try:
            opened[name] = tracker(module, folder, run_name, config, first_step)
        except Exception as error:
            raise UserError(f"tracker '{name}' does not start: {error}: mend it, or leave the tracker out") from error
    return opened
