"""The running mean of the weights: the same in both twins, what is evaluated and saved, and resumed to the bit."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt_common.config import ModelConfig, OptimConfig
from gpt_common.training.log.runlog import read_metrics
from tests.twins import TWINS, fails, tensors, tiny, train

both = pytest.mark.parametrize("twin", TWINS)
FLAGS = ("--max-steps", "20", "--checkpoint-interval", "10", "--eval-interval", "10", "--ema-decay", "0.9")


@pytest.fixture(scope="module")
def runs(stories_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("averaged")
    for twin in TWINS:
        train(twin, *tiny(stories_dir, *FLAGS), "--out", folder / twin)
    return {twin: folder / twin for twin in TWINS}


def weights(twin: str, model: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {n: np.array(p) if twin == "mlx_gpt" else p.detach().numpy().copy() for n, p in model.named_parameters()}


@both
def test_it_is_the_mean_by_its_formula(twin: str) -> None:
    model = import_module(f"{twin}.model").GPT(ModelConfig(vocab_size=11, n_layer=1, n_embd=8, n_head=2, block_size=4))
    model.initialise(3)
    average = import_module(f"{twin}.optim").Average(model, OptimConfig(ema_decay=0.6))
    average.restart()
    mean = {name: value.astype(np.float64) for name, value in weights(twin, model).items()}
    for step in range(1, 30):
        model.initialise(100 + step)
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        mean = {name: decay * mean[name] + (1 - decay) * value for name, value in weights(twin, model).items()}
    for name, value in weights(twin, average.model).items():
        # Norms are 1: a unit in the last place.
        np.testing.assert_allclose(value, mean[name], rtol=0, atol=6e-8)


@both
def test_without_a_decay_it_is_the_model(twin: str) -> None:
    model = import_module(f"{twin}.model").GPT(ModelConfig(vocab_size=11, n_layer=1, n_embd=8, n_head=2, block_size=4))
    average = import_module(f"{twin}.optim").Average(model, OptimConfig())
    average.restart()
    average.update(1)
    assert average.model is model


def test_both_twins_have_the_same_mean_and_weights(runs: dict[str, Path]) -> None:
    for file in ("model.safetensors", "optimizer.safetensors"):
        mlx, torch = (tensors(runs[twin], 20, file) for twin in TWINS)
        assert mlx.keys() == torch.keys()
        for name in mlx:
            if "exp_avg" not in name:
                np.testing.assert_allclose(mlx[name], torch[name], rtol=0, atol=1e-5)


@both
def test_the_mean_is_saved_beside_the_weights_it_is_of(twin: str, runs: dict[str, Path]) -> None:
    mean, state = tensors(runs[twin], 20), tensors(runs[twin], 20, "optimizer.safetensors")
    assert {f"weights.{name}" for name in mean} <= state.keys()
    gaps = [float(np.abs(mean[name] - state[f"weights.{name}"]).max()) for name in mean]
    assert min(gaps) > 0
    assert max(gaps) < 0.05


@both
def test_the_stored_loss_is_that_of_the_mean(twin: str, runs: dict[str, Path], stories_dir: Path) -> None:
    from gpt_common.data import open_dataset
    from gpt_common.data.batches import evaluation_batches
    from gpt_common.training.source import open_source

    source = open_source(runs[twin], latest=True)
    model = import_module(f"{twin}").load(runs[twin], latest=True, device="cpu")
    probe = import_module(f"{twin}.probe").TrainingProbe(model)
    tokens = open_dataset("stories", stories_dir, on_progress=lambda _: None).val
    batches = evaluation_batches(tokens, block_size=32, batch_size=4, batches=2)
    state = json.loads((source.checkpoint / "state.json").read_text(encoding="utf-8"))
    assert np.mean([probe.loss(batch) for batch in batches]) == state["val_loss"]


@both
def test_it_resumes_to_the_bit(twin: str, runs: dict[str, Path], stories_dir: Path, tmp_path: Path) -> None:
    train(twin, *tiny(stories_dir, *FLAGS), "--out", tmp_path / "parts", "--stop-at", "13")
    train(twin, "--resume", tmp_path / "parts")
    for file in ("model.safetensors", "optimizer.safetensors"):
        whole, parts = tensors(runs[twin], 20, file), tensors(tmp_path / "parts", 20, file)
        assert whole.keys() == parts.keys()
        assert all(whole[name].tobytes() == parts[name].tobytes() for name in whole)


@both
def test_a_run_without_one_cannot_be_resumed_with_one(
    twin: str, stories_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(twin, *tiny(stories_dir, "--max-steps", "4", "--stop-at", "2"), "--out", tmp_path / "run")
    assert "another optim ema_decay" in fails(capsys, twin, "--resume", tmp_path / "run", "--ema-decay", "0.9")


def test_experts_choose_by_the_biases_of_the_weights(stories_dir: Path, tmp_path: Path) -> None:
    flags = tiny(stories_dir, "--max-steps", "3", "--ema-decay", "0.5", "--preset", "custom-llm-tiny")
    for twin in TWINS:
        train(twin, *flags, "--head-size", "0", "--out", tmp_path / twin)
    mlx, torch = (tensors(tmp_path / twin, 3) for twin in TWINS)
    biases = [name for name in mlx if name.endswith("routing_bias")]
    assert biases
    assert all((mlx[name] == torch[name]).all() for name in biases)


def test_moments_of_an_averaged_run_do_not_go_to_nanogpt(runs: dict[str, Path], tmp_path: Path) -> None:
    from convert.__main__ import main
    from gpt_common.errors import UserError

    export = ["export", str(runs["torch_gpt"]), "--to", "nanogpt", "-o", str(tmp_path / "ckpt.pt")]
    with pytest.raises(UserError, match=r"nanoGPT has no ema_decay.*--no-optimizer"):
        main(export)
    main([*export, "--no-optimizer"])
    assert (tmp_path / "ckpt.pt").exists()


@both
def test_a_run_taken_up_where_its_schedule_is_at_0_goes_on(twin: str, stories_dir: Path, tmp_path: Path) -> None:
    """Nothing moves there, and nothing should: the gate on what is evaluated asks where something does."""
    schedule = (
        "--max-steps",
        "16",
        "--warmup-steps",
        "2",
        "--decay-steps",
        "6",
        "--min-lr",
        "0",
        "--eval-interval",
        "4",
    )
    gates = ("--health-gates", "quick", "--stop-at", "8")
    train(twin, *tiny(stories_dir, *schedule, *gates), "--out", tmp_path / "run")
    train(twin, "--resume", tmp_path / "run")
    losses = [row["val_loss"] for row in read_metrics(tmp_path / "run") if "val_loss" in row]
    assert len(losses) == 5
    assert losses[-1] == losses[-2] == losses[-3]
