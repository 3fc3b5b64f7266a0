"""Results without measuring: sessions whose workers are made up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchmarks.benchmark import assemble, describe_environment
from benchmarks.grids import beside_grids, expected_weight_bytes
from benchmarks.measuring.backends import Backend, choose_backends
from benchmarks.measuring.measure import Measurement
from benchmarks.measuring.parity_gate import Verdict
from benchmarks.measuring.progress import Display
from benchmarks.measuring.session import Case, Row, Session, tasks
from benchmarks.measuring.thermal import ThrottleWatch
from benchmarks.readings import Before, Plan
from benchmarks.results import BackendRow, Result, Settings, Summary, to_json
from benchmarks.workload import parse_sweep
from gpt_common.adapting.quantisation import Grid
from gpt_common.config import ModelConfig, RunConfig, TrainConfig, from_dict
from gpt_common.keyed import keyed_generator
from gpt_common.machine.hardware import Hardware
from tests.benchmarks.machine import Machine
from tests.benchmarks.noise import process_steps

CONFIG = RunConfig(
    model=ModelConfig(vocab_size=65, block_size=64, n_layer=4, n_head=4, n_embd=128),
    train=TrainConfig(batch_size=12, dtype="float32"),
)
HARDWARE = Hardware(
    chip="Apple M3 Max",
    kind="apple",
    cpu="Apple M3 Max",
    cores=16,
    gpu_cores=40,
    memory_bytes=64 * 2**30,
    os="macOS 15.6.1",
    power_source="ac",
    low_power_mode=False,
)
SPEEDS = {"mps": 0.0105, "mlx": 0.0080, "cpu": 0.0400, "transformers-mps": 0.0130}
"""Made-up seconds per step."""

Worker = Callable[..., dict[str, Any]]


class NoisyMachine(Machine):
    """Steps that jitter."""

    rng: np.random.Generator
    level: float

    def step(self, batches: Any, step: int, rate: float) -> None:
        """See Work."""
        self.step_seconds = float(process_steps(self.rng, self.level, 0.03, 1)[0])
        super().step(batches, step, rate)


def worker(speeds: Mapping[str, float] = SPEEDS, *, seed: int = 1) -> Worker:
    """Runs every job on a made-up machine of the backend's speed.

    Every process draws from a stream of its own: with one for all, a single step more or less in any of them, a changed
    order or another backend would give all later processes other noise, and every session other intervals.
    """
    session_clock, started = [1000.0], Counter[str]()

    def run(job: dict[str, Any], on_progress: Callable[[str, float], None], **_: Any) -> dict[str, Any]:
        backend = Backend(**job["backend"])
        config = from_dict(job["config"])
        device = "cpu" if backend.device == "cpu" else "mps" if backend.framework == "torch" else "gpu"
        about = {
            "description": f"made-up {backend.framework}",
            "device": device,
            "dtype": "float32",
            "notes": ["is made up"] if backend.peer else [],
            "versions": {"python": "3.11.0"},
            **({} if backend.peer else {"weight_bytes": expected_weight_bytes(config, backend.grid)}),
        }
        if job["task"] == "overhead":
            blocks = {"loop_seconds": [0.2] * 8, "bare_seconds": [0.198] * 8, "steps_per_block": 10}
            parts = {"batches": 1e-4, "stepped": 2e-5, "record": 1e-4}
            return {
                "event": "result",
                "about": None,
                "parts_seconds": parts,
                **blocks,
                "ratio": 1.01,
                "low": 1.0,
                "high": 1.02,
            }
        if job["task"] == "generation":
            step = speeds[backend.name]
            lengths = [
                {"prompt": n, "prompt_seconds": [step * (1 + n / 50)] * 5, "token_seconds": [step * (1 + n / 500)] * 5}
                for n in (4, 16, 32)
            ]
            return {"event": "result", "about": about, "new_tokens": 32, "lengths": lengths, "greedy_sha256": "a" * 64}
        machine = NoisyMachine(awake=session_clock[0], always=session_clock[0], flops_per_second=5e12, device=device)
        started[backend.label] += 1
        machine.rng = rng = keyed_generator(seed, backend.label, started[backend.label])
        machine.level = speeds[backend.name] * float(np.exp(rng.normal() * 0.01))
        watch = ThrottleWatch(machine.evidence, clock=lambda: machine.awake)
        plan = Plan(**{**job["plan"], "largest_product": 1024})
        measured = Measurement(machine, config, plan, watch, on_progress, clocks=machine.clocks).run().model_dump()
        session_clock[0] = machine.always + 3.0
        measured["compilation"] = (
            {"seconds": 2.5, "graphs": 1, "graph_breaks": 0, "recompiles": 0} if backend.compiled else None
        )
        return {"event": "result", "about": about, **measured}

    return run


def make_session(
    run: Worker | None = None,
    *,
    backends: str = "mps,mlx,cpu",
    peers: str = "transformers",
    settings: Settings | None = None,
    sweep: str | None = None,
    config: RunConfig = CONFIG,
    absent: tuple[str, ...] = ("transformers-cpu",),
    grid: Grid | None = None,
) -> Session:
    """A session of made-up workers."""
    # Series as long as real ones: in 0.3 s there are one to four blocks, and one slow step decides a process's figure.
    settings = settings or Settings(cooldown=0.0)
    cases = []
    for changes, changed in parse_sweep(sweep, beside_grids(config, grid)):
        rows = [
            Row(backend, verified="unverified" if backend.peer else "parity")
            for backend in choose_backends(backends, peers, grid=grid)
        ]
        for row in rows:
            if row.backend.name in absent:
                row.end("absent", "not here")
        first = next(row for row in rows if row.open)
        rows.append(Row(first.backend.as_control(), verified=first.verified))
        name = ", ".join(f"{key}={value}" for key, value in changes.items()) or "base"
        cases.append(Case(name, changes, changed, rows))
    display = Display(tasks(cases, settings))
    return Session(cases, settings, HARDWARE, display, {}, worker=run or worker(), sleep=lambda _: None)


def make_result(session: Session | None = None, **arguments: Any) -> Result:
    """The result of a session of made-up workers, as it comes back from its file."""
    session = session or make_session(**arguments)
    session.run()
    report = '{"class": "strict", "rungs": []}'
    verdict = Verdict(passed=dict.fromkeys(("mps", "mlx", "cpu"), "0" * 64), reports={"0" * 64: report})
    before = Before(load=0.1, thermal_pressure="nominal")
    environment = describe_environment(HARDWARE, {}, before, None, ["no source"])
    created = datetime(2026, 11, 20, tzinfo=UTC)
    result = assemble(session, verdict, name="made-up", created=created, checked=True, environment=environment)
    return Result.model_validate_json(to_json(result), strict=True)


def figures(row: BackendRow) -> Summary:
    """The figures of a row that has some."""
    assert row.summary is not None
    return row.summary


def changed(result: Result, change: Callable[[Any], None]) -> Result:
    """A result whose file was changed."""
    plain = json.loads(to_json(result))
    change(plain)
    return Result.model_validate(plain)
