"""The cost of experts: equal work on both sides, turns in both orders, figures and the bar. Nothing here times."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.studies import moe_cost
from benchmarks.studies.moe_cost import BAR, CHOSEN, EXPERTS, MoeCost, check, configuration, figures, main, measure, row
from benchmarks.studies.turns import take_turns, work_on_request
from gpt_common.errors import UserError, WorkFailed
from gpt_common.network.flops import active_parameter_count, flops_per_step_exact, parameter_count


def test_a_token_meets_as_many_parameters_but_for_the_router() -> None:
    command = MoeCost()
    experts, dense = configuration(command, "experts").model, configuration(command, "dense").model
    routers = command.n_layer * EXPERTS * command.n_embd
    assert active_parameter_count(experts) == parameter_count(dense) + routers
    assert parameter_count(experts) > 3 * parameter_count(dense)
    flops = [flops_per_step_exact(model, command.batch_size) for model in (experts, dense)]
    assert flops[0] - flops[1] == 6 * routers * command.batch_size * command.block_size
    assert experts.expert_width * CHOSEN == dense.inner_width


def test_rounds_begin_in_turn_and_sides_keep_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def turns(
        names: tuple[str, str], _start: object, turns: int, _seconds: float, _note: object
    ) -> list[tuple[float, float]]:
        asked.append(names)
        seconds_of = {"experts": 3.0, "dense": 2.0}
        return [(seconds_of[names[0]], seconds_of[names[1]])] * turns

    monkeypatch.setattr(moe_cost, "take_turns", turns)
    assert measure(MoeCost(rounds=3), "torch") == [pytest.approx((3.0, 2.0))] * 3
    assert asked == [("experts", "dense"), ("dense", "experts"), ("experts", "dense")]


def test_figures_are_the_rounds() -> None:
    found = figures([(3.0, 2.0), (2.8, 2.0), (3.2, 2.0), (3.0, 2.0), (3.0, 2.0), (6.0, 4.0)])
    assert found["median"] == 1.5
    assert found["seconds"] == {"experts": 3.0, "dense": 2.0}
    assert min(found["ratios"]) < found["interval"][0] < 1.5 < found["interval"][1] < max(found["ratios"])
    assert "1.50   1.40 .. 1.60    1.43 .. 1.57" in row("torch cpu", found)
    few = figures([(3.0, 2.0)])
    assert few["interval"] is None
    assert row("mlx cpu", few).split()[-5:] == ["-", "3000.0", "/", "2000.0", "ms"]


def test_the_bar_is_for_pytorch() -> None:
    check({"torch": {"median": BAR}, "mlx": {"median": 9.0}})
    check({"mlx": {"median": 9.0}})
    with pytest.raises(WorkFailed, match=r"1\.61 times as long"):
        check({"torch": {"median": 1.61}})


def test_a_side_answers_with_seconds_per_unit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("benchmarks.studies.turns.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(sys, "stdin", io.StringIO("3\n"))
    done: list[int] = []
    work_on_request(lambda: done.append(1))
    # The clock is read once before the work, before each unit but the first, and twice at the end.
    assert float(capsys.readouterr().out) == 4 / len(done) == 4 / 3
    # Time that is over before the first unit is for one.
    monkeypatch.setattr(sys, "stdin", io.StringIO("1e-9\n"))
    work_on_request(lambda: done.append(1))
    assert (float(capsys.readouterr().out), len(done)) == (2, 4)


def test_a_side_that_dies_is_an_error() -> None:
    def start(_: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "input()"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with pytest.raises(WorkFailed, match="ended early"):
        take_turns(("a", "b"), start, 1, 0.0)


def test_impossible_sizes_are_named() -> None:
    with pytest.raises(UserError, match="n_embd is 100"):
        MoeCost(n_embd=100)
    with pytest.raises(UserError, match="rounds is 0"):
        MoeCost(rounds=0)


def test_the_command_runs_in_both_twins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    small = ["--n-embd", "64", "--n-layer", "1", "--block-size", "16", "--batch-size", "2"]
    # So small a model has another ratio, and the figures are written all the same.
    with contextlib.suppress(WorkFailed):
        main([*small, "--rounds", "1", "--seconds", "0.01", "--json", str(path)])
    assert set(json.loads(path.read_text())) == {"torch", "mlx"}
    assert "active" in capsys.readouterr().out
