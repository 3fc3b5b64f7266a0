"""Claims of speed: rarely wrong, seldom missed, and worth less when made in simpler ways."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.report.pairs import (
    MINIMUM_ROUNDS,
    Ratio,
    differs,
    paired_ratio,
    tail_probability,
    unpaired_ratio,
)
from benchmarks.report.summarise import quantiles
from tests.benchmarks.noise import MACHINES, Noise, medians, session

REPETITIONS = 100
RECORDED = Path(__file__).parent / "recorded_processes.json"


def claims(noise: Noise, slowdown: float, *, alternate: bool = True, seed: int = 1) -> int:
    """In how many of 100 sessions B is declared different from A; the third backend is A's control."""
    rng = np.random.default_rng(seed)
    found = 0
    for repetition in range(REPETITIONS):
        a, b, again = map(medians, session(rng, noise, (1.0, slowdown, 1.0), alternate=alternate))
        found += differs(paired_ratio(b, a, seed=repetition), paired_ratio(again, a, seed=repetition))
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_two_runs_of_one_backend_are_rarely_declared_different(machine: str) -> None:
    assert claims(MACHINES[machine], 1.0) <= 5


@pytest.mark.parametrize("machine", MACHINES)
def test_a_slowdown_of_a_tenth_is_found(machine: str) -> None:
    assert claims(MACHINES[machine], 1.1) >= 95


def test_the_interval_holds_the_truth() -> None:
    """Nominally 95 of 100; with six rounds a bootstrap falls a little short, and not by more than this."""
    rng, inside = np.random.default_rng(2), 0
    for repetition in range(300):
        a, b, _ = map(medians, session(rng, MACHINES["usual"], (1.0, 1.1, 1.0)))
        ratio = paired_ratio(b, a, seed=repetition)
        assert ratio is not None
        assert ratio.low is not None
        assert ratio.high is not None
        inside += ratio.low <= 1.1 <= ratio.high
    assert 0.91 <= inside / 300 <= 0.99


# --- simpler ways, and what they would have claimed


def test_mutant_single_steps_as_the_unit_cry_wolf() -> None:
    """A bootstrap over single steps takes what a process keeps for proof."""
    rng, found = np.random.default_rng(3), 0
    for _ in range(REPETITIONS):
        a, b, _control = (np.log(np.concatenate(side)) for side in session(rng, MACHINES["usual"]))
        draws = [np.median(rng.choice(b, b.size) - rng.choice(a, a.size)) for _ in range(100)]
        low, high = np.quantile(draws, [0.025, 0.975])
        found += not low <= 0 <= high
    assert found >= 30


def test_mutant_plain_percentiles_cry_wolf() -> None:
    """The textbook percentile interval of six values misses the truth twice as often as it says."""
    rng, found = np.random.default_rng(4), 0
    for _ in range(REPETITIONS):
        a, b, _ = map(medians, session(rng, MACHINES["usual"]))
        logs = np.log(np.array(b) / np.array(a))
        low, high = np.quantile(logs[rng.integers(0, 6, (2000, 6))].mean(axis=1), [0.025, 0.975])
        found += not low <= 0 <= high
    assert found > 5


def test_mutant_rounds_in_one_direction_turn_drift_into_a_difference() -> None:
    """A machine that warms up steadily slows what comes later in each round, if it always comes later."""
    steady = Noise(process=0.002, jitter=0.005, wander=0.0, drift=0.0)
    rng = np.random.default_rng(5)

    def later_is_slower(alternate: bool) -> int:
        found = 0
        for _ in range(20):
            sides = session(rng, steady, alternate=alternate)
            for number in range(6):
                for place in range(3):
                    position = 3 * number + (place if number % 2 == 0 or not alternate else 2 - place)
                    sides[place][number] = sides[place][number] * math.exp(0.04 * position)
            a, b, _ = map(medians, sides)
            ratio = paired_ratio(b, a)
            found += ratio is not None and ratio.excludes_one()
        return found

    assert later_is_slower(alternate=False) == 20
    assert later_is_slower(alternate=True) == 0


def test_mutant_without_the_control_cries_wolf_more_often() -> None:
    rng, alone, both = np.random.default_rng(6), 0, 0
    for repetition in range(300):
        a, b, again = map(medians, session(rng, MACHINES["usual"]))
        ratio = paired_ratio(b, a, seed=repetition)
        assert ratio is not None
        alone += ratio.excludes_one()
        both += differs(ratio, paired_ratio(again, a, seed=repetition))
    assert alone > 3 * both


# --- recorded


def test_recorded_processes_of_one_backend_are_rarely_declared_different() -> None:
    """Consecutive processes of one backend on a busy 2-core machine, dealt out as sessions in turn."""
    processes = [float(np.median(p["seconds"])) for p in json.loads(RECORDED.read_text())["processes"]]
    rng, found = np.random.default_rng(7), 0
    for repetition in range(REPETITIONS):
        start = int(rng.integers(0, len(processes) - 18 + 1))
        order = rng.permutation(3)  # which of the three is A, B and the control
        sides: list[list[float]] = [[], [], []]
        for number in range(6):
            three = processes[start + 3 * number : start + 3 * number + 3]
            for place in range(3):
                sides[order[place]].append(three[place if number % 2 == 0 else 2 - place])
        a, b, again = sides
        found += differs(paired_ratio(b, a, seed=repetition), paired_ratio(again, a, seed=repetition))
    assert found <= 5


# --- arithmetic


def test_the_ratio_is_the_geometric_mean_of_the_rounds() -> None:
    ratio = paired_ratio([2.0, 8.0], [1.0, 1.0])
    assert ratio == Ratio(pytest.approx(4.0), None, None, 2)  # type: ignore[arg-type]


def test_rounds_that_one_side_missed_are_left_out() -> None:
    ratio = paired_ratio([2.0, None, 2.0, 3.0], [1.0, 1.0, None, 1.0])
    assert ratio is not None
    assert (ratio.rounds, ratio.value) == pytest.approx((2, math.sqrt(6)))
    assert paired_ratio([None], [1.0]) is None


def test_few_rounds_claim_nothing() -> None:
    few = paired_ratio([2.0] * (MINIMUM_ROUNDS - 1), [1.0] * (MINIMUM_ROUNDS - 1))
    enough = paired_ratio([2.0] * MINIMUM_ROUNDS, [1.0] * MINIMUM_ROUNDS)
    control = paired_ratio([1.0] * MINIMUM_ROUNDS, [1.0] * MINIMUM_ROUNDS)
    assert not differs(few, control)
    assert differs(enough, control)
    assert not differs(enough, None)
    assert not differs(enough, few)


def test_a_difference_below_the_control_is_not_claimed() -> None:
    clear, noisy = Ratio(1.05, 1.04, 1.06, 6), Ratio(1.01, 0.92, 1.03, 6)
    assert clear.excludes_one()
    assert not differs(clear, noisy)
    assert differs(Ratio(1.10, 1.09, 1.11, 6), noisy)


def test_the_interval_is_the_same_every_time() -> None:
    times = [1.0, 1.1, 0.9, 1.2, 1.0, 1.05]
    assert paired_ratio(times, [1.0] * 6) == paired_ratio(times, [1.0] * 6)


def test_tails_match_students_t() -> None:
    from scipy.stats import norm, t

    for n in range(6, 21):
        wanted = norm.cdf(-math.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1))
        assert tail_probability(n) == pytest.approx(wanted, rel=3e-3)
    assert tail_probability(500) == pytest.approx(0.025, rel=0.01)


def test_unpaired_sessions() -> None:
    rng = np.random.default_rng(9)
    a, b = np.exp(rng.normal(0, 0.01, 8)), 1.2 * np.exp(rng.normal(0, 0.01, 6))
    ratio = unpaired_ratio(list(b), list(a))
    assert ratio is not None
    assert ratio.low is not None
    assert ratio.high is not None
    assert 1.15 < ratio.low < 1.2 < ratio.high < 1.25
    assert unpaired_ratio([], [1.0]) is None


def test_quantiles() -> None:
    assert quantiles([]) is None
    found = quantiles([5.0, 1.0, 2.0, 3.0, 4.0])
    assert found is not None
    assert dict(found) == {"n": 5, "min": 1.0, "p25": 2.0, "median": 3.0, "p75": 4.0, "p95": pytest.approx(4.8)}
