"""Quantised rows before and while they are timed: their climb, their works in this process, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import benchmark
from benchmarks.grids import beside_grids, expected_weight_bytes
from benchmarks.measuring.backends import BACKENDS, Backend, choose_backends
from benchmarks.measuring.checks import other_weights
from benchmarks.measuring.generation import measure_generation
from benchmarks.measuring.parity_gate import verify
from benchmarks.measuring.session import Row
from benchmarks.measuring.work import Batcher, Work
from benchmarks.measuring.worker import open_work
from benchmarks.report.beside import beside_floats
from benchmarks.results import read_result
from gpt_common.adapting.quantisation import Grid
from gpt_common.config import ModelConfig, RunConfig, TrainConfig
from tests.benchmarks.test_run import run

GRID = Grid(4, 64)
TINY = RunConfig(
    model=ModelConfig(vocab_size=33, block_size=12, n_layer=2, n_head=2, n_embd=32),
    train=TrainConfig(batch_size=3, dtype="float32"),
)


def climb(rungs: Sequence[dict[str, Any]]) -> Callable[[Sequence[str]], tuple[int, str, str]]:
    return lambda _: (0, json.dumps({"class": "strict", "rungs": rungs}), "")


def test_a_ladder_that_left_the_rung_out_has_proven_nothing() -> None:
    """In bfloat16, and with TF32, there is no rung of words: its climb ends well."""
    measured = {"name": "Q", "title": "", "passed": True, "worst": {"error": 0.0}, "note": ""}
    assert set(verify(["mlx", "cpu"], climb([measured]), ("Q",)).passed) == {"mlx", "cpu"}
    left_out = {**measured, "worst": None, "note": "left out: words are compared in float32 alone"}
    for rungs, why in (([left_out], "Q left out: words are compared in float32 alone"), ([], "Q was not climbed")):
        verdict = verify(["mlx", "cpu"], climb(rungs), ("Q",))
        assert verdict.passed == {}
        assert verdict.failed == dict.fromkeys(("mlx", "cpu"), f"parity: {why}")
        assert set(verify(["mlx", "cpu"], climb(rungs)).passed) == {"mlx", "cpu"}


def test_quantised_rows_climb_by_themselves_and_one_rung_more(monkeypatch: pytest.MonkeyPatch) -> None:
    climbs = []

    def made_up(flags: Sequence[str], _: object, rungs: Sequence[str]) -> Any:
        def answer(names: Sequence[str]) -> tuple[int, str, str]:
            climbs.append((list(names), flags[1], rungs[-1]))
            return (1, "", "Q fails on mps") if rungs[-1] == "Q" and "mps" in names else climb([])(names)

        return answer

    monkeypatch.setattr(benchmark, "ladder", made_up)
    found = {row.name: Row(row) for row in choose_backends("mlx,mps", grid=GRID)}
    benchmark.prove(found, "no preset", "float32", {"MLX_ENABLE_TF32": "0"})
    assert climbs[:2] == [(["mlx", "mps"], "float32", "L5"), (["mlx", "mps"], "float32", "Q")]
    # The float rows are timed all the same.
    assert [name for name, row in found.items() if row.open] == ["mlx", "mps"]
    assert "Q fails on mps" in str(found["mps-4bit"].reason)


def first_losses(work: Work, config: RunConfig) -> list[float]:
    losses = []
    for step, batches in Batcher(config).take(4):
        work.step(batches, step, 1e-3)
        work.wait()
        losses.append(work.loss())
    return losses


@pytest.mark.parity
@pytest.mark.parametrize("bits", [3, 4])
def test_both_twins_do_the_same_work_beside_the_same_words(bits: int) -> None:
    """Losses of steps of LoRA, bytes of the weights, greedy text; and other losses than beside floats."""
    grid = Grid(bits, 32)
    config = beside_grids(TINY, grid)
    named = choose_backends("cpu,mlx-cpu", grid=grid)
    works = {backend.name: open_work(backend, config) for backend in named}
    for backend in named:
        assert works[backend.name].weight_bytes() == expected_weight_bytes(config, backend.grid)
    assert works["cpu"].weight_bytes() > 2 * works[f"cpu-{bits}bit-g32"].weight_bytes()
    losses = {name: first_losses(work, config) for name, work in works.items()}
    assert losses[f"mlx-cpu-{bits}bit-g32"] == pytest.approx(losses[f"cpu-{bits}bit-g32"], rel=2e-6)
    assert losses["mlx-cpu"] == pytest.approx(losses["cpu"], rel=2e-6)
    # What a few bits change is far more than rounding of float32.
    assert abs(losses["cpu"][0] / losses[f"cpu-{bits}bit-g32"][0] - 1) > 2e-5
    for work in works.values():
        assert work.force() == work.force()
    whole = {backend.name: open_work(backend, TINY) for backend in named if backend.bits}
    texts = {measure_generation(work, TINY, lambda *_: None).greedy_sha256 for work in whole.values()}
    assert len(texts) == 1


def test_a_grid_that_is_forgotten_shows_in_the_bytes() -> None:
    config = beside_grids(TINY, Grid(4, 32))
    asked = BACKENDS["cpu"].quantised(Grid(4, 32))
    forgotten = Backend(**{**vars(asked), "bits": 0, "group_size": 0})
    found = open_work(forgotten, config).weight_bytes()
    assert "kept in another way" in str(other_weights(found, expected_weight_bytes(config, asked.grid)))


def test_the_command_sets_quantised_rows_beside_float_ones(tmp_path: Path) -> None:
    done = run(
        *("--backends", "cpu", "--bits", "4", "--group-size", "32", "--generation", "--no-parity"),
        *("--no-energy", "--rounds", "1", "--seconds", "0.05", "--cooldown", "0", "--out", str(tmp_path)),
        *("--n-layer", "1", "--n-head", "1", "--n-embd", "32", "--block-size", "8", "--batch-size", "2"),
    )
    assert done.returncode == 0, done.stderr
    (path,) = [p for p in tmp_path.glob("*.json") if "parity" not in p.name]
    result = read_result(path)
    found = {row.label: row for row in result.cases[0].rows if not row.control}
    assert list(found) == ["cpu", "cpu-4bit-g32"]
    assert all(row.status == "measured" and row.generation for row in found.values())
    assert "cpu-4bit-g32 / cpu: token written " in done.stdout
    assert len(beside_floats(result.cases[0])) == 1
