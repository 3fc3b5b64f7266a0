"""Run folders that nobody trained, for what reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_common.config import RunConfig, from_dict, to_toml

CONFIG: dict[str, dict[str, Any]] = {
    "model": {"vocab_size": 65, "block_size": 32, "n_layer": 1, "n_embd": 32, "n_head": 2},
    "train": {"max_steps": 40, "batch_size": 4},
}
SESSION = {
    "started": "2026-11-25T10:00:00+00:00",
    "command": "python -m torch_gpt.train --preset stories-cpu",
    "first_step": 0,
    "preset": "stories-cpu",
    "device": "PyTorch on cpu",
    "chip": "a chip",
    "os": "an OS",
    "versions": {"python": "3.12", "torch": "2"},
    "git": "0123456789ab",
}


def step(number: int, **values: Any) -> dict[str, Any]:
    """A row of a logged step that took 0.1 s, at 1280 tokens/s."""
    known = {"loss": 4.0 / number, "lr": 1e-3, "grad_norm": 0.5, "dt": 0.1, "dt_data": 0.0, "sps": 40.0, "tps": 1280.0}
    return {"step": number, **known, "mfu": None, "memory": 1 << 20, **values}


def evaluation(number: int, loss: float | None, **values: Any) -> dict[str, Any]:
    """A row of an evaluation."""
    return {"step": number, "train_loss": None, "val_loss": loss, "floor": 0.1, "best": True, **values}


def make_run(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    *,
    samples: Sequence[dict[str, Any]] = (),
    config: RunConfig | None = None,
    sessions: Sequence[dict[str, Any]] = (SESSION,),
    dataset: str = "stories",
) -> Path:
    """A folder as a run leaves it, without checkpoints."""
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(to_toml(config or from_dict(CONFIG)), encoding="utf-8")
    about = {"dataset": {"name": dataset, "fingerprint": "f" * 64}, "sessions": list(sessions)}
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    for name, lines in (("metrics.jsonl", rows), ("samples.jsonl", samples)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder
