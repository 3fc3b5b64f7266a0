"""The gates bite: every wrong twin is rejected by the rung that is named for it, or by one below."""

from __future__ import annotations

import pytest

from convert.parity.ladder import NAMES, climb_ladder
from convert.parity.mutants.climb import FAMILIES, Mutant, first_rejection, mutant_climb
from convert.parity.mutants.every import MUTANTS

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("family", FAMILIES)
def test_the_unmutated_twin_passes(family: str) -> None:
    # R takes as long as all others; test_ranks.py climbs it.
    names = [name for name in NAMES if name != "R"]
    report = climb_ladder(mutant_climb(family), names)
    assert report.failed is None
    assert [result.rung.name for result in report.results] == names


@pytest.mark.slow
@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.rung == "R"], ids=lambda m: m.name)
def test_a_mutant_of_ranks_is_rejected_by_its_rung(mutant: Mutant) -> None:
    """No other rung has ranks. What takes processes each time takes two launches for all of them in test_ranks.py."""
    assert first_rejection(mutant, ["R"]) == "R"


@pytest.mark.parametrize("mutant", [mutant for mutant in MUTANTS if mutant.rung != "R"], ids=lambda m: m.name)
def test_a_mutant_is_rejected_by_its_rung(mutant: Mutant) -> None:
    """Exactly by that one: what a lower rung lets pass is what this one is for."""
    # What rung S is for begins beyond the size of all others, and no optimiser is wrong: the long rungs have no say.
    away = ("R", "L6a", "L7", "L8", "A", "Q") if mutant.rung == "S" else ("R",)
    assert first_rejection(mutant, [name for name in NAMES if name not in away]) == mutant.rung


@pytest.mark.parametrize(
    ("name", "rung"),
    [("gate and up swapped", "L2"), ("queries and keys not normalised", "L2"), ("shared expert left out", "L2")],
)
def test_noise_in_bfloat16_excuses_no_wrong_twin(name: str, rung: str) -> None:
    """Where gates follow the noise they still bite."""
    mutant = next(m for m in MUTANTS if m.name == name)
    with mutant.change():
        climb = mutant_climb(mutant.family)
        climb.precision = "bf16"
        report = climb_ladder(climb, ["L1", "L2"])
    assert report.failed is not None
    assert report.failed.rung.name == rung


def test_every_rung_rejects_mutants_that_those_below_let_pass() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 60
    assert [rung for rung in NAMES if not any(mutant.rung == rung for mutant in MUTANTS)] == []


@pytest.mark.parametrize("twin", ["mlx", "torch"])
def test_mutants_leave_nothing_behind(twin: str) -> None:
    """What a mutant replaces is put back, so that the next climb is of the right twin."""
    import mlx.core as mx

    import mlx_gpt.experts
    import mlx_gpt.layers
    import mlx_gpt.model
    import mlx_gpt.optim
    import torch_gpt.checkpoint

    watched = {
        "mlx": lambda: (
            mx.arange,
            mlx_gpt.model.loss,
            mlx_gpt.layers.Linear.__call__,
            mlx_gpt.experts.MixtureOfExperts.route,
            mlx_gpt.optim.Muon.apply_single,
            *mlx_gpt.layers.ROTATIONS.values(),
        ),
        "torch": lambda: (vars(torch_gpt.checkpoint)["load_optimizer_tensors"],),
    }[twin]
    before = watched()
    for mutant in MUTANTS:
        if mutant.twin == twin:
            with mutant.change():
                pass
    assert watched() == before
