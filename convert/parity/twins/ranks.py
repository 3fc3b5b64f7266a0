"""Ranks as a user starts them, by torchrun or mlx.launch: what they are to train, and what came of it.

Processes are dear and trainings of this size are not: all jobs of a launch are done one after the other by the same
processes. As a program, `python -m convert.parity.twins.ranks TWIN FOLDER`, this file is one of them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from convert.parity.mutants.planted import Edit, planted
from gpt_common.data.batches import NumpyBatch
from gpt_common.errors import Stopped, ToldElsewhere, UserError, WorkFailed
from gpt_common.training.ranks.launchers import launch as start

SECONDS = 240.0
"""After which a launch is ended, whatever it does."""
DONE = "done"


@dataclass(frozen=True)
class Job:
    """One training by all ranks of a launch."""

    name: str
    argv: tuple[str, ...]
    """Of the trainer."""
    stopped_before: int | None = None
    """The step (from 0) before which the last rank gets a SIGTERM."""
    edits: tuple[Edit, ...] = ()
    """Faults that stand in the source meanwhile."""


def launch(twin: str, world: int, jobs: Sequence[Job], folder: Path) -> dict[str, list[str]]:
    """Do `jobs` on `world` ranks; returns what came of each job by rank: DONE, or what ended it.

    Returns within SECONDS and leaves no process behind. A rank that fell over has nothing to say of its last job: then
    the end of what the launch printed stands there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]), encoding="utf-8")
    module = ["convert.parity.twins.ranks", twin, str(folder)]
    said = start(twin, world, module, folder / "printed", SECONDS)
    found = [_outcomes(folder / f"rank-{rank}.json") for rank in range(world)]
    return {job.name: [each.get(job.name, f"fell over: {said}") for each in found] for job in jobs}


def _outcomes(path: Path) -> dict[str, str]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


# ---- in a process of a launch ------------------------------------------------------------------------------------


def do(twin: str, job: Job) -> str:
    """One training; what came of it."""
    from gpt_common.training.run import Run

    batches, sent = Run.batches, False

    def with_signal(self: Run, step: int, *, whole: bool = False) -> list[NumpyBatch]:
        nonlocal sent
        last = self.ranks.rank == self.ranks.world - 1
        if last and not sent and step == job.stopped_before == self.step:
            sent = True  # another would not be waited for
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(self, step, whole=whole)

    train = import_module(f"{twin}.train").main
    with contextlib.ExitStack() as faults:
        for edit in job.edits:
            faults.enter_context(planted(edit))
        Run.batches = with_signal  # type: ignore[method-assign]
        try:
            train(list(job.argv))
        except (UserError, WorkFailed, Stopped, ToldElsewhere) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            Run.batches = batches  # type: ignore[method-assign]
    return DONE


def main(twin: str, folder: Path) -> None:
    """One rank: all jobs in turn, up to one that ends it."""
    from gpt_common.machine.blas import load_fast_blas, wait_passively

    # Whoever ends a launcher may miss a rank that waits in an engine for another.
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    # As the command of each twin does before it imports its framework.
    load_fast_blas() if twin == "mlx_gpt" else wait_passively()
    rank = int(os.environ.get("RANK") or os.environ.get("MLX_RANK") or 0)
    found: dict[str, str] = {}
    for row in json.loads((folder / "jobs.json").read_text(encoding="utf-8")):
        job = Job(**{**row, "argv": tuple(row["argv"]), "edits": tuple(Edit(**edit) for edit in row["edits"])})
        try:
            found[job.name] = do(twin, job)
        except BaseException as error:
            found[job.name] = f"{type(error).__name__}: {error}"
            raise
        finally:
            (folder / f"rank-{rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
