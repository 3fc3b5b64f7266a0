"""Ranks: whoever does the micro-steps, the same model comes out, in either twin and from one to the other."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from convert.parity.mutants.planted import Edit
from gpt_common.training.log.runlog import read_metrics
from tests.twins import TWINS, tensors, tiny, train
from tests.twins.ranks.launching import Job, launch

STEPS, LATE = 6, 20
both = pytest.mark.parametrize("twin", TWINS)
SHORT = ("--max-steps", str(STEPS), "--log-interval", "1", "--eval-interval", "3", "--grad-accum-steps", "2")
EXPERTS = ("--feed-forward", "moe", "--n-expert", "4", "--experts-per-token", "2", "--expert-width", "16")
KINDS: dict[str, tuple[str, ...]] = {
    "plain": ("--health-gates", "quick"),
    "muon, mean of weights": ("--optimizer", "muon", "--ema-decay", "0.8"),
    "experts": (*EXPERTS, "--balancing", "bias", "--balancing-rate", "0.01"),
    "dropout, shared": ("--dropout", "0.2", "--dropout-rng", "shared"),
    "dropout, native": ("--dropout", "0.2", "--dropout-rng", "native"),
    "bfloat16": ("--dtype", "bfloat16", "--health-gates", "quick"),
    "adapter": ("--adapter", "lora"),
}
"""What is trained by one rank and by two."""
FOUR = ("--grad-accum-steps", "4")
IN_STEP = "TrainStep.__call__"


def fault(twin: str, file: str, where: str, old: str, new: str) -> Edit:
    return Edit(f"{twin}/{file}", where, old, new)


def in_a_step(twin: str) -> dict[str, Edit]:
    """Faults that the gate on a dealt step sees, by name."""
    added = {
        "mlx_gpt": ("        # Alone, nothing is to be added.\n", "self.gradients = clip(self.gradients, 0.05)[0]"),
        "torch_gpt": ("        mean_loss = self.ranks.add_up(", "clip(self.model, 0.05)"),
    }
    before, clip = added[twin]
    clipping = f"        from {twin}.optim import clip_gradients as clip\n        {clip}\n{before}"
    counted = "counted = sum(positions(batch) for batch in self.ranks.counted(batches))"
    mine = "counted = sum(positions(batch) for _, batch in self.ranks.dealt(batches)) * self.ranks.world"
    agreement = "gpt_common/training/ranks/agreement.py"
    key = "dropout_key(self.config.train.seed, step, micro_step)"
    return {
        "mean of means": fault(twin, "train.py", IN_STEP, counted, mine),
        "mean for sum": fault(
            twin,
            "distributed.py",
            "Ranks.add_up",
            "total = self.summed(flat)",
            "total = self.summed(flat) / self.world",
        ),
        "clipped before the sum": fault(twin, "train.py", IN_STEP, before, clipping),
        "the same micro-steps": Edit(agreement, "Agreement.dealt", "[self.rank :: self.world]", "[0 :: self.world]"),
        "dropout by rank": fault(
            twin, "train.py", "TrainStep.key", key, key.replace("step)", "step + self.ranks.rank)")
        ),
    }


def loads_forgotten(twin: str) -> Edit:
    old = "model.routers.take_step_loads(rest[1:-1])"
    return fault(twin, "distributed.py", "Ranks.add_up", old, "")


FLAG = Edit(
    "gpt_common/training/ranks/agreement.py",
    "Agreement.stopped_by",
    "zip(SIGNALS, self.agreed",
    "zip(SIGNALS, self.wished",
)


def flags(data: Path, *more: str) -> tuple[str, ...]:
    return (*tiny(data), *SHORT, *more)


def started(
    kind: str, folder: Path, data: Path, kinds: Mapping[str, tuple[str, ...]] = MappingProxyType(KINDS)
) -> tuple[str, ...]:
    """The command line of one of `kinds` of run, without its folder; an adapter stands beside `folder`/base."""
    if kind == "adapter":
        return ("--init-from", str(folder / "base"), "--data-dir", str(data), *SHORT, *kinds[kind])
    return flags(data, *kinds[kind])


@pytest.fixture(scope="module", params=TWINS)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, stories_dir: Path) -> Any:
    """All that one rank does, and all that two do: (twin, folder, what came of the jobs, by rank)."""
    twin, folder = request.param, tmp_path_factory.mktemp("ranks")
    train(twin, *flags(stories_dir, "--max-steps", "2"), "--out", folder / "base")
    train(twin, *flags(stories_dir, *FOUR), "--out", folder / "one four")
    for kind in KINDS:
        train(twin, *started(kind, folder, stories_dir), "--out", folder / f"one {kind}")
    jobs = [Job(kind, (*started(kind, folder, stories_dir), "--out", str(folder / f"two {kind}"))) for kind in KINDS]
    jobs.append(Job("four", flags(stories_dir, *FOUR, "--out", str(folder / "two four"))))
    jobs.append(Job("odd", flags(stories_dir, "--grad-accum-steps", "3", "--out", str(folder / "odd"))))
    jobs.append(Job("used", flags(stories_dir, "--out", str(folder / "one plain"))))
    stopped = str(folder / "stopped")
    jobs.append(Job("stopped", flags(stories_dir, "--out", stopped), signals=(1, 3, signal.SIGHUP)))
    jobs.append(Job("gone on", ("--resume", stopped)))
    timed = ("--max-steps", "2000", "--max-minutes", "0.01", "--eval-interval", "1000")
    jobs.append(Job("timed", flags(stories_dir, *timed, "--out", str(folder / "timed"))))
    jobs += [Job("dealt", asked="dealt"), Job("balanced", asked="experts")]
    jobs += [Job(name, asked="dealt", edits=(edit,)) for name, edit in in_a_step(twin).items()]
    jobs.append(Job("loads of experts", asked="experts", edits=(loads_forgotten(twin),)))
    return twin, folder, launch(twin, jobs, folder / "launch")


def rows(run: Path) -> list[dict[str, Any]]:
    """Steps and evaluations, without what a clock says."""
    names = ("step", "loss", "lr", "grad_norm", "train_loss", "val_loss", "best", "expert_load")
    found = [{name: row[name] for name in names if name in row} for row in read_metrics(run)]
    return [row for row in found if "loss" in row or "val_loss" in row]


def apart(one: Path, other: Path, *names: str) -> float:
    """The largest difference between two logs."""
    pairs = zip(rows(one), rows(other), strict=True)
    return max(abs(a[name] - b[name]) for a, b in pairs for name in names if name in a)


def same_bits(one: Path, other: Path, step: int) -> bool:
    """Whether two checkpoints hold the same weights and moments."""
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in (
            (tensors(one, step, f), tensors(other, step, f)) for f in ("model.safetensors", "optimizer.safetensors")
        )
    )


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_make_the_bits_that_one_makes(kind: str, done: Any) -> None:
    """Halving is exact and the sum of two does not depend on their order: so not a bit may differ."""
    _, folder, found = done
    assert [rank[kind] for rank in found] == ["done", "done"]
    one, two = folder / f"one {kind}", folder / f"two {kind}"
    assert same_bits(one, two, STEPS)
    assert rows(one) == rows(two)


def test_what_only_ranks_write_down(done: Any) -> None:
    _, folder, _ = done
    steps = [row for row in read_metrics(folder / "two plain") if "loss" in row]
    assert all(row["dt_ranks"] > 0 for row in steps[1:])
    assert all(row["slowest_rank"] in (0, 1) and row["dt_behind"] >= 0 for row in steps[2:])
    assert not any("efficiency" in row for row in steps)
    assert all(row["tps"] == pytest.approx(2 * row["tps_per_rank"]) for row in steps[1:])
    assert not any("dt_ranks" in row for row in read_metrics(folder / "one plain"))
    sessions = [json.loads((folder / run / "run.json").read_text())["sessions"] for run in ("one plain", "two plain")]
    assert [session[0]["ranks"] for session in sessions] == [1, 2]


def test_micro_steps_that_cannot_be_dealt_are_one_line_of_the_first_rank(done: Any) -> None:
    _, folder, found = done
    assert found[0]["odd"].startswith("UserError: grad_accum_steps is 3, and 2 ranks share them: make it a multiple")
    assert found[1]["odd"].startswith("ToldElsewhere")
    assert not (folder / "odd").exists()


def test_a_folder_that_holds_a_run_is_refused_by_the_first_alone(done: Any) -> None:
    _, _, found = done
    assert "already holds a run" in found[0]["used"]
    assert found[1]["used"].startswith("ToldElsewhere")


def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_saves(done: Any) -> None:
    _, folder, found = done
    assert [rank["stopped"] for rank in found] == [f"Stopped: stopped by signal {signal.SIGHUP:d}"] * 2
    assert [row["step"] for row in read_metrics(folder / "stopped") if row.get("event") == "resume"] == [4]
    assert [rank["gone on"] for rank in found] == ["done", "done"]
    assert same_bits(folder / "stopped", folder / "one plain", STEPS)


def test_the_time_is_the_first_ranks(done: Any) -> None:
    _, folder, found = done
    assert [rank["timed"] for rank in found] == ["done", "done"]
    assert [row["event"] for row in read_metrics(folder / "timed") if row.get("event") == "pace"] == ["pace"]


def test_a_dealt_step_is_that_of_one_rank_and_each_fault_is_seen(done: Any) -> None:
    """Micro-batches whose positions do not count alike, with dropout, clipped to far less than their norm."""
    twin, _, found = done
    for rank in found:
        assert rank["dealt"] == "make the step that one makes"
        for name in in_a_step(twin):
            assert rank[name].startswith("GateFailed: health: ranks: the step of all ranks"), (name, rank[name])


def test_experts_are_balanced_by_what_all_ranks_sent_them(done: Any) -> None:
    _, _, found = done
    loads = [json.loads(rank["balanced"]) for rank in found]
    assert loads[0] == loads[1]
    assert [sum(router) for router in loads[0]] == [3 * 4 * 3 * 12 * 2]  # steps, micro-steps, rows, tokens, choices
    for rank in found:
        assert "after 3 steps rank 1 has other weights than rank 0" in rank["loads of experts"]
        assert "routing_bias" in rank["loads of experts"]


def test_a_flag_that_is_not_agreed_on_leaves_the_others_waiting(tmp_path: Path, stories_dir: Path) -> None:
    """The mutant of the test on signals: rank 1 leaves by its own flag, and rank 0 never saves."""
    argv = flags(stories_dir, "--out", str(tmp_path / "run"))
    job = Job("stopped", argv, edits=(FLAG,), signals=(1, 3, signal.SIGTERM))
    with pytest.raises(AssertionError):  # a rank fell over
        launch("mlx_gpt", [job], tmp_path / "launch")
    assert not (tmp_path / "run" / "checkpoints" / "step-000004").exists()


def test_four_micro_steps_by_two_ranks(done: Any) -> None:
    """Sums of four come out by their order: 5e-7 was seen."""
    _, folder, found = done
    assert [rank["four"] for rank in found] == ["done", "done"]
    assert apart(folder / "one four", folder / "two four", "loss") <= 1e-6


@pytest.mark.slow
@both
def test_four_micro_steps_by_four_ranks(twin: str, tmp_path: Path, stories_dir: Path) -> None:
    train(twin, *flags(stories_dir, *FOUR), "--out", tmp_path / "one")
    job = Job("run", (*flags(stories_dir, *FOUR), "--out", str(tmp_path / "many")))
    assert [rank["run"] for rank in launch(twin, [job], tmp_path / "launch", world=4)] == ["done"] * 4
    assert apart(tmp_path / "one", tmp_path / "many", "loss") <= 1e-6


def test_a_run_goes_on_with_other_ranks_and_in_the_other_twin(tmp_path: Path, stories_dir: Path) -> None:
    """torch alone, torch by two, MLX by two, MLX alone: the losses of torch that nobody disturbed."""
    argv = flags(stories_dir, "--max-steps", str(LATE))
    train("torch_gpt", *argv, "--out", tmp_path / "whole")
    run = str(tmp_path / "run")
    train("torch_gpt", *argv, "--out", run, "--stop-at", "5")
    for twin, stop in (("torch_gpt", "10"), ("mlx_gpt", "15")):
        job = Job("on", ("--resume", run, "--stop-at", stop))
        assert [rank["on"] for rank in launch(twin, [job], tmp_path / twin)] == ["done", "done"]
    train("mlx_gpt", "--resume", run)
    assert [row["step"] for row in rows(tmp_path / "whole")] == [row["step"] for row in rows(tmp_path / "run")]
    assert apart(tmp_path / "whole", tmp_path / "run", "loss", "val_loss") <= 1e-5
