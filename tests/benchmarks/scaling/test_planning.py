"""A plan spends what it may, on the size that the law thinks best, and says what it assumes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.scaling.findings import Findings, find
from benchmarks.scaling.grid import Pace
from benchmarks.scaling.planning import Budget, Planned, models_of, plan, plan_lines
from gpt_common.errors import UserError
from tests.benchmarks.scaling.made_up import FLOOR, SPEED, TRUTH, small_grid
from tests.benchmarks.scaling.test_laws import runs

HOUR = 3600.0
EVEN = [Pace(flops, SPEED, 12.0, "a meter") for flops in (1e5, 1e6, 1e7)]


@pytest.fixture(scope="module")
def found() -> Findings:
    return find(runs(0, 2), FLOOR, length=4_000_000)


def planned(folder: Path, found: Findings, budget: Budget, paces: Sequence[Pace] = EVEN) -> Planned:
    return plan(small_grid(folder), found, paces, budget, 54)


def test_it_takes_the_best_size_that_a_time_holds(tmp_path: Path, found: Findings) -> None:
    best = planned(tmp_path, found, Budget(HOUR))
    assert best.run.flops == pytest.approx(HOUR * SPEED, rel=1e-3)
    assert best.run.flops <= HOUR * SPEED, "never more than the budget"
    assert best.seconds == pytest.approx(HOUR, rel=1e-3)
    ideal = float(TRUTH.best_parameters(best.run.parameters * best.run.tokens))
    assert 0.5 < best.run.parameters / ideal < 2, "near the best size; attention costs FLOPs that have no parameters"
    assert best.sizes[0] <= best.run.parameters * 1.05
    assert best.sizes[1] >= best.run.parameters / 1.05
    longer = planned(tmp_path, found, Budget(10 * HOUR))
    assert longer.run.prediction.loss < best.run.prediction.loss


def test_joules_are_hours_at_a_power(tmp_path: Path, found: Findings) -> None:
    by_time = planned(tmp_path, found, Budget(seconds=HOUR))
    by_energy = planned(tmp_path, found, Budget(joules=12 * HOUR))
    assert by_energy.config == by_time.config
    assert by_energy.joules == pytest.approx(12 * HOUR, rel=1e-3)
    assert by_energy.power == "12.0 W, as measured by a meter"
    assumed = planned(tmp_path, found, Budget(joules=12 * HOUR, watts=24.0))
    assert assumed.seconds == pytest.approx(HOUR / 2, rel=1e-3)
    assert assumed.power == "24.0 W, assumed"
    unmetered = [Pace(1e6, SPEED, None, "")]
    assert planned(tmp_path, found, Budget(HOUR), unmetered).joules is None
    with pytest.raises(UserError, match=r"none had a meter\): --watts W assumes one"):
        planned(tmp_path, found, Budget(joules=1e6), unmetered)
    assert planned(tmp_path, found, Budget(joules=1e6, watts=10.0), unmetered).seconds == pytest.approx(1e5, rel=1e-3)


def test_a_model_is_as_fast_as_the_most_similar_run(tmp_path: Path, found: Findings) -> None:
    """Small ones at a tenth of the speed: who takes the speed of the run with as many FLOPs in all misses that."""
    best = planned(tmp_path, found, Budget(HOUR))
    each = best.run.flops / best.run.tokens
    paces = [Pace(each, SPEED / 10, None, ""), Pace(20 * each, SPEED, None, "")]
    larger = planned(tmp_path, found, Budget(HOUR), paces)
    assert larger.run.flops / larger.run.tokens > math.sqrt(20) * each, "nearer to the fast one"
    assert larger.run.flops == pytest.approx(HOUR * SPEED, rel=1e-3)


def test_shapes_are_those_of_the_grid(tmp_path: Path, found: Findings) -> None:
    """A law that sees sizes alone would take a single endless layer, which costs the fewest FLOPs."""
    models = models_of(small_grid(tmp_path), 54)
    ratios = {width / depth for width, depth in models.shapes}
    assert (min(ratios), max(ratios)) == (16, 128)
    assert {depth for _, depth in models.shapes} == {1, 2, 4, 8, 16}
    best = planned(tmp_path, found, Budget(100 * HOUR))
    assert best.config.model.n_embd / best.config.model.n_layer <= 128
    assert best.config.model.n_layer > 2, "wider than the grid's widest, so deeper"


def test_what_is_said_fits_a_screen_and_names_what_is_uncertain(tmp_path: Path, found: Findings) -> None:
    lines = [*plan_lines(planned(tmp_path, found, Budget(joules=1e8)), FLOOR)]
    assert max(map(len, lines)) <= 80
    said = "\n".join(lines)
    for word in (
        "epochs: what is repeated counts less",
        "(90 %)",
        "above the floor",
        "12.0 W",
        "the law was not tried",
    ):
        assert word in said
    assert "kWh" in lines[0]
    short = "\n".join(plan_lines(planned(tmp_path, found, Budget(60)), FLOOR))
    assert "epochs" not in short
    assert "not tried" not in short


def test_what_cannot_be_planned_is_refused(tmp_path: Path, found: Findings) -> None:
    with pytest.raises(UserError, match="how fast this machine is"):
        planned(tmp_path, found, Budget(HOUR), [])
    with pytest.raises(UserError, match="too small for a single step"):
        planned(tmp_path, found, Budget(1e-6))
