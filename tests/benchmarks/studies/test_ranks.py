"""What the study of ranks makes of two trainings; nothing here times."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.devices.expectation import expected
from benchmarks.studies.ranks import RankStudy, Trained, expectations, figures, summary
from gpt_common.config import load_preset, to_dict
from gpt_common.errors import UserError
from gpt_common.training.checkpoint import place_of, write_checkpoint
from gpt_common.training.manifest import MODEL_FILE, Manifest

CONFIG = load_preset("stories-cpu").with_vocabulary(54)


def test_efficiency_is_of_what_so_many_ranks_might_have_done() -> None:
    one, two = Trained(0.100, 0.0, (3.0, 2.0), "a", CONFIG), Trained(0.0625, 0.005, (3.0, 2.0), "a", CONFIG)
    lines = summary(RankStudy(), [one, one], [two, two])
    assert lines[0] == "one rank 100.0 ms a step, 2 ranks 62.5 ms, 8.0% of it in sums"
    assert lines[1].startswith("efficiency 0.800 ")
    assert lines[2] == "losses at most 0.0e+00 apart; weights at the end: the same bytes"
    other = Trained(0.0625, 0.005, (3.0, 2.5), "b", CONFIG)
    assert summary(RankStudy(), [one], [other])[2] == "losses at most 5.0e-01 apart; weights at the end: other bytes"


def test_what_the_plan_expects_stands_beside_what_was_measured() -> None:
    """10 million numbers go 13 times over memory at 10 GB/s: 36 ms of the update whole, 16 ms of copies."""
    step = replace(expected(1.036, 10**7, 2, 0.023, 1e10), waits=0.025)
    lines = expectations([Trained(0.5, 0.01, (3.0,), "a", CONFIG)] * 3, [step] * 3)
    assert lines[0] == (
        "plan.py expects 600.0 ms: 500.0 of micro-steps, 36.0 of the update, 16.0 of copies, 23.0 of the sum alone, "
        "25.0 slowed and waiting"
    )
    assert lines[1].startswith("that is +20.0 % from the measured step (median of 3, +20.0 to +20.0 %)")


def test_the_first_records_are_left_out(tmp_path: Path) -> None:
    save = lambda folder: save_file({"w": np.zeros(3, np.float32)}, folder / MODEL_FILE)  # noqa: E731
    write_checkpoint(tmp_path, Manifest(step=9, config=to_dict(CONFIG)), write_files=save, best=False, keep=1)
    rows: list[dict[str, object]] = [{"loss": 4.0, "dt": None}, {"val_loss": 3.0}]
    rows += [{"loss": 3.0, "dt": dt, "dt_ranks": dt / 10} for dt in (9.0, 1.0, 2.0, 3.0)]
    found = figures(rows, place_of(tmp_path, 9))
    assert (found.seconds, found.waited) == (2.0, 0.2)
    assert found.losses == (4.0, 3.0, 3.0, 3.0, 3.0)
    assert found.weights == hashlib.sha256((place_of(tmp_path, 9) / MODEL_FILE).read_bytes()).hexdigest()
    assert found.config == CONFIG


def test_two_ranks_at_least() -> None:
    with pytest.raises(UserError):
        RankStudy(ranks=1)
