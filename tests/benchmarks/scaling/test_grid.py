"""A grid's file to runs, finished runs to points, and points to what is said."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.scaling import grid as grids
from benchmarks.scaling.findings import find, published_lines, write_findings
from benchmarks.scaling.foretelling import foretell
from benchmarks.scaling.grid import (
    Grid,
    finished_runs,
    floor_of,
    flops_of,
    paces_of,
    points_of,
    read_grid,
    repeated,
    sizes_of,
    tokens_of,
    training_tokens,
    vocabulary_of,
)
from benchmarks.scaling.laws import Law, Point, fit_law
from gpt_common.config import from_dict, load_preset, to_toml
from gpt_common.data import open_dataset
from gpt_common.errors import UserError
from gpt_common.network.flops import parameter_count
from gpt_common.network.parameters import parameter_shapes
from gpt_common.sweep.queue import Queue
from tests.benchmarks.scaling.test_laws import runs

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


def test_more_seeds_of_the_longest(tmp_path: Path) -> None:
    seeds: dict[str, set[str]] = {}
    for cell in grid(tmp_path, "again_longest = [7, 8]\n" + TEXT).sweep().cells:
        shape, _, seed = cell.name.rpartition("-s")
        seeds.setdefault(shape, set()).add(seed)
    assert seeds["w32-d1-t80k"] == seeds["w64-d2-t80k"] == {"1", "7", "8"}, "each once, on the diagonal too"
    assert seeds["w32-d1-t40k"] == {"1", "7"}
    assert seeds["w64-d1-t40k"] == {"1"}


def test_a_rate_may_fall_with_a_power_of_the_width(tmp_path: Path) -> None:
    rule = "rate = 2e-2\nrate_width = 32\nrate_power = 0.5\n"
    rates = [grid(tmp_path, rule + TEXT).cell(width, 2, 1_000_000, 1).config.optim.learning_rate for width in (32, 128)]
    assert rates == [2e-2, 1e-2]
    level = grid(tmp_path, "rate_power = 0\n" + TEXT)
    assert {level.rate_of(width, 2) for width in (32, 64)} == {level.rate}, "a power of 0 is one rate for all"


def test_a_rate_may_fall_with_a_power_of_the_depth_as_well(tmp_path: Path) -> None:
    rule = "rate = 2e-2\nrate_width = 32\nrate_power = 0.5\n"
    shapes = (32, 2), (32, 8), (128, 2), (128, 8)

    def rates(more: str) -> list[float]:
        found = grid(tmp_path, rule + more + TEXT)
        return [found.cell(*shape, 1_000_000, 1).config.optim.learning_rate for shape in shapes]

    assert rates("") == rates("rate_depth = 2\n") == [2e-2, 2e-2, 1e-2, 1e-2], "the depth decides nothing by itself"
    assert rates("rate_depth = 2\nrate_depth_power = 0.5\n") == [2e-2, 1e-2, 1e-2, 5e-3]
    assert rates("rate_depth = 8\nrate_depth_power = 1\n") == [8e-2, 2e-2, 4e-2, 1e-2]
    layers = load_preset("stories-cpu").model.n_layer
    found = grid(tmp_path, rule + "rate_depth_power = 1\n" + TEXT)
    assert found.rate_of(32, layers) == 2e-2, "without rate_depth it starts at the preset's"
    assert found.asked("32,1,1M").optim.learning_rate == found.rate_of(32, 1), "a run beyond the grid keeps the rule"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('rate_power = "root"', "rate_power is a number from 0"),
        ("rate_power = -1", "rate_power is a number from 0"),
        ("rate_depth_power = nan", "rate_depth_power is a number from 0"),
        ("rate_depth_power = true", "rate_depth_power is a number from 0"),
        ("rate = 0", "rate is a number above 0"),
        ("rate_width = 0.5", "rate_width is a whole number from 1"),
        ("rate_depth = 0", "rate_depth is a whole number from 1"),
        ("rate_dept = 2", "unknown key 'rate_dept': did you mean 'rate_depth'"),
    ],
)
def test_a_rule_of_rates_that_is_none_is_refused(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        grid(tmp_path, f"{line}\n{TEXT}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("widths = [8]", "depths is a list"),
        (TEXT.replace("widths", "width"), "unknown key 'width': did you mean 'widths'"),
        (TEXT.replace("[32, 64]", '["a"]'), "widths is a list of whole numbers"),
        *(
            (TEXT.replace("[32, 64]", wrong), "widths is a list")
            for wrong in ("[32.7]", "[inf]", "[true]", "[0]", "[]", "32")
        ),
        (TEXT.replace("[32, 64]", "[32, 32]"), "a number stands twice in widths"),
        (
            TEXT.replace("[40e3, 80e3]", "[40e3, 40010]"),
            "tokens are too few or too near each other: a step is one of 1,536",
        ),
        (TEXT.replace("[40e3, 80e3]", "[500]"), "tokens are too few"),
        (TEXT.replace("[7]", "[1]"), "again has seed 1, with which every cell is trained already"),
        ("seed = 'a'\n" + TEXT, "seed is a whole number from 0"),
        ("name = 'a/b'\n" + TEXT, "name is 'a/b'"),
        (TEXT + "n_embd = 64\n", r"n_embd is no field for \[fixed\]: a grid sets it by widths"),
        (TEXT + "max_steps = 64\n", r"a grid sets it by tokens"),
        (TEXT + "patience = 3\n", r"a grid sets it by tokens"),
        (
            TEXT.replace("stories-cpu", "llama-tiny").replace("[32, 64]", "[32, 100]"),
            "no model is 100 wide with 1 layers",
        ),
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


def test_a_schedule_is_as_long_as_its_run_whatever_the_preset_says(tmp_path: Path) -> None:
    """GPT-2's decays for 600,000 steps: a run of 100 would end at its peak rate."""
    assert load_preset("gpt2").optim.decay_steps
    found = grid(tmp_path, TEXT.replace("stories-cpu", "gpt2").replace("[40e3, 80e3]", "[50e6]"))
    assert {cell.config.optim.decay_steps for cell in found.sweep().cells} == {0}


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
    assert [pace.watts for pace in paces_of(done)] == [None, None], "no meter was asked for"
    assert min(pace.flops_per_second for pace in paces_of(done)) > 0
    assert training_tokens(found.base.data) == len(open_dataset("stories", stories_dir).train)
    shutil.rmtree(tmp_path / "runs" / "w16-d1-t20k-s7")
    assert len(points_of(finished_runs(sweep))) == 1


def test_epochs_are_named_where_text_is_read_again(tmp_path: Path) -> None:
    assert repeated(4_000_000, 4_000_000) is None
    assert repeated(10_800_000, 4_000_000) == "2.7 epochs: what is repeated counts less than the law says"
    assert repeated(10_800_000, None) is None
    data = grid(tmp_path).base.data
    assert training_tokens(dataclasses.replace(data, data_dir=str(tmp_path))) is None, "it is not on this machine"


def test_a_run_that_goes_or_was_not_evaluated_at_its_end_is_no_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(*, going: bool, evaluated: int, whole: float | None) -> list[float]:
        course = SimpleNamespace(
            whole=None if whole is None else (9, whole, 1.0),
            best=(evaluated, 3.9),
            evaluations=SimpleNamespace(step=np.array([0.0, evaluated])),
            last_step=9,
        )
        config = sweep.cells[0].config.with_vocabulary(54)
        run = SimpleNamespace(finished=True, going=going, course=course, config=config)
        monkeypatch.setattr(grids, "run_of", lambda _, cell: run if cell is sweep.cells[0] else None)
        return [point.loss for point in points_of(finished_runs(sweep))]

    sweep = grid(tmp_path).sweep()
    assert losses(going=False, evaluated=9, whole=0.2) == [0.2]
    assert losses(going=False, evaluated=9, whole=None) == [3.9]
    assert losses(going=False, evaluated=0, whole=None) == [], "what it had before it began is not its loss"
    assert losses(going=True, evaluated=9, whole=0.2) == []


def test_embeddings_counted_twice_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law is made from sizes that are counted tensor by tensor; the mutant counts a vocabulary into them, twice."""
    truth = Law(*map(np.array, (0.0769, 48.0, 0.34, 160.0, 0.42)))
    found = grid(tmp_path, TEXT.replace("[32, 64]", "[32, 64, 128]").replace("[40e3, 80e3]", "[1e6, 4e6, 16e6]"))
    runs = []
    for cell in found.sweep().cells:
        config = cell.config.with_vocabulary(2000)
        size = sum(
            math.prod(shape)
            for name, shape in parameter_shapes(config.model).items()
            if not name.startswith(("token_embedding", "position_embedding", "head"))
        )
        whole = (1, float(truth.loss(size, tokens_of(config))), 1.0)
        runs.append((cell, SimpleNamespace(config=config, course=SimpleNamespace(
            whole=whole, best=None, evaluations=SimpleNamespace(step=[])))))  # fmt: skip

    def alpha() -> float:
        points = points_of(runs)  # type: ignore[arg-type]
        return float(fit_law(points, 0.0769, resamples=1).law.alpha)

    assert alpha() == pytest.approx(0.34, abs=1e-3)
    monkeypatch.setattr(grids, "sizes_of", lambda model: (2 * sizes_of(model)[1] - sizes_of(model)[0], 0))
    assert abs(alpha() / 0.34 - 1) > 0.05


COMMITTED = sorted(Path(grids.__file__).parent.glob("*.toml"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.stem))
def test_every_grid_that_is_kept_here_can_be_trained(path: Path) -> None:
    found = read_grid(path)
    cells = found.sweep().cells
    assert len({cell.name for cell in cells}) == len(cells) >= 30
    assert {path.stem for path in COMMITTED} == {"stories", "tinystories"}
    for cell in cells:
        config = cell.config.with_vocabulary(10_000)
        assert config.model.n_embd % config.model.n_head == 0
        assert abs(tokens_of(config) / 1e6 - float(cell.name.split("-t")[1].split("M-")[0])) < 0.04
        assert 0 < config.optim.min_lr <= config.optim.learning_rate / 10
        assert config.optim.warmup_steps < config.train.max_steps
        assert config.train.eval_interval <= config.train.max_steps
        assert from_dict(tomllib.loads(to_toml(config))) == config, "a run is begun from its file"


def test_what_is_said_fits_a_screen_and_a_file(tmp_path: Path) -> None:
    findings = find(runs(0.003, 2), 0.0769, length=4_000_000)
    lines = [*findings.lines(), *published_lines(findings.best)]
    assert max(map(len, lines)) <= 80
    assert findings.held_out is not None
    assert findings.held_out.worst < 0.03
    assert findings.bent is None, "one run of each cell: nothing is known of their noise"
    config = grid(tmp_path).asked("128,4,10.8M").with_vocabulary(54)
    foretold = foretell(config, findings)
    lines = [*foretold.lines(0.0769)]
    assert max(map(len, lines)) <= 80
    assert foretold.prediction.low < foretold.prediction.loss < foretold.prediction.high
    assert lines[1] == "    by size and tokens:"
    assert "above the floor" in lines[2]
    assert "2.7 epochs" in lines[3]
    write_findings(tmp_path / "found.json", findings, [foretold.record()])
    read = json.loads((tmp_path / "found.json").read_text())
    assert read["floor_known"]["alpha"] == pytest.approx(0.34, abs=0.02)
    assert read["foretold"][0]["by_size_and_tokens"]["loss"] == foretold.prediction.loss
    with pytest.raises(ValueError, match="a law needs"):
        find([Point(1, 1, 1, 1.0)], None)


def test_parabolas_are_told_with_their_bias_or_why_there_are_none() -> None:
    from tests.benchmarks.scaling.test_laws import iso_flop

    with_budgets, without = find(iso_flop(sizes_follow=False), 0.0769), find(runs(0, 0), 0.0769)
    assert with_budgets.bias is not None
    assert with_budgets.parabolas == pytest.approx(0.42 / 0.76 + with_budgets.bias, abs=1e-4), "no noise: bias is all"
    said = f"by parabolas C^{with_budgets.parabolas:.3f}, of which {with_budgets.bias:+.3f} is their bias on this grid"
    assert f"    {said}" in [*with_budgets.lines()]
    assert without.parabolas is None
    assert "no parabolas: they take two budgets of FLOPs, within 10%, with three sizes each" in " ".join(
        line.strip() for line in without.lines()
    )


def test_runs_that_the_law_misses_by_more_than_their_noise_are_said_not_to_fit() -> None:
    """Two seeds of each run tell their noise; small models that are off by a step have a shape that no law has."""
    rng = np.random.default_rng(0)

    def bent(step: float, seeds: int = 2) -> str | None:
        points = [
            dataclasses.replace(
                one,
                loss=(one.loss + step * (one.parameters < 1e5)) * (1 + 0.003 * rng.normal()),
                cell=f"{one.parameters:.0f} {one.tokens:.0f}",
            )
            for one in runs(0, 0)
            for _ in range(seeds)
        ]
        found = find(points, 0.0769)
        assert found.noise is None if seeds == 1 else found.noise == pytest.approx(0.003, rel=0.4)
        said = " ".join(line.strip() for line in found.lines())
        assert (found.bent or "the law does not fit") in said or found.bent is None
        return found.bent

    assert bent(0.0) is None
    assert bent(0.0, seeds=1) is None
    beside = "residuals of 1[.]\\d%, where the seeds of a cell differ by 0[.]3%"
    assert re.match(f"the law does not fit, {beside}: believe it", bent(0.1) or "")
    assert "residuals of" in (bent(0.5, seeds=1) or "")
