"""Quick gates take no longer than they say; what a compiler takes is not theirs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gpt_common.config import load_preset
from gpt_common.training.health import step_gates

GATES = ("loss", "causality", "positions", "micro_steps", "dropout", "schedule", "update", "derivative")


@pytest.mark.parametrize(("compiled", "left_out"), [(True, 0), (False, 7)])
def test_the_clock_starts_when_the_step_is_compiled(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, left_out: int
) -> None:
    now = [0.0]

    def gate(asked: Any, **_: bool) -> str:
        now[0] += 30.0 if asked.first else 1.0  # the first two compile
        asked.first = max(0, asked.first - 1)
        return "held"

    for name in GATES:
        monkeypatch.setattr(step_gates, f"check_{name}", gate)
    probe = SimpleNamespace(compiled=compiled)
    asked: Any = SimpleNamespace(probe=probe, config=load_preset("stories-cpu"), first=2, again=True)
    lines = step_gates.check_step(asked, "quick", clock=lambda: now[0])
    assert lines.count("health: held") == 8 - left_out
    assert asked.again == compiled
    assert ("left out" in lines[-1]) != compiled
