"""Ranks that take steps of their own and are averaged: in either twin, in both at once, stopped and taken up."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.parity.mutants.planted import Edit
from gpt_common.training.manifest import OUTER_FILE
from tests.twins import TWINS, tensors, tiny
from tests.twins.ranks.launching import Job, launch, launch_by_hand
from tests.twins.ranks.test_ranks import apart, same_bits
from tests.twins.steps import GPT2, Trained, batch

FLAGS = (
    *("--max-steps", "8", "--log-interval", "1", "--eval-interval", "4", "--checkpoint-interval", "4"),
    *("--grad-accum-steps", "2", "--average-every", "2", "--health-gates", "quick"),
)
OUTER = ("--outer-rate", "0.7", "--outer-momentum", "0.9")
NOT_TAKEN = Edit(
    "gpt_common/training/ranks/averaging.py", "Averaging.average", "self.probe.set_weights(self.anchor)", ""
)


@pytest.mark.parametrize("twin", TWINS)
def test_a_step_of_its_own_is_that_of_a_rank_alone(twin: str) -> None:
    alone, one = Trained(twin, GPT2), Trained(twin, GPT2)
    one.step.ranks.rank, one.step.ranks.world, one.step.ranks.apart = 1, 2, True
    for step in range(3):
        batches = [batch(10 * step + n) for n in range(4)]
        alone.take(batches[1::2], step)
        one.take(batches, step)
    weights = one.probe.weights()
    assert all(np.array_equal(value, weights[name]) for name, value in alone.probe.weights().items())


def jobs(data: Path, folder: Path) -> list[Job]:
    argv = (*tiny(data), *FLAGS)
    return [
        Job("plain", (*argv, "--out", str(folder / "plain"))),
        Job("outer", (*argv, *OUTER, "--out", str(folder / "outer"))),
        Job("stopped", (*argv, *OUTER, "--out", str(folder / "stopped")), signals=(1, 4, signal.SIGTERM)),
        Job("gone on", ("--resume", str(folder / "stopped"))),
    ]


@pytest.mark.parametrize("twins", [("torch_gpt",) * 2, ("mlx_gpt",) * 2, ("torch_gpt", "mlx_gpt")])
def test_averaged_stopped_and_taken_up(twins: tuple[str, str], tmp_path: Path, stories_dir: Path) -> None:
    """After an average all ranks are equal in everything, so that a resumed run ends as the undisturbed one."""
    work = jobs(stories_dir, tmp_path)
    work.append(Job("not taken", (*work[0].argv[:-1], str(tmp_path / "not taken")), edits=(NOT_TAKEN,)))
    found: Any = (
        launch(twins[0], work, tmp_path / "launch")
        if len(set(twins)) == 1
        else launch_by_hand(twins, work, tmp_path / "launch")
    )
    for rank in found:
        assert [rank[name] for name in ("plain", "outer", "gone on")] == ["done"] * 3, rank
        assert rank["stopped"] == f"Stopped: stopped by signal {signal.SIGTERM:d}"
        assert any(
            words in rank["not taken"] for words in ("health: ranks: after 4 steps", "has ended", "ToldElsewhere")
        )
    assert any("health: ranks: after 4 steps" in rank["not taken"] for rank in found)
    assert (tmp_path / "stopped" / "checkpoints" / "step-000006").is_dir(), "the average after the signal"
    if len(set(twins)) == 1:
        assert same_bits(tmp_path / "outer", tmp_path / "stopped", 8)
    else:
        assert apart(tmp_path / "outer", tmp_path / "stopped", "val_loss") <= 1e-6
    assert apart(tmp_path / "plain", tmp_path / "outer", "val_loss") > 1e-4
    assert (tmp_path / "outer" / "checkpoints" / "step-000008" / OUTER_FILE).exists()
    assert not (tmp_path / "plain" / "checkpoints" / "step-000008" / OUTER_FILE).exists()
    assert tensors(tmp_path / "outer", 8, OUTER_FILE).keys() == tensors(tmp_path / "outer", 8).keys()
