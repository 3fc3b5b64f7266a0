"""The study of calibration: its rows and its picture, of made-up findings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.studies.calibration import _row, drawing, main
from gpt_common.drawing import write_png
from gpt_common.errors import UserError
from gpt_common.judging.probes.calibration import Calibration, compared


def found(scale: float) -> Calibration:
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 3, (600, 5))
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return compared(scale * logits, true, np.arange(600) // 20)


def test_a_row_names_what_is_too_sure() -> None:
    assert _row("x 1.3", found(1.3)).endswith(" overconfident")
    assert _row("2000", found(1.0)).endswith(" calibrated")
    assert len(_row("2000", found(1.0))) <= 100


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    write_png(drawing({step: found(1 + step / 1000) for step in (100, 200, 500)}), tmp_path / "x.png", (900, 460))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_run_it_asks_which() -> None:
    with pytest.raises(UserError, match="which run"):
        main([])
