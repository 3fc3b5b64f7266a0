"""Deliberately broken models, through the real command: each ends with exit code 1 and the gate that found it.

The same text for MLX is tests/mlx_gpt/test_health.py.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gpt_common.training.run
from gpt_common.data.batches import Batch, NumpyBatch, training_batch
from gpt_common.training.log.runlog import read_metrics
from tests.twins import fails
from tests.twins import train as run_command
from torch_gpt import attention, layers, model, probe, train
from torch_gpt.model import GPT
from torch_gpt.optim import clip_gradients, set_step

TWIN, FORWARD = "torch_gpt", "forward"
Patch = pytest.MonkeyPatch
right_loss = model.loss


@pytest.fixture
def tiny_run(tiny_run: list[str]) -> list[str]:
    """With the gates, which other tests leave out."""
    return [*tiny_run, "--health-gates", "quick"]


def after_initialising(patch: Patch, change: Callable[[GPT], Any]) -> None:
    """Do something to every new model."""
    initialise = GPT.initialise

    def changed(self: GPT, seed: int) -> None:
        initialise(self, seed)
        change(self)

    patch.setattr(GPT, "initialise", changed)


def with_loss(patch: Patch, loss: Callable[..., Tensor]) -> None:
    """Train with another loss."""
    patch.setattr(probe, "loss", loss)
    patch.setattr(model, "loss", loss)


def with_mask(patch: Patch, allowed: Callable[[int], Tensor]) -> None:
    """Attend where `allowed(T)` (T, T) is true."""

    def masked(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, scale: float, rate: float) -> Tensor:
        mask_TS = allowed(q_BHTK.shape[2])
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, mask_TS, rate, scale=scale)

    patch.setattr(attention, "causal_attention", masked)


def skips_its_decoder(patch: Patch) -> None:
    patch.setattr(model.Block, FORWARD, lambda self, x_BTD, *_: x_BTD)  # noqa: ARG005


def skips_its_attention(patch: Patch) -> None:
    patch.setattr(attention.MultiHeadAttention, FORWARD, lambda self, x_BTD, *_: torch.zeros_like(x_BTD))  # noqa: ARG005


def has_no_mask(patch: Patch) -> None:
    with_mask(patch, lambda T: torch.ones(T, T, dtype=torch.bool))


def masks_off_by_one(patch: Patch) -> None:
    with_mask(patch, lambda T: torch.ones(T, T, dtype=torch.bool).tril(1))


def sees_only_itself(patch: Patch) -> None:
    with_mask(patch, lambda T: torch.eye(T, dtype=torch.bool))


def leaves_labels_unshifted(patch: Patch) -> None:
    def unshifted(*data: Any, **what: Any) -> NumpyBatch:
        tokens = training_batch(*data, **what).tokens
        return Batch(tokens, tokens)

    patch.setattr(gpt_common.training.run, "training_batch", unshifted)


def compares_with_its_input(patch: Patch) -> None:
    with_loss(patch, lambda gpt, batch, key=None: right_loss(gpt, Batch(batch.tokens, batch.tokens), key))


def shifts_labels_again(patch: Patch) -> None:
    def loss(gpt: GPT, batch: Batch[Any], key: Tensor | None = None) -> Tensor:
        return right_loss(gpt, Batch(batch.tokens[:, :-1], batch.labels[:, 1:]), key)

    with_loss(patch, loss)


def leaves_dropout_on(patch: Patch) -> None:
    forward, counter = GPT.forward, itertools.count()

    def noisy(self: GPT, tokens_BT: Tensor, key: Any = None, *rest: Any, **more: Any) -> Tensor:
        return forward(self, tokens_BT, torch.tensor([0, next(counter)]) if key is None else key, *rest, **more)

    patch.setattr(GPT, FORWARD, noisy)


def never_goes_backward(patch: Patch) -> None:
    patch.setattr(Tensor, "backward", lambda _: None)


def never_updates(patch: Patch) -> None:
    patch.setattr(torch.optim.AdamW, "step", lambda _: None)


def freezes_a_parameter(patch: Patch) -> None:
    after_initialising(patch, lambda gpt: gpt.get_submodule("blocks.1.attention.qkv_proj").requires_grad_(False))


def withholds_a_parameter(patch: Patch) -> None:
    def without_final_norm(gpt: GPT, largest: float) -> Tensor:
        norm = clip_gradients(gpt, largest)
        gpt.final_norm.weight.grad = None
        return norm

    patch.setattr(train, "clip_gradients", without_final_norm)


def has_no_positions(patch: Patch) -> None:
    forward = layers.Embedding.forward

    def silent(self: layers.Embedding, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return forward(self, ids, dtype) * (ids.ndim == 2)

    patch.setattr(layers.Embedding, FORWARD, silent)


def starts_too_large(patch: Patch) -> None:
    def enlarge(gpt: GPT) -> None:
        gpt.final_norm.weight.data *= 30

    after_initialising(patch, enlarge)


def holds_a_nan(patch: Patch) -> None:
    def spoil(gpt: GPT) -> None:
        gpt.get_parameter("blocks.1.feed_forward.down_proj.weight").data[3, 5] = torch.nan

    after_initialising(patch, spoil)


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (leaves_labels_unshifted, "labels: the labels are the tokens themselves"),
        (compares_with_its_input, "loss: the model says"),
        (shifts_labels_again, "loss: the model says"),
        (leaves_dropout_on, "loss: the model says"),
        (holds_a_nan, "loss: the model says nan"),
        (starts_too_large, "initial loss: "),
        (never_goes_backward, "gradients: no parameter receives a gradient"),
        (
            freezes_a_parameter,
            "gradients: blocks.1.attention.qkv_proj.weight (1 of 15 parameters) receives no gradient",
        ),
        (skips_its_decoder, "gradients: blocks.0.attention"),
        (skips_its_attention, "gradients: blocks.0.attention"),
        (has_no_positions, "gradients: position_embedding.weight (1 of 15 parameters) receives no gradient"),
        (has_no_mask, "causality: changing the tokens from 1 on changes the logits at 0"),
        (masks_off_by_one, "causality: changing the tokens from 1 on changes the logits at 0"),
        (sees_only_itself, "causality: the logits at 1 ignore the token at 0"),
        (never_updates, "update: no parameter moved in the first step"),
        (withholds_a_parameter, "update: final_norm.weight (1 of 15 parameters) did not move in the first step"),
    ],
)
def test_a_broken_model_is_caught_and_named(
    broken: Callable[[Patch], None],
    found: str,
    tiny_run: list[str],
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken(monkeypatch)
    run = tmp_path / "run"
    error = fails(capsys, TWIN, *tiny_run, "--max-steps", "5", "--dropout", "0.2", "--out", run, code=1)
    assert error.startswith(f"error: health: {found}")
    assert not list(run.glob("checkpoints/*")), "a broken model is not worth saving"


def of_family(tiny_run: list[str], preset: str) -> list[str]:
    """A tiny run of another family."""
    return [preset if flag == "stories-cpu" else flag for flag in tiny_run]


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (leaves_labels_unshifted, "labels: the labels are the tokens themselves"),
        (compares_with_its_input, "loss: the model says"),
        (skips_its_decoder, "gradients: blocks.0.attention"),
    ],
)
def test_the_faults_of_the_reference_are_caught_on_its_family(
    broken: Callable[[Patch], None],
    found: str,
    tiny_run: list[str],
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """CustomLLM's public code compared each token with itself and never called its layers."""
    broken(monkeypatch)
    command: list[str | Path] = [*of_family(tiny_run, "custom-llm-tiny"), "--max-steps", "5", "--out", tmp_path / "run"]
    assert fails(capsys, TWIN, *command, code=1).startswith(f"error: health: {found}")


@pytest.mark.parametrize("preset", ["llama-tiny", "custom-llm-tiny", "deepseek-tiny"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_family_passes(preset: str, optimizer: str, tiny_run: list[str], tmp_path: Path) -> None:
    run_command(
        TWIN, *of_family(tiny_run, preset), "--max-steps", "2", "--optimizer", optimizer, "--out", tmp_path / "run"
    )


@pytest.mark.parametrize(
    "flags",
    [
        ("--bias", "--no-tied-head", "--head-bias", "--feed-forward", "gelu_tanh"),
        ("--dtype", "bfloat16"),
        ("--gradient-checkpointing", "--dropout", "0.2"),
        ("--block-size", "1", "--prompts", "O"),
        ("--batch-size", "1", "--grad-accum-steps", "2"),
        ("--n-layer", "1", "--n-head", "1", "--n-embd", "8"),
    ],
)
def test_a_sound_model_passes(flags: tuple[str, ...], tiny_run: list[str], tmp_path: Path) -> None:
    run_command(TWIN, *tiny_run, "--max-steps", "2", *flags, "--out", tmp_path / "run")
    assert not [row["alarm"] for row in read_metrics(tmp_path / "run") if "alarm" in row]


def test_a_nan_ends_the_run_and_the_tensor_is_named(
    tiny_run: list[str], tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    holds_a_nan(monkeypatch)
    error = fails(capsys, TWIN, *tiny_run, "--health-gates", "off", "--out", tmp_path / "run", code=1)
    assert "step 0: the validation loss is nan; NaN or infinity in blocks.1.feed_forward.down_proj.weight" in error
    (row,) = read_metrics(tmp_path / "run")
    assert row["val_loss"] is None
    assert row["non_finite"] == "train_loss nan, val_loss nan"


def test_weights_that_spoil_between_two_logged_steps_are_not_saved(
    tiny_run: list[str], tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil_at_6(optimizer: Any, step: int, learning_rate: float) -> None:
        set_step(optimizer, step, float("nan") if step == 6 else learning_rate)

    monkeypatch.setattr(train, "set_step", spoil_at_6)
    intervals = ("--log-interval", "50", "--checkpoint-interval", "4", "--eval-interval", "50")
    run = tmp_path / "run"
    error = fails(capsys, TWIN, *tiny_run, *intervals, "--out", run, code=1)
    assert error.startswith("error: step 8: NaN or infinity in ")
    assert (run / "checkpoints" / "latest").read_text() == "step-000004\n"


def test_a_run_that_learns_nothing_says_so(
    tiny_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = ("--learning-rate", "1e-9", "--min-lr", "0")
    # By 100 steps of 32 sequences enough was seen to have learnt something.
    run_command(TWIN, *tiny_run, *rates, "--batch-size", "32", "--max-steps", "110", "--out", tmp_path / "run")
    (alarm,) = [row["alarm"] for row in read_metrics(tmp_path / "run") if "alarm" in row]
    assert re.search(r"after 1\d0 steps the loss \d\.\d+ is still at ln\(\d+\) = \d\.\d+: nothing is learnt", alarm)
    assert capsys.readouterr().out.count(alarm) == 2, "when it happens, and in the summary"
