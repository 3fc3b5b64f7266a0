"""One process on a made-up machine: what is timed, what is marked, and which lies of a timer are caught."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.measuring.checks import above_peak, not_waiting, other_work, product_peak, rejection
from benchmarks.measuring.generation import REPEATS, measure_generation, prompt_lengths
from benchmarks.measuring.measure import BLOCK, COMPARED_LOSSES, Measurement
from benchmarks.measuring.samples import marked, median_of, valid
from benchmarks.measuring.thermal import ThrottleWatch
from benchmarks.readings import Measured, Plan, SelfTest, Throttling
from gpt_common.config import ModelConfig, RunConfig, TrainConfig
from tests.benchmarks.machine import LAUNCH_SECONDS, Machine

CONFIG = RunConfig(
    model=ModelConfig(vocab_size=11, block_size=4, n_layer=1, n_head=1, n_embd=8),
    train=TrainConfig(batch_size=2, dtype="float32"),
)


def measure(machine: Machine, **plan: Any) -> Measured:
    settings = {"latency_seconds": 1.0, "throughput_seconds": 2.0, "warm_seconds": 1.0} | plan
    watch = ThrottleWatch(machine.evidence, clock=lambda: machine.awake)
    return Measurement(machine, CONFIG, Plan(**settings), watch, lambda *_: None, clocks=machine.clocks).run()


def test_a_machine_that_waits_is_timed_exactly() -> None:
    found = measure(Machine())
    assert median_of(valid(found.latency)) == pytest.approx(0.02 + LAUNCH_SECONDS, rel=1e-4)
    assert median_of(valid(found.throughput)) == pytest.approx(0.02 + LAUNCH_SECONDS, rel=1e-4)
    assert found.latency.steps_per_sample == 1
    assert found.throughput.steps_per_sample == BLOCK
    assert sum(found.latency.seconds) == pytest.approx(1.0, abs=0.05)
    assert sum(found.throughput.seconds) == pytest.approx(2.0, abs=0.25)
    assert len(found.losses) == COMPARED_LOSSES
    assert found.warm_up.settled
    assert product_peak(found.products) == pytest.approx(1e12, rel=0.01)
    assert rejection(found, published_peak=1e12) is None


def test_a_slow_machine_still_gives_three_steps_and_a_block() -> None:
    found = measure(Machine(step_seconds=30.0))
    assert len(found.latency.seconds) == 3
    assert len(found.throughput.seconds) == 1
    assert not found.warm_up.settled


def test_mutant_without_synchronisation_is_caught() -> None:
    """The timer stops when the work is queued: everything looks a thousand times faster, and nothing adds up."""
    machine = Machine(synchronises=False)
    found = measure(machine, latency_seconds=0.01, throughput_seconds=0.01, warm_seconds=0.01)
    assert (median_of(valid(found.latency)) or 1) < 0.001
    reason = rejection(found, published_peak=None)
    assert reason is not None
    assert "does not wait" in reason


def test_mutant_without_synchronisation_of_products_is_caught() -> None:
    """Even if steps were waited for: products of eight times the work that take equally long were not."""
    found = measure(Machine())
    reason = not_waiting(found.self_test, dict.fromkeys(("1024", "2048", "4096"), LAUNCH_SECONDS))
    assert reason is not None
    assert "8 times the work" in reason


def test_small_products_may_be_all_overhead() -> None:
    """On a GPU a product of width 256 costs a launch, as one of 512 does; the largest two decide."""
    honest = SelfTest(step_seconds=0.02, left_seconds=0.0)
    assert not_waiting(honest, {"256": 1e-5, "512": 1.1e-5, "1024": 3e-5, "2048": 2e-4}) is None


def test_a_product_above_the_published_peak_is_rejected() -> None:
    found = measure(Machine(flops_per_second=2e12))
    assert rejection(found, published_peak=2e12) is None
    reason = rejection(found, published_peak=1e12)
    assert reason is not None
    assert "above the chip's published peak" in reason


def test_a_step_above_the_measured_peak_is_impossible() -> None:
    assert above_peak("a step", 1.04e12, 1e12, "peak") is None
    assert above_peak("a step", 9e12, None, "peak") is None
    assert "impossible" in str(above_peak("a step", 1.06e12, 1e12, "peak"))


def test_a_sleeping_machine_is_told_from_a_slow_step() -> None:
    """The clock of the step stands still while the machine sleeps; the other one tells."""
    first = measure(Machine(), throughput_seconds=0.0)
    asleep_at = first.warm_up.steps + 3 + 10  # in the latency series
    found = measure(Machine(sleeps_at_step=asleep_at), throughput_seconds=0.0).latency
    assert marked(found, "asleep") == 1
    assert len(valid(found)) == len(found.seconds) - 1


def test_a_slow_step_is_an_outlier_and_counts() -> None:
    slow = Machine()
    steps = measure(Machine(), throughput_seconds=0.0).warm_up.steps + 3

    class OneSlowStep(Machine):
        def step(self, batches: Any, step: int, rate: float) -> None:
            super().step(batches, step, rate)
            self.queue(60.0 if step == steps + 10 else 0.001 * (step % 3))

    slow = OneSlowStep()
    found = measure(slow, throughput_seconds=0.0, latency_seconds=62.0).latency
    assert marked(found, "outlier") == 1
    assert marked(found, "asleep") == 0
    assert len(valid(found)) == len(found.seconds)


def test_throttled_samples_are_kept_out() -> None:
    """Half of the series runs at a third of the speed while the watch sees heat: those samples do not count."""
    begins = measure(Machine(), throughput_seconds=0.0).warm_up.steps + 3
    machine = Machine(hot_steps=range(begins + 200, begins + 700))
    found = measure(machine, latency_seconds=0.0, throughput_seconds=45.0)
    series = found.throughput
    assert found.throttling == Throttling(known=True, evidence=["too hot"])
    assert marked(series, "throttled") >= 40
    slow = [s for s in series.seconds if s > 0.3]
    assert len(slow) >= 40
    assert valid(series)
    assert max(valid(series)) < 0.03
    # Without the marks the median would have moved.
    assert median_of(valid(series)) == pytest.approx(0.02, rel=0.01)


def test_a_system_that_does_not_tell_marks_nothing() -> None:
    watch = ThrottleWatch(lambda: None)
    assert not watch.known
    assert not watch.due()
    assert watch.look() is None


def test_an_interrupted_series_ends_at_the_next_sample() -> None:
    machine = Machine()
    watch = ThrottleWatch(machine.evidence, clock=lambda: machine.awake)
    settings = Plan(latency_seconds=0.0, throughput_seconds=1000.0)
    stop_at = 300.0
    measurement = Measurement(
        machine, CONFIG, settings, watch, lambda *_: None, lambda: machine.awake > stop_at, machine.clocks
    )
    found = measurement.run()
    assert found.interrupted
    assert 100 < sum(found.throughput.seconds) < 201


@pytest.mark.parametrize(
    ("losses", "dtype", "dropout", "same"),
    [
        ([4.0, 3.9], "float32", False, True),
        ([4.001, 3.9], "float32", False, True),
        ([4.01, 3.9], "float32", False, False),
        ([4.01, 3.9], "bfloat16", False, True),
        ([4.1, 3.9], "float32", True, True),
        ([5.0, 3.9], "float32", True, False),
        ([float("nan"), 3.9], "float32", False, False),
    ],
)
def test_equal_work_gives_equal_losses(losses: list[float], dtype: str, dropout: bool, same: bool) -> None:
    assert (other_work(losses, [4.0, 3.9], dtype, dropout) is None) == same


def test_generation_is_timed_by_length() -> None:
    machine = Machine(device="cpu")
    found = measure_generation(machine, CONFIG, lambda *_: None, clock=lambda: machine.awake)
    assert [length.prompt for length in found.lengths] == prompt_lengths(4) == [1]
    assert prompt_lengths(1024) == [4, 16, 64, 256, 992]
    assert found.lengths[0].prompt_seconds == pytest.approx([0.002 + 2 * LAUNCH_SECONDS] * REPEATS)
    assert found.lengths[0].token_seconds == pytest.approx([0.001 + LAUNCH_SECONDS] * REPEATS)


def test_one_slow_step_does_not_move_a_median() -> None:
    assert median_of([0.1, 0.1, 10.0]) == 0.1
    assert median_of([]) is None
