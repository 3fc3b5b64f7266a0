"""A weight or moment that is NaN or infinite is refused by its name, whatever it comes from and goes to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt_common.training.manifest import all_finite
from tests.convert.conftest import done, refused
from tests.convert.hostile.corpus_families import deepseek, llama
from tests.convert.sources import BITS, MODEL, NOT_FINITE, SPECIAL, nanogpt_entries


def nanogpt_with(bits: int, dtype: str, place: Path, *, where: str = "weight") -> Path:
    """nanoGPT's checkpoint in which one number of one tensor has these bits."""
    kind, torch_dtype = BITS[dtype]
    wrong = torch.from_numpy(np.array([bits], kind).view(np.int32 if dtype == "F32" else np.int16)).view(torch_dtype)
    entries: dict[str, Any] = nanogpt_entries(MODEL)
    if where == "weight":
        entries["model"] = {name: torch.ones(w.shape, dtype=torch_dtype) for name, w in entries["model"].items()}
        entries["model"]["lm_head.weight"] = entries["model"]["transformer.wte.weight"]
        entries["model"]["transformer.h.1.mlp.c_proj.weight"][3, 5] = wrong[0]
    else:
        entries["optimizer"]["state"][0][where][1, 2] = wrong[0]
    torch.save(entries, place / "ckpt.pt")
    return place / "ckpt.pt"


@pytest.mark.parametrize(("dtype", "bits"), [(dtype, bits) for dtype, found in NOT_FINITE.items() for bits in found])
def test_every_kind_of_nan_and_infinity(dtype: str, bits: int, tmp_path: Path) -> None:
    said = refused("import", nanogpt_with(bits, dtype, tmp_path), "-o", tmp_path / "run", "--tokenizer", "none")
    assert "tensor transformer.h.1.mlp.c_proj.weight holds NaN or infinity" in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
def test_moments_too(moment: str, tmp_path: Path) -> None:
    source = nanogpt_with(NOT_FINITE["F32"][0], "F32", tmp_path, where=moment)
    said = refused("import", source, "-o", tmp_path / "run", "--tokenizer", "none")
    assert f"{moment} of tensor transformer.wte.weight holds NaN or infinity" in said
    done("import", source, "-o", tmp_path / "run", "--tokenizer", "none", "--no-optimizer")


@pytest.mark.parametrize("dtype", BITS)
def test_largest_and_smallest_numbers_are_finite(dtype: str, tmp_path: Path) -> None:
    for bits in SPECIAL[dtype]:
        source = nanogpt_with(bits, dtype, tmp_path)
        done("import", source, "-o", tmp_path / "run", "--tokenizer", "none", "--overwrite")


@pytest.mark.parametrize(("make", "name"), [(llama, "model.norm.weight"), (deepseek, "model.norm.weight")])
@pytest.mark.parametrize("to", ["native", "mlx-lm", "transformers"])
def test_in_folders_and_to_every_target(make: Callable[..., Any], name: str, to: str, tmp_path: Path) -> None:
    folder = make()(tmp_path)
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights[name][2] = float("-inf")
    save_file(weights, file, {"format": "pt"})
    said = refused("export", folder, "--to", to, "-o", tmp_path / "out", "--tokenizer", "none")
    assert f"tensor {name} holds NaN or infinity" in said
    assert not list(tmp_path.glob("out*"))


def test_float64_that_is_cast(tmp_path: Path) -> None:
    weights = {name: torch.ones(w.shape, dtype=torch.float64) for name, w in MODEL.weights().items()}
    weights["final_norm.weight"][1] = float("nan")
    torch.save(weights, tmp_path / "w.pt")
    (tmp_path / "model.toml").write_text("[model]\nn_head = 2\n")
    flags = ("--config", tmp_path / "model.toml", "--dtype", "float32")
    said = refused("import", tmp_path / "w.pt", "-o", tmp_path / "run", *flags)
    assert "tensor final_norm.weight holds NaN or infinity" in said


def test_whole_numbers_are_always_finite() -> None:
    assert all_finite("I32", b"\xff" * 8)
    assert not all_finite("F64", np.array([1.0, np.inf]).tobytes())
