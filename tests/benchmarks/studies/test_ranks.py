"""What the study of ranks makes of two trainings; nothing here times."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from benchmarks.studies.ranks import RankStudy, Trained, figures, launcher, summary
from gpt_common.errors import UserError


def test_efficiency_is_of_what_so_many_ranks_might_have_done() -> None:
    one, two = Trained(0.100, 0.0, (3.0, 2.0), "a"), Trained(0.0625, 0.005, (3.0, 2.0), "a")
    lines = summary(RankStudy(), [one, one], [two, two])
    assert lines[0] == "one rank 100.0 ms a step, 2 ranks 62.5 ms, 8.0% of it in sums"
    assert lines[1].startswith("efficiency 0.800 ")
    assert lines[2] == "losses at most 0.0e+00 apart; weights at the end: the same bytes"
    other = Trained(0.0625, 0.005, (3.0, 2.5), "b")
    assert summary(RankStudy(), [one], [other])[2] == "losses at most 5.0e-01 apart; weights at the end: other bytes"


def test_the_first_records_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"weights")
    rows: list[dict[str, object]] = [{"loss": 4.0, "dt": None}, {"val_loss": 3.0}]
    rows += [{"loss": 3.0, "dt": dt, "dt_ranks": dt / 10} for dt in (9.0, 1.0, 2.0, 3.0)]
    found = figures(rows, tmp_path / "w")
    assert (found.seconds, found.waited) == (2.0, 0.2)
    assert found.losses == (4.0, 3.0, 3.0, 3.0, 3.0)
    assert found.weights == hashlib.sha256(b"weights").hexdigest()


def test_one_rank_has_no_launcher() -> None:
    assert launcher("torch", 1)[1:] == ["-m", "torch_gpt.train"]
    assert "--nproc-per-node=2" in launcher("torch", 2)
    assert launcher("mlx", 2)[-2:] == ["-m", "mlx_gpt.train"]
    with pytest.raises(UserError):
        RankStudy(ranks=1)
