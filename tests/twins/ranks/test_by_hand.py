"""Ranks that a person starts, one of each twin: one model comes out, and what cannot be is one line."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.parity.mutants.planted import Edit
from tests.twins import tensors, tiny, train
from tests.twins.ranks.launching import Job, ended, free_ports, launch_by_hand, start_by_hand
from tests.twins.ranks.test_faults import BOUND, SAVING, SILENCE, wait_for
from tests.twins.ranks.test_ranks import EXPERTS, STEPS, apart, flags, rows, same_bits, started

QUICK = ("--health-gates", "quick")
KINDS: dict[str, tuple[str, ...]] = {
    "plain": QUICK,
    "muon, mean of weights": ("--optimizer", "muon", "--ema-decay", "0.8", *QUICK),
    "experts": (*EXPERTS, "--balancing", "bias", "--balancing-rate", "0.01", *QUICK),
    "dropout": ("--dropout", "0.2", "--dropout-rng", "shared", *QUICK),
    "adapter": ("--adapter", "lora", *QUICK),
}
"""What is trained by one rank and by one of each twin."""
NEITHER = Edit("gpt_common/training/ranks/opening.py", "_meet_by_hand", "ranks.exact = False", "return engines")
"""Leaves out what is refused, and that weights may be near."""


def only_in_mlx(file: str, where: str, old: str, new: str) -> Edit:
    return Edit(f"mlx_gpt/{file}", where, old, new)


FAULTS = {
    "another rate": (
        only_in_mlx(
            "train.py",
            "TrainStep.__call__",
            "set_step(self.optimizer, step + 1, rate)",
            "set_step(self.optimizer, step + 1, rate * (1.01 if step else 1))",
        ),
        "health: ranks: after 3 steps",
    ),
    "other initial weights": (
        only_in_mlx(
            "model.py", "GPT.initialise", "initial_weights(self.config, seed)", "initial_weights(self.config, 7)"
        ),
        "after 0 steps rank 1 has other weights than rank 0",
    ),
    "another order": (
        only_in_mlx(
            "distributed.py", "Ranks.add_up", "dict(tree_flatten(gradients))", "dict(reversed(tree_flatten(gradients)))"
        ),
        "UserError: rank 1 has final_norm.weight (32,) where rank 0 has token_embedding.weight",
    ),
    "the same micro-steps": (
        Edit(
            "gpt_common/training/ranks/agreement.py",
            "Agreement.dealt",
            "[self.rank :: self.world]",
            "[0 :: self.world]",
        ),
        "health: ranks: the step of all ranks has loss",
    ),
    "the same bits asked for": (NEITHER, "after 3 steps rank 1 has other weights than rank 0"),
}
"""Faults, and what is said of them."""

OTHERS: dict[str, tuple[str, ...]] = {
    "seed": ("--seed", "7"),
    "steps": ("--dtype", "bfloat16"),
    "ends": ("--stop-at", "3"),
    "measures": ("--measure-efficiency",),
    "watches": ("--rank-timeout", "0"),
}
"""Flags that the one who joins has and the first has not."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, stories_dir: Path) -> Any:
    """All that one rank of torch does, and torch and MLX together: (folder, what came of the jobs, by rank)."""
    folder = tmp_path_factory.mktemp("by hand")
    train("torch_gpt", *flags(stories_dir, "--max-steps", "2"), "--out", folder / "base")
    for kind in KINDS:
        train("torch_gpt", *started(kind, folder, stories_dir, KINDS), "--out", folder / f"one {kind}")
    jobs = [
        Job(kind, (*started(kind, folder, stories_dir, KINDS), "--out", str(folder / f"two {kind}"))) for kind in KINDS
    ]
    stopped = str(folder / "stopped")
    jobs.append(Job("stopped", flags(stories_dir, "--out", stopped), signals=(1, 3, signal.SIGHUP)))
    jobs.append(Job("gone on", ("--resume", stopped)))
    refused = {
        "native": ("--dropout", "0.2", "--dropout-rng", "native"),
        "bfloat16": ("--dtype", "bfloat16"),
        "odd": ("--grad-accum-steps", "3"),
    }
    jobs += [Job(name, flags(stories_dir, *more, "--out", str(folder / name))) for name, more in refused.items()]
    jobs += [Job(name, flags(stories_dir, "--out", str(folder / name)), joining=more) for name, more in OTHERS.items()]
    for name, (edit, _) in FAULTS.items():
        jobs.append(Job(name, flags(stories_dir, *QUICK, "--out", str(folder / name)), edits=(edit,)))
    return folder, launch_by_hand(("torch_gpt", "mlx_gpt"), jobs, folder / "launch")


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_of_each_twin_makes_the_losses_of_one(kind: str, done: Any) -> None:
    """In these few steps rounding has not grown: 1e-6 was seen; the weights are one run's, as close as rounding."""
    folder, found = done
    assert [rank[kind] for rank in found] == ["done", "done"]
    one, two = folder / f"one {kind}", folder / f"two {kind}"
    assert [row["step"] for row in rows(one)] == [row["step"] for row in rows(two)]
    assert apart(one, two, "loss", "val_loss") <= 5e-6


def test_a_signal_to_the_one_that_joined_stops_both_and_both_go_on(done: Any) -> None:
    folder, found = done
    assert [rank["stopped"] for rank in found] == [f"Stopped: stopped by signal {signal.SIGHUP:d}"] * 2
    assert (folder / "stopped" / "checkpoints" / "step-000004").is_dir()
    assert [rank["gone on"] for rank in found] == ["done", "done"]
    assert apart(folder / "stopped", folder / "two plain", "loss", "val_loss") <= 1e-6


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("native", "each twin and device drops other values: add --dropout-rng shared"),
        ("bfloat16", "each twin and device rounds otherwise in bfloat16: add --dtype float32"),
        ("odd", "grad_accum_steps is 3, and 2 ranks share them"),
        ("seed", "rank 1 was started with train.seed 7, rank 0 with 1337: give all ranks the same flags"),
        ("steps", "rank 1 was started with train.dtype 'bfloat16', rank 0 with 'auto'"),
        ("ends", "rank 1 was started with --stop-at 3, rank 0 with None: give all ranks the same flags"),
        ("measures", "rank 1 was started with --measure-efficiency True, rank 0 with False"),
        ("watches", "rank 1 was started with --rank-timeout 0.0, rank 0 with 20.0"),
    ],
)
def test_what_cannot_be_is_one_line_at_each_terminal_and_leaves_no_folder(name: str, said: str, done: Any) -> None:
    folder, found = done
    for rank in found:
        assert rank[name].startswith(f"UserError: {said}"), rank[name]
        assert "\n" not in rank[name]
    assert not (folder / name).exists()


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_seen(name: str, done: Any) -> None:
    _, found = done
    for rank in found:
        assert FAULTS[name][1] in rank[name]


def test_two_of_one_twin_without_a_launcher_make_the_bits_that_one_makes(tmp_path: Path, stories_dir: Path) -> None:
    train("torch_gpt", *flags(stories_dir), "--out", tmp_path / "one")
    argv = ["TWIN.train", *flags(stories_dir, *QUICK, "--out", str(tmp_path / "two"))]
    processes = start_by_hand(("torch_gpt", "torch_gpt"), argv, ports=free_ports(1))
    said = ended(processes)
    assert [process.returncode for process in processes] == [0, 0], said
    assert same_bits(tmp_path / "one", tmp_path / "two", STEPS)
    assert said[0].startswith("waits up to 300 s for 1 other rank: the same command with --join 127.0.0.1:")
    assert "rank 1 of 2; the first, at 127.0.0.1:" in said[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_steps(tmp_path: Path, stories_dir: Path) -> None:
    """At a rate at which rounding does not grow (2.6e-6 was seen); the weights are compared at every evaluation."""
    preset = ("--preset", "stories-cpu", "--device", "cpu", "--data-dir", str(stories_dir), "--no-report")
    argv = [*preset, "--learning-rate", "1e-3", "--max-steps", "200", "--log-interval", "1", "--eval-interval", "20"]
    argv += ["--grad-accum-steps", "2", "--eval-batches", "4", "--sample-tokens", "0"]
    processes = start_by_hand(
        ("torch_gpt", "mlx_gpt"), ["TWIN.train", *argv, "--out", str(tmp_path / "two")], ports=free_ports(1)
    )
    said = ended(processes, 600)
    assert [process.returncode for process in processes] == [0, 0], said
    for twin in ("torch_gpt", "mlx_gpt"):
        train(twin, *argv, "--out", tmp_path / twin)
        assert apart(tmp_path / twin, tmp_path / "two", "loss", "val_loss") <= 1e-5


@pytest.mark.parametrize(
    ("lost", "number", "what"),
    [
        (1, signal.SIGKILL, "has ended"),
        (0, signal.SIGKILL, "has ended"),
        (1, signal.SIGSTOP, "has been silent for 2 s"),
        (0, signal.SIGSTOP, "has been silent for 2 s"),
    ],
)
def test_either_is_lost(lost: int, number: int, what: str, tmp_path: Path, stories_dir: Path) -> None:
    run = tmp_path / "run"
    endless = ("--max-steps", "1000000", "--out", str(run), "--rank-timeout", str(SILENCE))
    argv = ["TWIN.train", *tiny(stories_dir), *SAVING, *endless]
    processes = start_by_hand(("torch_gpt", "mlx_gpt"), argv, ports=free_ports(1))
    wait_for(run / "checkpoints" / "latest")
    time.sleep(0.2)
    os.kill(processes[lost].pid, number)
    said = ended(processes, BOUND)
    left = 1 - lost
    assert all(words in said[left] for words in (f"error: rank {lost} (process", what, f"--resume {run}")), said
    assert "Traceback" not in said[left], said
    assert processes[left].returncode == 1
    saved = (run / "checkpoints" / "latest").read_text().strip()
    train("mlx_gpt", "--resume", run, "--stop-at", str(int(saved[-6:]) + 1))
    assert all(np.isfinite(value).all() for value in tensors(run, int(saved[-6:]) + 1).values())
