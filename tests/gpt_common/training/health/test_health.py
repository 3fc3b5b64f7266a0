"""Gates before step 1: a healthy model passes, and every fault is caught by the gate that is named for it.

The model here is the small one of bag.py; the twins' own broken models are in tests/mlx_gpt/test_health.py and
tests/torch_gpt/test_health.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from gpt_common.data.batches import Batch, NumpyBatch, Tokens
from gpt_common.errors import WorkFailed
from gpt_common.training.health import gates
from gpt_common.training.health.gates import GateFailed, check_start, token_losses
from tests.gpt_common.training.bag import Bag, batch, cross_entropy

# ---- what a healthy model does ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("vocab_size", "length"), [(2, 12), (3, 2), (65, 1), (65, 12), (2000, 31)])
def test_a_healthy_model_passes(vocab_size: int, length: int, seed: int) -> None:
    probe = Bag(vocab_size, length, seed)
    lines = check_start(probe, batch(vocab_size, length=length, seed=seed))
    assert len(lines) == 5
    assert all(line.startswith("health: ") and len(line) <= 80 for line in lines)


def test_trained_weights_are_not_held_to_the_initial_loss() -> None:
    probe = Bag()
    probe.parameters["head"] *= 30
    with pytest.raises(GateFailed, match="initial loss"):
        check_start(probe, batch())
    assert len(check_start(probe, batch(), fresh=False)) == 4


def test_the_gates_look_at_a_large_batch_only_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Counting(Bag):
        def logits(self, tokens: Tokens) -> NDArray[np.float32]:
            seen.append(tokens.size)
            return super().logits(tokens)

    check_start(Counting(length=64), batch(rows=200, length=64))
    assert max(seen) == 1024
    seen.clear()
    monkeypatch.setattr(gates, "PROBE_LOGITS", 3 * 64 * 65)
    check_start(Counting(length=64), batch(rows=200, length=64))
    assert max(seen) == 3 * 64, "a large vocabulary counts too"


def test_a_key_bias_of_its_own_needs_no_gradient() -> None:
    class WithKeyBias(Bag):
        def parameter_names(self) -> list[str]:
            return [*super().parameter_names(), "blocks.0.attention.k_proj.bias"]

    assert len(check_start(WithKeyBias(), batch())) == 5


def test_losses_are_what_they_should_be() -> None:
    logits = np.log(np.array([[[0.25, 0.75], [0.5, 0.5]]], dtype=np.float32))
    labels = np.array([[1, 0]], dtype=np.int32)
    assert token_losses(logits + 1000, labels) == pytest.approx([-math.log(0.75), -math.log(0.5)], abs=1e-3)
    rng = np.random.default_rng(0)
    many, wanted = rng.normal(size=(3, 200, 7)).astype(np.float32), rng.integers(0, 7, (3, 200), dtype=np.int32)
    each = [
        float(np.log(np.exp(row).sum()) - row[label])
        for row, label in zip(many.reshape(-1, 7), wanted.flat, strict=True)
    ]
    assert token_losses(many, wanted) == pytest.approx(each, abs=1e-5)


class RoundsAnew(Bag):
    """A backend whose rounding differs from one pass to the next."""

    noise = 3e-6

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)
        self.parameters["head"] *= 30

    def logits(self, tokens: Tokens) -> NDArray[np.float32]:
        logits = super().logits(tokens)
        return logits + (self.noise * np.abs(logits).max() * self.rng.uniform(-1, 1, logits.shape)).astype(np.float32)


def test_rounding_that_differs_from_pass_to_pass_is_neither_a_leak_nor_dropout() -> None:
    probe = RoundsAnew()
    check_start(probe, batch(), fresh=False)
    probe.mixing[3, 6] = 1e-3
    with pytest.raises(GateFailed, match="causality: changing the tokens from 6 on changes the logits at 3"):
        check_start(probe, batch(), fresh=False)


@pytest.mark.parametrize(("factor", "passes"), [(1.0015, True), (0.9985, True), (1.004, False), (0.996, False)])
def test_the_loss_may_differ_by_rounding_only(factor: float, passes: bool) -> None:
    class Inexact(Bag):
        def loss(self, batch: NumpyBatch) -> float:
            return factor * super().loss(batch)

    if passes:
        check_start(Inexact(), batch())
    else:
        with pytest.raises(GateFailed, match="loss: the model says"):
            check_start(Inexact(), batch())


# ---- one fault each ----------------------------------------------------------------------------------------------


class SkipsItsMemory(Bag):
    def hidden(self, tokens: Tokens) -> NDArray[np.float32]:
        return self.parameters["here"][tokens]

    def gradient_norms(self, batch: NumpyBatch) -> dict[str, float]:
        return super().gradient_norms(batch) | {"past": 0.0}


class Frozen(Bag):
    def gradient_norms(self, batch: NumpyBatch) -> dict[str, float]:
        norms = super().gradient_norms(batch)
        del norms["here"]
        return norms


class NeverGoesBackward(Bag):
    def gradient_norms(self, batch: NumpyBatch) -> dict[str, float]:  # noqa: ARG002
        return {}


class OverflowsBackward(Bag):
    def gradient_norms(self, batch: NumpyBatch) -> dict[str, float]:
        return super().gradient_norms(batch) | {"past": math.inf}


class NoMask(Bag):
    def __init__(self) -> None:
        super().__init__()
        self.mixing = np.full_like(self.mixing, 1 / len(self.mixing))


class MaskOffByOne(Bag):
    def __init__(self) -> None:
        super().__init__()
        ahead = np.tril(np.ones_like(self.mixing), 1)
        self.mixing = ahead / ahead.sum(-1, keepdims=True)


class LeaksOnlyTheLastToken(Bag):
    def __init__(self) -> None:
        super().__init__()
        self.mixing[5, -1] = 1e-4


class LeaksIntoTheMiddle(Bag):
    def __init__(self) -> None:
        super().__init__()
        self.mixing[5, 6] = 1e-4


class LeaksIntoTheLastButOne(Bag):
    def __init__(self) -> None:
        super().__init__()
        self.mixing[10, 11] = 1e-4


class SeesOnlyItself(Bag):
    def __init__(self) -> None:
        super().__init__()
        self.mixing = np.eye(len(self.mixing))


class Blind(Bag):
    def __init__(self) -> None:
        super().__init__()
        self.mixing = np.tril(self.mixing, -1)

    def hidden(self, tokens: Tokens) -> NDArray[np.float32]:
        return super().hidden(tokens) - self.parameters["here"][tokens] + self.parameters["here"].mean(0)


class LeavesDropoutOn(Bag):
    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(0)

    def hidden(self, tokens: Tokens) -> NDArray[np.float32]:
        hidden = super().hidden(tokens)
        return (hidden * (self.rng.random(hidden.shape) > 0.2) / 0.8).astype(np.float32)


class LeavesDropoutOnUnseen(LeavesDropoutOn):
    """Its loss agrees with the logits it gave first, so that only asking twice tells."""

    def __init__(self) -> None:
        super().__init__()
        self.first: NDArray[np.float32] | None = None

    def logits(self, tokens: Tokens) -> NDArray[np.float32]:
        logits = super().logits(tokens)
        self.first = logits if self.first is None else self.first
        return logits

    def loss(self, batch: NumpyBatch) -> float:
        return cross_entropy(self.logits(batch.tokens) if self.first is None else self.first, batch.labels)


class ShiftsLabelsAgain(Bag):
    def loss(self, batch: NumpyBatch) -> float:
        return cross_entropy(self.logits(batch.tokens)[:, :-1], batch.labels[:, 1:])


class ComparesWithItsInput(Bag):
    def loss(self, batch: NumpyBatch) -> float:
        return cross_entropy(self.logits(batch.tokens), batch.tokens)


class SumsTheLoss(Bag):
    def loss(self, batch: NumpyBatch) -> float:
        return super().loss(batch) * batch.labels.size


class LooksAtHalfTheLabels(Bag):
    def loss(self, batch: NumpyBatch) -> float:
        return cross_entropy(self.logits(batch.tokens)[::2], batch.labels[::2])


class LossIsNaN(Bag):
    def loss(self, batch: NumpyBatch) -> float:  # noqa: ARG002
        return math.nan


class TooLarge(Bag):
    def __init__(self) -> None:
        super().__init__()
        self.parameters["head"] *= 10


@pytest.mark.parametrize(
    ("broken", "gate", "found"),
    [
        (SkipsItsMemory, "gradients", "past .1 of 3 parameters. receives no gradient. The forward pass skips"),
        (Frozen, "gradients", "here .1 of 3 parameters. receives no gradient"),
        (NeverGoesBackward, "gradients", "no parameter receives a gradient. Backward is not called"),
        (OverflowsBackward, "gradients", "NaN or infinity in the gradient of past"),
        (NoMask, "causality", "reads the future"),
        (MaskOffByOne, "causality", "from 1 on changes the logits at 0 .*off by one"),
        (LeaksOnlyTheLastToken, "causality", "changes the logits at 5 .*reads the future"),
        (LeaksIntoTheMiddle, "causality", "from 6 on changes the logits at 5 .*reads the future"),
        (LeaksIntoTheLastButOne, "causality", "from 11 on changes the logits at 10 .*reads the future"),
        (SeesOnlyItself, "causality", "the logits at 1 ignore the token at 0. The model has no memory"),
        (Blind, "causality", "the logits at 0 ignore the token at 0"),
        (LeavesDropoutOn, "loss", "dropout is on"),
        (LeavesDropoutOnUnseen, "causality", "the same tokens give other logits each time. Dropout is on"),
        (ShiftsLabelsAgain, "loss", "shifts, masks or ignores the labels"),
        (ComparesWithItsInput, "loss", "shifts, masks or ignores the labels"),
        (SumsTheLoss, "loss", "the model says"),
        (LooksAtHalfTheLabels, "loss", "the model says"),
        (LossIsNaN, "loss", "the model says nan"),
        (TooLarge, "initial loss", r"where fresh weights should give ln\(65\) = 4.1744"),
    ],
)
def test_every_fault_is_caught_by_its_gate(broken: Callable[[], Bag], gate: str, found: str) -> None:
    with pytest.raises(GateFailed, match=f"^health: {gate}: .*{found}") as failure:
        check_start(broken(), batch())
    assert failure.value.gate == gate
    assert failure.value.exit_code == 1
    assert isinstance(failure.value, WorkFailed)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda tokens, _: (tokens, tokens.copy()), "labels: the labels are the tokens themselves"),
        (lambda tokens, labels: (tokens[:, :-1], labels[:, 1:]), "labels: label 0 of sequence 0 is"),
        (lambda tokens, labels: (labels, tokens), "labels: label 0 of sequence 0 is"),
        (lambda tokens, labels: (tokens, np.roll(labels, 1, axis=0)), "labels: label 0 of sequence 0 is"),
        (lambda tokens, labels: (tokens + 65, labels + 65), "tokens: token .* in a vocabulary of 65"),
        (
            lambda tokens, labels: (np.append(tokens[:, :-1], labels[:, -2:-1] * 0 + 65, axis=1), labels),
            "tokens: token 65",
        ),
        (lambda tokens, labels: (tokens, labels - 30), "tokens: token -.* in a vocabulary of 65"),
    ],
)
def test_wrong_data_are_caught_before_the_model_sees_them(
    change: Callable[[Tokens, Tokens], tuple[Tokens, Tokens]], found: str
) -> None:
    class Untouched(Bag):
        def logits(self, tokens: Tokens) -> NDArray[np.float32]:  # noqa: ARG002
            raise AssertionError("an id out of range must never reach a framework")

    sound = batch()
    with pytest.raises(GateFailed, match=f"^health: {found}"):
        check_start(Untouched(), Batch(*change(sound.tokens, sound.labels)))


def test_one_wrong_label_in_the_last_sequence_is_found() -> None:
    wrong = batch(rows=300)
    wrong.labels[299, 7] = (wrong.labels[299, 7] + 1) % 65
    with pytest.raises(GateFailed, match="labels: label 7 of sequence 299"):
        check_start(Bag(), wrong)


def test_a_vocabulary_of_one_has_nothing_to_predict() -> None:
    tokens = np.zeros((2, 5), dtype=np.int32)
    with pytest.raises(GateFailed, match="tokens: a vocabulary of 1"):
        check_start(Bag(1, 5), Batch(tokens, tokens))
