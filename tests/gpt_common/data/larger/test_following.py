"""A preparation that is followed: the same batches however far it is and wherever its tokens lie; what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="extra hub")

# isort: split
from gpt_common.data.batches import Windows, training_batch
from gpt_common.data.corpora.following import Preparation
from gpt_common.data.corpora.work import PLANNED, read_plan
from gpt_common.training.health.data_gates import text_of_stream
from gpt_common.training.health.gates import GateFailed
from tests.gpt_common.data.larger.hub import (
    SECOND,
    Texts,
    one_more_shard,
    opened,
    prepared,
    small_and_at_once,
    three_files,
)

BLOCK, ROWS, MICRO_STEPS, SEED = 8, 3, 2, 5
STEPS = 170
"""Of 48 tokens each: the stream has about 3 500, so it comes twice and a bit."""
WORK = Path("data/mine.tmp-hub")


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Texts]:
    """The server; pools of 12 windows of 8 tokens."""
    small_and_at_once(monkeypatch)
    with three_files(tmp_path, monkeypatch) as hub:
        yield hub


def batch_of(windows: Windows, step: int, **options: Any) -> list[np.ndarray[Any, Any]]:
    given: dict[str, Any] = {"block_size": BLOCK, "batch_size": ROWS, "seed": SEED, **options}
    dealt = (
        training_batch(windows, step=step, micro_step=micro_step, micro_steps=MICRO_STEPS, **given)
        for micro_step in range(MICRO_STEPS)
    )
    return [part for batch in dealt for part in (batch.tokens, batch.labels)]


def numbers(step: int) -> range:
    return range(step * ROWS * MICRO_STEPS, (step + 1) * ROWS * MICRO_STEPS)


def dealt(lacking: Callable[[], Any], between: Callable[[int], Any] = lambda _: None, *, again: int = 0) -> list[bytes]:
    """The bytes of the batches of every step.

    Args:
        lacking: makes more where tokens lack.
        between: called before each step.
        again: opened anew after so many steps.
    """
    found = []
    _, windows = opened()
    for step in range(STEPS):
        between(step)
        if again and step % again == 0:
            _, windows = opened()
        while not windows.there(numbers(step)):
            lacking()
        found.append(b"".join(part.tobytes() for part in batch_of(windows, step)))
    return found


def nobody() -> None:
    raise AssertionError("all is there")


@pytest.fixture
def finished() -> list[bytes]:
    """The batches of the finished dataset, which is taken away again."""
    prepared()
    found = dealt(nobody)
    shutil.rmtree("data")
    return found


def shards() -> int:
    return len(list(WORK.glob("*.json"))) - 2


def one_more_unless_finished(_: int) -> None:
    if not Path("data/mine").exists():
        one_more_shard()


WAYS: dict[str, Callable[[], list[bytes]]] = {
    "slow, killed at every shard": lambda: dealt(one_more_shard),
    "finished in the middle": lambda: dealt(prepared),
    "faster than the run": lambda: dealt(nobody, one_more_unless_finished),
    "opened anew all the time": lambda: dealt(one_more_shard, again=7),
    "finished, and nobody looked": lambda: dealt(one_more_shard, lambda step: step == 20 and prepared()),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_batches_are_the_same_in_any_way(way: str, finished: list[bytes]) -> None:
    one_more_shard()
    assert shards() == 1
    assert WAYS[way]() == finished
    assert opened()[1].total is not None, "it came to its end"


def order_by_what_is_there(patch: pytest.MonkeyPatch) -> None:
    """The stream begins again where it is at its end for the moment."""
    patch.setattr(Windows, "total", property(lambda self: (len(self.stream) - 1) // self.block_size))


def pools_of_what_is_there(patch: pytest.MonkeyPatch) -> None:
    """What is there of a pool is shuffled before it is whole."""
    size = Windows._size

    def there(self: Windows, pool: int) -> int:
        return min(size(self, pool), (len(self.stream) - 1) // BLOCK - pool * self.pool_size)

    def read(self: Windows, pool: int) -> Any:
        start = pool * self.pool_size * BLOCK
        return self.stream.read(start, start + self._size(pool) * BLOCK + 1)

    patch.setattr(Windows, "_size", there)
    patch.setattr(Windows, "_pool", read)
    patch.setattr(Windows, "needed", lambda _, numbers: numbers.stop * BLOCK + 1)


@pytest.mark.parametrize("mutant", [order_by_what_is_there, pools_of_what_is_there])
def test_an_order_that_depends_on_what_is_finished_is_seen(
    mutant: Callable[[pytest.MonkeyPatch], None], finished: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant(monkeypatch)
    one_more_shard()
    assert dealt(one_more_shard) != finished


def whole() -> np.ndarray[Any, Any]:
    return np.concatenate([np.fromfile(f"data/mine/{split}.bin", "<u2") for split in ("train", "val")])


def windows_dealt() -> list[tuple[int, ...]]:
    """All rows of all steps, with the label of the last token."""
    _, windows = opened()
    rows: list[tuple[int, ...]] = []
    for step in range(STEPS):
        parts = batch_of(windows, step)
        for tokens, labels in zip(parts[::2], parts[1::2], strict=True):
            np.testing.assert_array_equal(labels[:, :-1], tokens[:, 1:])
            rows += [(*map(int, row), int(last)) for row, last in zip(tokens, labels[:, -1], strict=True)]
    return rows


def each_window_once() -> None:
    """Every window behind the validation text comes once before any comes again, and none of the validation text."""
    prepared()
    found, _ = opened()
    text = whole()[len(found.val) :]
    expected = [tuple(map(int, text[at : at + BLOCK + 1])) for at in range(0, len(text) - BLOCK, BLOCK)]
    rows = windows_dealt()
    turns = [rows[at : at + len(expected)] for at in range(0, len(rows), len(expected))]
    assert len(turns) == 3
    # Not asserted as they stand: of two long lists pytest makes a comparison, for minutes.
    complete = sorted(turns[0]) == sorted(turns[1]) == sorted(expected)
    assert complete, "each once"
    assert turns[0] != turns[1], "the second time in another order"
    pools = [set(expected[at : at + 12]) for at in range(0, len(expected), 12)]
    assert all(set(turns[0][at * 12 : (at + 1) * 12]) == pool for at, pool in enumerate(pools)), "pool after pool"
    orders = [[expected.index(row) % 12 for row in turns[0][at : at + 12]] for at in (0, 12)]
    assert orders[0] != orders[1] != sorted(orders[1]), "each pool in an order of its own"


def test_each_window_comes_once_before_any_comes_again() -> None:
    each_window_once()


def test_validation_is_whole_documents_at_the_front_and_the_same_for_good() -> None:
    one_more_shard()
    before, _ = opened()
    prepared()
    after, _ = opened()
    for found in (before, after):
        np.testing.assert_array_equal(found.val, whole()[: len(found.val)])
        np.testing.assert_array_equal(found.train, whole()[len(found.val) : len(found.val) + len(found.train)])
        assert found.val[-1] == found.tokenizer.end_of_text
        # A tenth of the first shard, and no more than the rest of a document of 80 letters.
        assert 0 <= len(found.val) - (len(found.val) + len(found.train)) // 10 <= 81
    assert len(before.val) == len(after.val)
    assert before.fingerprint == after.fingerprint
    assert before.identity == after.identity
    assert before.unigram_entropy == after.unigram_entropy


def test_validation_that_is_trained_on_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Preparation.read

    def without_offset(self: Preparation, start: int, stop: int) -> Any:
        return read(self, start - len(self.validation), stop - len(self.validation))

    monkeypatch.setattr(Preparation, "read", without_offset)
    with pytest.raises(AssertionError):
        each_window_once()
    found, windows = opened()
    with pytest.raises(GateFailed, match="does not begin behind the validation text"):
        text_of_stream(windows, numbers(0), found.train)


def test_short_windows_are_parts_of_the_long_ones() -> None:
    prepared()
    _, windows = opened()
    for long, short in zip(batch_of(windows, 4), batch_of(windows, 4, block_size=2, batch_size=ROWS * 4), strict=True):
        np.testing.assert_array_equal(short, long.reshape(-1, 2))


def test_ranks_and_seeds_deal_differently() -> None:
    prepared()
    _, windows = opened()
    assert not np.array_equal(batch_of(windows, 0)[0], batch_of(windows, 0, seed=SEED + 1)[0])
    # Two ranks take what one has in two micro-steps, in turn.
    ours = [batch_of(windows, 0, rank=rank, ranks=2)[0] for rank in (0, 1)]
    np.testing.assert_array_equal(ours, batch_of(windows, 0)[::2])


def test_what_is_not_there_yet_is_not_dealt() -> None:
    one_more_shard()
    _, windows = opened()
    pools = (len(windows.stream) - 1) // 96
    last = range((pools - 1) * 12, pools * 12)
    assert windows.there(last)
    windows.batch(last, SEED, BLOCK)
    assert not windows.there(range(last.stop, last.stop + 1))
    with pytest.raises(ValueError, match="before it was there"):
        windows.batch(range(last.stop, last.stop + 1), SEED, BLOCK)


def test_the_last_shard_says_that_it_is_the_last() -> None:
    """Whether or not it is made a dataset."""
    one_more_shard()
    while opened()[1].total is None:
        one_more_shard()
    assert WORK.exists()
    before = opened()[1].total
    prepared()
    assert opened()[1].total == before


def test_the_plan_is_what_the_recipe_has() -> None:
    one_more_shard(config=None, max_tokens=3000)
    plan = read_plan(WORK)
    assert plan is not None
    assert tuple(plan) == PLANNED
    before, _ = opened()
    prepared(max_tokens=3000)
    assert opened()[0].fingerprint == before.fingerprint
    shutil.rmtree("data")
    for options in ({"revision": SECOND}, {"max_tokens": 2999}, {"shard_characters": 601}):
        prepared(**options)
        assert opened()[0].fingerprint != before.fingerprint
        shutil.rmtree("data")
