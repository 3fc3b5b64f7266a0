"""Once training runs: the first update must move every parameter, and alarms tell what goes wrong later."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from gpt_common.training.health.alarms import Alarms, Diverged
from gpt_common.training.health.gates import GateFailed, check_first_update

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


def test_a_later_collapse_is_no_failure_to_learn_but_is_said_each_time() -> None:
    alarms = watch(lambda step: 4.0 if 500 < step < 750 else 1.5 + 2.7 * math.exp(-step / 100), max_steps=2000)
    assert not [alarm for alarm in alarms if "still at" in alarm]
    assert [alarm.split(": ")[2].split(" ")[0] for alarm in alarms] == ["the", "the"]
    assert "more than twice the 1.5" in alarms[0]
    assert "is back at the plateau 3.3000" in alarms[1]
    twice = watch(
        lambda step: 4.0 if 500 < step < 750 or 1500 < step < 1800 else 1.5 + 2.7 * math.exp(-step / 100),
        max_steps=2000,
    )
    assert len(twice) == 4


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


def test_more_than_the_device_can_do_and_far_less_than_planned_ring_once() -> None:
    alarms = Alarms(vocab_size=65, max_steps=10, warmup_steps=0)
    assert alarms.on_speed(1, None) == alarms.on_speed(2, math.nan) == alarms.on_speed(3, 0.999) == []
    assert alarms.on_speed(4, 1.01)[0].startswith("step 4: MFU 101.0% is more than the device can do: steps are not")
    assert alarms.on_speed(5, 1.2) == []
    # What a CPU reaches is nobody's plan, nor what a GPU does with steps that are planned to take under 20 ms each:
    # a model of 10 million parameters, in eager PyTorch on an H100, 3 % in 60 ms, waits for Python.
    assert alarms.on_speed(6, 0.001) == alarms.on_speed(7, 0.031, 1.0) == alarms.on_speed(8, 0.029, 0.06) == []
    assert "MFU 2.90% is less than a tenth of the 30%" in alarms.on_speed(9, 0.029, 0.3)[0]


@pytest.mark.parametrize(("tokens", "rings"), [(128, 782), (999, 101), (1000, 100), (50_000, 100)])
def test_a_run_of_small_steps_is_given_some_text_before_it_is_called_stuck(tokens: int, rings: int) -> None:
    alarms = Alarms(vocab_size=65, max_steps=2000, warmup_steps=20, unigram_entropy=3.0, tokens_per_step=tokens)
    said = [step for step in range(1, 2001) if alarms.on_step(step, 3.0)]
    assert said == [rings]


@pytest.mark.parametrize(("tokens", "rings"), [(128, False), (5000, True)])
def test_an_evaluation_of_few_tokens_may_differ_by_chance(tokens: int, rings: bool) -> None:
    alarms = Alarms(vocab_size=65, max_steps=200, warmup_steps=20, unigram_entropy=2.8, tokens_evaluated=tokens)
    for step in range(1, 121):
        alarms.on_step(step, 0.77)
    said = alarms.on_evaluation(120, 1.2, 1.15)
    assert [text for text in said if "training steps say" in text] == said
    assert bool(said) is rings
