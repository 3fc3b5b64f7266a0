"""What ranks do when they are averaged: the mean, an outer step of Nesterov's, and what is wished; no engine."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gpt_common.config import TrainConfig
from gpt_common.errors import UserError
from gpt_common.training.manifest import OUTER_FILE
from gpt_common.training.ranks.agreement import Agreement
from gpt_common.training.ranks.averaging import Averaging


class Held:
    """Weights and moments of one rank."""

    def __init__(self) -> None:
        self.held = {"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}
        self.moved = {"exp_avg.a": np.ones((2, 3), np.float32)}

    def weights(self) -> dict[str, Any]:
        return {name: value.copy() for name, value in self.held.items()}

    def set_weights(self, weights: dict[str, Any]) -> None:
        self.held = dict(weights)

    def moments(self) -> dict[str, Any]:
        return dict(self.moved)

    def set_moments(self, moments: dict[str, Any], step: int) -> None:
        self.moved, self.step = dict(moments), step


class Doubled(Agreement):
    """The first of two ranks, of which the other has `more` than this one in each number."""

    more = 0.0

    def added(self, mine: Any) -> Any:
        return (mine + (mine + np.float32(self.more))).astype(np.float32)


def averaging(more: float, resumed: Path | None = None, **fields: float) -> SimpleNamespace:
    ranks, held = Doubled(0, 2), Held()
    ranks.more = more
    train = TrainConfig(average_every=2, **fields)  # type: ignore[arg-type]
    return SimpleNamespace(ranks=ranks, held=held, it=Averaging(train, ranks, held, resumed))  # type: ignore[arg-type]


def test_an_average_is_the_mean_of_weights_and_moments_to_the_bit() -> None:
    found = averaging(0.5)
    found.it.average(2)
    assert (found.held.held["a"] == 1.25).all()
    assert (found.held.held["b"] == 0.25).all()
    assert (found.held.moved["exp_avg.a"] == 1.25).all()
    assert found.held.step == 2


def test_outer_steps_are_nesterovs_as_torch_makes_them() -> None:
    found = averaging(0.5, outer_rate=0.7, outer_momentum=0.9)
    weight = torch.nn.Parameter(torch.ones(2, 3))
    outer = torch.optim.SGD([weight], lr=0.7, momentum=0.9, nesterov=True)
    for step in (2, 4, 6):
        held = found.held.weights()
        found.held.set_weights({name: value + np.float32(0.1 * step) for name, value in held.items()})
        weight.grad = weight.detach() - torch.from_numpy(found.held.held["a"] + np.float32(0.25))
        found.it.average(step)
        outer.step()
        assert np.allclose(found.held.held["a"], weight.detach().numpy(), rtol=1e-6)


def test_the_outer_momentum_is_saved_and_taken_up(tmp_path: Path) -> None:
    first = averaging(0.5, outer_rate=0.7, outer_momentum=0.9)
    first.it.average(2)
    first.it.save(tmp_path)
    second = averaging(0.5, tmp_path, outer_rate=0.7, outer_momentum=0.9)
    second.held.set_weights(first.held.weights())
    second.it.anchor = first.held.weights()
    for each in (first, second):
        each.it.average(4)
    assert all(np.array_equal(first.held.held[name], second.held.held[name]) for name in ("a", "b"))
    plain = averaging(0.5)
    (tmp_path / "plain").mkdir()
    plain.it.save(tmp_path / "plain")
    assert not (tmp_path / "plain" / OUTER_FILE).exists()


def test_a_wish_is_agreed_on_at_an_average() -> None:
    found = averaging(0.0)
    found.ranks.wish(signal.SIGTERM)
    assert found.ranks.stopped_by is None
    assert [found.it.due(step, 5) for step in range(1, 6)] == [False, True, False, True, True]
    found.it.average(2)
    assert found.ranks.stopped_by == signal.SIGTERM


@pytest.mark.parametrize(
    "fields", [{"outer_rate": 0.7}, {"outer_momentum": 0.9}, {"average_every": 2, "outer_rate": 0.0}]
)
def test_fields_that_mean_nothing(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="outer_rate"):
        TrainConfig(**fields)
