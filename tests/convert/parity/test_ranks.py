"""Rung R in real processes: both twins pass it, and each fault of ranks is seen by what it is named for."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.parity.compare import Measurement
from convert.parity.ladder import climb_ladder
from convert.parity.mutants.climb import mutant_climb
from convert.parity.mutants.planted import planted
from convert.parity.mutants.rank_faults import rank_faults
from convert.parity.report.console import as_dict, line
from convert.parity.report.page import _gate as page_gate
from convert.parity.report.page import ranks as page_ranks
from convert.parity.rungs import ranks
from convert.parity.rungs.ranks import FEW, name_of, outcomes, ranks_config, same_bits, started, write_examples
from convert.parity.twins.ranks import DONE, Job, launch
from gpt_common.config import RunConfig, load_preset
from gpt_common.network import init

pytestmark = [pytest.mark.parity, pytest.mark.timeout(900)]  # processes of rung R, on a busy machine

STEPS, SIGNAL = 8, 5
SEEN_IN = {
    "mean for sum, of ranks whose positions do not count alike": "loss in the log",
    "gradients clipped before ranks add them up": "grad_norm in the log",
    "the same micro-steps on all ranks": "loss in the log",
    "dropout by rank": "loss in the log",
    "evaluation counts the first rank's batches twice": "val_loss in the log",
    "best checkpoint by the last rank's share": "best checkpoint",
    "loads of experts not added up": "expert_load in the log",
}
"""By fault, a measurement that must reject it."""
ALONE = {"evaluation counts the first rank's batches twice", "best checkpoint by the last rank's share"}
"""Training is right, and its evaluation is not: no weight may differ."""


def short(family: str) -> RunConfig:
    """The configuration of the rung in a few steps."""
    config = ranks_config(mutant_climb(family))
    return replace(config, train=replace(config.train, max_steps=STEPS, eval_interval=2, checkpoint_interval=STEPS))


@pytest.fixture(scope="module", params=["mlx", "torch"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One rank and two, right and with each fault: (twin, folder, what came of the jobs). Two launches do them all."""
    twin, folder = request.param, tmp_path_factory.mktemp("ranks")
    package, one, several = ranks.TWINS[twin], [], []
    faults = sorted(rank_faults(package), key=lambda fault: fault.ends)
    for family in ("gpt", "deepseek"):
        config, place = short(family), folder / family
        write_examples(place / "data", config)
        one.append(Job(family, started(config, place, FEW, name_of(twin, 1, FEW))))
        several.append(Job(family, started(config, place, FEW, name_of(twin, 2, FEW))))
    for fault in faults:
        place = folder / fault.name
        shutil.copytree(folder / fault.family / "data", place / "data")
        argv = started(short(fault.family), place, FEW, name_of(twin, 2, FEW))
        several.append(Job(fault.name, argv, SIGNAL if fault.ends else None, (fault.edit,)))
    # What a signal ends is the last thing that is right, and what makes ranks part the last of all.
    stopped = Job("stopped", started(short("gpt"), folder / "gpt", FEW, "stopped"), SIGNAL)
    several.insert(-1, stopped)
    found = launch(package, 1, one, folder / "launch 1") | launch(package, 2, several, folder / "launch 2")
    return twin, folder, found


def failed(measurements: Sequence[Measurement]) -> set[str]:
    """What is outside its gate."""
    return {one.tensor for one in measurements if not one.passed}


def beside_one(folder: Path, twin: str, family: str, place: str) -> list[Measurement]:
    """Two ranks of a folder beside one without a fault."""
    one, several = folder / family / name_of(twin, 1, FEW), folder / place / name_of(twin, 2, FEW)
    return list(same_bits(one, several, "two ~ one"))


@pytest.mark.parametrize("family", ["gpt", "deepseek"])
def test_two_ranks_pass(family: str, done: Any) -> None:
    twin, folder, found = done
    assert found[family] == [DONE, DONE]
    measured = beside_one(folder, twin, family, family)
    assert not failed(measured)
    assert {"loss in the log", "val_loss in the log", "best checkpoint"} < {one.tensor for one in measured}
    assert any(one.tensor.endswith("(moments)") for one in measured)


@pytest.mark.parametrize("fault", SEEN_IN)
def test_a_fault_of_ranks_is_seen(fault: str, done: Any) -> None:
    twin, folder, found = done
    assert found[fault] == [DONE, DONE], "it says nothing by itself"
    family = next(each.family for each in rank_faults("mlx_gpt") if each.name == fault)
    rejected = failed(beside_one(folder, twin, family, fault))
    assert SEEN_IN[fault] in rejected
    assert any(name.endswith(".weight") for name in rejected) == (fault not in ALONE)
    if fault == "best checkpoint by the last rank's share":
        assert rejected == {"best checkpoint"}


def test_a_signal_ends_all_after_one_step_and_its_mutant_leaves_them_apart(done: Any) -> None:
    twin, folder, found = done
    assert all(what.startswith("Stopped: ") for what in found["stopped"])
    assert (folder / "gpt" / "stopped" / "checkpoints" / f"step-{SIGNAL + 1:06d}").is_dir()
    job = Job("each rank stops by its own flag", (), SIGNAL)
    assert failed(list(outcomes(twin, 2, [job], found))), found[job.name]
    assert found[job.name][1].startswith("Stopped: "), "the last rank had its signal"


def test_every_fault_is_named_here() -> None:
    for package in ranks.TWINS.values():
        assert [fault.name for fault in rank_faults(package) if not fault.ends] == list(SEEN_IN)


def test_micro_steps_count_differently(done: Any) -> None:
    """Else a mean of means would be right."""
    from gpt_common.data.batches import positions, training_batch
    from gpt_common.data.dataset import open_folder

    _, folder, _ = done
    config = short("gpt")
    train, _ = open_folder(folder / "gpt" / "data" / ranks.DATASET, lambda *_: None).splits(
        config.model.block_size, packing=True
    )
    sizes = {"block_size": config.model.block_size, "batch_size": 2, "seed": 1337, "micro_steps": FEW}
    for step in range(STEPS):
        counts = [positions(training_batch(train, step=step, micro_step=n, **sizes)) for n in range(FEW)]
        assert counts[0] != counts[1] or step > 2, counts


def test_a_launch_that_falls_over_says_why_and_ends(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    argv = ("--preset", "stories-cpu", "--data-dir", str(tmp_path / "data"), "--dataset", "nothing")
    found = launch(
        "mlx_gpt", 2, [Job("run", (*argv, "--grad-accum-steps", "2", "--out", str(tmp_path / "run")))], tmp_path
    )
    assert found["run"][0].startswith("UserError: ")
    assert "nothing" in found["run"][0]
    assert found["run"][1].startswith("ToldElsewhere")


def test_the_whole_rung_climbs_with_a_change_of_ranks_and_framework() -> None:
    climb = mutant_climb()
    report = climb_ladder(climb, ["R"])
    assert report.failed is None, line(report.failed) if report.failed else ""
    (result,) = report.results
    hands = [one for one in result.measurements if " > " in one.between]
    assert [one.between for one in hands] == ["torch 1 > mlx 1 > torch 2 > mlx 2 ~ torch, 1 rank"]
    assert set(climb.curves) == {"torch, 2 ranks", "mlx, 2 ranks", "from hand to hand between ranks"}
    assert [len(losses) for losses in climb.curves.values()] == [ranks.STEPS, ranks.STEPS, ranks.STEPS - 1]
    page = as_dict(report, command="", missing={}, failure=None, mutants={})
    assert page_gate(page, "R", "loss, step") == 1e-6
    assert "R-curves" in str(page_ranks(page))


def test_the_nudged_run_starts_one_unit_in_the_last_place_off() -> None:
    """Of every number that is drawn: gates in bfloat16 follow what that makes."""
    config = load_preset("stories-cpu").with_vocabulary(64).model
    right = dict(init.initial_weights(config, 1))
    with planted(ranks.NUDGE):
        off = dict(init.initial_weights(config, 1))
    assert off.keys() == right.keys()
    for name, array in right.items():
        drawn = "norm" not in name and not name.endswith(".bias")
        wanted = np.nextafter(array, np.float32(np.inf)) if drawn else array
        assert np.array_equal(off[name], wanted), name


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["stories-cpu", "llama-tiny", "deepseek-tiny", "custom-llm-tiny"])
@pytest.mark.parametrize("precision", ["strict", "bf16"])
def test_families_climb_it_with_four_ranks_too(name: str, precision: Any) -> None:
    climb = mutant_climb()
    climb.config, climb.precision, climb.worlds = load_preset(name).with_vocabulary(64), precision, (2, 4)
    report = climb_ladder(climb, ["R"])
    print(line(report.results[0]))
    assert report.failed is None, line(report.results[0])
