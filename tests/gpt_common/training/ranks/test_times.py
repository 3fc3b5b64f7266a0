"""Who waits for whom, by made-up clocks of three ranks whose sums are added here."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from gpt_common.training.ranks.agreement import WISHES, Agreement
from gpt_common.training.ranks.times import RankTimes


def add_up(ranks: Sequence[Agreement], waited: Sequence[float]) -> None:
    """A sum over all ranks, in which each waits so long, and what comes after it."""
    total = [sum(wishes) for wishes in zip(*(one.wished for one in ranks), strict=True)]
    for one, seconds in zip(ranks, waited, strict=True):
        one.agreed = list(total)
        one.seconds += seconds
        one.after_step()


def three() -> list[Agreement]:
    ranks = [Agreement(rank, 3) for rank in range(3)]
    for one in ranks:
        one.seconds = 100.0  # waited before training began
        one.count_from_here()
    return ranks


def test_who_waits_least_is_the_slowest_and_all_know_it() -> None:
    ranks = three()
    for _ in range(5):
        add_up(ranks, (0.5, 0.1, 0.3))
    for one in ranks:
        rank, behind = one.slowest()
        assert rank == 1
        assert behind == pytest.approx(4 * 0.4)  # the last wait travels with the next sum
    add_up(ranks, (0.0, 0.0, 0.0))
    assert ranks[2].slowest() == pytest.approx((1, 0.4))
    assert ranks[2].slowest() == (None, None)


def test_what_is_told_of_waiting_is_no_wish() -> None:
    ranks = three()
    for _ in range(3):
        add_up(ranks, (9.0, 9.0, 9.0))
    assert (ranks[0].stopped_by, ranks[0].time_over) == (None, False)
    ranks[1].wish(15)
    add_up(ranks, (9.0, 9.0, 9.0))
    assert [one.stopped_by for one in ranks] == [15] * 3
    assert len(ranks[0].wished) == WISHES + 3


def test_what_is_logged() -> None:
    ranks, said = three(), list[str]()
    times = RankTimes(ranks[0], 0, said.append, told=True)
    times.begin()
    times.alone = 0.9
    for _ in range(10):
        add_up(ranks, (0.5, 0.1, 0.3))
    found = times.of_step(10, 600.0, 1.0)
    assert found["tps_per_rank"] == 200.0
    assert found["dt_ranks"] == pytest.approx(0.5)
    assert (found["slowest_rank"], found["dt_behind"]) == pytest.approx((1, 0.36))
    assert found["efficiency"] == pytest.approx(0.3)
    assert said == ["rank 1 is the slowest: another waits 360.0 ms (36.0% of a step) longer in each sum"]
    for _ in range(10):
        add_up(ranks, (0.5, 0.1, 0.3))
    assert times.of_step(20, 600.0, math.nan)["efficiency"] is None
    assert len(said) == 1
    assert times.in_words(600.0, 1.0) == "3, 200 tokens/s each, 50.0% of a step in sums, 30.0% of one alone"


def test_where_another_engine_waits_nobody_is_called_late() -> None:
    ranks = three()
    times = RankTimes(ranks[0], 0, lambda _: None, told=False)
    for _ in range(3):
        add_up(ranks, (0.5, 0.1, 0.3))
    assert times.of_step(3, 600.0, 1.0)["slowest_rank"] is None


def test_alone_there_is_nothing_to_log() -> None:
    alone = Agreement()
    alone.after_step()
    assert set(RankTimes(alone, 0, print, told=True).of_step(1, 10.0, 1.0).values()) == {None}
