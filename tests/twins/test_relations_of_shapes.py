"""Blocks that are cut or begin elsewhere, and vocabularies with rows to spare: what is left learns the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_common.config import ModelConfig
from gpt_common.data.batches import Batch
from tests.twins import TWINS
from tests.twins.steps import DEEPSEEK, FAMILIES, GPT2, LLAMA, Arrays, T, Trained, V, apart, batch, drawn_weights

both = pytest.mark.parametrize("twin", TWINS)
families = pytest.mark.parametrize("family", FAMILIES)
few = settings(max_examples=5, deadline=None, derandomize=True)

ROUNDING = 2e-6
"""Of a gradient's norm, as in test_relations_of_a_step.py: the same sums, in another order."""


@both
@families
@given(seed=st.integers(0, 999), length=st.integers(1, T - 1))
@few
def test_a_block_cut_short_is_one_whose_end_does_not_count(twin: str, family: str, seed: int, length: int) -> None:
    """Logits, loss and gradient; and no position embedding behind the cut hears of it."""
    trained, whole = Trained(twin, FAMILIES[family]), batch(seed)
    weights = np.zeros(whole.tokens.shape, np.float32)
    weights[:, :length] = 1
    cut = Batch(whole.tokens[:, :length].copy(), whole.labels[:, :length].copy())
    # Of size 1 to 10: sums over 16 numbers or 12 positions in another order.
    logits = trained.probe.logits(whole.tokens)[:, :length]
    np.testing.assert_allclose(trained.probe.logits(cut.tokens), logits, rtol=0, atol=1e-5)
    loss, gradients = trained.gradients(cut)
    unheard, silenced = trained.gradients(Batch(whole.tokens, whole.labels, weights))
    assert unheard == pytest.approx(loss, rel=ROUNDING)
    assert apart(gradients, silenced) < ROUNDING
    if FAMILIES[family].positions == "learned":
        assert not gradients["position_embedding.weight"][length:].any()
        assert not silenced["position_embedding.weight"][length:].any()
        assert gradients["position_embedding.weight"][:length].any(axis=1).all()


@both
@pytest.mark.parametrize("model", [LLAMA, DEEPSEEK], ids=["llama", "deepseek"])
@pytest.mark.parametrize("shift", [1, 5, 40])
def test_with_rotary_positions_a_block_may_begin_anywhere(twin: str, model: ModelConfig, shift: int) -> None:
    """Only distances count."""
    trained = Trained(twin, dataclasses.replace(model, block_size=T + shift))
    rotary, tokens = trained.model.rotary, batch().tokens
    here = trained.probe.logits(tokens)
    with pytest.MonkeyPatch.context() as patch:
        right = type(rotary).angles
        patch.setattr(type(rotary), "angles", lambda self, start, end: right(self, start + shift, end + shift))
        there = trained.probe.logits(tokens)
        patch.setattr(type(rotary), "angles", lambda self, start, end: right(self, start, end) if start else stuck)
        stuck: Any = tuple(angle[:1] for angle in right(rotary, 0, 1))
        nowhere = trained.probe.logits(tokens)
    # A cosine is off by 3e-8, and so are scores and logits, of size 1 to 10, by some times that.
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-5)
    assert np.abs(nowhere - here).max() > 1e-2


# ---- a vocabulary with rows that no text uses --------------------------------------------------------------------


def padded(model: ModelConfig, rows: int) -> tuple[ModelConfig, Arrays]:
    """With so many rows more, of zeros; their logits are as good as minus infinity where a bias can say so."""
    larger, weights = dataclasses.replace(model, vocab_size=V + rows), drawn_weights(model)
    for name in {"token_embedding.weight", "head.weight", "head.bias"} & weights.keys():
        value = np.float32(-1e4) if name == "head.bias" else np.float32(0)
        extra = np.full((rows, *weights[name].shape[1:]), value, np.float32)
        weights[name] = np.concatenate([weights[name], extra])
    return larger, weights


def unpadded(tensors: Arrays) -> Arrays:
    return {name: value[:V] if name.startswith(("token_emb", "head.")) else value for name, value in tensors.items()}


@both
@families
@given(seed=st.integers(0, 999), rows=st.integers(1, 98))
@few
def test_rows_that_are_never_likely_change_no_step(twin: str, family: str, seed: int, rows: int) -> None:
    model = dataclasses.replace(FAMILIES[family], tied_head=False, head_bias=True)
    larger, weights = padded(model, rows)
    plain, spare = Trained(twin, model), Trained(twin, larger, weights=weights)
    (loss, gradients), (spare_loss, spare_gradients) = plain.gradients(batch(seed)), spare.gradients(batch(seed))
    assert spare_loss == pytest.approx(loss, rel=ROUNDING)
    assert apart(gradients, unpadded(spare_gradients)) < ROUNDING
    # exp(-1e4) is 0: nothing pulls at them.
    for name in ("token_embedding.weight", "head.weight", "head.bias"):
        assert not spare_gradients[name][V:].any()
    _, norm = plain.take([batch(seed)], 0)
    _, spare_norm = spare.take([batch(seed)], 0)
    assert spare_norm == pytest.approx(norm, rel=ROUNDING)
    assert not spare.probe.weights()["head.weight"][V:].any()


@both
@given(seed=st.integers(0, 999), rows=st.integers(1, 98))
@few
def test_rows_of_a_tied_head_cost_what_their_logits_of_0_cost(twin: str, seed: int, rows: int) -> None:
    larger, weights = padded(GPT2, rows)
    plain, spare = Trained(twin, GPT2), Trained(twin, larger, weights=weights)
    text = batch(seed)
    logits, spare_logits = plain.probe.logits(text.tokens), spare.probe.logits(text.tokens)
    assert not spare_logits[..., V:].any()
    np.testing.assert_allclose(spare_logits[..., :V], logits, rtol=0, atol=1e-5)
    chosen = np.take_along_axis(logits.astype(np.float64), text.labels[..., None].astype(np.int64), -1)[..., 0]
    nats = np.log(np.exp(logits.astype(np.float64)).sum(-1) + rows) - chosen
    assert spare.probe.loss(text) == pytest.approx(nats.mean(), rel=ROUNDING)


@both
@families
def test_rows_to_spare_change_no_other_initial_weight(twin: str, family: str) -> None:
    plain = Trained(twin, FAMILIES[family])
    larger, weights = padded(FAMILIES[family], 34)
    spare = Trained(twin, larger, weights=weights)
    plain.model.initialise(5)
    spare.model.initialise(5)
    initial, others = plain.probe.weights(), unpadded(spare.probe.weights())
    assert all(others[name].tobytes() == value.tobytes() for name, value in initial.items())
    assert spare.probe.weights()["token_embedding.weight"][V:].any(axis=1).all()
