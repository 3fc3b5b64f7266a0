"""L9: the test of equivalence says yes only where it may, and runs are made once each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convert.parity import quality
from convert.parity.command import main
from convert.parity.quality import QualityPlan, as_lines, equivalence, run_all, summary, training_command
from gpt_common.errors import WorkFailed
from gpt_common.machine.backends import BACKENDS
from gpt_common.training.command_line import parse_training

pytestmark = pytest.mark.parity

ROOT = Path(__file__).parents[3]
GENERATOR = np.random.default_rng(0)
SEEDS_OF_TWIN = 1.9 + 0.02 * GENERATOR.standard_normal(10)
NOISE = 1e-3 * GENERATOR.standard_normal(10)


def plan(folder: Path, **more: Any) -> QualityPlan:
    """Ten pairs on two backends."""
    defaults: dict[str, Any] = {
        "preset": "shakespeare-char-cpu",
        "backends": [BACKENDS["cpu"], BACKENDS["mlx-cpu"]],
        "seeds": range(1, 4),
        "steps": 7,
        "data_dir": "data",
        "folder": folder,
    }
    return QualityPlan(**{**defaults, **more})


def test_equal_quality_is_shown() -> None:
    test = equivalence(list(SEEDS_OF_TWIN + NOISE), list(SEEDS_OF_TWIN))
    assert test.passed
    assert test.p < 1e-5
    assert test.low < test.mean < test.high
    assert test.low > -0.005
    assert test.high < 0.005


@pytest.mark.parametrize("shift", [0.01, -0.01, 0.005])
def test_another_quality_is_not(shift: float) -> None:
    """The mutant of L9: a twin that ends 0.01 nats away, or just at the margin."""
    assert not equivalence(list(SEEDS_OF_TWIN + NOISE + shift), list(SEEDS_OF_TWIN)).passed


def test_noise_that_hides_a_difference_is_no_proof() -> None:
    """No significant difference is not equivalence: with pairs 0.02 apart by chance the test must not pass."""
    other = 1.9 + 0.02 * np.random.default_rng(1).standard_normal(10)
    assert not equivalence(list(other), list(SEEDS_OF_TWIN)).passed


def test_figures_agree_with_the_two_tests_by_hand() -> None:
    """With t = mean / standard error against Student's t of 9 degrees of freedom, as in any textbook."""
    from scipy import stats

    test = equivalence(list(SEEDS_OF_TWIN + NOISE), list(SEEDS_OF_TWIN))
    above = stats.ttest_1samp(NOISE + 0.005, 0, alternative="greater").pvalue
    below = stats.ttest_1samp(NOISE - 0.005, 0, alternative="less").pvalue
    assert test.p == pytest.approx(max(above, below), rel=1e-6)
    low, high = stats.ttest_1samp(NOISE, 0).confidence_interval(0.90)
    assert (test.low, test.high) == pytest.approx((low, high), rel=1e-6)


def test_identical_runs_and_too_few() -> None:
    assert equivalence([2.0, 2.1], [2.0, 2.1]).p == 0
    assert equivalence([2.0, 2.1], [1.99, 2.09]).p == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="two pairs"):
        equivalence([2.0], [2.0])


def test_the_committed_result_says_what_its_losses_say() -> None:
    """docs/results/parity-l9.json, whose command it contains: ten pairs or more, and the verdict computed again."""
    found = json.loads((ROOT / "docs/results/parity-l9.json").read_text(encoding="utf-8"))["L9"]
    assert found["margin_nats"] == quality.MARGIN
    assert len(found["seeds"]) >= 10
    losses, written = found["validation_loss"], found["tests"]["mlx-cpu ~ cpu"]
    test = equivalence(losses["mlx-cpu"], losses["cpu"])
    assert test.passed
    assert written["equivalent"]
    assert test.p == pytest.approx(written["p"], rel=1e-6)
    assert test.mean == pytest.approx(written["mean_difference"], rel=1e-6)


def trainer(calls: list[list[str]], fail: bool = False) -> Any:
    """A stand-in for `subprocess` whose `run` leaves what a finished run leaves."""

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        folder = Path(command[command.index("--out") + 1])
        options["stdout"].write("error: out of patience\n" if fail else "fine\n")
        if not fail:
            assert options["env"]["OMP_NUM_THREADS"] == "1"
            assert options["env"]["MLX_ENABLE_TF32"] == "0"
            folder.mkdir(parents=True)
            seed, steps = (int(command[command.index(flag) + 1]) for flag in ("--seed", "--max-steps"))
            rows = [{"step": 0, "val_loss": 4.0}, {"step": steps, "loss": 1.0}]
            rows.append({"step": steps, "val_loss": 2 + seed / 100 + 1e-4 * ("mlx" in command[2])})
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return subprocess.CompletedProcess(command, 1 if fail else 0)

    return SimpleNamespace(run=run, STDOUT=subprocess.STDOUT)


def test_finished_runs_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(quality, "subprocess", trainer(calls))
    first = run_all(plan(tmp_path, seeds=range(1, 3)), lambda _: None)
    assert [command[2] for command in calls] == ["torch_gpt.train", "mlx_gpt.train"] * 2, "pair by pair"
    # One is broken off: its last evaluation is missing.
    torn = tmp_path / "shakespeare-char-cpu-7-mlx-cpu-seed-2" / "metrics.jsonl"
    torn.write_text(torn.read_text().rsplit("\n", 1)[0] + '\n{"step": 7, "val_l')
    calls.clear()
    said: list[str] = []
    again = run_all(plan(tmp_path), said.append)
    assert [command[command.index("--seed") + 1] for command in calls] == ["2", "3", "3"]
    assert {name: {s: again[name][s] for s in (1, 2)} for name in again} == first
    assert sum("training" in line for line in said) == 3
    found = summary(plan(tmp_path), again)
    assert found["tests"]["mlx-cpu ~ cpu"]["equivalent"] is True
    assert found["tests"]["mlx-cpu ~ cpu"]["mean_difference"] == pytest.approx(1e-4)
    assert found["spread_between_seeds"]["cpu"] == pytest.approx(0.01)
    assert "equivalent within 0.005 nats" in "\n".join(as_lines(found))


def test_a_run_that_fails_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "subprocess", trainer([], fail=True))
    with pytest.raises(WorkFailed, match=r"out of patience \(see .*cpu-seed-1.log\)"):
        run_all(plan(tmp_path), lambda _: None)


def test_the_command_writes_the_result_and_fails_where_nothing_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quality, "subprocess", trainer([]))
    argv = [
        "--rung",
        "L9",
        "--seeds",
        "3",
        "--steps",
        "7",
        "--runs",
        str(tmp_path),
        "--json",
        str(tmp_path / "l9.json"),
    ]
    main([*argv, "--backends", "mlx-cpu,cpu"])
    written = json.loads((tmp_path / "l9.json").read_text())
    assert written["L9"]["seeds"] == [1, 2, 3]
    assert written["command"] == f"python -m convert parity {' '.join(argv)} --backends mlx-cpu,cpu"
    assert "mlx-cpu ~ cpu: equivalent" in capsys.readouterr().out
    for seed in (1, 2, 3):
        path = tmp_path / f"shakespeare-char-cpu-7-mlx-cpu-seed-{seed}" / "metrics.jsonl"
        path.write_text(json.dumps({"step": 7, "val_loss": 2.2}))
    with pytest.raises(WorkFailed, match="L9 does not show equivalence"):
        main([*argv, "--backends", "mlx-cpu,cpu"])


def test_pairs_differ_by_nothing_but_the_framework(tmp_path: Path) -> None:
    """The trainers accept the command line, and both get the same configuration."""
    commands = [training_command(plan(tmp_path), backend, 3, tmp_path / "x") for backend in plan(tmp_path).backends]
    assert commands[0][0] == sys.executable
    one, other = (parse_training(command[3:], prog="x", has_gpu=False)[0] for command in commands)
    assert one == other
    assert one.run.train.max_steps == 7
    assert one.run.optim.decay_steps == 0
    assert one.run.model.dropout_rng == "shared"
    assert one.run.train.eval_interval == one.run.train.checkpoint_interval == 0
    assert one.run.train.seed == 3
