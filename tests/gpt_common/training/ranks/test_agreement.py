"""What ranks agree on, without any engine: three of them as threads that meet at a barrier."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

import gpt_common.training.ranks.agreement as agreement
from gpt_common.errors import ToldElsewhere, UserError
from gpt_common.training.health.gates import GateFailed
from gpt_common.training.ranks.agreement import TIME_OVER, Agreement

WORLD = 3


class Thread(Agreement):
    """A rank in this process."""

    def __init__(self, rank: int, board: dict[int, str], barrier: Barrier) -> None:
        super().__init__(rank, WORLD)
        self.board, self.barrier = board, barrier

    def gather(self, text: str) -> list[str]:
        self.board[self.rank] = text
        self.barrier.wait(5)
        found = [self.board[rank] for rank in range(WORLD)]
        self.barrier.wait(5)
        return found


def on_all(work: Callable[[Agreement], Any]) -> list[Any]:
    """What comes of `work` on every rank, or the error that it ends with."""
    board: dict[int, str] = {}
    barrier = Barrier(WORLD)

    def one(rank: int) -> Any:
        try:
            return work(Thread(rank, board, barrier))
        except (UserError, GateFailed, ToldElsewhere) as error:
            return error

    with ThreadPoolExecutor(WORLD) as pool:
        return list(pool.map(one, range(WORLD)))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "TELLING", 0.0)


def test_each_item_is_dealt_once() -> None:
    dealt = on_all(lambda ranks: ranks.dealt("abcdefg"))
    assert dealt[1] == [(1, "b"), (4, "e")]
    assert sorted(number for part in dealt for number, _ in part) == list(range(7))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_every_rank_knows_every_loss_in_order(count: int) -> None:
    """To the bit: what travels is a number's shortest writing; with fewer batches than ranks too."""
    asked: list[int] = []

    def losses(batches: Any) -> list[float]:
        asked.extend(batches)
        return [batch / 7 for batch in batches]

    assert on_all(lambda ranks: ranks.losses(range(count), losses)) == [[n / 7 for n in range(count)]] * WORLD
    assert sorted(asked) == list(range(count))


def test_alone_nobody_is_asked_and_every_wish_is_agreed_on() -> None:
    one = Agreement()
    assert one.gather("a") == ["a"]
    assert one.losses([1, 2], lambda batches: [float(b) for b in batches]) == [1.0, 2.0]
    assert (one.stopped_by, one.time_over) == (None, False)
    one.wish(signal.SIGTERM)
    one.wish(TIME_OVER)
    assert (one.stopped_by, one.time_over) == (signal.SIGTERM, True)


def test_a_wish_counts_when_it_was_agreed_on_and_not_before() -> None:
    ranks = Agreement(1, 2)
    ranks.wish(signal.SIGINT)
    assert ranks.stopped_by is None
    ranks.agreed = [0.0, 2.0, 0.0, 0.0]
    assert ranks.stopped_by == signal.SIGINT


def test_after_the_last_sum_a_rank_listens_to_itself() -> None:
    ranks = Agreement(0, 2)
    ranks.agreed = [0.0, 0.0, 1.0, 0.0]  # another's
    ranks.part()
    assert ranks.stopped_by == signal.SIGTERM
    other = Agreement(0, 2)
    other.part()
    other.wish(signal.SIGINT)
    assert other.stopped_by == signal.SIGINT


def test_all_go_on_when_all_have_what_they_wait_for() -> None:
    """Each looks at a disk of its own; a signal to one of them ends the waiting of all."""
    assert Agreement().all_there(True, None) == (True, None)

    def waits(ranks: Agreement) -> tuple[bool, str, int | None]:
        if ranks.rank == 1:
            ranks.wish(signal.SIGTERM)
        error = UserError("the disk is gone") if ranks.rank == 2 else None
        there, wrong = ranks.all_there(ranks.rank != 1, error)
        return there, str(wrong), ranks.stopped_by

    assert on_all(waits) == [(False, "rank 2: the disk is gone", signal.SIGTERM)] * WORLD
    assert on_all(lambda ranks: ranks.all_there(ranks.rank != 1, None)) == [(False, None)] * WORLD
    assert on_all(lambda ranks: ranks.all_there(True, None)) == [(True, None)] * WORLD


def test_what_one_lacks_is_known_after_the_sum_alone() -> None:
    ranks = Agreement(1, 2)
    ranks.lack(wanted=True)
    assert not ranks.lacking
    ranks.agreed = [sum(wishes) for wishes in zip(ranks.wished, Agreement(0, 2).wished, strict=True)]
    assert ranks.lacking
    ranks.lack(wanted=False)
    assert ranks.wished == Agreement(1, 2).wished


@pytest.mark.parametrize("wrong", [0, 2])
def test_what_fails_for_one_fails_for_all_and_the_first_says_it(wrong: int) -> None:
    began: list[int] = []

    def work(ranks: Agreement) -> str:
        def open_it() -> str:
            began.append(ranks.rank)
            if ranks.rank == wrong:
                raise UserError("no such file")
            return "open"

        return ranks.together(open_it)

    first, *others = on_all(work)
    assert str(first) == ("no such file" if wrong == 0 else "rank 2: no such file")
    assert [(type(error), error.exit_code) for error in others] == [(ToldElsewhere, 2)] * 2
    assert began[0] == 0
    assert len(began) == (1 if wrong == 0 else WORLD), "what the first cannot do, nobody tries"


def test_the_first_is_done_before_the_others_begin() -> None:
    order: list[int] = []
    assert on_all(lambda ranks: ranks.together(lambda: order.append(ranks.rank))) == [None] * WORLD
    assert order[0] == 0


def test_a_rank_that_was_started_from_something_else_is_named() -> None:
    found = on_all(lambda ranks: ranks.check_alike(lambda: {"twin": "a", "train.seed": 2 if ranks.rank == 1 else 1}))
    assert str(found[0]).startswith("rank 1 was started with train.seed 2, rank 0 with 1")
    assert all(isinstance(error, ToldElsewhere) for error in found[1:])
    assert on_all(lambda ranks: ranks.check_alike(lambda: {"twin": "a"})) == [None] * WORLD


def test_a_rank_with_other_weights_is_named() -> None:
    found = on_all(lambda ranks: ranks.check_weights(lambda: {"a": 1, "b": 5 if ranks.rank == 2 else 2}, 7))
    assert all(isinstance(error, GateFailed) for error in found)
    assert "after 7 steps rank 2 has other weights than rank 0 (1 of 2 tensors, first b)" in str(found[0])


def test_micro_steps_are_dealt_evenly_or_not_at_all() -> None:
    Agreement(0, 3).check_dealt(6)
    with pytest.raises(UserError, match="make it a multiple of 3"):
        Agreement(0, 3).check_dealt(4)
