"""Several ranks of a twin on this machine, as a launcher would start them, and what each of them is to do.

Processes are dear and jobs are not: all jobs of a launch are done one after the other, by the same processes. As a
program (`python -m tests.twins.ranks.launching TWIN FOLDER`) this file is one of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

from convert.parity.mutants.planted import Edit, planted
from gpt_common.config import OptimConfig
from gpt_common.data.batches import NumpyBatch
from gpt_common.errors import Stopped, ToldElsewhere, UserError, WorkFailed
from gpt_common.machine.blas import load_fast_blas
from gpt_common.training.health.step_gates import check_dealt
from gpt_common.training.ranks.wire import place_of
from gpt_common.training.run import Run
from tests.twins import hears_hang_ups
from tests.twins.steps import DEEPSEEK, GPT2, Trained, batch

ROOT = Path(__file__).parents[3]
PORTS = "TESTED_PORTS"
"""The variable with the ports at which ranks meet that no launcher has started, one for each job."""
SECONDS = 120.0
"""After which a launch is ended, whatever it does."""


@dataclass(frozen=True)
class Job:
    """Something that all ranks of a launch do."""

    name: str
    argv: tuple[str, ...] = ()
    """Of a training; none: steps of a made-up model (`asked`)."""
    asked: str = ""
    """"dealt": the gate on a step whose micro-batches do not count alike; "experts": three steps, then the weights;
    "held": one step, then what the optimiser holds."""
    edits: tuple[Edit, ...] = field(default=())
    """Faults that stand in the source meanwhile."""
    constants: tuple[tuple[str, str, float], ...] = ()
    """Numbers that are others meanwhile: module, name, value."""
    signals: tuple[int, int, int] | None = None
    """A rank, a step (from 0) before which it gets a signal, and which."""
    joining: tuple[str, ...] = ()
    """Flags of all ranks but the first."""


def start(twin: str, module: Sequence[str], folder: Path, *, world: int = 2) -> list[subprocess.Popen[str]]:
    """Start `python -m MODULE ...` once for each rank."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = free_ports(world)
    (folder / "hosts.json").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
    ring = {"MLX_HOSTFILE": str(folder / "hosts.json")}
    gloo = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0]), "WORLD_SIZE": str(world)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=ROOT,
            env={
                **os.environ,
                **(ring | {"MLX_RANK": str(rank)} if twin == "mlx_gpt" else gloo | {"RANK": str(rank)}),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=hears_hang_ups,
        )
        for rank in range(world)
    ]


def start_by_hand(
    twins: Sequence[str], module: Sequence[str], *, ports: Sequence[int], flags: bool = True
) -> list[subprocess.Popen[str]]:
    """Start `python -m MODULE ...` once for each of `twins`, without a launcher: the first listens at the first port.

    Args:
        module: in which TWIN stands for the twin's name.
        flags: say so by flags; otherwise all `ports` are in the environment, one for each job.
    """
    words = [["--listen", f"127.0.0.1:{ports[0]}", "--ranks", str(len(twins))]]
    words += [["--join", f"127.0.0.1:{ports[0]}"]] * (len(twins) - 1)
    return [
        subprocess.Popen(
            [sys.executable, "-m", *(word.replace("TWIN", twin) for word in module), *(words[rank] if flags else ())],
            cwd=ROOT,
            env={**os.environ} if flags else {**os.environ, "RANK": str(rank), PORTS: json.dumps(list(ports))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=hears_hang_ups,
        )
        for rank, twin in enumerate(twins)
    ]


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens."""
    with contextlib.ExitStack() as bound:
        sockets = [bound.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def ended(processes: Sequence[subprocess.Popen[str]], seconds: float = SECONDS) -> list[str]:
    """Wait until all have ended, however, and end those that have not; what each has said.

    Raises:
        subprocess.TimeoutExpired: one had to be ended.
    """
    try:
        return [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def launch(twin: str, jobs: Sequence[Job], folder: Path, *, world: int = 2) -> list[dict[str, str]]:
    """Do `jobs` on `world` ranks; returns what came of each, by rank: "done", or what ended it.

    Raises:
        AssertionError: a rank took too long, or fell over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    processes = start(twin, ["tests.twins.ranks.launching", twin, str(folder)], folder, world=world)
    said = ended(processes)
    assert all((folder / f"rank-{rank}.json").exists() for rank in range(world)), "\n".join(said)[-4000:]
    chatter = [[line for line in text.splitlines() if not line.startswith("[ring]")] for text in said[1:]]
    assert not any(chatter), chatter  # the first alone speaks
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(world)]


def launch_by_hand(twins: Sequence[str], jobs: Sequence[Job], folder: Path) -> list[dict[str, str]]:
    """The same as `launch`, of ranks that a person would start, one of each of `twins`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    module = ["tests.twins.ranks.launching", "TWIN", str(folder)]
    processes = start_by_hand(twins, module, ports=free_ports(len(jobs)), flags=False)
    said = ended(processes, 2 * SECONDS)
    assert all((folder / f"rank-{rank}.json").exists() for rank in range(len(twins))), "\n".join(said)[-4000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(len(twins))]


# ---- in a process of a launch ------------------------------------------------------------------------------------


def do(twin: str, job: Job, number: int) -> str:
    """Do a job; what came of it."""
    with contextlib.ExitStack() as faults:
        for edit in job.edits:
            import_module(edit.file.removesuffix(".py").replace("/", "."))
            faults.enter_context(planted(edit))
        for module, name, value in job.constants:
            faults.enter_context(patch.object(import_module(module), name, value))
        try:
            place = by_hand(number)
            return asked_of_steps(twin, job.asked, place) if job.asked else trained(twin, job, place)
        except (UserError, WorkFailed, Stopped, ToldElsewhere) as error:
            return f"{type(error).__name__}: {error}"


def by_hand(number: int) -> list[str]:
    """The flags that say where ranks meet for a job, where no launcher has started them."""
    if PORTS not in os.environ:
        return []
    place = f"127.0.0.1:{json.loads(os.environ[PORTS])[number]}"
    return ["--listen", place] if os.environ["RANK"] == "0" else ["--join", place]


def trained(twin: str, job: Job, place: Sequence[str]) -> str:
    """A training; perhaps with a signal on the way."""
    batches = Run.batches

    def with_signal(self: Run, step: int, *, whole: bool = False) -> list[NumpyBatch]:
        if job.signals is not None and (self.ranks.rank, step) == tuple(job.signals[:2]) and self.step == step:
            os.kill(os.getpid(), job.signals[2])
        return batches(self, step, whole=whole)

    Run.batches = with_signal  # type: ignore[method-assign]
    try:
        more = job.joining if "--join" in place else ()
        import_module(f"{twin}.train").main([*job.argv, *more, *place])
    finally:
        Run.batches = batches  # type: ignore[method-assign]
    return "done"


def asked_of_steps(twin: str, what: str, place: Sequence[str]) -> str:
    """See Job.asked."""
    listen, join = (place[1] if flag in place else None for flag in ("--listen", "--join"))
    where = place_of(listen, join, None)
    optim = OptimConfig(grad_clip=0.05, warmup_steps=0)
    with import_module(f"{twin}.distributed").open_ranks(0.0, where) as ranks:
        if what == "dealt":
            small = Trained(twin, replace(GPT2, dropout=0.2, dropout_rng="shared"), optim=optim)
            small.step.ranks = ranks
            return check_dealt(small.probe, [batch(n, weighted=True) for n in range(4)], 3)
        small = Trained(twin, DEEPSEEK, optim=optim)
        small.step.ranks = ranks
        if what == "held":
            ranks.shards_optimizer = True
            ranks.deal_out(small.model, small.optimizer)
            small.take([batch(n) for n in range(2)], 0)
            return ",".join(f"{name} {value.size}" for name, value in small.probe.moments().items())
        for step in range(3):
            small.take([batch(10 * step + n) for n in range(4)], step)
        ranks.check_weights(lambda: {**small.probe.checksums(), **small.probe.frozen_checksums()}, 3)
        return json.dumps(small.model.routers.take_loads())


def main(twin: str, folder: Path) -> None:
    """One rank."""
    rank = int(os.environ.get("RANK") or os.environ["MLX_RANK"])
    load_fast_blas()  # as a command does, and as the process of the tests did
    found = {}
    for number, row in enumerate(json.loads((folder / "jobs.json").read_text())):
        edits = tuple(Edit(**edit) for edit in row.pop("edits"))
        job = Job(edits=edits, **row)
        found[job.name] = do(twin, job, number)
        (folder / f"rank-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
