"""Batches with weights: which positions count in the loss, and in the step that several micro-steps make."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpt_common.config import ModelConfig, OptimConfig, RunConfig, TrainConfig
from gpt_common.data.batches import Batch, NumpyBatch
from gpt_common.training.health.gates import check_start
from tests.twins import TWINS

CONFIG = RunConfig(
    model=ModelConfig(vocab_size=30, block_size=12, n_layer=1, n_head=2, n_embd=16, bias=True),
    optim=OptimConfig(grad_clip=0.0),
    train=TrainConfig(device="cpu"),
)
both = pytest.mark.parametrize("twin", TWINS)


def model_of(twin: str) -> Any:
    import_module(f"{twin}.device").select_device("cpu")
    model = import_module(f"{twin}.model").GPT(CONFIG.model)
    model.initialise(0)
    return model


def probe_of(twin: str, model: Any) -> Any:
    return import_module(f"{twin}.probe").TrainingProbe(model)


def batch(seed: int = 0, rows: int = 3) -> NumpyBatch:
    ids = np.random.default_rng(seed).integers(0, 30, (rows, 13), dtype=np.int32)
    return Batch(ids[:, :-1].copy(), ids[:, 1:].copy())


def weighted(plain: NumpyBatch, weights: npt.ArrayLike) -> NumpyBatch:
    everywhere = np.broadcast_to(np.asarray(weights, np.float32), plain.tokens.shape)
    return Batch(plain.tokens, plain.labels, everywhere.copy())


def stepped(twin: str, batches: list[NumpyBatch]) -> tuple[float, float, dict[str, int]]:
    """Loss and gradient norm of one step from the initial weights, and checksums of the new ones."""
    model = model_of(twin)
    optimizer = import_module(f"{twin}.optim").build_optimizer(model, CONFIG.optim)
    step = import_module(f"{twin}.train").TrainStep(model, optimizer, CONFIG, compiled=False)
    loss, norm = step(batches, 0, 1e-3)
    return float(loss), float(norm), probe_of(twin, model).checksums()


@both
def test_equal_weights_change_nothing(twin: str) -> None:
    probe, plain = probe_of(twin, model_of(twin)), batch()
    for weights in (1.0, 0.25):
        assert probe.loss(weighted(plain, weights)) == pytest.approx(probe.loss(plain), rel=1e-7)
        norms = probe.gradient_norms(weighted(plain, weights))
        assert norms == pytest.approx(probe.gradient_norms(plain), rel=1e-5)


@both
def test_the_loss_is_the_weighted_mean_over_positions(twin: str) -> None:
    probe, plain = probe_of(twin, model_of(twin)), batch()
    weights = np.random.default_rng(1).uniform(0, 2, plain.tokens.shape).astype(np.float32)
    logits = probe.logits(plain.tokens).astype(np.float64)
    chosen = np.take_along_axis(logits, plain.labels[..., None].astype(np.int64), -1)[..., 0]
    nats = np.log(np.exp(logits).sum(-1)) - chosen
    assert probe.loss(weighted(plain, weights)) == pytest.approx((nats * weights).sum() / weights.sum(), rel=1e-6)


@both
def test_positions_without_weight_have_no_influence(twin: str) -> None:
    """Neither on the loss nor on any gradient: not even by the label that stands there."""
    plain = batch()
    weights = np.ones(plain.tokens.shape, np.float32)
    weights[:, ::2] = 0
    labels = np.where(weights == 0, (plain.labels + 7) % 30, plain.labels).astype(np.int32)
    one, other = weighted(plain, weights), Batch(plain.tokens, labels, weights)
    assert stepped(twin, [one]) == stepped(twin, [other])
    assert stepped(twin, [one]) != stepped(twin, [plain])


@both
def test_micro_steps_make_the_step_of_one_batch(twin: str) -> None:
    """Also where one has more positions that count than the other: a token weighs the same in both."""
    plain = batch(rows=4)
    weights = np.ones(plain.tokens.shape, np.float32)
    weights[:2, 3:] = 0
    whole = weighted(plain, weights)
    halves = [Batch(whole.tokens[rows], whole.labels[rows], weights[rows]) for rows in (slice(0, 2), slice(2, 4))]
    in_one, in_two = stepped(twin, [whole]), stepped(twin, halves)
    assert in_two[:2] == pytest.approx(in_one[:2], rel=1e-5)


@both
def test_a_micro_step_in_which_nothing_counts_adds_nothing(twin: str) -> None:
    plain = batch()
    silent = weighted(batch(seed=5), 0.0)
    alone, beside = stepped(twin, [weighted(plain, 1.0)]), stepped(twin, [weighted(plain, 1.0), silent])
    assert beside[:2] == pytest.approx(alone[:2], rel=1e-6)


@both
def test_the_gates_take_weighted_batches(twin: str) -> None:
    plain = batch()
    weights = np.ones(plain.tokens.shape, np.float32)
    weights[:, :8] = 0
    assert len(check_start(probe_of(twin, model_of(twin)), weighted(plain, weights))) == 5


def test_both_twins_weigh_alike() -> None:
    weights = np.random.default_rng(2).uniform(0, 1, (3, 12))
    mlx, torch = (stepped(twin, [weighted(batch(), weights)])[:2] for twin in TWINS)
    assert mlx == pytest.approx(torch, rel=1e-6)
