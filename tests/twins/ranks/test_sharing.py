"""What ranks share besides the micro-steps: the optimiser's state, in both twins, and PyTorch's own engines."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from convert.parity.mutants.planted import Edit
from gpt_common.training.log.runlog import read_metrics
from tests.twins import TWINS, fails, tensors, tiny, train
from tests.twins.ranks.launching import Job, ended, launch, start
from tests.twins.ranks.test_faults import BOUND, SAVING, command, wait_for
from tests.twins.ranks.test_ranks import EXPERTS, STEPS, apart, fault, flags, rows, same_bits, started

SHARED = ("--shard-optimizer",)
KINDS = {
    "plain": ("--health-gates", "quick"),
    "muon": ("--optimizer", "muon", "--ema-decay", "0.8", "--health-gates", "quick"),
    "adapter": ("--adapter", "lora"),
}
"""What is trained with the whole state on each rank, and with a share of it."""
MUTANTS_OF_A_SHARE = {
    "forgets": {twin: fault(twin, "distributed.py", "Ranks.share_out", "not self.owners", "True") for twin in TWINS},
    "gradients stay": {
        "torch_gpt": fault(
            "torch_gpt", "train.py", "TrainStep.clip_and_update", "self.model.zero", "self.optimizer.zero"
        )
    },
}
"""A rank keeps what it has updated to itself; it keeps the gradients of what others update."""
SEEN = {"forgets": "did not move in the first step", "gradients stay": "health: update: "}


@pytest.fixture(scope="module", params=TWINS)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, stories_dir: Path) -> Any:
    """(twin, folder, what came of the jobs, by rank); alone: `one KIND`, by two: `two KIND`."""
    twin, folder = request.param, tmp_path_factory.mktemp("shared")
    argv = {kind: flags(stories_dir, *more) for kind, more in KINDS.items()}
    train(twin, *flags(stories_dir, "--max-steps", "2"), "--out", folder / "base")
    argv["adapter"] = started("adapter", folder, stories_dir)
    for kind in KINDS:
        train(twin, *argv[kind], "--out", folder / f"one {kind}")
    jobs = [Job(kind, (*argv[kind], *SHARED, "--out", str(folder / f"two {kind}"))) for kind in KINDS]
    measured = (*flags(stories_dir, "--measure-efficiency"), *SHARED, "--out", str(folder / "measured"))
    jobs.append(Job("measured", measured))
    half, resumed = str(folder / "half"), ("--resume", str(folder / "half"))
    jobs.append(Job("half", (*argv["muon"], *SHARED, "--stop-at", "2", "--out", half)))
    jobs.append(Job("whole again", (*resumed, "--stop-at", "4")))
    jobs.append(Job("shared again", (*resumed, *SHARED, "--stop-at", "5")))
    for name, edits in MUTANTS_OF_A_SHARE.items():
        if twin in edits:
            jobs.append(Job(name, (*argv["plain"], *SHARED, "--out", str(folder / name)), edits=(edits[twin],)))
    found = launch(twin, jobs, folder / "launch")
    train(twin, *resumed)
    return twin, folder, found


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_state_makes_the_bits_that_the_whole_makes(kind: str, shared: Any) -> None:
    """An update looks at one parameter; the checkpoint has the moments of all."""
    _, folder, found = shared
    assert [rank[kind] for rank in found] == ["done", "done"]
    one, two = folder / f"one {kind}", folder / f"two {kind}"
    assert same_bits(one, two, STEPS)
    assert rows(one) == rows(two)


def test_a_run_goes_on_with_a_share_and_without_by_two_and_by_one(shared: Any) -> None:
    _, folder, found = shared
    assert [[rank[job] for job in ("half", "whole again", "shared again")] for rank in found] == [["done"] * 3] * 2
    assert same_bits(folder / "half", folder / "one muon", STEPS)


def test_steps_of_one_alone_are_timed_and_leave_nothing(shared: Any) -> None:
    _, folder, found = shared
    assert [rank["measured"] for rank in found] == ["done", "done"]
    log = read_metrics(folder / "measured")
    alone = [row["seconds_per_step"] for row in log if row.get("event") == "alone"]
    steps = [row for row in log if "loss" in row and row["dt"]]
    assert all(row["efficiency"] == pytest.approx(alone[0] / row["dt"] / 2, rel=1e-3) for row in steps)
    assert same_bits(folder / "measured", folder / "one plain", STEPS)


def test_what_is_not_handed_on_or_stays_is_seen(shared: Any) -> None:
    twin, _, found = shared
    for name in [name for name, edits in MUTANTS_OF_A_SHARE.items() if twin in edits]:
        assert SEEN[name] in found[0][name]
        assert SEEN[name] in found[1][name] or found[1][name].startswith("ToldElsewhere")


def test_each_rank_remembers_its_share_alone(tmp_path: Path) -> None:
    """Not measured as memory of a process: what its optimiser holds, without the others."""
    for twin in TWINS:
        found = launch(twin, [Job("held", asked="held")], tmp_path / twin)
        held = [dict(pair.split() for pair in rank["held"].split(",")) for rank in found]
        assert not held[0].keys() & held[1].keys()
        sizes = [sum(map(int, each.values())) for each in held]
        assert max(sizes) / sum(sizes) < 0.6, "about a half each"


# ---- PyTorch's engines -------------------------------------------------------------------------------------------

LONG = ("--max-steps", "30", "--eval-interval", "10", "--grad-accum-steps", "4", "--dropout", "0.2")
FEW = ("--max-steps", "8")
ENGINES = "torch_gpt/parallel/engines.py"
CARRIED: dict[str, tuple[str, ...]] = {
    "plain": ("--health-gates", "quick"),
    "clipped": ("--grad-clip", "0.05"),
    "experts": (*EXPERTS, "--balancing", "bias", "--balancing-rate", "0.01"),
    "checkpointed": ("--gradient-checkpointing",),
    # Of two micro-steps the sum is exact; otherwise a weight that is rounded to the other side says nothing.
    "bfloat16": ("--dtype", "bfloat16", "--grad-accum-steps", "2", "--grad-clip", "0"),
}
"""What both engines carry: for 30 steps as it is, for a few with what else there is."""
BY_DDP: dict[str, tuple[str, ...]] = {
    "muon": ("--optimizer", "muon", "--ema-decay", "0.8", *SHARED),
    "adapter": ("--adapter", "dora"),
}
MUTANTS = {
    "ddp takes the mean": ("ddp", Edit(ENGINES, "add_up", "done.value()[0]", "done.value()[0] / 2")),
    "ddp sends the first micro-step": ("ddp", Edit(ENGINES, "Overlapped.objective", "== 0\n", "== 1\n")),
    "fsdp takes the mean": ("fsdp", Edit(ENGINES, "Dealt.__init__", "divide_factor(1.0)", "divide_factor(2.0)")),
}


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory, stories_dir: Path) -> Any:
    """(folder, what came of the jobs, by rank): `flat KIND` and, by each engine, `ddp KIND`, `fsdp KIND`."""
    folder = tmp_path_factory.mktemp("carried")
    train("torch_gpt", *flags(stories_dir, "--max-steps", "2"), "--out", folder / "base")
    begun = {name: flags(stories_dir, *LONG, *FEW, *more) for name, more in (CARRIED | BY_DDP).items()}
    begun["plain"] = flags(stories_dir, *LONG, *CARRIED["plain"])
    begun["adapter"] = (*started("adapter", folder, stories_dir), *LONG, *FEW, *BY_DDP["adapter"])
    jobs = []
    for engine in ("flat", "ddp", "fsdp"):
        for kind in CARRIED if engine == "fsdp" else begun:
            argv = (*begun[kind], "--parallel", engine, "--out", str(folder / f"{engine} {kind}"))
            jobs.append(Job(f"{engine} {kind}", argv))
    turns = (("ddp", 4), ("fsdp", 8), ("flat", 12), ("fsdp", 20))
    for number, (engine, until) in enumerate(turns):
        begin = ("--resume", str(folder / "turns")) if number else (*begun["plain"], "--out", str(folder / "turns"))
        jobs.append(Job(f"turn {number}", (*begin, "--parallel", engine, "--stop-at", str(until))))
    stopped = ("--parallel", "fsdp", "--out", str(folder / "stopped"))
    jobs.append(Job("stopped", (*begun["plain"], *stopped), signals=(1, 3, signal.SIGHUP)))
    for name, (engine, edit) in MUTANTS.items():
        argv = (*begun["plain"], "--parallel", engine, "--out", str(folder / name))
        jobs.append(Job(name, argv, edits=(edit,)))
    found = launch("torch_gpt", jobs, folder / "launch")
    train("torch_gpt", "--resume", folder / "turns")
    return folder, found


@pytest.mark.parametrize(
    ("engine", "kind"), [("ddp", kind) for kind in CARRIED | BY_DDP] + [("fsdp", kind) for kind in CARRIED]
)
def test_an_engine_makes_the_losses_of_the_flat_sum(engine: str, kind: str, carried: Any) -> None:
    folder, found = carried
    assert [rank[f"{engine} {kind}"] for rank in found] == ["done", "done"]
    flat, other = folder / f"flat {kind}", folder / f"{engine} {kind}"
    assert [row["step"] for row in rows(flat)] == [row["step"] for row in rows(other)]
    assert apart(flat, other, "loss", "val_loss") <= 1e-6
    for file in ("model.safetensors", "optimizer.safetensors"):
        step = rows(flat)[-1]["step"]
        one, two = tensors(flat, step, file), tensors(other, step, file)
        assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in two.items()}


def test_a_run_goes_from_engine_to_engine_and_to_one_rank(carried: Any) -> None:
    folder, found = carried
    assert [[rank[f"turn {number}"] for number in range(4)] for rank in found] == [["done"] * 4] * 2
    assert apart(folder / "flat plain", folder / "turns", "loss") <= 1e-6


def test_a_signal_to_one_rank_ends_all_after_the_same_step_whoever_holds_what(carried: Any) -> None:
    folder, found = carried
    assert [rank["stopped"] for rank in found] == [f"Stopped: stopped by signal {signal.SIGHUP:d}"] * 2
    assert (folder / "stopped" / "checkpoints" / "step-000004").is_dir()
    train("torch_gpt", "--resume", folder / "stopped", "--stop-at", "10")
    before = {row["step"]: row["loss"] for row in rows(folder / "flat plain") if "loss" in row}
    after = {row["step"]: row["loss"] for row in rows(folder / "stopped") if "loss" in row}
    assert max(abs(loss - before[step]) for step, loss in after.items()) <= 1e-6
    assert max(after) == 10


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_rank_that_is_killed_is_named_and_costs_nothing_saved(engine: str, tmp_path: Path, stories_dir: Path) -> None:
    run = tmp_path / "run"
    argv = (*tiny(stories_dir, *SAVING), "--max-steps", "1000000", "--out", str(run), "--parallel", engine)
    processes = start("torch_gpt", command("torch_gpt", *argv), tmp_path / "launch")
    wait_for(run / "checkpoints" / "latest")
    os.kill(processes[1].pid, signal.SIGKILL)
    said = ended(processes, BOUND)
    assert all(words in said[0] for words in ("error: rank 1 (process", "has ended", f"--resume {run}")), said
    assert "Traceback" not in said[0], said
    assert processes[0].returncode == 1
    saved = int((run / "checkpoints" / "latest").read_text().strip()[-6:])
    train("torch_gpt", "--resume", run, "--stop-at", str(saved + 1))


def test_an_engine_that_makes_another_step_is_seen_before_the_first(carried: Any) -> None:
    folder, found = carried
    for name in MUTANTS:
        assert "health: ranks: the step of all ranks" in found[0][name]
        assert "health: ranks: " in found[1][name] or found[1][name].startswith("ToldElsewhere")
        assert not list((folder / name).glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("twin", "argv", "said"),
    [
        ("mlx_gpt", ("--parallel", "ddp"), "--parallel ddp is PyTorch's: leave it out"),
        ("torch_gpt", ("--parallel", "fsdp"), "--parallel fsdp is for several ranks, and this is one"),
    ],
)
def test_where_there_is_no_such_engine(
    twin: str, argv: tuple[str, ...], said: str, stories_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = fails(capsys, twin, *flags(stories_dir, *argv, "--out", str(tmp_path / "run")))
    assert said in error
    assert not (tmp_path / "run").exists()
