"""A benchmark from its command to its files: who is here, who is correct, how fast they are, and what it means."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.command import Benchmark
from benchmarks.grids import beside_grids
from benchmarks.measuring.backends import Backend, choose_backends
from benchmarks.measuring.parity_gate import QUANTISED, RUNGS, Verdict, ladder, verify
from benchmarks.measuring.processes import THREADS, run_worker
from benchmarks.measuring.progress import Display, Task
from benchmarks.measuring.session import Case, Row, Session, state_of_machine, tasks
from benchmarks.nanogpt import check_nanogpt
from benchmarks.readings import About, Before
from benchmarks.report.summarise import summarise_case
from benchmarks.report.writing import write_report
from benchmarks.results import VERSION, EnergySource, Environment, ParityCheck, Result, Settings
from benchmarks.workload import parse_sweep, smallest
from gpt_common.config import RunConfig, preset_names, to_dict
from gpt_common.errors import Stopped, UserError, WorkFailed
from gpt_common.machine.hardware import Hardware
from gpt_common.machine.power import find_reader
from gpt_common.machine.provenance import git_state, versions

PRESENCE_SECONDS, PARITY_SECONDS = 15.0, 90.0
QUANTISED_SECONDS = 30.0
"""The rung of quantised matrices, and those below it once more."""
IDLE_SECONDS = 5.0
"""How long the power of the idle machine is measured."""
VARIABLES = ("OMP_", "MKL_", "OPENBLAS_", "VECLIB_", "MLX_", "METAL_", "MTL_", "PYTORCH_", "TORCH_", "CUDA_")
"""Beginnings of the names of environment variables that decide about speed."""


def measure(command: Benchmark, name: str, hardware: Hardware) -> None:
    """Do what the command says, print the table, write the files.

    Raises:
        Stopped: by Ctrl-C, after what was measured has been written.
        UserError, WorkFailed: nothing could be measured, because it is not here, or for another reason.
    """
    sweep = parse_sweep(command.sweep, command.run)
    nanogpt = check_nanogpt(command.peers, command.nanogpt_path, [config for _, config in sweep])
    for _, config in sweep:
        beside_grids(config, command.grid)
    backends = choose_backends(command.backends, command.peers, nanogpt, command.grid)
    settings = Settings(
        rounds=command.rounds,
        seconds=command.seconds,
        cooldown=command.cooldown,
        sustained=60 * command.sustained_minutes if command.sustained else 0.0,
        generation=command.generation,
        overhead=command.overhead,
    )
    created = datetime.now(UTC)
    reader, no_energy = find_reader() if command.energy else (None, ["turned off"])
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        environment = worker_environment(Path(scratch), command.threads)
        idle = state_of_machine()
        if reader is not None:
            reader.measure_idle(IDLE_SECONDS)
        cases, verdict = prepare(command, name, backends, sweep, environment)
        session = Session(cases, settings, hardware, Display(tasks(cases, settings)), environment, reader)
        session.run()
    if reader is not None:
        reader.close()
    about = describe_environment(hardware, environment, idle, reader.source if reader else None, no_energy)
    result = assemble(session, verdict, name=name, created=created, checked=command.parity, environment=about)
    write_report(command.out, created, result, verdict.reports)
    if session.interrupted:
        raise Stopped(2)
    rows = [row for case in cases for row in case.rows if not row.backend.control]
    if not any(row.status == "measured" for row in rows):
        reasons = {row.backend.name: row.reason or "" for row in rows if row.status != "waiting"}
        kind = UserError if all(row.status == "absent" for row in rows) else WorkFailed
        raise kind(f"nothing could be measured. {'; '.join(f'{name}: {why}' for name, why in reasons.items())}")


def assemble(
    session: Session,
    verdict: Verdict,
    *,
    name: str,
    created: datetime,
    checked: bool,
    environment: Environment,
) -> Result:
    """The result of a session."""
    return Result(
        schema="mlx-torch-gpt/benchmark",
        version=VERSION,
        name=name,
        created=created.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        interrupted=session.interrupted,
        command=shlex.join(["python", "benchmarks/run.py", *sys.argv[1:]]),
        environment=environment,
        parity=ParityCheck(checked=checked, passed=verdict.passed, reports=verdict.summary()),
        settings=session.settings,
        cases=[summarise_case(case, session.hardware) for case in session.cases],
    )


def describe_environment(
    hardware: Hardware,
    variables: Mapping[str, str],
    before: Before,
    energy_source: str | None,
    no_energy: Sequence[str],
) -> Environment:
    """Where a result was measured, and with what."""
    return Environment(
        hardware=hardware,
        host=platform.node(),
        versions=versions(),
        git=git_state(),
        variables={k: v for k, v in sorted({**os.environ, **variables}.items()) if k.startswith(VARIABLES)},
        before=before,
        energy=EnergySource(source=energy_source, without=list(no_energy)),
    )


def prepare(
    command: Benchmark,
    name: str,
    backends: list[Backend],
    sweep: list[tuple[dict[str, int], RunConfig]],
    environment: Mapping[str, str],
) -> tuple[list[Case], Verdict]:
    """Which rows there will be: who is present, and of those who passes the ladder."""
    first = [Task("which backends are here", PRESENCE_SECONDS)]
    first += [Task("parity", PARITY_SECONDS + (QUANTISED_SECONDS if command.bits else 0))] if command.parity else []
    display = Display(first)
    display.begin()
    try:
        rows = find_present(backends, smallest([config for _, config in sweep]), environment)
    except UserError:
        display.close()
        raise
    there = [row.backend.label for row in rows.values() if row.open]
    display.end(f"present: {', '.join(there) or 'none'}")
    verdict = Verdict()
    if command.parity:
        display.begin()
        verdict = prove(rows, name, command.run.train.dtype, environment)
        display.end(f"parity passed: {', '.join(verdict.passed) or 'none'}")
    display.close()
    control = next((row.backend for row in rows.values() if row.open and not row.backend.peer), None)
    cases = []
    for changes, config in sweep:
        own = [Row(r.backend, r.status, r.reason, r.verified) for r in rows.values()]
        if control is not None:
            own.append(Row(control.as_control(), verified=rows[control.name].verified))
        label = ", ".join(f"{key}={value}" for key, value in changes.items()) or "base"
        cases.append(Case(label, changes, config, own))
    return cases, verdict


def find_present(backends: list[Backend], config: RunConfig, environment: Mapping[str, str]) -> dict[str, Row]:
    """A row per backend, absent ones with the reason; each framework is asked in a process of its own.

    Raises:
        UserError: a peer's code, which the person named, cannot be used or computes something else.
    """
    rows = {backend.name: Row(backend) for backend in backends}
    for framework in dict.fromkeys(backend.framework for backend in backends):
        asked = {b.name: asdict(b) for b in backends if b.framework == framework}
        job = {"task": "presence", "backends": asked, "config": to_dict(config)}
        event = run_worker(job, lambda *_: None, environment=environment)
        for name in asked:
            if event["event"] != "result":
                rows[name].end("failed", event["reason"])
            elif "refused" in (found := event["devices"][name]):
                raise UserError(found["refused"])
            elif "reason" in found:
                rows[name].end("absent", found["reason"])
            else:
                rows[name].about = About(device=found["device"])
    return rows


def prove(rows: dict[str, Row], config: str, dtype: str, environment: Mapping[str, str]) -> Verdict:
    """Send what is present up the ladder; what fails is not timed. Peers are judged by their losses, later.

    Args:
        config: a preset, whose family of models climbs; another configuration has the default's.
    """
    names = [name for name, row in rows.items() if row.open and not row.backend.peer]
    extra = ["--preset", config] if config in preset_names() else []
    if environment["MLX_ENABLE_TF32"] != "0":
        extra.append("--tf32")
    verdict = Verdict()
    # Quantised rows have a climb of their own: where only that one fails, the float ones are timed.
    kinds = dict.fromkeys((rows[name].backend.half, rows[name].backend.bits > 0) for name in names)
    for half, quantised in kinds:
        own = [rows[name].backend for name in names]
        climbers = {b.on_ladder: b.name for b in own if (b.half, b.bits > 0) == (half, quantised)}
        flags = ["--dtype", "bfloat16" if half else dtype, *extra]
        more = (QUANTISED,) if quantised else ()
        found = verify(list(climbers), ladder(flags, {**os.environ, **environment}, (*RUNGS, *more)), more)
        verdict.passed |= {climbers[name]: digest for name, digest in found.passed.items()}
        verdict.failed |= {climbers[name]: reason for name, reason in found.failed.items()}
        verdict.reports |= found.reports
    for name in names:
        if name in verdict.passed:
            rows[name].verified = "parity"
        else:
            rows[name].end("unproven", verdict.failed[name])
    return verdict


def worker_environment(scratch: Path, threads: int | None = None) -> dict[str, str]:
    """Variables of every worker.

    Compiled kernels are made anew in this session; nobody asks the network; float32 means float32 on MLX's GPUs too,
    unless the person has said otherwise.

    Args:
        threads: how many each works with on the CPU; None leaves that to its framework.
    """
    return {
        **({} if threads is None else dict.fromkeys(THREADS, str(threads))),
        "MLX_ENABLE_TF32": os.environ.get("MLX_ENABLE_TF32", "0"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
