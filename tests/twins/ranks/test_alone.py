"""Without other ranks nothing is joined, summed or waited for: one process trains as if there were no such thing."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest

from tests.twins import TWINS, tiny, train

both = pytest.mark.parametrize("twin", TWINS)


@both
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"MLX_RANK": "0", "MLX_HOSTFILE": os.devnull},
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
    ],
    ids=["no launcher", "torchrun", "mlx.launch", "MPI"],
)
def test_one_rank_calls_no_engine(
    twin: str, environment: dict[str, str], tmp_path: Path, stories_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a collective of one")

    distributed = import_module(f"{twin}.distributed")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "join", never)
    monkeypatch.setattr(distributed.Ranks, "gathered", never)
    monkeypatch.setattr(distributed.Ranks, "summed", never)
    monkeypatch.setattr(distributed, "watched", never)
    quick = ("--health-gates", "quick", "--max-minutes", "1", "--max-steps", "3")
    train(twin, *tiny(stories_dir, *quick), "--stop-at", "3", "--out", tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "step-000003").is_dir()


@both
def test_alone_a_sum_is_what_it_was_given(twin: str) -> None:
    ranks = import_module(f"{twin}.distributed").Ranks()
    loss, gradients = object(), object()
    given = (loss, gradients) if twin == "mlx_gpt" else (loss,)
    found = ranks.add_up(None, *given)
    assert found is loss or (found[0] is loss and found[1] is gradients)
    assert ranks.dealt(["a", "b"]) == [(0, "a"), (1, "b")]
