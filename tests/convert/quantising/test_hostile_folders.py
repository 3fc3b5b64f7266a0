"""Damaged and hostile quantised folders: one line each, and nothing left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.convert.adapters.judges import base_run
from tests.convert.conftest import done, refused


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        settings = json.loads(path.read_text())
        change(settings)
        path.write_text(json.dumps(settings))

    return apply


def _resave(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})

    return apply


Q = "model.layers.0.self_attn.q_proj"
HOSTILE: dict[str, Callable[[Path], None]] = {
    "another mode": _edit(lambda c: c["quantization"].update(mode="mxfp4")),
    "a mode that is a list": _edit(lambda c: c["quantization"].update(mode=[1])),
    "bits that are not those": _edit(lambda c: c["quantization"].update(bits=8)),
    "a group that is not that": _edit(lambda c: c["quantization"].update(group_size=32)),
    "bits that are text": _edit(lambda c: c["quantization"].update(bits="4")),
    "bits that are null": _edit(lambda c: c["quantization"].update(bits=None)),
    "no bits": _edit(lambda c: c["quantization"].pop("bits")),
    "settings that are a list": _edit(lambda c: c.update(quantization=[4, 64])),
    "settings that are a number": _edit(lambda c: c.update(quantization=4)),
    "of another library": _edit(lambda c: c["quantization"].update(quant_method="gptq")),
    "a layer in another mode": _edit(
        lambda c: c["quantization"].update({Q: {"bits": 4, "group_size": 64, "mode": "nvfp4"}})
    ),
    "a layer in other bits": _edit(lambda c: c["quantization"].update({Q: {"bits": 2, "group_size": 64}})),
    "not said at all": _edit(lambda c: (c.pop("quantization"), c.pop("quantization_config"))),
    "no scales": _resave(lambda t: t.pop(f"{Q}.scales")),
    "no biases": _resave(lambda t: t.pop(f"{Q}.biases")),
    "no words": _resave(lambda t: t.pop(f"{Q}.weight")),
    "scales of another shape": _resave(lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"][:3].copy()})),
    "scales in one dimension": _resave(lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"].reshape(-1).copy()})),
    "scales without groups": _resave(lambda t: t.update({f"{Q}.scales": np.zeros((64, 0), np.float32)})),
    "words that are floats": _resave(lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"].view(np.float32).copy()})),
    "words that are bytes": _resave(lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"].view(np.uint8).copy()})),
    "words of three dimensions": _resave(lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"][None].copy()})),
    "half of the words": _resave(lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"][:, :4].copy()})),
    "scales that are infinite": _resave(lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"] * np.float32(np.inf)})),
    "scales that are integers": _resave(lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"].astype(np.int32)})),
    "scales of no matrix": _resave(lambda t: t.update({"model.norm.scales": np.ones((1,), np.float32)})),
    "scales of a stranger": _resave(lambda t: t.update({"model.stranger.scales": np.ones((1,), np.float32)})),
}


@pytest.fixture(scope="module")
def quantised_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    base_run("llama", folder, n_embd=64)
    done("quantise", folder / "base", "--judge-tokens", "0", "-o", folder / "run")
    done("export", folder / "run", "--to", "mlx-lm", "-o", folder / "words")
    return folder / "words"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folders(name: str, quantised_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(quantised_folder, tmp_path / "folder")
    HOSTILE[name](tmp_path / "folder")
    error = refused("import", tmp_path / "folder", "-o", tmp_path / "out")
    assert len(error.strip().splitlines()) == 1, error
    assert not (tmp_path / "out").exists()
