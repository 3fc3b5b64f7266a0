"""Gates and alarms: a healthy model passes, and every fault is caught by the gate that is named for it.

The model here is a few lines of numpy with gradients worked out by hand; the twins' own broken models are in
tests/mlx_gpt/test_health.py and tests/torch_gpt/test_health.py.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from gpt_common.errors import WorkFailed
from gpt_common.training import health
from gpt_common.training.health import (
    Alarms,
    Diverged,
    GateFailed,
    Tokens,
    check_first_update,
    check_start,
    token_losses,
)

WIDTH = 16


def cross_entropy(logits: NDArray[np.float32], labels: Tokens) -> float:
    return float(token_losses(logits, labels).mean())


class Bag:
    """`logits[t] = head @ (here[token t] + mean over s <= t of past[token s])`: causal, and it has a memory."""

    def __init__(self, vocab_size: int = 65, length: int = 12, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.vocab_size = vocab_size
        self.parameters = {
            name: rng.normal(0, 0.2, (vocab_size, WIDTH)).astype(np.float32) for name in ("here", "past", "head")
        }
        self.mixing = np.tril(np.ones((length, length))) / np.arange(1, length + 1)[:, None]

    def parameter_names(self) -> list[str]:
        return sorted(self.parameters)

    def hidden(self, tokens: Tokens) -> NDArray[np.float32]:
        here, past = (self.parameters[name][tokens] for name in ("here", "past"))
        return (here + self.mixing @ past).astype(np.float32)

    def logits(self, tokens: Tokens) -> NDArray[np.float32]:
        return self.hidden(tokens) @ self.parameters["head"].T

    def loss(self, tokens: Tokens, labels: Tokens) -> float:
        return float(np.float32(cross_entropy(self.logits(tokens), labels)))

    def gradient_norms(self, tokens: Tokens, labels: Tokens) -> dict[str, float]:
        logits, hidden = self.logits(tokens).astype(np.float64), self.hidden(tokens)
        errors = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) - np.eye(self.vocab_size)[labels]
        back = errors @ self.parameters["head"] / labels.size
        gradients = {"head": np.einsum("btv,btd->vd", errors, hidden) / labels.size}
        for name, signal in (("here", back), ("past", self.mixing.T @ back)):
            gradients[name] = np.zeros((self.vocab_size, WIDTH))
            np.add.at(gradients[name], tokens, signal)
        return {name: float(np.linalg.norm(gradient)) for name, gradient in gradients.items()}


def batch(vocab_size: int = 65, rows: int = 4, length: int = 12, seed: int = 1) -> tuple[Tokens, Tokens]:
    ids = np.random.default_rng(seed).integers(0, vocab_size, (rows, length + 1), dtype=np.int32)
    return ids[:, :-1].copy(), ids[:, 1:].copy()


# ---- what a healthy model does ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("vocab_size", "length"), [(2, 12), (3, 2), (65, 1), (65, 12), (2000, 31)])
def test_a_healthy_model_passes(vocab_size: int, length: int, seed: int) -> None:
    probe = Bag(vocab_size, length, seed)
    lines = check_start(probe, *batch(vocab_size, length=length, seed=seed))
    assert len(lines) == 5
    assert all(line.startswith("health: ") and len(line) <= 80 for line in lines)


def test_trained_weights_are_not_held_to_the_initial_loss() -> None:
    probe = Bag()
    probe.parameters["head"] *= 30
    with pytest.raises(GateFailed, match="initial loss"):
        check_start(probe, *batch())
    assert len(check_start(probe, *batch(), fresh=False)) == 4


def test_the_gates_look_at_a_large_batch_only_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    class Counting(Bag):
        def logits(self, tokens: Tokens) -> NDArray[np.float32]:
            seen.append(tokens.size)
            return super().logits(tokens)

    check_start(Counting(length=64), *batch(rows=200, length=64))
    assert max(seen) == 1024
    seen.clear()
    monkeypatch.setattr(health, "PROBE_LOGITS", 3 * 64 * 65)
    check_start(Counting(length=64), *batch(rows=200, length=64))
    assert max(seen) == 3 * 64, "a large vocabulary counts too"


def test_a_key_bias_of_its_own_needs_no_gradient() -> None:
    class WithKeyBias(Bag):
        def parameter_names(self) -> list[str]:
            return [*super().parameter_names(), "blocks.0.attention.k_proj.bias"]

    assert len(check_start(WithKeyBias(), *batch())) == 5


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
    check_start(probe, *batch(), fresh=False)
    probe.mixing[3, 6] = 1e-3
    with pytest.raises(GateFailed, match="causality: changing the tokens from 6 on changes the logits at 3"):
        check_start(probe, *batch(), fresh=False)


@pytest.mark.parametrize(("factor", "passes"), [(1.0015, True), (0.9985, True), (1.004, False), (0.996, False)])
def test_the_loss_may_differ_by_rounding_only(factor: float, passes: bool) -> None:
    class Inexact(Bag):
        def loss(self, tokens: Tokens, labels: Tokens) -> float:
            return factor * super().loss(tokens, labels)

    if passes:
        check_start(Inexact(), *batch())
    else:
        with pytest.raises(GateFailed, match="loss: the model says"):
            check_start(Inexact(), *batch())


# ---- one fault each ----------------------------------------------------------------------------------------------


class SkipsItsMemory(Bag):
    def hidden(self, tokens: Tokens) -> NDArray[np.float32]:
        return self.parameters["here"][tokens]

    def gradient_norms(self, tokens: Tokens, labels: Tokens) -> dict[str, float]:
        return super().gradient_norms(tokens, labels) | {"past": 0.0}


class Frozen(Bag):
    def gradient_norms(self, tokens: Tokens, labels: Tokens) -> dict[str, float]:
        norms = super().gradient_norms(tokens, labels)
        del norms["here"]
        return norms


class NeverGoesBackward(Bag):
    def gradient_norms(self, tokens: Tokens, labels: Tokens) -> dict[str, float]:  # noqa: ARG002
        return {}


class OverflowsBackward(Bag):
    def gradient_norms(self, tokens: Tokens, labels: Tokens) -> dict[str, float]:
        return super().gradient_norms(tokens, labels) | {"past": math.inf}


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

    def loss(self, tokens: Tokens, labels: Tokens) -> float:
        return cross_entropy(self.logits(tokens) if self.first is None else self.first, labels)


class ShiftsLabelsAgain(Bag):
    def loss(self, tokens: Tokens, labels: Tokens) -> float:
        return cross_entropy(self.logits(tokens)[:, :-1], labels[:, 1:])


class ComparesWithItsInput(Bag):
    def loss(self, tokens: Tokens, labels: Tokens) -> float:  # noqa: ARG002
        return cross_entropy(self.logits(tokens), tokens)


class SumsTheLoss(Bag):
    def loss(self, tokens: Tokens, labels: Tokens) -> float:
        return super().loss(tokens, labels) * labels.size


class LooksAtHalfTheLabels(Bag):
    def loss(self, tokens: Tokens, labels: Tokens) -> float:
        return cross_entropy(self.logits(tokens)[::2], labels[::2])


class LossIsNaN(Bag):
    def loss(self, tokens: Tokens, labels: Tokens) -> float:  # noqa: ARG002
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
        check_start(broken(), *batch())
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

    with pytest.raises(GateFailed, match=f"^health: {found}"):
        check_start(Untouched(), *change(*batch()))


def test_one_wrong_label_in_the_last_sequence_is_found() -> None:
    tokens, labels = batch(rows=300)
    labels[299, 7] = (labels[299, 7] + 1) % 65
    with pytest.raises(GateFailed, match="labels: label 7 of sequence 299"):
        check_start(Bag(), tokens, labels)


def test_a_vocabulary_of_one_has_nothing_to_predict() -> None:
    tokens = np.zeros((2, 5), dtype=np.int32)
    with pytest.raises(GateFailed, match="tokens: a vocabulary of 1"):
        check_start(Bag(1, 5), tokens, tokens)


# ---- the first update --------------------------------------------------------------------------------------------


def checksums(parameters: dict[str, NDArray[np.float32]]) -> dict[str, int]:
    return {name: zlib.crc32(value.tobytes()) for name, value in parameters.items()}


@pytest.mark.parametrize("rate", [1e-5, 1e-3])
def test_parameters_that_do_not_move_are_named(rate: float) -> None:
    names = [f"blocks.{i}.norm.weight" for i in range(6)]
    parameters = {name: np.ones(4, dtype=np.float32) for name in names}
    before = checksums(parameters)
    with pytest.raises(GateFailed, match=r"update: no parameter moved in the first step\. The loop never calls"):
        check_first_update(before, checksums(parameters), rate)
    moved = {name: value - np.float32(rate) for name, value in parameters.items()}
    check_first_update(before, checksums(moved), rate)
    with pytest.raises(GateFailed, match=r"update: blocks.2.norm.weight \(1 of 6 parameters\) did not move"):
        check_first_update(before, checksums(moved | {names[2]: parameters[names[2]]}), rate)
    three = {name: moved[name] for name in names[:3]}
    with pytest.raises(GateFailed, match=r"blocks.4.norm.weight, blocks.5.norm.weight \(3 of 6 parameters\) did not"):
        check_first_update(before, checksums(parameters | three), rate)
    with pytest.raises(GateFailed, match=r"blocks.2.norm.weight and 2 more \(5 of 6 parameters\) did not move"):
        check_first_update(before, checksums(parameters | {names[5]: moved[names[5]]}), rate)


def test_a_learning_rate_of_zero_must_move_nothing() -> None:
    parameters = {"weight": np.ones(4, dtype=np.float32), "bias": np.zeros(4, dtype=np.float32)}
    before = checksums(parameters)
    check_first_update(before, before, 0.0)
    with pytest.raises(GateFailed, match=r"update: the learning rate is 0 and bias \(1 of 2 parameters\) moved"):
        check_first_update(before, checksums(parameters | {"bias": np.ones(4, dtype=np.float32)}), 0.0)


def test_a_step_below_float32_resolution_is_not_held_against_a_weight_of_one() -> None:
    parameters = {"norm": np.ones(4, dtype=np.float32), "bias": np.zeros(4, dtype=np.float32)}
    moved = {name: value - np.float32(1e-8) for name, value in parameters.items()}
    assert np.array_equal(moved["norm"], parameters["norm"])
    check_first_update(checksums(parameters), checksums(moved), 1e-8)
    with pytest.raises(GateFailed, match="no parameter moved"):
        check_first_update(checksums(parameters), checksums(parameters), 1e-8)
    check_first_update(checksums(parameters), checksums(parameters), 1e-12)


# ---- alarms ------------------------------------------------------------------------------------------------------


def watch(
    losses: Callable[[int], float], *, max_steps: int = 1000, warmup_steps: int = 100, unigram: float | None = 3.3
) -> list[str]:
    """All alarms of a run that logs every tenth step, with the noise that batches have."""
    alarms = Alarms(vocab_size=65, max_steps=max_steps, warmup_steps=warmup_steps, unigram_entropy=unigram)
    noise = np.random.default_rng(0).normal(0, 0.05, max_steps + 1)
    said = []
    for step in range(10, max_steps + 1, 10):
        said += [f"{step}: {text}" for text in alarms.on_step(step, losses(step) + noise[step], 1.0)]
    return said


def test_a_run_that_learns_is_left_in_peace() -> None:
    assert watch(lambda step: 1.5 + 2.7 * math.exp(-step / 100)) == []


def test_a_loss_that_stays_at_a_blind_guess_is_said_once() -> None:
    (alarm,) = watch(lambda _: math.log(65))
    assert alarm.startswith("200: after 200 steps the loss 4.1")
    assert alarm.endswith("is still at ln(65) = 4.1744: nothing is learnt")
    assert len(watch(lambda _: math.log(65), unigram=None)) == 1


def test_a_loss_that_stays_at_the_unigram_entropy_is_said_once() -> None:
    (alarm,) = watch(lambda step: 3.3 + 0.87 * math.exp(-step / 20))
    assert "is still at the unigram entropy 3.3000: only the tokens' frequencies are learnt" in alarm


def test_a_long_warm_up_is_given_its_time_and_a_short_run_its_end() -> None:
    (alarm,) = watch(lambda _: math.log(65), max_steps=10_000, warmup_steps=2000)
    assert alarm.startswith("4000: ")
    (alarm,) = watch(lambda _: math.log(65), max_steps=150)
    assert alarm.startswith("150: ")
    assert watch(lambda _: math.log(65), max_steps=90) == []


def test_a_later_spike_is_no_failure_to_learn() -> None:
    assert watch(lambda step: 4.0 if 500 < step < 700 else 1.5 + 2.7 * math.exp(-step / 100)) == []


def evaluate(losses: list[float], *, floor: float | None = None, floor_error: float = 0.0) -> list[str]:
    """All alarms of a run that is evaluated every 250 steps."""
    alarms = Alarms(vocab_size=65, max_steps=10_000, warmup_steps=100, floor=floor, floor_error=floor_error)
    return [text for step, loss in enumerate(losses) for text in alarms.on_evaluation(250 * step, loss)]


def test_a_loss_below_the_floor_is_said_once() -> None:
    (alarm,) = evaluate([4.2, 1.2, 0.94, 0.93], floor=1.0, floor_error=0.01)
    assert alarm.startswith("step 500: validation loss 0.9400 is below the corpus's floor 1.0000: ")
    assert "reading the future" in alarm
    assert evaluate([4.2, 1.2, 0.97, 0.97], floor=1.0, floor_error=0.01) == [], "within the floor's own error"
    assert evaluate([4.2, 0.1]) == [], "no floor is known"


def test_a_rising_validation_loss_names_the_best_step() -> None:
    overfitting = [4.2, 2.0, 1.5, 1.4673, 1.48, 1.50, 1.53, 1.57, 1.62, 1.7099, 1.8]
    (alarm,) = evaluate(overfitting)
    assert alarm == "step 2000: validation loss 1.6200 is rising, 5 evaluations above 1.4673; best was step 750"


def test_a_converged_run_that_wanders_is_not_rising() -> None:
    assert evaluate([4.2, 2.0, 1.5, *[1.5 + 0.005 * (i % 2) for i in range(30)]]) == []
    assert evaluate([4.2, *[2.0 - 0.1 * (i // 5) + 0.02 * (i % 5) for i in range(30)]]) == [], "a new best starts anew"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_ends_the_run_and_names_the_tensor(value: float) -> None:
    def alarms() -> Alarms:
        return Alarms(vocab_size=65, max_steps=10, warmup_steps=0, find_non_finite=lambda: "blocks.3.norm.weight")

    with pytest.raises(Diverged, match=f"step 120: the loss is {value}; NaN or infinity in blocks.3.norm.weight"):
        alarms().on_step(120, value, 1.0)
    with pytest.raises(Diverged, match=f"step 120: the gradient norm is {value}"):
        alarms().on_step(120, 2.0, value)
    with pytest.raises(Diverged, match=f"step 250: the validation loss is {value}") as failure:
        alarms().on_evaluation(250, value)
    assert failure.value.exit_code == 1


def test_spoilt_weights_are_not_saved() -> None:
    Alarms(vocab_size=65, max_steps=10, warmup_steps=0).on_save(250)
    alarms = Alarms(vocab_size=65, max_steps=10, warmup_steps=0, find_non_finite=lambda: "final_norm.weight")
    with pytest.raises(Diverged, match=r"step 250: NaN or infinity in final_norm\.weight, not saved"):
        alarms.on_save(250)


def test_divergence_before_any_tensor_is_spoilt() -> None:
    with pytest.raises(Diverged, match=r"step 1: the loss is nan\. Usually the learning rate"):
        Alarms(vocab_size=65, max_steps=10, warmup_steps=0).on_step(1, math.nan)
