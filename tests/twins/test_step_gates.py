"""Faults that stand on the path that trains alone: the gates on the step see each of them, in both twins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from gpt_common.data.batches import Batch
from gpt_common.training.health import step_gates, watch
from gpt_common.training.health.watch import Health
from gpt_common.training.log.runlog import read_metrics
from tests.twins import TWINS, fails, tensors, tiny, train

RUN: Any = import_module("gpt_common.training.run")
both = pytest.mark.parametrize("twin", TWINS)
GATES = ("--health-gates", "quick")
FLAGS = (*GATES, "--max-steps", "12", "--dropout", "0.2", "--grad-accum-steps", "2", "--eval-interval", "4")
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def all_the_time_it_takes(monkeypatch: Patch) -> None:
    """On a busy machine quick gates leave some out, and say so."""
    monkeypatch.setattr(step_gates, "QUICK_SECONDS", 1e9)


def part(twin: str, name: str) -> ModuleType:
    return import_module(f"{twin}.{name}")


def array(twin: str, value: np.ndarray[Any, Any]) -> Any:
    if twin == "mlx_gpt":
        import mlx.core as mx

        return mx.array(value)
    import torch

    return torch.from_numpy(value)


def still(twin: str, x: Any) -> Any:
    """x, through which no gradient goes."""
    if twin == "mlx_gpt":
        import mlx.core as mx

        return mx.stop_gradient(x)
    return x.detach()


def reads_the_future_under_dropout(patch: Patch, twin: str) -> None:
    attention = part(twin, "attention").Attention
    right = attention.attend

    def attend(self: Any, q: Any, k: Any, v: Any, key: Any, sees: Any = None) -> Any:
        y = right(self, q, k, v, key, sees)
        return y if key is None else y + v.mean(2, **({"keepdims": True} if twin == "mlx_gpt" else {"keepdim": True}))

    patch.setattr(attention, "attend", attend)


def trains_on_the_first_half(patch: Patch, twin: str) -> None:
    right = part(twin, "train").objective

    def objective(model: Any, batch: Batch[Any], key: Any) -> Any:
        half = np.zeros(batch.tokens.shape, np.float32)
        half[:, : half.shape[1] // 2] = 1
        weights = array(twin, half) if batch.weights is None else batch.weights * array(twin, half)
        return right(model, Batch(batch.tokens, batch.labels, weights), key)

    patch.setattr(part(twin, "train"), "objective", objective)


def narrows_ids_in_the_step(patch: Patch, twin: str) -> None:
    right = part(twin, "train").to_device
    patch.setattr(part(twin, "train"), "to_device", lambda batch, device: right(narrowed(batch), device))


def narrowed(batch: Batch[Any]) -> Batch[Any]:
    return Batch(batch.tokens % 48, batch.labels % 48, batch.weights)


def takes_micro_batch_0_again(patch: Patch, twin: str) -> None:  # noqa: ARG001
    right = RUN.training_batch
    patch.setattr(RUN, "training_batch", lambda *data, **key: right(*data, **{**key, "micro_step": 0}))


def sums_micro_gradients(patch: Patch, twin: str) -> None:
    step = part(twin, "train").TrainStep
    right = step.accumulate
    patch.setattr(step, "accumulate", lambda self, batch, key, parts: right(self, batch, key, 1.0) / parts)


def leaves_a_micro_batch_out(patch: Patch, twin: str) -> None:
    step = part(twin, "train").TrainStep
    right = step.__call__
    patch.setattr(step, "__call__", lambda self, batches, number, rate: right(self, batches[:1], number, rate))


def never_drops(patch: Patch, twin: str) -> None:
    patch.setattr(part(twin, "model"), "dropout", lambda x, *_: x)


def drops_twice_as_much(patch: Patch, twin: str) -> None:
    right = part(twin, "model").dropout
    patch.setattr(part(twin, "model"), "dropout", lambda x, rate, *rest: right(x, 2 * rate, *rest))


def cuts_half_of_a_gradient_off(patch: Patch, twin: str) -> None:
    layer = part(twin, "feed_forward").FeedForward
    name = "__call__" if twin == "mlx_gpt" else "forward"
    right = getattr(layer, name)

    def halved(self: Any, x: Any) -> Any:
        y = right(self, x)
        return 0.5 * y + still(twin, 0.5 * y)

    patch.setattr(layer, name, halved)


def forgets_the_second_moment(patch: Patch, twin: str) -> None:
    right = part(twin, "train").build_optimizer
    patch.setattr(
        part(twin, "train"),
        "build_optimizer",
        lambda model, optim: right(model, dataclasses.replace(optim, adam_eps=1.0)),
    )


@both
@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (reads_the_future_under_dropout, "causality in training: with dropout on, the loss at position"),
        (trains_on_the_first_half, "step loss: the training step says"),
        (narrows_ids_in_the_step, "step loss: the training step says"),
        (takes_micro_batch_0_again, "data: micro-batch 1 is an earlier one again"),
        (sums_micro_gradients, "micro-steps: 2 micro-steps give loss"),
        (leaves_a_micro_batch_out, "micro-steps: 2 micro-steps give loss"),
        (never_drops, "dropout: nothing is dropped"),
        (drops_twice_as_much, "dropout: 0."),
        (cuts_half_of_a_gradient_off, "derivative: along the gradient the loss changes by"),
        (forgets_the_second_moment, "update: "),
    ],
)
def test_a_fault_of_the_step_is_caught_before_it_trains(
    broken: Callable[[Patch, str], None],
    found: str,
    twin: str,
    stories_dir: Path,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken(monkeypatch, twin)
    error = fails(capsys, twin, *tiny(stories_dir, *FLAGS), "--out", tmp_path / "run", code=1)
    assert error.startswith(f"error: health: {found}")
    assert not (tmp_path / "run" / "checkpoints").exists()


@both
def test_a_validation_loss_of_training_text_is_caught(
    twin: str, stories_dir: Path, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Health.loss_on
    monkeypatch.setattr(Health, "loss_on", lambda self, _: right(self, self.train))
    error = fails(capsys, twin, *tiny(stories_dir, *FLAGS), "--out", tmp_path / "run", code=1)
    assert error.startswith("error: health: data: a validation sequence stands in the other split")


@both
def test_a_mask_that_breaks_in_the_middle_of_a_run_is_caught_at_the_next_evaluation(
    twin: str, stories_dir: Path, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Health.on_steps

    def on_steps(self: Health, step: int, *rest: Any) -> None:
        right(self, step, *rest)
        reads_the_future_under_dropout(monkeypatch, twin)

    monkeypatch.setattr(Health, "on_steps", on_steps)
    error = fails(capsys, twin, *tiny(stories_dir, *FLAGS), "--out", tmp_path / "run", code=1)
    assert error.startswith("error: health: causality in training")


@both
def test_a_best_that_moves_with_latest_is_caught_at_the_next_save(
    twin: str, stories_dir: Path, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = RUN.write_checkpoint
    monkeypatch.setattr(RUN, "write_checkpoint", lambda *what, **how: right(*what, **{**how, "best": True}))
    # Better at step 4, and then thrown out.
    for module in (part(twin, "train"), watch):
        monkeypatch.setattr(module, "learning_rate", lambda step, *_: 1e-3 if step < 4 else 1.0)
    error = fails(capsys, twin, *tiny(stories_dir, *FLAGS), "--out", tmp_path / "run", code=1)
    assert "pointers: best is step-000012 and should be step-000004" in error


@both
def test_weights_that_are_not_those_that_were_evaluated_are_caught(
    twin: str, stories_dir: Path, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load_file, save_file

    right = part(twin, "train").save_tensors

    def save(folder: Path, *what: Any) -> None:
        right(folder, *what)
        weights = load_file(folder / "model.safetensors")
        weights["final_norm.weight"] = weights["final_norm.weight"] * np.float32(1.01)
        save_file(weights, folder / "model.safetensors")

    monkeypatch.setattr(part(twin, "train"), "save_tensors", save)
    error = fails(capsys, twin, *tiny(stories_dir, *FLAGS), "--out", tmp_path / "run", code=1)
    assert "read back" in error
    assert "loaded again it has" in error


@both
@pytest.mark.parametrize("more", [(), ("--preset", "deepseek-tiny"), ("--ema-decay", "0.9")])
def test_asking_changes_nothing(
    twin: str, more: tuple[str, ...], stories_dir: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asking = ("quick",) if "--ema-decay" in more else ("quick", "full")
    for gates in ("off", *asking):
        flags = tiny(stories_dir, *FLAGS, "--block-size", "16", *more, "--health-gates", gates)
        flags = [flag for i, flag in enumerate(flags) if not (more[:1] == ("--preset",) and i in (0, 1))]
        train(twin, *flags, "--out", tmp_path / gates)
    for gates in asking:
        for file in ("model.safetensors", "optimizer.safetensors"):
            asked, left = tensors(tmp_path / gates, 12, file), tensors(tmp_path / "off", 12, file)
            assert all(asked[name].tobytes() == left[name].tobytes() for name in left)
        assert not [row["alarm"] for row in read_metrics(tmp_path / gates) if "alarm" in row]
