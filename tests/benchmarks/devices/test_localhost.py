"""What ranks on this machine lose: from given seconds, and the work that is done for it; nothing here times."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from benchmarks.devices.localhost import BLOCKS, NUMBERS, Load, Work, losses, measured

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


@pytest.mark.parametrize("package", ["torch", "mlx.core"])
def test_the_work_leaves_ones_and_is_as_large_as_the_model(package: str) -> None:
    """However often it is done, no number grows, or shrinks to what takes a processor longer."""
    work = Work(import_module(package), Load(0.0, 32, 16))
    x_ND = work.x_ND
    for _ in range(500):
        x_ND = work.layer(x_ND)
    np.testing.assert_allclose(x_ND.tolist(), np.ones((32, 16)), rtol=1e-5)
    assert work.do(2) > 0
    assert work.turns() == 1  # one at least
    large = Work(import_module(package), Load(0.0, 10**6, 1024))
    assert large.x_ND.shape[0] * 4 * 1024 == NUMBERS


@pytest.mark.slow
@pytest.mark.parametrize("twin", ["torch", "mlx"])
def test_ranks_measure_with_their_engine(twin: str) -> None:
    found = measured(twin, 2, 10_000, Load(0.01, 64, 32))
    assert 0 < found.sum < 60
    assert 0 <= found.waits < 60
    assert found.sum_basis.startswith("measured here, ")
    assert found.waits_basis.startswith("measured here, ")
