"""A grid's file to runs, finished runs to points, and points to what is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.scaling.findings import Foretold, find, foretell, plan, plan_lines, published_lines, write_findings
from benchmarks.scaling.grid import (
    Grid,
    finished_runs,
    floor_of,
    flops_of,
    points_of,
    read_grid,
    seconds_of,
    sizes_of,
    tokens_of,
    vocabulary_of,
)
from benchmarks.scaling.laws import Point
from gpt_common.config import load_preset
from gpt_common.errors import UserError
from gpt_common.network.flops import parameter_count
from gpt_common.sweep.queue import Queue
from tests.benchmarks.scaling.test_laws import TRUTH, runs

TEXT = """preset = "stories-cpu"
widths = [32, 64]
depths = [1, 2]
tokens = [40e3, 80e3]
again = [7]
[fixed]
health_gates = "off"
"""


def grid(folder: Path, text: str = TEXT) -> Grid:
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return read_grid(path)


def test_every_cell_and_more_seeds_on_the_diagonal_the_cheapest_first(tmp_path: Path) -> None:
    found = grid(tmp_path)
    sweep = found.sweep()
    assert sweep.folder == Path("runs/small")
    names = {cell.name for cell in sweep.cells}
    assert len(names) == len(sweep.cells) == 8 + 4
    assert {"w32-d1-t40k-s7", "w64-d2-t80k-s7"} <= names
    assert not {"w32-d1-t80k-s7", "w64-d2-t40k-s7"} & names
    costs = [flops_of(cell.config) for cell in sweep.cells]
    assert costs == sorted(costs)
    one = found.cell(32, 2, 80_000, 1).config
    per_step = one.train.batch_size * one.model.block_size
    assert abs(tokens_of(one) - 80_000) <= per_step / 2
    assert one.optim.learning_rate == 2 * load_preset("stories-cpu").optim.learning_rate, "half the width"


def test_a_rate_may_fall_with_a_power_of_the_width(tmp_path: Path) -> None:
    rule = "rate = 2e-2\nrate_width = 32\nrate_power = 0.5\n"
    rates = [grid(tmp_path, rule + TEXT).cell(width, 2, 1_000_000, 1).config.optim.learning_rate for width in (32, 128)]
    assert rates == [2e-2, 1e-2]
    with pytest.raises(UserError, match="rate_power is a number above 0"):
        grid(tmp_path, 'rate_power = "root"\n' + TEXT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("widths = [8]", "depths is a list"),
        (TEXT.replace("widths", "width"), "unknown key 'width': did you mean 'widths'"),
        (TEXT.replace("[32, 64]", '["a"]'), "widths is a list of numbers"),
        (TEXT.replace("health_gates", "health_gate"), "unknown field 'health_gate'"),
        ('twin = "jax"\n' + TEXT, "twin is 'jax'"),
        ("widths = [", "not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        grid(tmp_path, text)
    with pytest.raises(UserError, match="is no run: width,depth,tokens"):
        grid(tmp_path).asked("192,4")


def test_sizes_with_embeddings_and_without() -> None:
    for preset in ("stories-cpu", "llama-tiny"):
        model = load_preset(preset).with_vocabulary(54).model
        without, whole = sizes_of(model)
        assert whole == parameter_count(model)
        larger = load_preset(preset).with_vocabulary(540).model
        assert sizes_of(larger)[0] == without, "a vocabulary adds nothing to it"
        assert sizes_of(larger)[1] > whole


def test_finished_runs_are_points(tmp_path: Path, stories_dir: Path) -> None:
    text = TEXT.replace("[32, 64]", "[16]").replace("[1, 2]", "[1]").replace("[40e3, 80e3]", "[20e3]")
    text += f'data_dir = "{stories_dir}"\nsample_tokens = 0\nreport = false\neval_batches = 1\ndevice = "cpu"\n'
    found = grid(tmp_path, text)
    sweep = found.sweep(tmp_path / "runs")
    assert not points_of(finished_runs(sweep))
    assert Queue(sweep, threads=1, tell=lambda _: None).work()
    done = finished_runs(sweep)
    points = points_of(done)
    assert len(points) == 2
    assert len({point.cell for point in points}) == 1, "two seeds of one cell"
    assert points[0].loss != points[1].loss
    assert points[0].parameters == sizes_of(sweep.cells[0].config.with_vocabulary(vocabulary_of(done)).model)[0]
    assert points_of(done, embeddings=True)[0].parameters > points[0].parameters
    floor = floor_of(done)
    assert floor is not None
    assert 0.05 < floor < 0.1
    assert len(seconds_of(done)) == 2


def test_what_is_said_fits_a_screen_and_a_file(tmp_path: Path) -> None:
    findings = find(runs(0.003, 2), 0.0769)
    lines = [*findings.lines(), *published_lines(findings.best)]
    assert max(map(len, lines)) <= 80
    assert findings.held_out is not None
    assert findings.held_out.worst < 0.03
    config = grid(tmp_path).asked("128,4,1M").with_vocabulary(54)
    foretold = foretell(config, findings.best)
    assert foretold.low < foretold.loss < foretold.high
    assert "above the floor" in foretold.said(0.0769)
    write_findings(tmp_path / "found.json", findings, foretold)
    read = json.loads((tmp_path / "found.json").read_text())
    assert read["floor_known"]["alpha"] == pytest.approx(0.34, abs=0.02)
    assert read["foretold"]["loss"] == foretold.loss
    with pytest.raises(ValueError, match="a law needs"):
        find([Point(1, 1, 1, 1.0)], None)


def test_a_plan_takes_the_best_size_that_a_budget_holds(tmp_path: Path) -> None:
    findings = find(runs(0, 2), 0.0769)
    found = grid(tmp_path)
    speed = 2e9
    measured = [(flops, flops / speed) for flops in (1e11, 1e12, 1e13)]
    planned = plan(found, findings.best, measured, 3600, 54)
    assert planned is not None
    assert planned.run.flops == pytest.approx(3600 * speed, rel=0.02)
    best = float(TRUTH.best_parameters(planned.run.parameters * planned.run.tokens))
    assert 0.5 < planned.run.parameters / best < 2, "near the best size; attention costs FLOPs that have no parameters"
    assert max(map(len, plan_lines(planned, 0.0769))) <= 80
    longer = plan(found, findings.best, measured, 36_000, 54)
    assert longer is not None
    assert longer.run.loss < planned.run.loss
    assert plan(found, findings.best, [], 3600, 54) is None
    assert isinstance(planned.run, Foretold)
