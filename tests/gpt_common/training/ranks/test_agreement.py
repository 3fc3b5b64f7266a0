"""What ranks agree on, without any engine: three of them as threads that meet at a barrier."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest

import gpt_common.training.ranks.agreement as agreement
import gpt_common.training.ranks.watching as watching
from gpt_common.commands import TrainCommand
from gpt_common.config import DataConfig, RunConfig
from gpt_common.errors import Stopped, ToldElsewhere, UserError, WorkFailed
from gpt_common.machine.peaks import Peak
from gpt_common.training.health.gates import GateFailed
from gpt_common.training.ranks.agreement import TIME_OVER, Agreement
from gpt_common.training.ranks.opening import _started_from, peak_of_all
from gpt_common.training.ranks.watching import watched
from gpt_common.training.run import Run

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


def test_another_corpus_is_told_by_its_name_and_other_text_of_the_same_name_by_its_fingerprint() -> None:
    def said(name: str, fingerprint: str) -> str:
        def check(ranks: Agreement) -> None:
            other = ranks.rank == 1
            config = RunConfig(data=DataConfig(dataset=name if other else "mine"))
            dataset = SimpleNamespace(fingerprint=fingerprint if other else "c" * 64)
            opening: Any = SimpleNamespace(
                first_step=0, resume_from=None, init_from=None, config=config, dataset=dataset
            )
            ranks.check_alike(lambda: _started_from(ranks, opening, TrainCommand(), "torch_gpt"))

        return str(on_all(check)[0])

    assert said("other", "b" * 64).startswith("rank 1 was started with data.dataset 'other', rank 0 with 'mine'")
    assert said("mine", "b" * 64).startswith("rank 1 was started with data 'bbbbbbbbbbbb', rank 0 with 'cccccccccccc'")
    assert said("mine", "c" * 64) == "None"


def test_no_step_waits_for_what_the_first_samples_before_training() -> None:
    """Or every run would say that rank 0 is the slowest."""
    order: list[str] = []

    def begin(ranks: Agreement) -> None:
        if ranks.first:
            time.sleep(0.05)
            order.append("sampled")
        clock = SimpleNamespace(restart=lambda: None, begin=lambda: order.append("clock"))
        run: Any = SimpleNamespace(
            ranks=ranks, timer=clock, times=clock, pace=None, _began=0.0, first_step=0, stop_at=0
        )
        assert list(Run.steps(run)) == []

    on_all(begin)
    assert order == ["sampled", *["clock"] * WORLD]


def test_a_rank_with_other_weights_is_named() -> None:
    found = on_all(lambda ranks: ranks.check_weights(lambda: {"a": 1, "b": 5 if ranks.rank == 2 else 2}, 7))
    assert all(isinstance(error, GateFailed) for error in found)
    assert "after 7 steps rank 2 has other weights than rank 0 (1 of 2 tensors, first b)" in str(found[0])


class NoPulse:
    """A pulse that knows who is lost, or that nobody is."""

    def __init__(self, found: str | None = None, *, reached: bool = True) -> None:
        self._found, self.reached, self.speaks = found, reached, True
        self.ended_in_order: bool | None = None

    def listen(self, host: str) -> str:
        return f"{host} 1 token 2 name"

    def begin(self, where: str) -> None:
        if not self.reached:
            raise TimeoutError(f"{where.split()[0]} timed out")

    def found(self) -> str | None:
        return self._found

    def close(self, *, in_order: bool, says_why: bool) -> None:
        self.ended_in_order, self.says_why = in_order, says_why


def test_where_an_engine_fails_the_lost_rank_is_named_whenever_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a run is opened too: a traceback of gloo's tells nobody what happened."""
    monkeypatch.setattr(watching, "Pulse", lambda *_, **__: NoPulse("rank 1 has ended; start again"))
    ranks = Agreement(0, 1)
    with pytest.raises(WorkFailed, match="rank 1 has ended; start again"), watched(ranks, 20.0, "mac-1"):
        raise RuntimeError("[enforce fail at pair.cc] Connection closed by peer")
    monkeypatch.setattr(watching, "Pulse", lambda *_, **__: NoPulse())
    with pytest.raises(RuntimeError, match="out of memory"), watched(ranks, 20.0, "mac-1"):
        raise RuntimeError("out of memory")


def test_a_first_rank_that_is_not_reached_is_said_by_who_knows_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "Pulse", lambda rank, *_, **__: NoPulse(reached=rank == 1))

    def watch(ranks: Agreement) -> None:
        with watched(ranks, 20.0, "mac-1"):
            raise AssertionError("it has begun")

    first, *others = on_all(watch)
    assert str(first) == "rank 2 does not reach rank 0 at mac-1: mac-1 timed out (--rank-timeout 0 does without)"
    assert all(isinstance(error, ToldElsewhere) for error in others)


def test_ranks_that_were_told_other_timeouts_are_named() -> None:
    def watch(ranks: Agreement) -> None:
        with watched(ranks, 0.0 if ranks.rank == 2 else 20.0, "mac-1"):
            raise AssertionError("it has begun")

    assert str(on_all(watch)[0]).startswith("rank 2 was started with --rank-timeout 0.0, rank 0 with 20.0")


def test_a_peak_is_the_sum_of_what_each_has() -> None:
    peaks = {0: Peak(2.0, "a sheet"), 1: Peak(3.0, "another"), 2: Peak(0.5, "a third")}
    assert on_all(lambda ranks: peak_of_all(ranks, peaks[ranks.rank])) == [5.5e12] * WORLD
    assert on_all(lambda ranks: peak_of_all(ranks, None if ranks.rank == 1 else peaks[0])) == [None] * WORLD
    assert peak_of_all(Agreement(), peaks[0]) == 2e12


@pytest.mark.parametrize(("first_has_said", "what"), [(True, ToldElsewhere), (False, WorkFailed)])
def test_what_fails_for_all_is_said_by_the_first(first_has_said: bool, what: type[Exception]) -> None:
    ranks: Any = Agreement(1, 2)
    ranks.pulse = SimpleNamespace(first_has_said=first_has_said)
    error = ranks.failed_here(GateFailed("ranks", "after 3 steps ...", "Its sum is wrong"))
    assert (type(error), error.exit_code) == (what, 1)
    ranks.wire = object()  # each has a terminal of its own
    assert str(ranks.failed_here(WorkFailed("it is so"))) == "rank 1: it is so"


@pytest.mark.parametrize(
    ("error", "how"),
    [(UserError("no room"), (False, True)), (RuntimeError("a fault"), (False, False)), (Stopped(2), (True, False))],
)
def test_who_says_itself_why_it_ends_tells_the_others_so(
    error: Exception, how: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pulse = NoPulse()
    monkeypatch.setattr(watching, "Pulse", lambda *_, **__: pulse)
    with pytest.raises(type(error)), watched(Agreement(), 20.0, "mac-1"):
        raise error
    assert (pulse.ended_in_order, pulse.says_why) == how


def test_what_is_saved_is_known_to_another_rank_when_it_has_met_the_first() -> None:
    """Who is killed while it writes step 20 has not saved it."""

    def said(rank: int, *, resumed: Path | None = None, met: int = 10) -> str:
        run: Any = SimpleNamespace(ranks=Agreement(rank, 2), saved_step=20, _met_step=met, first_step=0)
        run.folder, run.resume_from = Path("r"), resumed
        return Run._how_to_go_on(run)

    assert said(0).startswith("saved is step 20:")
    assert said(1).startswith("saved is step 10:")
    assert said(1, met=0).startswith("nothing is saved yet in r")
    assert said(1, resumed=Path("r"), met=0).startswith("saved is step 0:")


def test_micro_steps_are_dealt_evenly_or_not_at_all() -> None:
    Agreement(0, 3).check_dealt(6)
    with pytest.raises(UserError, match="make it a multiple of 3"):
        Agreement(0, 3).check_dealt(4)
