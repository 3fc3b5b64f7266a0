"""What ranks on this machine lose: from given seconds, and the work that is done for it; nothing here times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.devices.localhost import BLOCKS, LONGEST, Load, losses, measured
from gpt_common.config import RunConfig, load_preset

LAST = BLOCKS - 1


def blocks(first: float, *seconds: float) -> list[list[float]]:
    """The first block, and the others of so many rounds, again and again."""
    return [[first] * len(seconds), *[list(seconds)] * LAST]


def test_what_a_round_takes_beyond_work_and_sum_alone_is_lost() -> None:
    """Work of 100 ms and a sum of 10 take 130 together: 20 ms lost. The first block is a warm-up."""
    found = losses("gloo", blocks(9.0, 0.09, 0.11), blocks(7.0, 0.13), blocks(5.0, 0.010, 0.010), 0.1)
    assert found.sum == pytest.approx(0.010, rel=1e-12)
    assert found.waits == pytest.approx(0.020, rel=1e-9)
    assert found.sum_basis == f"measured here, 10 ms by gloo, median of {2 * LAST}"
    assert "20 ms in rounds of a sum and of work that takes one rank 100 ms" in found.waits_basis


def test_a_step_loses_in_proportion_to_its_work() -> None:
    found = losses("gloo", blocks(0.1, 0.1), blocks(0.1, 0.13), blocks(0.01, 0.01), 2.5)
    assert found.waits == pytest.approx(0.020 * 25, rel=1e-9)
    assert found.sum == 0.01


def test_blocks_are_compared_each_with_itself() -> None:
    """The machine gets slower and slower; a few blocks meet something else that runs. 30 ms are lost all the same."""
    alone = [[0.1 + 0.05 * number] * 2 for number in range(BLOCKS)]
    together = [[one[0] + 0.03 + (4.0 if number in (2, 5) else 0.0)] * 2 for number, one in enumerate(alone)]
    middle = 0.1 + 0.05 * (1 + LAST) / 2
    found = losses("ring", alone, together, blocks(0.0, 0.0), middle)
    assert found.waits == pytest.approx(0.03, rel=1e-9)


def test_nobody_gains_by_waiting() -> None:
    assert losses("gloo", blocks(0.1, 0.1), blocks(0.1, 0.1), blocks(0.02, 0.02), 0.1).waits == 0.0


def test_a_rank_does_its_share_of_a_step_and_of_a_long_one_a_part() -> None:
    config = load_preset("stories-cpu").with_vocabulary(54)
    config = replace(config, train=replace(config.train, batch_size=8, grad_accum_steps=6))

    def share(seconds: float, ranks: int) -> tuple[int, int]:
        train = Load(seconds, config).share(ranks).train
        return train.grad_accum_steps, train.batch_size

    assert share(LONGEST, 2) == (3, 8)
    assert share(LONGEST, 6) == (1, 8)
    assert share(3 * LONGEST, 2) == (1, 8), "a third of three micro-steps"
    assert share(12 * LONGEST, 2) == (1, 2), "a twelfth of 24 sequences"
    assert share(1e9, 2) == (1, 1)


def two_micro_steps() -> RunConfig:
    config = load_preset("stories-cpu").with_vocabulary(54)
    return replace(config, train=replace(config.train, grad_accum_steps=2))


@pytest.mark.slow
@pytest.mark.parametrize("twin", ["torch", "mlx"])
def test_ranks_measure_with_their_engine(twin: str) -> None:
    found = measured(twin, 2, 10_000, Load(0.01, two_micro_steps()))
    assert 0 < found.sum < 60
    assert 0 <= found.waits < 60
    assert found.sum_basis.startswith("measured here, ")
    assert found.waits_basis.startswith("measured here, ")
