"""nanoGPT in float16: the gradient scaler skips updates that overflow, so AdamW has made fewer than iter_num says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gpt_common.training.checkpoint import find_checkpoint, read_manifest, validate
from gpt_common.training.manifest import OPTIMIZER_FILE
from tests.convert.conftest import done, refused
from tests.convert.sources import MODEL, nanogpt_entries


def saved(path: Path, steps: dict[int, float] | float, iter_num: int = 12) -> Path:
    """A ckpt.pt whose AdamW counts so many updates, for all parameters or by their numbers."""
    entries: dict[str, Any] = nanogpt_entries(MODEL)
    for index, entry in entries["optimizer"]["state"].items():
        count = steps.get(index, iter_num) if isinstance(steps, dict) else steps
        entry["step"] = torch.tensor(float(count))
    torch.save(entries | {"iter_num": iter_num, "config": {"dtype": "float16"}}, path / "ckpt.pt")
    return path / "ckpt.pt"


@pytest.mark.parametrize("count", [11, 9, 1, 0])
def test_moments_are_taken_and_the_difference_is_said(count: int, tmp_path: Path) -> None:
    said = done("import", saved(tmp_path, count), "-o", tmp_path / "run", "--tokenizer", "none")
    assert f"note: AdamW made {count} of the 12 updates: loss scaling skips those that overflow in float16" in said
    assert "step 12 with AdamW's state" in said
    checkpoint = find_checkpoint(tmp_path / "run", prefer="latest")
    validate(checkpoint)
    assert read_manifest(checkpoint).step == 12
    moments = load_file(checkpoint / OPTIMIZER_FILE)
    assert moments.keys() == MODEL.all_moments().keys()
    assert all(torch.equal(moments[name], moment) for name, moment in MODEL.all_moments().items())
    done("export", tmp_path / "run", "--to", "nanogpt", "-o", tmp_path / "back.pt")
    assert torch.load(tmp_path / "back.pt", weights_only=True)["iter_num"] == 12


def test_nothing_is_said_where_no_update_was_skipped(tmp_path: Path) -> None:
    assert "AdamW made" not in done("import", saved(tmp_path, 12), "-o", tmp_path / "run", "--tokenizer", "none")


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        (13.0, "AdamW made 13.0 steps for tensor transformer.wte.weight, iter_num is 12"),
        (-1.0, "AdamW made -1.0 steps"),
        (9.5, "AdamW made 9.5 steps"),
        (float("nan"), "AdamW made nan steps"),
        (float("inf"), "AdamW made inf steps"),
        ({3: 11}, "11 steps for tensor"),
    ],
)
def test_a_count_that_no_scaler_leaves_is_refused(steps: Any, says: str, tmp_path: Path) -> None:
    said = refused("import", saved(tmp_path, steps), "-o", tmp_path / "run", "--tokenizer", "none")
    assert says in said
    assert "--no-optimizer" in said
    assert not (tmp_path / "run").exists()
