"""`--follow` by two ranks: they wait for each other's tokens, and make the run of one on the finished dataset."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="extra hub")

# isort: split
from gpt_common.data import batches
from tests.gpt_common.data.larger.hub import Texts, one_more_shard, prepared, three_files
from tests.twins import TWINS, tiny, train
from tests.twins.ranks.launching import Job, launch
from tests.twins.ranks.test_ranks import rows, same_bits

STEPS = 24
"""Of 128 tokens, two pools."""
CONSTANTS: tuple[tuple[str, str, float], ...] = (
    ("gpt_common.data.batches", "POOL_TOKENS", 128),
    ("gpt_common.training.following", "POLL_SECONDS", 0.005),
    ("gpt_common.training.following", "LOOK_SECONDS", 0.0),
    ("gpt_common.data.corpora.following", "POLL_SECONDS", 0.005),
    ("gpt_common.data.corpora.following", "GRACE_SECONDS", 0.0),
)


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Texts]:
    monkeypatch.setattr(batches, "POOL_TOKENS", 128)
    with three_files(tmp_path, monkeypatch) as hub:
        yield hub


@pytest.mark.parametrize("twin", TWINS)
def test_two_ranks_follow_as_one_reads(twin: str, tmp_path: Path) -> None:
    data, run = Path("data").absolute(), str(tmp_path / "run")
    argv = tiny(data, "--dataset", "mine", "--follow", "--block-size", "16", "--max-steps", str(STEPS))
    argv += ["--log-interval", "1", "--eval-interval", "8", "--checkpoint-interval", "0", "--grad-accum-steps", "2"]
    prepared()
    train(twin, *argv, "--out", tmp_path / "whole")
    shutil.rmtree(data)
    for _ in range(3):
        one_more_shard()
    first: Any = Job("first", (*argv, "--out", run), constants=CONSTANTS)
    found = launch(twin, [first], tmp_path / "one")
    assert "UserError: nobody prepares 'mine' any more: go on with `python -m gpt_common.data" in found[0]["first"]
    assert f"then `python -m {twin}.train --resume {run}` goes on" in found[0]["first"]
    assert 0 < rows(Path(run))[-1]["step"] < STEPS
    prepared()
    found = launch(twin, [Job("on", ("--resume", run), constants=CONSTANTS)], tmp_path / "two")
    assert [rank["on"] for rank in found] == ["done", "done"]
    assert same_bits(Path(run), tmp_path / "whole", STEPS)
