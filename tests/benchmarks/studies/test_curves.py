"""Loss curves: a picture of two runs, one of them still going, and what cannot be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.studies.curves import main
from gpt_common.errors import UserError


def write_run(folder: Path, steps: int) -> None:
    folder.mkdir()
    rows = [{"step": 0, "train_loss": None, "val_loss": 4.0, "floor": 0.1, "best": True}]
    rows += [{"step": step, "loss": 4 / step} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": ')


def test_two_runs_are_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, steps in (("a", 9), ("b", 3)):
        write_run(tmp_path / name, steps)
    out = tmp_path / "curves.png"
    main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)])
    assert out.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{out}\n"


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing argument: RUN"):
        main([])
    write_run(tmp_path / "young", 0)
    with pytest.raises(UserError, match="young has no logged losses yet"):
        main([str(tmp_path / "young")])
    write_run(tmp_path / "run", 2)
    with pytest.raises(UserError, match=r"cannot write .*/nowhere/a\.png"):
        main([str(tmp_path / "run"), "--out", str(tmp_path / "nowhere" / "a.png")])
