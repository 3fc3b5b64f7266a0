"""The time of a step holds training and nothing else; a machine that sleeps is noticed and left out."""

from __future__ import annotations

import math

import pytest

from gpt_common.training.log.timing import StepTimer


class Machine:
    """Two clocks that a test moves: one stands still in sleep, the calendar does not."""

    def __init__(self) -> None:
        self.running, self.calendar = 100.0, 1.8e9
        self.timer = StepTimer(clock=lambda: self.running, wall=lambda: self.calendar)
        self.step = 0

    def work(self, seconds: float) -> None:
        self.running += seconds
        self.calendar += seconds

    def train(self, *durations: float, waited: bool = True) -> list[str]:
        alarms = []
        for seconds in durations:
            self.work(seconds)
            self.step += 1
            alarms += self.timer.lap(self.step, waited=waited)
        return alarms


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_the_mean_of_a_window(machine: Machine) -> None:
    machine.train(9.0, 0.1, 0.2, 0.3)
    assert machine.timer.window() == pytest.approx((0.2, 0))
    machine.train(0.4)
    assert machine.timer.window() == pytest.approx((0.4, 0))


def test_the_first_step_compiles_and_does_not_count(machine: Machine) -> None:
    machine.train(30.0)
    mean, skipped = machine.timer.window()
    assert math.isnan(mean)
    assert skipped == 0


def test_pauses_are_left_out_wherever_they_fall(machine: Machine) -> None:
    machine.train(1.0)
    with machine.timer.paused():
        machine.work(50.0)
    machine.work(0.06)
    with machine.timer.paused():
        machine.work(7.0)
        machine.calendar += 3600  # asleep during an evaluation: no step took part in it
    assert machine.train(0.04) == []
    assert machine.timer.window() == pytest.approx((0.1, 0))


def test_a_pause_that_fails_still_ends(machine: Machine) -> None:
    machine.train(1.0)

    def fail_to_save() -> None:
        with machine.timer.paused():
            machine.work(5.0)
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail_to_save()
    machine.train(0.1)
    assert machine.timer.window() == pytest.approx((0.1, 0))


def test_a_throttled_step_is_said_left_out_and_counted(machine: Machine) -> None:
    assert machine.train(5.0, *[0.1] * 10, 0.9) == [], "nine times the median may be a busy neighbour"
    (alarm,) = machine.train(2.48)
    assert alarm == ("step 13 took 2.48 s, 25 times the median: throttled or busy; left out of the averages (1 so far)")
    mean, skipped = machine.timer.window()
    assert mean == pytest.approx((10 * 0.1 + 0.9) / 11)
    assert skipped == 1
    assert machine.timer.window()[1] == 0
    assert machine.timer.skipped == 1


def test_a_laptop_that_slept_is_told_from_its_calendar(machine: Machine) -> None:
    machine.train(5.0, *[0.25] * 6)
    machine.calendar += 1485.94
    (alarm,) = machine.train(0.3)
    assert alarm.startswith("step 8: the machine slept for 1486 s (or its clock was set); left out of the averages")
    assert machine.timer.window() == pytest.approx((0.25, 1))


def test_a_nap_is_told_from_a_calendar_that_is_put_right(machine: Machine) -> None:
    machine.train(5.0, *[0.25] * 6)
    machine.calendar += 9
    assert machine.train(0.25) == []
    machine.calendar += 11
    assert len(machine.train(0.25)) == 1


def test_a_calendar_set_back_is_no_sleep(machine: Machine) -> None:
    machine.train(5.0, *[0.25] * 6)
    machine.calendar -= 3600
    assert machine.train(0.25) == []


def test_nothing_is_judged_before_there_is_a_median(machine: Machine) -> None:
    assert machine.train(5.0, 0.1, 0.1, 3.0) == []


def test_a_machine_that_stays_slow_becomes_the_new_usual_and_does_not_flood(machine: Machine) -> None:
    machine.train(5.0, *[0.1] * 100)
    alarms = machine.train(*[2.0] * 200)
    assert 1 <= len(alarms) <= 8, "the first, then every time that their number doubles"
    machine.timer.window()
    machine.train(*[2.0] * 10)
    assert machine.timer.window() == pytest.approx((2.0, 0))


def test_steps_that_are_only_queued_are_timed_when_they_are_waited_for(machine: Machine) -> None:
    """A GPU takes orders at once and works them off later: the tenth step is not ten times slower than the others."""
    for _ in range(20):
        assert machine.train(*[0.001] * 9, waited=False) == []
        assert machine.train(0.991) == []
    assert machine.timer.window() == pytest.approx((0.1, 0))
    machine.train(*[0.001] * 9, waited=False)
    assert len(machine.train(3.5)) == 1
    assert machine.timer.window()[1] == 10


def test_what_came_before_training_is_no_part_of_a_step(machine: Machine) -> None:
    machine.train(1.0)
    machine.work(60.0)
    machine.timer.restart()
    machine.train(0.1)
    assert machine.timer.window() == pytest.approx((0.1, 0))


def test_totals_hold_what_was_timed(machine: Machine) -> None:
    machine.train(5.0, *[0.1] * 10, 5.0)
    assert machine.timer.total_steps == 10
    assert machine.timer.total_seconds == pytest.approx(1.0)
