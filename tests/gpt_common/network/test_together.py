"""What ranks divide: every parameter has one owner, shares are even, and the memory plan counts what each holds."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_common.config import RunConfig, load_preset
from gpt_common.network.memory import Twin, memory_plan
from gpt_common.network.parameters import parameter_shapes
from gpt_common.network.room import planned_bytes
from gpt_common.network.together import Together, owners

# So few tokens in a micro-batch that weights and their update are the peak of a step.
CONFIG = load_preset("stories-cpu").with_vocabulary(64)
CONFIG = dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(CONFIG.model, n_embd=256, n_layer=4, n_head=4, block_size=8),
    train=dataclasses.replace(CONFIG.train, batch_size=1),
)
NUMBERS = sum(map(math.prod, parameter_shapes(CONFIG.model).values()))
both = pytest.mark.parametrize("twin", ["mlx", "torch"])


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.integers(1, 5))
def test_each_parameter_has_an_owner_and_no_rank_more_than_the_largest_beyond_its_part(
    numbers: list[int], ranks: int
) -> None:
    sizes = {f"p{i}": number for i, number in enumerate(numbers)}
    found = owners(sizes, ranks)
    assert found.keys() == sizes.keys()
    assert set(found.values()) <= set(range(ranks))
    held = [sum(sizes[name] for name in sizes if found[name] == rank) for rank in range(ranks)]
    assert max(held) <= sum(numbers) / ranks + max(numbers)
    assert owners(dict(reversed(sizes.items())), ranks) == found, "whatever order they come in"


def plan(twin: Twin, together: Together, config: RunConfig = CONFIG) -> int:
    return memory_plan(config, twin, together=together).total


@both
def test_one_rank_is_planned_as_ever(twin: Twin) -> None:
    assert memory_plan(CONFIG, twin, together=Together()) == memory_plan(CONFIG, twin)
    assert memory_plan(CONFIG, twin).ranks == 0


@both
def test_the_sum_takes_two_copies_of_all_gradients(twin: Twin) -> None:
    """A tiny batch's step peaks where gradients are added up: weights, moments, gradients, and twice as much again."""
    found = memory_plan(CONFIG, twin, together=Together(ranks=2))
    if found.moment == "sum":
        assert found.total == 4 * NUMBERS * (1 + 2 + 1 + 2)
    assert found.total >= 4 * NUMBERS * 6
    assert planned_bytes(CONFIG, twin, together=Together(ranks=2)) == found.total


@both
@pytest.mark.parametrize("ranks", [2, 4])
def test_moments_are_shared(twin: Twin, ranks: int) -> None:
    """What is not in the share of a rank is not counted: of 8 bytes a parameter, about 8 / W stay."""
    whole = memory_plan(CONFIG, twin, together=Together(ranks=ranks))
    shared = memory_plan(CONFIG, twin, together=Together(ranks=ranks, shards_optimizer=True))
    assert whole.moments == 8 * NUMBERS
    largest = 8 * max(map(math.prod, parameter_shapes(CONFIG.model).values()))
    assert 8 * NUMBERS / ranks <= shared.moments <= 8 * NUMBERS / ranks + largest


def test_muon_remembers_half_of_it_and_a_mean_stays_whole() -> None:
    optim = dataclasses.replace(CONFIG.optim, optimizer="muon", ema_decay=0.9)
    config = dataclasses.replace(CONFIG, optim=optim)
    whole = memory_plan(config, "torch").moments
    shared = memory_plan(config, "torch", together=Together(ranks=2, shards_optimizer=True)).moments
    assert shared >= whole / 2 + 4 * NUMBERS / 2, "the mean is on both"
    assert shared < 0.85 * whole


@both
def test_engines(twin: Twin) -> None:
    ddp, fsdp = (memory_plan(CONFIG, twin, together=Together(ranks=4, engine=one)) for one in ("ddp", "fsdp"))
    assert ddp.ranks == 4 * NUMBERS
    assert (fsdp.weights, fsdp.moments) == (NUMBERS, 2 * NUMBERS)
    assert fsdp.total < ddp.total
