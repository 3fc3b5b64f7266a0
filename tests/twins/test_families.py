"""What a run promises holds for every family and both optimisers: one curve, resuming, moving, and experts at work."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from gpt_common.config import load_preset
from gpt_common.network.parameters import buffer_shapes, optimizer_shapes, tensor_shapes
from gpt_common.training.log.runlog import read_metrics
from gpt_common.words import in_memory
from tests.twins import TWINS, losses, tensors, train

STEPS = ("--max-steps", "12", "--log-interval", "1", "--checkpoint-interval", "6", "--eval-interval", "0")
RUNS = {
    "llama-tiny": ("--optimizer", "muon"),
    "deepseek-tiny": (),
    "custom-llm-tiny": (
        "--optimizer",
        "muon",
        "--grad-accum-steps",
        "2",
        "--dropout",
        "0.2",
        "--dropout-rng",
        "shared",
    ),
}

families = pytest.mark.parametrize("preset", RUNS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, stories_dir: Path) -> dict[str, Path]:
    """Undisturbed runs of 12 steps: `<preset>-<twin>`."""
    folder = tmp_path_factory.mktemp("families")
    made = {}
    for preset, flags in RUNS.items():
        for twin in TWINS:
            made[f"{preset}-{twin}"] = folder / f"{preset}-{twin}"
            size = ("--n-embd", "32", "--block-size", "32", "--batch-size", "4", "--sample-tokens", "0")
            more = ("--learning-rate", "1e-3", "--warmup-steps", "4", "--eval-batches", "2", "--device", "cpu")
            where = ("--data-dir", str(stories_dir), "--out", str(made[f"{preset}-{twin}"]))
            train(twin, "--preset", preset, *size, *more, *STEPS, *flags, *where, "--health-gates", "off")
    return made


@families
def test_the_twins_walk_down_the_same_losses(preset: str, runs: dict[str, Path]) -> None:
    mlx, torch = (losses(runs[f"{preset}-{twin}"]) for twin in TWINS)
    assert list(mlx) == list(torch) == list(range(1, 13))
    assert max(abs(mlx[step] - torch[step]) for step in mlx) < 1e-5
    assert torch[12] < torch[1]


@families
@pytest.mark.parametrize("twin", TWINS)
def test_a_checkpoint_holds_what_the_configuration_says(preset: str, twin: str, runs: dict[str, Path]) -> None:
    run = runs[f"{preset}-{twin}"]
    config = json.loads((run / "checkpoints/step-000012/state.json").read_text())["config"]
    model = load_preset(preset).model.__class__(**config["model"])
    optim = load_preset(preset).optim.__class__(**config["optim"])
    for file, wanted in (("model", tensor_shapes(model)), ("optimizer", optimizer_shapes(model, optim))):
        assert {n: t.shape for n, t in tensors(run, 12, f"{file}.safetensors").items()} == wanted


@families
@pytest.mark.parametrize("first", TWINS)
@pytest.mark.parametrize("second", TWINS)
def test_runs_resume_bitwise_and_move(
    preset: str, first: str, second: str, runs: dict[str, Path], tmp_path: Path
) -> None:
    whole, run = runs[f"{preset}-{first}"], tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints/step-000012")
    (run / "checkpoints/latest").write_text("step-000006\n")
    (run / "checkpoints/best").write_text("step-000006\n")
    train(second, "--resume", run)
    before, after = losses(whole), losses(run)
    assert max(abs(before[step] - after[step]) for step in range(7, 13)) < 1e-5
    if first == second:
        for file in ("model.safetensors", "optimizer.safetensors"):
            one_go, resumed = tensors(whole, 12, file), tensors(run, 12, file)
            assert all(one_go[name].tobytes() == resumed[name].tobytes() for name in one_go)


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize("preset", ["deepseek-tiny", "custom-llm-tiny"])
def test_expert_loads_are_logged_and_steer_the_router(twin: str, preset: str, runs: dict[str, Path]) -> None:
    run = runs[f"{preset}-{twin}"]
    rows = [row["expert_load"] for row in read_metrics(run) if "loss" in row]
    model = load_preset(preset).model
    routers = sum(model.has_experts(layer) for layer in range(model.n_layer))
    assert np.array(rows).shape == (12, routers, model.n_expert)
    # Shares of a router: their mean is the fair share.
    assert np.array(rows).mean(axis=2) == pytest.approx(1.0, abs=1e-4)
    saved = tensors(run, 12, "model.safetensors")
    expected = {name: np.zeros(shape) for name, shape in buffer_shapes(model).items()}
    for loads in rows:
        for name, shares in zip(expected, loads, strict=True):
            expected[name] += model.balancing_rate * np.sign(1 - np.round(shares, 4))
    for name, bias in expected.items():
        assert saved[name] == pytest.approx(bias, abs=1e-7)
        assert np.abs(bias).max() > 0


@pytest.mark.parametrize("twin", TWINS)
def test_the_summary_names_load_and_memory(
    twin: str, stories_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--preset", "custom-llm-tiny", "--block-size", "16", "--batch-size", "2", "--max-steps", "2")
    more = ("--sample-tokens", "0", "--eval-batches", "1", "--data-dir", str(stories_dir), "--out", tmp_path / "run")
    train(twin, *flags, *more)
    said = capsys.readouterr().out
    assert "times its fair share" in said
    peak = max(row["memory"] for row in read_metrics(tmp_path / "run") if "loss" in row)
    assert re.search(rf"peak memory +{re.escape(in_memory(peak))}\n", said)


@pytest.mark.parametrize("sizes", [{"expert_width": 30}, {"expert_width": 12}, {"n_embd": 30, "n_head": 2}])
def test_experts_of_any_width_train_to_the_same_losses(
    sizes: dict[str, int], stories_dir: Path, tmp_path: Path
) -> None:
    """PyTorch's grouped product takes rows of a multiple of 16 bytes only; MLX's takes any."""
    flags = ["--preset", "custom-llm-tiny", "--dataset", "stories", "--data-dir", str(stories_dir), "--device", "cpu"]
    flags += ["--n-layer", "2", "--block-size", "16", "--batch-size", "2", "--max-steps", "3", "--log-interval", "1"]
    flags += ["--eval-batches", "1", "--sample-tokens", "0", "--dropout", "0"]
    for name, value in sizes.items():
        flags += [f"--{name.replace('_', '-')}", str(value)]
    found = {}
    for twin in TWINS:
        train(twin, *flags, "--out", tmp_path / twin)
        found[twin] = losses(tmp_path / twin)
    assert found["mlx_gpt"] == pytest.approx(found["torch_gpt"], rel=1e-5)
