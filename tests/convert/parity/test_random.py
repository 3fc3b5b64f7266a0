"""Configurations by chance climb from bytes to one step; the number of one that fails repeats it as a command."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from convert.parity.climb import Climb
from convert.parity.command import main
from convert.parity.ladder import climb_ladder
from convert.parity.mutants.every import MUTANTS
from convert.parity.random_configs import RUNGS, random_config
from convert.parity.report.console import line
from gpt_common.config import ModelConfig, OptimConfig, RunConfig
from gpt_common.errors import WorkFailed
from gpt_common.machine.backends import BACKENDS

pytestmark = pytest.mark.parity

SEEDS = st.integers(0, 2**32 - 1)
COMMON = settings(
    deadline=None,
    # A smaller number is no simpler configuration.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)


def climb_random(seed: int) -> None:
    """Climb with the configuration of `seed`; a failure says how to repeat it."""
    command = f"python -m convert parity --random {seed}"
    config, precision = random_config(seed)
    climb = Climb(config, [BACKENDS["cpu"], BACKENDS["mlx-cpu"]], precision, optimizer_steps=60, long_sums=False)
    report = climb_ladder(climb, RUNGS)
    assert report.failed is None, f"{command}\n{line(report.failed)}"


@settings(COMMON, max_examples=10, derandomize=True)
@given(seed=SEEDS)
def test_ten_random_configurations(seed: int) -> None:
    climb_random(seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(COMMON, max_examples=50, database=None)
@given(seed=SEEDS)
def test_fifty_random_configurations(seed: int) -> None:
    climb_random(seed)


def test_the_command_repeats_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """With a wrong twin the test names a command; the command fails at the same rung."""
    mutant = next(m for m in MUTANTS if m.name == "no bias correction (MLX's default)")
    with mutant.change():
        with pytest.raises(AssertionError, match=r"python -m convert parity --random 3\n *L6a ") as failure:
            climb_random(3)
        command = str(failure.value).splitlines()[0].strip()
        with pytest.raises(WorkFailed, match="breaks at rung L6a"):
            main(command.split()[4:])
    assert "FAILS" in capsys.readouterr().out


def test_every_field_that_changes_the_numbers_is_drawn() -> None:
    """Over many seeds each field of model and optimiser takes several values; a field left out would stay one."""
    drawn = [random_config(seed)[0] for seed in range(60)]
    for kind, section in ((ModelConfig, "model"), (OptimConfig, "optim")):
        for field in dataclasses.fields(kind):
            values = {getattr(getattr(config, section), field.name) for config in drawn}
            # Masks are shared here; a mean of the weights is no number of a step (tests/twins/test_average.py).
            assert len(values) > 1 or field.name in ("dropout_rng", "ema_decay"), f"{field.name} is always {values}"
    for name in ("batch_size", "grad_accum_steps", "gradient_checkpointing", "seed"):
        assert len({getattr(config.train, name) for config in drawn}) > 1
    assert {random_config(seed)[1] for seed in range(60)} == {"strict", "bf16"}
    assert random_config(5) == random_config(5) != random_config(6)
    assert isinstance(drawn[0], RunConfig)
